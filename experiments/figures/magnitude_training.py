"""What came out of `experiments.magnitude_training`: numbers and the figure."""

import math
import pathlib
import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import published
from experiments.figures import style
from experiments.harness import command
from experiments.harness.sweeps import Row, by_run
from experiments.harness.tables import Table, mean_and_range, power


def accuracies(rows: list[Row]) -> dict[int, dict[float, list[float]]]:
    """Best accuracies in per cent, one a seed: by rounds, by compression."""
    found: dict[int, dict[float, list[float]]] = {}
    for row in rows:
        if row["kind"] == "ticket":
            of = found.setdefault(row["rounds"], {})
            of.setdefault(row["compression"], []).append(100 * row["best"])
    return {n: dict(sorted(of.items())) for n, of in sorted(found.items())}


def survived(rows: list[Row]) -> dict[int, float | None]:
    """By rounds: the largest compression up to which no layer is empty in any seed."""
    found = {}
    for n in sorted({row["rounds"] for row in rows if row["kind"] == "ticket"}):
        own = [row for row in rows if row["kind"] == "ticket" and row["rounds"] == n]
        found[n] = None
        for c in sorted({row["compression"] for row in own}):
            at = [row for row in own if row["compression"] == c]
            if any(not kept for row in at for _, kept, _ in row["layers"]):
                break
            found[n] = c
    return found


def weights_of(row: Row) -> dict[str, tuple[int, float]]:
    """Of a row of norms: the layers' kernels, with their sizes and squared norms."""
    return {
        name.rsplit("/", 1)[0]: (size, squares)
        for name, size, squares in row["leaves"]
        if name.endswith("kernel")
    }


def growths(rows: list[Row]) -> dict[str, list[list[Row]]]:
    """The rows of norms of each watched training, epoch by epoch: by network, by seed."""
    configs = command.configs(rows)
    of_runs = by_run(row for row in rows if row["kind"] == "norms")
    found: dict[str, list[list[Row]]] = {}
    for run, norms in of_runs.items():
        found.setdefault(configs[run]["network"], []).append(norms)
    return found


def conserved(norms: list[Row]) -> dict[str, list[float]]:
    """By layer: how much its squared weights have grown after each epoch, as conserved.

    The growth of the biases of the layers before it is taken off, since at every hidden
    unit what comes in by its weights and its bias goes out by its weights (theorem 1). In
    the limit of small steps the numbers of all layers are equal.
    """
    grown: dict[str, list[float]] = {}
    for row in norms:
        squares = {name: value for name, _, value in row["leaves"]}
        first = {name: value for name, _, value in norms[0]["leaves"]}
        carried = 0.0
        for layer in weights_of(row):
            kernel, bias = f"{layer}/kernel", f"{layer}/bias"
            grown.setdefault(layer, []).append(squares[kernel] - first[kernel] - carried)
            carried += squares.get(bias, 0.0) - first.get(bias, 0.0)
    return grown


def slope(row: Row) -> float:
    """Of the average squared weight against one over the size of a layer, log-log."""
    sizes, squares = zip(*weights_of(row).values())
    average = [math.log(s / n) for s, n in zip(squares, sizes)]
    return float(np.polyfit([-math.log(n) for n in sizes], average, 1)[0])


def tables(rows: list[Row]) -> list[Table]:
    """The accuracy by rounds and compression, how far each number of rounds comes, and how
    the squared weights grow."""
    found = accuracies(rows)
    compressions = sorted({c for of in found.values() for c in of})
    body = [
        [f"{n}", *(_cell(of.get(c, [])) for c in compressions)] for n, of in found.items()
    ]
    whole = survived(rows)
    for cells, n in zip(body, found):
        cells.append("nowhere" if whole[n] is None else f"{power(whole[n])}")
    title = (
        "Best held-out accuracy in per cent, median over seeds (lowest to highest); last: "
        "up to where no layer is empty in any seed"
    )
    headings = ["rounds", *map(power, compressions), "no layer empty up to"]
    made = [Table(title, headings, body)] if body else []
    return made + _growth_tables(rows)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    return mean_and_range(statistics.median(values), min(values), max(values))


def _growth_tables(rows: list[Row]) -> list[Table]:
    body = []
    for network, seeds in growths(rows).items():
        for norms in seeds:
            ends = norms[0], norms[len(norms) // 10], norms[-1]
            grown = conserved(norms)
            after = [[own[i] for own in grown.values()] for i in (len(norms) // 10, -1)]
            spans = [style.span(values, ".3g") for values in after]
            slopes = " ".join(f"{slope(row):.2f}" for row in ends)
            body.append([network, str(norms[-1]["epoch"]), *spans, slopes])
    title = (
        "Growth of the squared weights of the layers, the growth of earlier biases taken "
        "off, a line a seed; and the log-log slope of the average squared weight against "
        "one over the size, before, after a tenth of the training and after it"
    )
    headings = ["network", "epochs", "after a tenth", "after all", "slopes"]
    return [Table(title, headings, body)] if body else []


# --- the figure ---------------------------------------------------------------------------

_COLORS = ("#D55E00", "#E69F00", "#0072B2")
_MARKERS = ("s", "^", "o")


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Accuracy by rounds, ours and the published, and the squared weights in training."""
    watched = growths(rows)
    lines = 1 + len(watched)
    with style.settings():
        figure = Figure((9.2, 3.5 * lines), layout="constrained")
        panels = figure.subplots(lines, 2, squeeze=False)
        _tickets(panels[0, 0], rows)
        _published(panels[0, 1])
        for (by_size, growth), (network, seeds) in zip(panels[1:], watched.items()):
            _by_size(by_size, seeds[0])
            by_size.set_title(f"{network}; dotted: slope 1", loc="left")
            for norms in seeds:
                _growth(growth, norms, legend=norms is seeds[0])
            growth.set_title(f"{network}, {len(seeds)} seeds, one line a layer", loc="left")
        figure.savefig(path, dpi=160)


def _tickets(axes: Axes, rows: list[Row]) -> None:
    """A line through the medians; the seeds as points, side by side."""
    for place, ((n, found), color) in enumerate(zip(accuracies(rows).items(), _COLORS)):
        x = [c + 0.04 * (place - 1) for c in found]
        label = f"{n} round{'s' if n > 1 else ''}"
        medians = [statistics.median(values) for values in found.values()]
        axes.plot(x, medians, color=color, marker=_MARKERS[place], label=label)
        for at, values in zip(x, found.values()):
            axes.plot(
                [at] * len(values), values, _MARKERS[place], color=color, ms=3, alpha=0.5
            )
    first = next((row for row in rows if row["kind"] == "ticket"), None)
    if first is not None:
        axes.set_title(f"{first['network']}, {first['dataset']}", loc="left")
        axes.legend(loc="lower left")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("accuracy (%)")
    style.compressions(axes)


def _published(axes: Axes) -> None:
    numbers = published.load("magnitude_training")["accuracy"]
    for (n, pairs), color, marker in zip(numbers.items(), _COLORS, _MARKERS):
        axes.plot(*zip(*pairs), color=color, marker=marker, ls="--", lw=1.1, ms=3.5)
    axes.set_title("vgg11, cifar10 (published)", loc="left")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("accuracy (%)")
    style.compressions(axes)


def _by_size(axes: Axes, norms: list[Row]) -> None:
    """The average squared weight of each layer before, during and after training."""
    shown = sorted({0, len(norms) // 10, len(norms) - 1})
    for place, color in zip(shown, (style.PALE, "#56B4E9", "#0072B2")):
        sizes, squares = zip(*weights_of(norms[place]).values())
        x, y = [1 / n for n in sizes], [s / n for s, n in zip(squares, sizes)]
        label = f"epoch {norms[place]['epoch']}, slope {slope(norms[place]):.2f}"
        axes.plot(x, y, "o", color=color, label=label)
    low, high = min(x), max(x)
    middle = math.exp(statistics.fmean(math.log(b / a) for a, b in zip(x, y)))
    axes.plot([low, high], [low * middle, high * middle], color=style.INK, lw=0.9, ls=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("1 / size of the layer")
    axes.set_ylabel("average squared weight")
    axes.legend(loc="upper left")


def _growth(axes: Axes, norms: list[Row], *, legend: bool) -> None:
    grown = conserved(norms)
    shades = np.linspace(0.25, 1, len(grown))
    for (layer, values), shade in zip(grown.items(), shades):
        label = layer if legend else None
        axes.plot(values, color="#0072B2", alpha=shade, label=label, lw=1.3)
    axes.set_xlabel("epoch")
    axes.set_ylabel("growth of the squared weights")
    axes.legend(fontsize=8)

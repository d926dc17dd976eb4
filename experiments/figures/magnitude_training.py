"""What came out of `experiments.magnitude_training`: numbers, sentences and the figure."""

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
from experiments.harness.sweeps import Row
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


def conserved(rows: list[Row]) -> dict[str, list[float]]:
    """By layer: how much its squared weights have grown after each epoch, as conserved.

    The growth of the biases of the layers before it is taken off, since at every hidden
    unit what comes in by its weights and its bias goes out by its weights (theorem 1). In
    the limit of small steps the numbers of all layers are equal.
    """
    norms = [row for row in rows if row["kind"] == "norms"]
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
    """The mean and the range of the accuracy by rounds and compression."""
    found = accuracies(rows)
    compressions = sorted({c for of in found.values() for c in of})
    body = [
        [f"{n}", *(_cell(of.get(c, [])) for c in compressions)] for n, of in found.items()
    ]
    title = "Best held-out accuracy in per cent, mean over seeds (lowest to highest)"
    headings = ["rounds", *map(power, compressions)]
    return [Table(title, headings, body)] if body else []


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    return mean_and_range(statistics.fmean(values), min(values), max(values))


def sentences(rows: list[Row]) -> list[str]:
    """Up to where each number of rounds goes, and how equal the growth is."""
    texts = []
    parts = []
    for n, c in survived(rows).items():
        where = "no compression tried" if c is None else f"10^{c:g}"
        parts.append(f"{n} round{'s' if n > 1 else ''} up to {where}")
    if parts:
        texts.append(
            "No layer of any seed's network is emptied by magnitude pruning after training "
            f"in {', '.join(parts)}. (In the paper's Fig. 5a, on VGG-11, accuracy is at "
            "chance from 10^1.9 with 1 round and from 10^3.5 with 2; with 3 it is not.)"
        )
    texts += _by_rounds(accuracies(rows))
    norms = [row for row in rows if row["kind"] == "norms"]
    if norms:
        spans = []
        for place in sorted({len(norms) // 10, len(norms) - 1}):
            grown = [values[place] for values in conserved(rows).values()]
            number = norms[place]["epoch"]
            spans.append(f"{min(grown):.4g} to {max(grown):.4g} after {number} epochs")
        texts.append(
            f"The squared weights of the {len(weights_of(norms[0]))} layers have grown by "
            f"{', '.join(spans)} (the growth of earlier biases taken off): equal for small "
            "steps, while the noise of steps that are not adds to the first layers. The "
            "log-log slope of average squared weight against one over size went from "
            f"{slope(norms[0]):.2f} to {slope(norms[-1]):.2f}; equal growth from zero "
            "would give 1, the line to which the paper's Fig. 5b converges."
        )
    return texts


def _by_rounds(found: dict[int, dict[float, list[float]]]) -> list[str]:
    """The mean accuracies where the numbers of rounds differ most."""
    means = {n: {c: statistics.fmean(v) for c, v in of.items()} for n, of in found.items()}
    shared = set.intersection(*map(set, means.values())) if means else set()
    if len(means) < 2 or not shared:
        return []

    def spread(c):
        return max(of[c] for of in means.values()) - min(of[c] for of in means.values())

    c = max(sorted(shared), key=spread)
    listed = ", ".join(f"{n}: {of[c]:.1f} %" for n, of in means.items())
    where = f"at 10^{c:g}, where the mean accuracy is, by rounds"
    return [f"The rounds differ most {where}, {listed}."]


def caption(rows: list[Row]) -> str:
    """What was trained on what."""
    texts = []
    for kind in ("rounds", None):
        own = [c for c in command.configs(rows).values() if ("rounds" in c) == bool(kind)]
        if own:
            training = own[0]["training"]
            what = "each round and the end" if kind else "without weight decay"
            texts.append(
                f"{own[0]['network']} on {own[0]['dataset']}, {training['epochs']} epochs "
                f"({what}), learning rate {training['learning_rate']:g}, "
                f"{len({c['seed'] for c in own})} seeds"
            )
    return (
        "Magnitude pruning after training in rounds, weights set back to their initial "
        "values, mean and range of the best held-out accuracy; and squared weights in "
        "training: " + "; ".join(texts) + "."
    )


# --- the figure ---------------------------------------------------------------------------

_COLORS = ("#D55E00", "#E69F00", "#0072B2")


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Accuracy by rounds, ours and the published, and the squared weights in training."""
    norms = [row for row in rows if row["kind"] == "norms"]
    with style.settings():
        figure = Figure((9.2, 7.0), layout="constrained")
        (ours, theirs), (by_size, growth) = figure.subplots(2, 2)
        _tickets(ours, rows)
        _published(theirs)
        if norms:
            _by_size(by_size, norms)
            _growth(growth, rows)
        figure.savefig(path, dpi=160)


def _tickets(axes: Axes, rows: list[Row]) -> None:
    for (n, found), color in zip(accuracies(rows).items(), _COLORS):
        x = list(found)
        low, high = zip(*((min(values), max(values)) for values in found.values()))
        axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
        means = [statistics.fmean(values) for values in found.values()]
        label = f"{n} round{'s' if n > 1 else ''}"
        axes.plot(x, means, color=color, marker="o", label=label)
    first = next((row for row in rows if row["kind"] == "ticket"), None)
    if first is not None:
        axes.set_title(f"{first['network']}, {first['dataset']}", loc="left")
        axes.legend(loc="lower left")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("accuracy (%)")
    style.compressions(axes)


def _published(axes: Axes) -> None:
    numbers = published.load("magnitude_training")["accuracy"]
    for (n, pairs), color in zip(numbers.items(), _COLORS):
        axes.plot(*zip(*pairs), color=color, marker="o", ls="--", lw=1.1, ms=3.5)
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
    axes.set_title("dotted: slope 1", loc="left")
    axes.legend(loc="upper left")


def _growth(axes: Axes, rows: list[Row]) -> None:
    grown = conserved(rows)
    shades = np.linspace(0.25, 1, len(grown))
    for (layer, values), shade in zip(grown.items(), shades):
        axes.plot(values, color="#0072B2", alpha=shade, label=layer, lw=1.3)
    axes.set_xlabel("epoch")
    axes.set_ylabel("growth of the squared weights")
    axes.set_title("one line a layer", loc="left")
    axes.legend(fontsize=8)

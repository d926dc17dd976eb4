"""What came out of `experiments.accuracy`: points, differences and the figures."""

import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import methods, published
from experiments.figures import style
from experiments.figures.resampling import difference
from experiments.harness.sweeps import Row
from experiments.harness.tables import Table, power

CLASSES = {
    **dict.fromkeys(("digits", "fashion_mnist", "cifar10", "cifar10_20k"), 10),
    "cifar100": 100,
    "tiny_imagenet": 200,
}
DIVERGED = 3.0  # a mean loss of the first epoch, in units of that of guessing


class Network(NamedTuple):
    """What is compared in one panel.

    Attributes:
      network, dataset: their names.
      training: "sgd", "rescaled" or "adam".
    """

    network: str
    dataset: str
    training: str

    @property
    def guessing(self) -> float:
        """The loss of equal chances for all classes, in nats."""
        return math.log(CLASSES[self.dataset])

    @property
    def title(self) -> str:
        how = "" if self.training == "sgd" else f", {self.training}"
        return f"{self.network} on {self.dataset}{how}"


class Trained(NamedTuple):
    """One network after training; accuracies in per cent.

    Attributes:
      seed: of its weights and its training.
      best, last: the accuracy on held-out images, of the best and of the last epoch.
      started: whether the mean loss of the first epoch was below that of guessing.
      diverged: whether it was above three times that, or not a number.
      reached: log10 of weights over those that are kept and on a path; None without one.
    """

    seed: int
    best: float
    last: float
    started: bool
    diverged: bool
    reached: float | None


# By method, by compression: the networks, in the order of their seeds.
Points = dict[str, dict[float, list[Trained]]]


def points(rows: Sequence[Row]) -> dict[Network, Points]:
    """What was measured. A network of which no pruned form is trained yet is left out."""
    found: dict[Network, Points] = {}
    for row in rows:
        if row["kind"] == "trained":
            training = "rescaled" if row["rescaled"] else row["optimizer"]
            network = Network(row["network"], row["dataset"], training)
            own = found.setdefault(network, {}).setdefault(row["method"], {})
            own.setdefault(row["compression"], []).append(_trained(row, network.guessing))
    return {
        network: {
            method: {c: sorted(group) for c, group in sorted(own.items())}
            for method, own in by_method.items()
        }
        for network, by_method in found.items()
        if set(by_method) - {"dense"}
    }


def _trained(row: Row, guessing: float) -> Trained:
    loss = math.inf if row["first_loss"] is None else row["first_loss"]
    alive = row["log10_flow"] is not None and row["reached"]
    return Trained(
        row["seed"],
        100 * row["best"],
        100 * row["last"],
        loss < guessing,
        loss > DIVERGED * guessing,
        math.log10(row["size"] / row["reached"]) if alive else None,
    )


# --- in numbers ---------------------------------------------------------------------------


def tables(rows: list[Row]) -> list[Table]:
    """A table of accuracies and one of differences a network; and what diverged."""
    made, diverged = [], []
    for network, found in points(rows).items():
        made.append(_accuracies(network, found))
        compared = _differences(network, found)
        made += [compared] if compared.rows else []
        diverged += _diverged(network, found)
    if diverged:
        title = (
            f"Trainings whose first epoch has a mean loss above {DIVERGED:g} times that of "
            "guessing, or none that is a number"
        )
        made.append(Table(title, ["network", "method", "compression", "seeds"], diverged))
    return made


def _grid(found: Points) -> list[float]:
    return sorted({c for own in found.values() for c in own})


def _accuracies(network: Network, found: Points) -> Table:
    compressions = _grid(found)
    body = [
        [label, *(_cell(found[method].get(c, [])) for c in compressions)]
        for method, label in {"dense": "Not pruned", **methods.LABELS}.items()
        if method in found
    ]
    title = (
        f"{network.title}: held-out accuracy in per cent, of the best epoch (of the last), "
        "mean over seeds; where not all seeds start to learn in the first epoch, how many "
        "do and from where to where the best epochs of all seeds go"
    )
    return Table(title, ["method", *map(power, compressions)], body)


def _cell(group: Sequence[Trained]) -> str:
    """What became of the seeds; a mean only where all started."""
    if not group:
        return ""
    best, started = [t.best for t in group], sum(t.started for t in group)
    if started == len(group):
        last = statistics.fmean(t.last for t in group)
        return f"{statistics.fmean(best):.1f} ({last:.1f})"
    cut = sum(t.reached is None for t in group)
    ends = dict.fromkeys((f"{min(best):.1f}", f"{max(best):.1f}"))
    text = f"{started} of {len(group)} start, {' to '.join(ends)}"
    return text + (f"; {cut} cut" if cut else "")


def _differences(network: Network, found: Points) -> Table:
    """Each method less SynFlow, and whether the interval excludes 0."""
    compressions, synflow = _grid(found), found.get("synflow", {})
    compressions = [c for c in compressions if c in synflow]
    body = []
    for method, label in methods.LABELS.items():
        own = found.get(method, {})
        cells = [_between(own.get(c, []), synflow[c]) for c in compressions]
        if method != "synflow" and any(cells):
            body.append([label, *cells])
    title = (
        f"{network.title}: best accuracy less SynFlow's in points, mean of the differences "
        "on equal seeds and the middle 95 % of its bootstrap; * where that excludes 0"
    )
    return Table(title, ["method", *map(power, compressions)], body)


def _between(one: Sequence[Trained], other: Sequence[Trained]) -> str:
    found = difference(*({t.seed: t.best for t in some} for some in (one, other)))
    if found is None:
        return ""
    sure = "*" if found.sure else ""
    return f"{found.mean:+.1f}{sure} ({found.low:+.1f} to {found.high:+.1f})"


def _diverged(network: Network, found: Points) -> list[list[str]]:
    made = []
    for method, own in found.items():
        for c, group in own.items():
            seeds = [str(t.seed) for t in group if t.diverged]
            if seeds:
                label = methods.LABELS.get(method, method)
                made.append([network.title, label, power(c), ", ".join(seeds)])
    return made


# --- the figures --------------------------------------------------------------------------

# What is drawn together: in figures of the paper's methods, and of the controls.
_FIG_6 = {"the paper's methods": methods.PAPER}
_CONTROLS = {
    "what SynFlow's masks are made of": (
        *("synflow", "erk", "synflow_densities", "shuffled_synflow"),
        *("reinitialised_synflow", "inverted_synflow"),
    ),
    "what else is iterated": (
        *("synflow", "synflow_l2", "certified_synflow"),
        *("iterative_snip", "iterative_grasp", "ntk_sap"),
    ),
}
_NORMALISED = ("mlp", "lenet")  # the networks that have no normalisation


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """The paper's methods: accuracy against what was kept, and against what is on a path.

    Points are seeds, lines join their medians. Dashed: published means.
    """
    found = {n: own for n, own in points(rows).items() if n.network not in _NORMALISED}
    theirs = _published()
    with style.settings():
        figure, panels = _panels(len(found), 2)
        for pair, (network, own) in zip(panels, found.items()):
            for axes, reached in zip(pair, (False, True)):
                _panel(axes, network, own, methods.PAPER, reached=reached)
                what = "kept and on a path" if reached else "kept"
                axes.set_xlabel(f"weights / weights {what}")
            for method, (x, y) in theirs.get(network[:2], {}).items():
                pair[0].plot(x, y, ls="--", lw=1.1, color=style.mark(method)["color"])
        _finished(figure, panels, path)


def draw_controls(rows: list[Row], path: pathlib.Path) -> None:
    """SynFlow beside its controls, and beside what else is iterated."""
    found = {n: own for n, own in points(rows).items() if n.network not in _NORMALISED}
    with style.settings():
        figure, panels = _panels(len(found), 2)
        for pair, (network, own) in zip(panels, found.items()):
            for axes, (title, compared) in zip(pair, _CONTROLS.items()):
                _panel(axes, network, own, compared)
                axes.set_title(f"{network.title}\n{title}", loc="left")
        _finished(figure, panels, path)


def draw_scale(rows: list[Row], path: pathlib.Path) -> None:
    """A network without normalisation, a panel for each way to train it."""
    found = {n: own for n, own in points(rows).items() if n.network in _NORMALISED}
    if not found:
        return
    with style.settings():
        figure, panels = _panels(1, len(found))
        for axes, (network, own) in zip(panels[0], found.items()):
            _panel(axes, network, own, tuple(methods.LABELS))
            axes.set_title(_TRAININGS[network.training], loc="left")
        _finished(figure, panels, path)


_TRAININGS = {
    "sgd": "SGD, weights as drawn",
    "rescaled": "SGD, kept weights rescaled",
    "adam": "Adam, weights as drawn",
}


def _panels(lines: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure((4.8 * columns, 0.9 + 3.4 * max(lines, 1)), layout="constrained")
    return figure, figure.subplots(max(lines, 1), columns, squeeze=False, sharey="row")


def _panel(
    axes: Axes,
    network: Network,
    found: Points,
    compared: Sequence[str],
    *,
    reached: bool = False,
) -> None:
    """A line through the medians of each method, and its seeds as points."""
    shown = [method for method in compared if method in found]
    for place, method in enumerate(shown):
        mark, own = style.mark(method), found[method]
        # Side by side, so that none hides another.
        aside = 0.05 * (place - (len(shown) - 1) / 2) / max(len(shown) - 1, 1) * 2
        x, y, medians = [], [], []
        for c, group in own.items():
            places = [t.reached if reached else c + aside for t in group]
            some = [(p, t.best) for p, t in zip(places, group) if p is not None]
            x += [p for p, _ in some]
            y += [best for _, best in some]
            if some:
                medians.append(tuple(map(statistics.median, zip(*some))))
        axes.plot(x, y, mark["marker"], color=mark["color"], ms=3.5, alpha=0.55, mew=0.6)
        axes.plot(*zip(*sorted(medians)), **mark, ms=5)
    if "dense" in found:
        dense = statistics.median(t.best for t in found["dense"][0.0])
        axes.axhline(dense, color=style.PALE, lw=1.1, zorder=1)
        style.note(axes, dense, "dense")
    chance = 100 / CLASSES[network.dataset]
    axes.axhline(chance, color=style.PALE, lw=1.1, ls=":", zorder=1)
    style.note(axes, chance, "chance")
    axes.set_ylim(bottom=0)
    axes.set_title(network.title, loc="left")
    style.compressions(axes)


def _finished(figure: Figure, panels: np.ndarray, path: pathlib.Path) -> None:
    handles: Mapping = {}
    for axes in panels.flat:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy of the best epoch (%)")
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=160)


def _published() -> dict[tuple[str, str], dict[str, tuple[list[float], list[float]]]]:
    """Published means by network and data set, by method: compressions and per cents."""
    numbers = published.load("accuracy")
    return {
        tuple(pair.rsplit("-", 1)): {
            method: (numbers["alpha"], [statistics.fmean(runs) for runs in zip(*of_runs)])
            for method, of_runs in by_method.items()
        }
        for pair, by_method in numbers["accuracy"].items()
    }

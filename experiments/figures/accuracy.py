"""What came out of `experiments.accuracy`: points, sentences and the figure."""

import pathlib
import statistics
from typing import NamedTuple

from matplotlib.figure import Figure

from experiments import methods, published
from experiments.figures import style
from experiments.harness import command
from experiments.harness.sweeps import Row
from experiments.harness.tables import Table, mean_and_range, power

# On the left what the paper compares, on the right SynFlow and what it is made of.
_LEFT = methods.PAPER
_RIGHT = ("synflow", *methods.CONTROLS)

# The paper's panels that stand below those of networks that it does not have.
_BESIDE = ("vgg16_cifar-cifar10", "resnet18-cifar10")


class Point(NamedTuple):
    """One method at one compression, over its seeds; accuracies in per cent.

    Attributes:
      mean, low, high: of the best epoch's accuracy.
      last: the mean of the last epoch's.
      seeds: how many.
      connected: how many of them had a path from input to output before training.
    """

    mean: float
    low: float
    high: float
    last: float
    seeds: int
    connected: int


def points(rows: list[Row]) -> dict[str, dict[str, dict[float, Point]]]:
    """What was measured: by network and data set, by method, by compression.

    A network of which no pruned form is trained yet is left out.
    """
    trained = [row for row in rows if row["kind"] == "trained"]
    found: dict = {}
    for row in trained:
        of_pair = found.setdefault(f"{row['network']}-{row['dataset']}", {})
        of_method = of_pair.setdefault(row["method"], {})
        of_method.setdefault(row["compression"], []).append(row)
    return {
        pair: {
            method: {c: _point(group) for c, group in sorted(groups.items())}
            for method, groups in of_pair.items()
        }
        for pair, of_pair in found.items()
        if set(of_pair) - {"dense"}
    }


def _point(group: list[Row]) -> Point:
    best = [100 * row["best"] for row in group]
    last = statistics.fmean(100 * row["last"] for row in group)
    alive = sum(row["log10_flow"] is not None for row in group)
    return Point(statistics.fmean(best), min(best), max(best), last, len(group), alive)


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Accuracy against compression, a row of two panels for each network.

    The mean over the seeds and the range from the lowest to the highest. Open markers:
    no seed's network has a path left from input to output. Dashed: published numbers.
    """
    ours, theirs = points(rows), _published()
    beside = [] if set(ours) & set(theirs) else [_BESIDE]
    with style.settings():
        height = 0.7 + 2.9 * (len(ours) + len(beside))
        figure = Figure((9.2, height), layout="constrained")
        panels = figure.subplots(len(ours) + len(beside), 2, squeeze=False)
        for axes, (pair, found) in zip(panels, ours.items()):
            for one, compared in zip(axes, (_LEFT, _RIGHT)):
                _panel(one, pair, found, theirs.get(pair, {}), compared)
            axes[1].sharey(axes[0])
        for axes, pairs in zip(panels[len(ours) :], beside):
            for one, pair in zip(axes, pairs):
                _panel(one, pair, {}, theirs[pair], _LEFT)
        handles = {}
        for axes in panels.flat:
            for handle, label in zip(*axes.get_legend_handles_labels()):
                handles.setdefault(label, handle)
        figure.legend(
            handles.values(),
            handles,
            loc="outside upper center",
            ncols=5,
            columnspacing=1.2,
        )
        figure.savefig(path, dpi=160)


def _panel(axes, pair, found, published_, compared) -> None:
    network, dataset = pair.rsplit("-", 1)
    title = f"{network}, {dataset}"
    axes.set_title(title if found else f"{title} (published)", loc="left")
    for method in compared:
        mark = style.mark(method)
        if method in found:
            own = found[method]
            x = list(own)
            axes.fill_between(
                x,
                [point.low for point in own.values()],
                [point.high for point in own.values()],
                color=mark["color"],
                alpha=0.15,
                lw=0,
            )
            axes.plot(x, [point.mean for point in own.values()], **mark)
            dead = [c for c, point in own.items() if not point.connected]
            axes.plot(
                dead,
                [own[c].mean for c in dead],
                mark["marker"],
                color=mark["color"],
                mfc="white",
            )
        if method in published_:
            x, y = published_[method]
            label = mark["label"] if not found else None
            own_style = {
                **mark,
                "label": label,
                "marker": "" if found else mark["marker"],
            }
            axes.plot(x, y, ls="--", lw=1.1, ms=3.5, **{**own_style})
    if "dense" in found:
        dense = found["dense"][0.0].mean
        axes.axhline(dense, color=style.PALE, lw=1.1, zorder=1)
        style.note(axes, dense, "dense")
    chance = _CHANCE.get(dataset)
    if chance is not None:
        axes.axhline(chance, color=style.PALE, lw=1.1, ls=":", zorder=1)
        style.note(axes, chance, "chance")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("accuracy (%)")
    style.compressions(axes)


_CHANCE = {
    "digits": 10.0,
    "fashion_mnist": 10.0,
    "cifar10": 10.0,
    "cifar10_20k": 10.0,
    "cifar100": 1.0,
    "tiny_imagenet": 0.5,
}


def _published() -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Published means by pair and method: compressions and accuracies in per cent."""
    numbers = published.load("accuracy")
    return {
        pair: {
            method: (numbers["alpha"], [statistics.fmean(runs) for runs in zip(*of_runs)])
            for method, of_runs in by_method.items()
        }
        for pair, by_method in numbers["accuracy"].items()
    }


# --- in numbers ---------------------------------------------------------------------------


def tables(rows: list[Row]) -> list[Table]:
    """The mean and the range of every method at every compression, a table a network."""
    made = []
    for pair, found in points(rows).items():
        network, dataset = pair.rsplit("-", 1)
        compressions = sorted({c for own in found.values() for c in own})
        body = [
            [label, *(_cell(found[method].get(c)) for c in compressions)]
            for method, label in {"dense": "Not pruned", **methods.LABELS}.items()
            if method in found
        ]
        title = (
            f"{network} on {dataset}: best held-out accuracy in per cent, mean over seeds "
            "(lowest to highest); cut: no seed's network has a path"
        )
        headings = ["method", *map(power, compressions)]
        made.append(Table(title, headings, body))
    return made


def _cell(point: Point | None) -> str:
    if point is None:
        return ""
    text = mean_and_range(point.mean, point.low, point.high)
    return text if point.connected else f"{text}, cut"


# --- in words -----------------------------------------------------------------------------


def sentences(rows: list[Row]) -> list[str]:
    """Which method is best where, and who is still above chance when others are not."""
    texts = []
    for pair, found in points(rows).items():
        network, dataset = pair.rsplit("-", 1)
        chance = _CHANCE[dataset]
        texts.append(f"{network} on {dataset}: {_best_of_paper(found, chance)}")
        texts.append(f"{network}: {_above_chance(found, chance)}")
        texts += [f"{network}: {text}" for text in _controls(found)]
        texts += [f"{network}: {text}" for text in _first_losses(rows, network, dataset)]
    return texts


def _best_of_paper(found: dict[str, dict[float, Point]], chance: float) -> str:
    """The best of the paper's methods at each compression, and by how much."""
    parts = []
    shared = [set(found.get(method, {})) for method in methods.PAPER]
    for c in sorted(set.intersection(*shared)):
        ranked = sorted(methods.PAPER, key=lambda method: -found[method][c].mean)
        first, second = ranked[:2]
        if found[first][c].mean <= 1.5 * chance:
            parts.append(f"10^{c:g} none is above 1.5 times chance")
            continue
        lead = found[first][c].mean - found[second][c].mean
        overlap = found[first][c].low <= found[second][c].high
        parts.append(
            f"10^{c:g} {methods.LABELS[first]} {found[first][c].mean:.1f} % "
            f"(+{lead:.1f} over {methods.LABELS[second]}"
            f"{', ranges overlap' if overlap else ''})"
        )
    return "the best of the paper's five methods: " + "; ".join(parts) + "."


def _above_chance(found: dict[str, dict[float, Point]], chance: float) -> str:
    """Up to which compression every seed of a method learns more than chance."""
    parts = []
    for method in methods.LABELS:
        own = found.get(method, {})
        reached = None
        for c, point in own.items():
            if point.low <= 1.5 * chance:
                break
            reached = c
        where = "nowhere" if reached is None else f"10^{reached:g}"
        if own:
            parts.append(f"{methods.LABELS[method]} {where}")
    return (
        "the largest compression up to which every seed is above 1.5 times chance: "
        + ", ".join(parts)
        + "."
    )


def _controls(found: dict[str, dict[float, Point]]) -> list[str]:
    """What SynFlow's own choice of weights adds to its layers' densities, and iteration."""
    if "synflow" not in found:
        return []
    texts = []
    for method in methods.CONTROLS:
        common = sorted(set(found.get(method, {})) & set(found["synflow"]))
        if common:
            gaps = [found[method][c].mean - found["synflow"][c].mean for c in common]
            listed = ", ".join(f"{gap:+.1f} at 10^{c:g}" for c, gap in zip(common, gaps))
            texts.append(f"{methods.LABELS[method]} minus SynFlow, in points: {listed}.")
    return texts


def _first_losses(rows: list[Row], network: str, dataset: str) -> list[str]:
    """The loss of the first epoch at the lowest compression: who starts with outputs that
    are too large for the learning rate, as GraSP does, which prefers large gradients."""
    configs = command.configs(rows)
    losses: dict[float, dict[str, list[float]]] = {}
    for row in rows:
        config = configs[row["run"]] if "run" in row else None
        if row["kind"] != "epoch" or row["epoch"] != 1 or row["loss"] is None:
            continue
        if (config["network"], config["dataset"]) == (network, dataset):
            of = losses.setdefault(config["compression"], {})
            of.setdefault(config["method"], []).append(row["loss"])
    pruned = sorted(c for c in losses if c > 0)
    if not pruned:
        return []
    listed = ", ".join(
        f"{methods.LABELS[method]} {statistics.fmean(losses[pruned[0]][method]):.2f}"
        for method in methods.LABELS
        if method in losses[pruned[0]]
    )
    return [f"mean loss of the first epoch at 10^{pruned[0]:g}: {listed}."]


def caption(rows: list[Row]) -> str:
    """What was trained on what."""
    texts = []
    settings = command.configs(rows).values()
    for pair, found in points(rows).items():
        network, dataset = pair.rsplit("-", 1)
        own = [c for c in settings if (c["network"], c["dataset"]) == (network, dataset)]
        training = own[0]["training"]
        images = own[0]["train_images"]
        seeds = sorted({point.seeds for of in found.values() for point in of.values()})
        iterated = own[0]["iterations"]
        texts.append(
            f"{network} on {dataset}: "
            f"{f'{images:,} of the' if images else 'all'} training images, "
            f"{training['epochs']} epochs of batches of {training['batch']}, "
            f"{'-'.join(map(str, seeds))} seeds, "
            f"{own[0]['rounds']} rounds of SynFlow, {iterated} of iterative SNIP and GraSP"
        )
    return (
        "Best held-out accuracy over the epochs after pruning at initialisation; mean and "
        "range over seeds; open markers: no path left in any seed; where a filled one is "
        "at chance, there are paths but this training was too short to use them. "
        + "; ".join(texts)
        + ". Dashed: the authors' published means of three runs, of which SNIP and GraSP "
        "are from code that was corrected later."
    )

"""What came out of `experiments.sparse_training`: accuracies and what training cost."""

import pathlib
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import methods
from experiments.figures import style
from experiments.harness import command
from experiments.harness.sweeps import Row
from experiments.harness.tables import Table, mean_and_range, power

# What is trained here; then the methods whose rows are those of `experiments.accuracy`.
LABELS = {
    "gradual": "Gradual magnitude",
    "rigl_erk": "RigL, from ERK",
    "rigl_synflow": "RigL, from SynFlow",
    "set_erk": "SET, from ERK",
    "set_synflow": "SET, from SynFlow",
    "imp": "Magnitude with rewinding",
}
SHARED = ("dense", "synflow", "snip", "erk")
_MARKS = {
    "gradual": ("#D55E00", "s"),
    "rigl_erk": ("#44AA99", "X"),
    "rigl_synflow": ("#332288", "p"),
    "set_erk": ("#999933", "v"),
    "set_synflow": ("#56B4E9", "P"),
    "imp": ("#882255", "*"),
}


def label(method: str) -> str:
    """A method in words."""
    return LABELS.get(method) or methods.LABELS.get(method, method)


def beside(
    rows: Sequence[Row], folder: pathlib.Path = command.RESULTS / "accuracy" / "cpu"
) -> list[Row]:
    """The trained networks, with those of `experiments.accuracy` that had the same recipe.

    Dense networks have no compression there; here they are at 10^0.
    """
    own = [row for row in rows if row["kind"] == "trained"]
    pairs = {(row["network"], row["dataset"]) for row in own}
    others = [
        row
        for row in command.results(folder)
        if row["kind"] == "trained"
        and row["method"] in SHARED
        and (row["network"], row["dataset"]) in pairs
        and row["optimizer"] == "sgd"
        and not row["rescaled"]
    ]
    return own + others


def diverged(row: Row) -> bool:
    """Whether the loss of the last epoch was no number."""
    return row.get("diverged", False)


def tables(rows: list[Row]) -> list[Table]:
    """A table a network: the accuracy of the last epoch, and the multiply-adds."""
    made = []
    found = beside(rows)
    for network, dataset in dict.fromkeys((r["network"], r["dataset"]) for r in found):
        here = [r for r in found if (r["network"], r["dataset"]) == (network, dataset)]
        own = {r["compression"] for r in here if r["method"] in LABELS}
        compressions = sorted(own)
        body = []
        for method in (*SHARED, *LABELS):
            mine = [r for r in here if r["method"] == method]
            if mine:
                cells = (_cell(mine, c, method) for c in compressions)
                body.append([label(method), *cells])
        title = (
            f"{network} on {dataset}: per cent right after the last epoch, mean over seeds "
            "(from the worst to the best) of trainings that did not diverge; multiply-adds "
            "of all its training in units of a dense training, without those of dense "
            "gradients"
        )
        made.append(Table(title, ["method", *map(power, compressions)], body))
    return made


def _cell(rows: Sequence[Row], compression: float, method: str) -> str:
    at = [r for r in rows if method == "dense" or r["compression"] == compression]
    if not at:
        return ""
    right = [100 * row["last"] for row in at if not diverged(row)]
    lost = f"{len(at) - len(right)} of {len(at)} diverged" if len(right) < len(at) else ""
    text = mean_and_range(statistics.fmean(right), min(right), max(right)) if right else ""
    text = "; ".join(filter(None, (text, lost)))
    costs = [row["multiply_adds"] for row in at if "multiply_adds" in row]
    return f"{text}; {statistics.fmean(costs):.2f}" if costs else text


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Every network that was trained is a point; lines are means over the seeds that did
    not diverge, and those that did are hollow points at the bottom."""
    found = beside(rows)
    pairs = list(dict.fromkeys((r["network"], r["dataset"]) for r in found))
    with style.settings():
        figure = Figure((5.2 * max(len(pairs), 1), 4.4), layout="constrained")
        panels = figure.subplots(1, max(len(pairs), 1), squeeze=False)[0]
        for axes, pair in zip(panels, pairs):
            _draw_panel(axes, [r for r in found if (r["network"], r["dataset"]) == pair])
            axes.set_title(f"{pair[0]} on {pair[1]}", loc="left")
        if pairs:
            handles = panels[0].get_legend_handles_labels()
            figure.legend(*handles, loc="outside lower center", ncols=4)
        figure.savefig(path, dpi=160)


def _draw_panel(axes: Axes, rows: Sequence[Row]) -> None:
    dense = [100 * row["last"] for row in rows if row["method"] == "dense"]
    if dense:
        axes.axhline(statistics.fmean(dense), color=style.PALE, lw=1)
    own = {row["compression"] for row in rows if row["method"] in LABELS}
    shown = [row for row in rows if row["compression"] in own]
    bottom = min(100 * row["last"] for row in shown if not diverged(row)) - 2
    for method in (*SHARED[1:], *LABELS):
        mine = [row for row in shown if row["method"] == method]
        if not mine:
            continue
        at: dict[float, list[float]] = {}
        for row in mine:
            if not diverged(row):
                at.setdefault(row["compression"], []).append(100 * row["last"])
        color, marker = _MARKS.get(method) or style.MARKS[method]
        look = {"color": color, "marker": marker, "markersize": 5}
        line = "-" if method in LABELS else ":"
        means = [statistics.fmean(at[c]) for c in sorted(at)]
        axes.plot(sorted(at), means, line, color=color)
        axes.plot(*zip(*((c, y) for c in at for y in at[c])), ls="", **look)
        axes.plot([], [], line, label=label(method), **look)
        lost = [(row["compression"], bottom) for row in mine if diverged(row)]
        if lost:
            axes.plot(*zip(*lost), ls="", markerfacecolor="white", **look)
    style.compressions(axes)
    axes.set_ylabel("right after the last epoch (%)")

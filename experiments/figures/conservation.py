"""What came out of `experiments.conservation`: fits and the two figures."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from experiments import methods, published
from experiments.figures import style
from experiments.harness import command
from experiments.harness.sweeps import Row
from experiments.harness.tables import Table


class Fit(NamedTuple):
    """Layers as Fig. 4 has them: average score against inverse size.

    Attributes:
      slope: of the logarithms; 1 where layers have equal totals.
      correlation: of the logarithms.
      spread: the largest total of a layer over the smallest.
    """

    slope: float
    correlation: float
    spread: float


def fit(rows: Sequence[Row]) -> Fit:
    """The line through the layers of one run; of totals with a sign, their sizes."""
    size = np.array([row["size"] for row in rows], float)
    total = abs(np.array([row["total"] for row in rows]))
    x, y = -np.log10(size), np.log10(total / size)
    slope = float(np.polyfit(x, y, 1)[0])
    # A column of equal numbers has no correlation.
    together = float(np.corrcoef(x, y)[0, 1]) if np.ptp(y) else 0.0
    return Fit(slope, together, float(total.max() / total.min()))


# --- what came out ------------------------------------------------------------------------


def of_method(rows: Sequence[Row], kind: str) -> dict[str, list[Row]]:
    """The rows of a kind by criterion, in the order of the paper's legends."""
    configs = command.configs(rows)
    found = {
        method: [
            row
            for row in rows
            if row["kind"] == kind and configs[row["run"]]["method"] == method
        ]
        for method in methods.PAPER
    }
    return {method: own for method, own in found.items() if own}


def tables(rows: list[Row]) -> list[Table]:
    """Figs. 3 and 4 in numbers, a line a criterion."""
    theirs, body = published.load("conservation"), []
    config = next(iter(command.configs(rows).values()))
    same = config["network"] == theirs["network"]
    layers = of_method(rows, "layer")
    for method, own in of_method(rows, "agreement").items():
        by_kind = {row["of"]: row for row in own}
        channels, units = by_kind["channels"], by_kind["units"]
        line = fit(layers[method])
        numbers = [
            f"{channels['median_gap']:.1e}",
            f"{channels['largest_gap']:.1e}",
            f"{channels['correlation']:{_digits(method)}}",
            f"{line.slope:.4f}",
        ]
        if same:
            numbers[2] += f" ({theirs['correlation'][method]:{_digits(method)}})"
            numbers[3] += f" ({theirs['slope'][method]:.4g})"
        every = f"{units['median_gap']:.1e}", f"{units['correlation']:{_digits(method)}}"
        body.append([methods.LABELS[method], *numbers, f"{line.spread:.4g}", *every])
    headings = ["criterion", "median gap", "largest gap", "correlation"]
    headings += ["slope", "largest total over smallest"]
    headings += ["all hidden units: median gap", "correlation"]
    title = (
        "Scores in and out of the channels between convolutions, and average score against "
        f"inverse size of the layers{', ours (the paper)' if same else ''}"
    )
    return [Table(title, headings, body)]


def _digits(method: str) -> str:
    return ".6f" if method == "synflow" else ".4f"


# --- the figures --------------------------------------------------------------------------


def draw_units(rows: list[Row], path: pathlib.Path) -> None:
    """A panel for each criterion, a point for each hidden unit: Fig. 3 of the paper."""
    found = of_method(rows, "layer")
    if not found:
        return
    channels = {
        method: next(row for row in own if row["of"] == "channels")
        for method, own in of_method(rows, "agreement").items()
    }
    names = [row["layer"] for row in next(iter(found.values()))][:-1]
    depth = len(names)
    colors = matplotlib.colormaps["viridis"].resampled(depth)
    with style.settings():
        # One cell more than there are panels, for the legend.
        columns = min(3, len(found) + 1)
        lines = -(-(len(found) + 1) // columns)
        figure = Figure((2.9 * columns + 1.0, 3.2 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes, (method, own) in zip(panels.flat, found.items()):
            _units_panel(axes, own, colors(np.arange(depth)))
            r = f"{channels[method]['correlation']:{_digits(method)}}"
            axes.set_title(f"{methods.LABELS[method]}, r = {r}")
            axes.set_xlabel("scores into the unit")
            axes.set_ylabel("scores out of the unit")
        for axes in panels.flat[len(found) :]:
            axes.set_axis_off()
        points = {"color": style.INK, "ls": "", "marker": "o", "ms": 4}
        handles = [
            Line2D([], [], color=style.PALE, lw=1, label="in = out"),
            Line2D([], [], **points, label="a hidden unit"),
            Line2D([], [], **points, mfc="white", label="in and out differ in sign"),
        ]
        panels.flat[len(found)].legend(handles=handles, loc="center left")
        norm = BoundaryNorm(np.arange(depth + 1) - 0.5, depth)
        bar = figure.colorbar(
            ScalarMappable(norm, colors), ax=panels, pad=0.01, aspect=40, shrink=0.9
        )
        step = -(-depth // 18)
        bar.set_ticks(range(0, depth, step), labels=names[::step])
        bar.ax.tick_params(labelsize=8, length=0)
        bar.ax.minorticks_off()
        bar.outline.set_visible(False)
        bar.ax.set_title("into", fontsize=9)
        figure.savefig(path, dpi=180)


def _units_panel(axes: Axes, rows: Sequence[Row], colors: np.ndarray) -> None:
    layers = [row for row in rows if "into" in row]
    sums = np.array([(a, b) for row in layers for a, b in zip(row["into"], row["out"])])
    shown = (sums != 0).all(axis=1)  # an axis of logarithms has no zero
    color = np.repeat(colors[: len(layers)], [len(row["into"]) for row in layers], axis=0)
    same = (np.sign(sums[:, 0]) == np.sign(sums[:, 1])) & shown
    other = shown & ~same
    sizes = abs(sums)
    low, high = sizes[shown].min() / 1.6, sizes[shown].max() * 1.6
    axes.plot([low, high], [low, high], color=style.PALE, lw=1, zorder=1)
    axes.scatter(*sizes[same].T, s=5, c=color[same], lw=0, zorder=2, rasterized=True)
    axes.scatter(
        *sizes[other].T, s=7, facecolors="none", edgecolors=color[other], lw=0.6, zorder=3
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=4))
        axis.set_minor_locator(NullLocator())


def draw_layers(rows: list[Row], path: pathlib.Path) -> None:
    """Average score against inverse size, a point for each layer: Fig. 4 of the paper."""
    found = of_method(rows, "layer")
    if not found:
        return
    inverse = [1 / row["size"] for own in found.values() for row in own]
    ends = np.array([min(inverse) / 2, max(inverse) * 2])
    with style.settings():
        figure = Figure((6.2, 4.3), layout="constrained")
        axes = figure.subplots()
        axes.plot(ends, ends, color=style.PALE, lw=1.2, zorder=1)
        for method, own in found.items():
            size = np.array([row["size"] for row in own], float)
            total = abs(np.array([row["total"] for row in own]))
            # Rings, as others lie under them.
            ring = {"mfc": "none", "ms": 8, "mew": 1.6} if method == "synflow" else {}
            points = {"ls": "", "ms": 4.5, "mew": 0, **ring, **style.mark(method)}
            points["label"] += f": slope {fit(own).slope:.3f}"
            axes.plot(1 / size, total / total.mean() / size, **points)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(*ends)
        axes.set_xlabel("1 / weights of the layer")
        axes.set_ylabel("average score / mean total of a layer")
        handles, texts = axes.get_legend_handles_labels()
        handles.append(Line2D([], [], color=style.PALE, lw=1.2))
        axes.legend(handles, [*texts, "equal totals: slope 1"], loc="upper left")
        figure.savefig(path, dpi=180)

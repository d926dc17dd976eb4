"""Figures of the demonstration: each function reads logged rows and writes one PNG."""

import math
import pathlib
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from experiments.figures import style

Rows = list[dict[str, Any]]

METHODS = ("synflow", "magnitude", "random")


def layers(rows: Rows, path: pathlib.Path) -> None:
    """The fraction of each layer's weights that is kept, a panel for each compression.

    The setting of Fig. 1 of Tanaka et al. 2020, layer by layer. A layer that has lost all
    its weights is a cross in the strip below the axis.
    """
    rows = [row for row in rows if row.get("part") == "initialisation"]
    labels = list(dict.fromkeys(row["label"] for row in rows if row["label"] != "N/L"))
    names = [name for name, _, _ in rows[0]["layers"]]
    low = min(kept / size for row in rows for _, kept, size in row["layers"] if kept)
    decade = math.floor(math.log10(low))
    columns = min(2, len(labels))
    with style.settings():
        figure = Figure(
            (8.4, 0.9 + 2.75 * -(-len(labels) // columns)), layout="constrained"
        )
        panels = figure.subplots(
            -(-len(labels) // columns), columns, sharex=True, sharey=True, squeeze=False
        )
        for panel, label in zip(panels.flat, labels):
            at_label = [row for row in rows if row["label"] == label]
            _layers_panel(panel, at_label, decade, len(names))
        for panel in panels.flat[len(labels) :]:
            panel.set_visible(False)
        for panel in panels[-1]:
            ticks = range(1, len(names) + 1)
            panel.set_xticks(ticks, [_short(name) for name in names], rotation=90)
        for panel in panels[:, 0]:
            panel.set_ylabel("fraction kept")
        handles, texts = panels[0, 0].get_legend_handles_labels()
        cross = Line2D([], [], color=style.INK, ls="", marker="x", mew=1.5)
        handles, texts = [*handles, cross], [*texts, "no weight left"]
        figure.legend(handles, texts, loc="outside upper center", ncols=len(texts))
        figure.savefig(path, dpi=200)


def _layers_panel(axes: Axes, rows: Rows, decade: int, depth: int) -> None:
    strip = (decade - 2.1, decade - 0.4)  # where zero is shown, in decades
    axes.axhspan(10.0 ** strip[0], 10.0 ** strip[1], color="#eeeeee", lw=0)
    heights = np.linspace(strip[1], strip[0], len(METHODS) + 2)[1:-1]
    for row in rows:
        mark = style.mark(row["method"])
        kept = np.array([kept / size for _, kept, size in row["layers"]])
        places = np.arange(1, depth + 1)
        fractions = np.where(kept > 0, kept, np.nan)
        axes.plot(places, fractions, **mark, clip_on=False, zorder=_order(row["method"]))
        empty = places[kept == 0]
        height = 10.0 ** heights[METHODS.index(row["method"])]
        axes.plot(
            empty, np.full(len(empty), height), "x", color=mark["color"], ms=5, mew=1.5
        )
    uniform = 10.0 ** -rows[0]["compression"]
    axes.axhline(
        uniform, color=style.PALE, lw=1, ls=(0, (4, 3)), zorder=1, label="all layers alike"
    )
    axes.set_yscale("log")
    axes.set_ylim(10.0 ** strip[0], 1.6)
    decades = range(0, decade - 1, -2 if decade < -4 else -1)
    middle = sum(strip) / 2
    axes.yaxis.set_major_locator(FixedLocator([10.0**middle, *(10.0**d for d in decades)]))
    axes.yaxis.set_major_formatter(
        FixedFormatter(["none left", *map(style.power, decades)])
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0.4, depth + 0.6)
    kept = rows[0]["kept"]
    axes.set_title(f"compression {style.power(rows[0]['compression'])}: {kept:,} weights")


def accuracies(rows: Rows, path: pathlib.Path) -> None:
    """Accuracy after training against compression, with the dense network and chance.

    The axes of Fig. 6 of Tanaka et al. 2020. An open marker is a network with no path left
    from input to output.
    """
    (about,) = (row for row in rows if row["kind"] == "data")
    trained = [row for row in rows if row["kind"] == "trained"]
    cut = {
        (row["method"], row["label"])
        for row in rows
        if row.get("part") == "training" and row["log10_flow"] is None
    }
    (dense,) = (100 * row["accuracy"] for row in trained if row["method"] == "dense")
    chance = 100 / about["num_classes"]
    with style.settings():
        figure = Figure((5.6, 3.9), layout="constrained")
        axes = figure.subplots()
        for height, text, dashes in ((dense, "dense", "-"), (chance, "chance", ":")):
            axes.axhline(height, color=style.PALE, lw=1.2, ls=dashes, zorder=1)
            style.note(axes, height, text)
        for method in METHODS:
            mark = style.mark(method)
            own = [row for row in trained if row["method"] == method]
            x = [row["compression"] for row in own]
            y = [100 * row["accuracy"] for row in own]
            axes.plot(x, y, **mark, clip_on=False, zorder=_order(method))
            open_ = [(method, row["label"]) in cut for row in own]
            axes.plot(
                np.array(x)[open_],
                np.array(y)[open_],
                mark["marker"],
                color=mark["color"],
                mfc="white",
                clip_on=False,
                zorder=_order(method),
            )
        if cut:
            axes.plot([], [], "o", color=style.INK, mfc="white", label="no path left")
        ticks = sorted({row["compression"] for row in trained if row["compression"]})
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: style.power(x)))
        axes.margins(x=0.12)
        axes.set_ylim(0, max(100 * row["accuracy"] for row in trained) * 1.15)
        axes.set_xlabel("compression (weights / weights kept)")
        axes.set_ylabel(f"accuracy on {about['data']} (%)")
        handles, texts = axes.get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper center", ncols=len(texts))
        figure.savefig(path, dpi=200)


def _order(method: str) -> int:
    """Drawn last, and so on top: SynFlow; last but one, random, whose marker is small."""
    return {"magnitude": 2, "random": 3, "synflow": 4}[method]


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1]

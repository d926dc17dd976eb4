"""What came out of `experiments.imagenet`: weights kept in each layer, and the figure."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments import methods
from experiments.figures import style
from experiments.harness.sweeps import Row
from experiments.harness.tables import Table

# In the order of columns and legends.
COMPARED = ("random", "magnitude", "synflow")

# The parts of the network that are no groups of blocks, as the axis calls them.
_PARTS = {"conv": "stem", "linear": "out"}


def of_density(rows: Sequence[Row]) -> dict[float, dict[str, Row]]:
    """The rows of the first seed by density, the largest first, and criterion."""
    found: dict[float, dict[str, Row]] = {}
    rows = [row for row in rows if row["kind"] == "layers" and row["seed"] == 0]
    for row in sorted(rows, key=lambda row: -row["density"]):
        found.setdefault(row["density"], {})[row["method"]] = row
    return found


def tables(rows: Sequence[Row]) -> list[Table]:
    """The weights kept at each density: a line a layer, a column a criterion."""
    made = []
    for density, own in of_density(rows).items():
        compared = [own[method] for method in COMPARED if method in own]
        first, body = compared[0], []
        for place, (name, _, size) in enumerate(first["layers"]):
            kept = [_share(row["layers"][place][1], size) for row in compared]
            body.append([name, f"{size:,}", *kept])
        kept = [_share(row["kept"], first["size"]) for row in compared]
        body.append(["all", f"{first['size']:,}", *kept])
        paths = [f"{row['on_paths']:,}" if row["on_paths"] else "0" for row in compared]
        body.append(["on a path", "", *paths])
        flows = [row["log10_flow"] for row in compared]
        body.append(["log10 R", "", *("" if f is None else f"{f:.1f}" for f in flows)])
        headings = [methods.LABELS[row["method"]] for row in compared]
        title = f"Weights kept of each layer at density {density:.4g}"
        made.append(Table(title, ["layer", "weights", *headings], body))
    return made


def _share(kept: int, size: int) -> str:
    return f"{kept:,} ({100 * kept / size:.3g} %)"


# --- the figure ---------------------------------------------------------------------------


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """The fraction kept of each layer, a panel for each density."""
    found = of_density(rows)
    if not found:
        return
    every = [row for own in found.values() for row in own.values()]
    names = [name for name, *_ in every[0]["layers"]]
    low = min(kept / size for row in every for _, kept, size in row["layers"] if kept)
    low = 10.0 ** (math.floor(2 * math.log10(low)) / 2)
    with style.settings():
        lines = -(-len(found) // 2)
        figure = Figure((10.5, 0.6 + 2.9 * lines), layout="constrained")
        panels = figure.subplots(lines, 2, sharex=True, sharey=True, squeeze=False)
        for axes, (density, own) in zip(panels.flat, found.items()):
            _groups(axes, names)
            for method in COMPARED:
                if method in own:
                    _line(axes, own[method], low)
            axes.axhline(density, color=style.PALE, lw=1, ls=(0, (4, 3)), zorder=1)
            kept = next(iter(own.values()))["kept"]
            axes.set_title(f"density {density:.4g}: {kept:,} weights")
        for axes in panels.flat[len(found) :]:
            axes.set_axis_off()
        axes = panels[0, 0]
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, 1.3)
        axes.set_xlim(0.3, len(names) + 0.7)
        axes.yaxis.set_minor_locator(NullLocator())
        for axes in panels[:, 0]:
            axes.set_ylabel("fraction kept")
        handles, texts = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper center", ncols=len(texts))
        figure.savefig(path, dpi=180)


def _line(axes: Axes, row: Row, low: float) -> None:
    mark = style.mark(row["method"])
    kept = np.array([kept / size for _, kept, size in row["layers"]])
    places = np.arange(1, len(kept) + 1)
    main = np.array(["shortcut" not in name for name, *_ in row["layers"]])
    alive = kept > 0
    # The line follows the main way; shortcuts lie beside it.
    axes.plot(places[main & alive], kept[main & alive], lw=1, ms=3.6, **mark)
    beside = {**mark, "ls": "", "ms": 4.4, "mfc": "white", "label": None}
    axes.plot(places[~main & alive], kept[~main & alive], **beside)
    axes.plot(places[~alive], np.full((~alive).sum(), low), "x", color=mark["color"], ms=5)


def _groups(axes: Axes, names: Sequence[str]) -> None:
    """Shades every second group of blocks and names the parts of the network below."""
    parts = [name.split("_block")[0] for name in names]
    ticks = []
    for number, part in enumerate(dict.fromkeys(parts)):
        first = parts.index(part) + 0.5
        last = first + parts.count(part)
        ticks.append(
            ((first + last) / 2, _PARTS.get(part, part.replace("group", "group ")))
        )
        if number % 2:
            axes.axvspan(first, last, color="#f2f2f2", lw=0, zorder=0)
    axes.set_xticks(*zip(*ticks))
    axes.tick_params(axis="x", length=0)

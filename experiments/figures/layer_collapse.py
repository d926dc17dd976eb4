"""What came out of `experiments.layer_collapse`: comparison and figures."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.figures import agreement, style
from experiments.figures.limits import (
    LABELS,
    by_compression,
    critical,
    largest_possible,
    of_method,
    pruned,
    published_for,
    published_method,
)
from experiments.harness import command
from experiments.harness.sweeps import Row
from experiments.harness.tables import Table, power

PARTS = ("cifar", "imagenet")


def tables(rows: list[Row]) -> list[Table]:
    """How far each criterion gets, and where the published densities differ from ours."""
    made = []
    for part in PARTS:
        found = of_method(rows, part)
        if found:
            made.append(_how_far_table(rows, found))
        certified = of_method(rows, part, ["certified"])
        if certified:
            made.append(_certified_table(rows, certified["certified"]))
    for part in PARTS:
        found = of_method(rows, part)
        if found:
            _, config = pruned(rows, found)
            theirs = published_for(config)
            if theirs is not None:
                compared = agreement.comparison(found, theirs)
                made += agreement.tables(_title(config), compared)
    return made


def _how_far_table(rows: list[Row], found: dict[str, list[list[Row]]]) -> Table:
    layers, config = pruned(rows, found)
    theirs = published_for(config) or {}
    headings = ["criterion", "seeds", "every layer has weights", "a path is left"]
    body = []
    for method, seeds in found.items():
        reached = critical(seeds)
        cells = [LABELS[method], str(len(seeds))]
        cells += ["nowhere" if c is None else power(c) for c in reached]
        if "critical" in theirs:
            theirs_at = (
                theirs[key][published_method(method)] for key in ("critical", "drawn")
            )
            cells += map(power, theirs_at)
        body.append(cells)
    if "critical" in theirs:
        headings += ["authors' files", "their Fig. 1"]
    title = (
        f"{_title(config)}: the largest compression of the grid at which, in all seeds, "
        "every layer has weights, and at which a path is left; "
        f"{power(largest_possible(layers))} is possible"
    )
    return Table(title, headings, body)


def _certified_table(rows: list[Row], seeds: list[list[Row]]) -> Table:
    at: dict[int, list[Row]] = {}
    for row in (row for own in seeds for row in own):
        at.setdefault(row["k"], []).append(row)
    config, body = command.configs(rows)[seeds[0][0]["run"]], []
    for k, own in at.items():
        whole = sum(row["connected"] and row["kept"] == k for row in own)
        rounds = style.span([row["rounds"] for row in own])
        cells = [f"{k} ({power(own[0]['compression'])})", f"{whole} of {len(own)}", rounds]
        body.append(cells)
    title = (
        f"{_title(config)}: SynFlow in certified rounds, each removing at most "
        f"{config['ratio']:g} of the flow"
    )
    return Table(title, ["weights", "seeds with a path", "rounds"], body)


_TITLES = {
    ("vgg16_cifar", 100): "VGG-16 for CIFAR-100",
    ("vgg19_imagenet", 1000): "VGG-19 for ImageNet",
}


def _title(config: dict[str, Any]) -> str:
    network, classes = config["network"], config["num_classes"]
    return _TITLES.get((network, classes), f"{network} with {classes} classes")


# --- the figures --------------------------------------------------------------------------


def draw(part: str, rows: list[Row], path: pathlib.Path) -> None:
    """A panel for each criterion, a line for each layer, dark at the input.

    A line ends where a seed keeps nothing of the layer. The shade is where some seed has no
    path left from input to output.
    """
    found = of_method(rows, part)
    if not found:
        return
    layers, config = pruned(rows, found)
    depth, limit = len(layers), largest_possible(layers)
    theirs = published_for(config)
    colors = matplotlib.colormaps["viridis"](np.linspace(0.15, 0.95, depth))
    end = max(limit + 0.15, max(config["compressions"]))
    low = min(
        kept / size
        for seeds in found.values()
        for own in seeds
        for row in own
        for _, kept, size in row["layers"]
        if kept
    )
    with style.settings():
        columns = 3
        high = -(-len(found) // columns)
        spare = high * columns > len(found)  # a place for the legend among the panels
        height = 0.5 + 3.1 * high + (0 if spare else 1.2)
        figure = Figure((10.5, height), layout="constrained")
        panels = figure.subplots(high, columns, sharex=True, sharey=True, squeeze=False)
        for place, (method, seeds) in enumerate(found.items()):
            axes = panels.flat[place]
            _panel(axes, seeds, colors, limit, end)
            if theirs is not None:
                _their_lines(axes, theirs["density"][published_method(method)])
            axes.set_title(LABELS[method])
        # Both are shared by all panels.
        axes.set_yscale("log")
        axes.set_ylim(10.0 ** (math.floor(2 * math.log10(low) - 0.4) / 2), 2)
        axes.set_xlim(0, end)
        axes.xaxis.set_major_locator(FixedLocator(range(math.floor(end) + 1)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: style.power(x)))
        axes.yaxis.set_minor_locator(NullLocator())
        for place, axes in enumerate(panels.flat):
            if place >= len(found):
                axes.set_axis_off()
            elif place + columns >= len(found):
                axes.tick_params(labelbottom=True)
                axes.set_xlabel("compression")
        for axes in panels[:, 0]:
            axes.set_ylabel("fraction kept")
        lines, rest = _handles([name for name, _, _ in layers], colors, theirs is not None)
        if spare:
            place = panels.flat[len(found)]
            own = place.legend(handles=lines, loc="upper left", ncols=3, fontsize=8.5)
            place.add_artist(own)
            place.legend(handles=rest, loc="lower left", fontsize=8.5)
        else:
            both = {"fontsize": 8.5, "loc": "outside lower left"}
            figure.legend(handles=lines, ncols=5, **both)
            figure.legend(handles=rest, **both | {"loc": "outside lower right"})
        figure.suptitle(_title(config), fontsize=11.5)
        figure.savefig(path, dpi=180)


def _panel(axes: Axes, seeds, colors, limit: float, end: float) -> None:
    at = by_compression(seeds)
    x = np.array(list(at))
    counts = [[[n for _, n, _ in row["layers"]] for row in own] for own in at.values()]
    sizes = np.array([size for *_, size in seeds[0][0]["layers"]])
    kept = np.array(
        [np.where(np.all(own, axis=0), np.mean(own, axis=0), np.nan) for own in counts]
    )
    mean = kept / sizes
    found = critical(seeds)
    if found.connected is not None and found.connected < x[-1]:
        axes.axvspan(found.connected, end, color="#eeeeee", lw=0, zorder=0)
    axes.axvline(limit, color=style.PALE, lw=1.2, ls=":", zorder=1)
    if found.whole is not None:
        left = found.whole > 0.8 * end  # of the line, where there is room
        axes.axvline(found.whole, color=style.INK, lw=1.0, zorder=1)
        axes.annotate(
            style.power(round(found.whole, 2)),
            (found.whole, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if left else 3, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top",
            color=style.INK,
        )
    for layer, color in enumerate(colors):
        y = mean[:, layer]
        axes.plot(x, y, color=color, lw=2.0, solid_capstyle="butt", zorder=3)
        last = np.flatnonzero(np.isfinite(y))
        if last.size and last[-1] + 1 < len(x):
            ends = x[last[-1]], y[last[-1]]
            axes.plot(*ends, "x", color=color, ms=5.5, mew=1.6, zorder=5)


_PUBLISHED = {"color": "black", "lw": 0.7, "ls": (0, (4, 2.5))}


def _their_lines(axes: Axes, density: dict[str, list[float]]) -> None:
    x, y = map(np.array, zip(*sorted((float(c), own) for c, own in density.items())))
    y = np.where(y > 0, y, np.nan)
    axes.plot(x, y, **_PUBLISHED, zorder=4)


def _handles(
    names: Sequence[str], colors: np.ndarray, same: bool
) -> tuple[list[Line2D], list[Line2D | Patch]]:
    """What the legends explain: the layers, and the rest."""
    layers = [Line2D([], [], color=c, lw=2.0, label=n) for n, c in zip(names, colors)]
    rest = [
        Line2D([], [], color=style.INK, lw=1.0, label="no layer empty up to here"),
        Line2D([], [], color=style.PALE, lw=1.2, ls=":", label="N/L, the largest possible"),
        Line2D(
            *([], []),
            **{"color": style.INK, "ls": "", "marker": "x"},
            label="last before the layer is empty",
        ),
        Patch(color="#eeeeee", label="no path from input to output, in some seed"),
    ]
    if same:
        rest.insert(0, Line2D([], [], **_PUBLISHED, label="published"))
    return layers, rest

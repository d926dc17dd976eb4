"""What came out of `experiments.layer_collapse`: comparison, sentences and figures."""

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

from experiments import methods, published
from experiments.figures import agreement, style
from experiments.figures.limits import (
    critical,
    is_published,
    largest_possible,
    of_method,
    pruned,
)
from experiments.harness import command
from experiments.harness.sweeps import Row
from experiments.harness.tables import Table, power


def comparison(rows: Sequence[Row]) -> list[Row]:
    """What was published of this network beside ours; see `agreement.comparison`."""
    same = {run for run, config in command.configs(rows).items() if is_published(config)}
    return agreement.comparison(
        of_method([row for row in rows if row["run"] in same], "cifar")
    )


def tables(rows: list[Row]) -> list[Table]:
    """How far each criterion gets, and where the published densities differ from ours."""
    made = []
    for part in ("cifar", "imagenet"):
        found = of_method(rows, part)
        if found:
            made.append(_how_far_table(rows, found))
    return made + agreement.tables(comparison(rows))


def _how_far_table(rows: list[Row], found: dict[str, list[list[Row]]]) -> Table:
    layers, config = pruned(rows, found)
    theirs, same = published.load("layer_collapse"), is_published(config)
    headings = ["criterion", "seeds", "every layer has weights", "a path is left"]
    body = []
    for method, seeds in found.items():
        reached = critical(seeds)
        cells = [methods.LABELS[method], str(len(seeds))]
        cells += ["nowhere" if c is None else power(c) for c in reached]
        if same:
            cells += [power(theirs[key][method]) for key in ("critical", "drawn")]
        body.append(cells)
    if same:
        headings += ["authors' files", "their Fig. 1"]
    title = (
        f"{_title(config)}: the largest compression of the grid at which, in all seeds, "
        "every layer has weights, and at which a path is left; "
        f"{power(largest_possible(layers))} is possible"
    )
    return Table(title, headings, body)


def sentences(rows: list[Row]) -> list[str]:
    """What came out, beside what the paper found."""
    said = []
    for part in ("cifar", "imagenet"):
        found = of_method(rows, part)
        if not found:
            continue
        layers, config = pruned(rows, found)
        limit, last = largest_possible(layers), max(config["compressions"])
        said.append(
            f"{_title(config)}: {sum(size for *_, size in layers):,} weights in "
            f"{len(layers)} layers, so that no compression above N/L = "
            f"{power(limit)} leaves each layer a weight; tried up to {power(last)}."
        )
        for method, seeds in found.items():
            said.append(_how_far(method, seeds, config))
            said += _emptied_first(method, seeds)
        said += _why_cut(found.get("synflow", []))
        said += _certified_rounds(rows, part)
    return said + agreement.sentences(comparison(rows))


def _how_far(method: str, seeds: Sequence[Sequence[Row]], config: dict[str, Any]) -> str:
    theirs, found = published.load("layer_collapse"), critical(seeds)
    label = methods.LABELS[method]
    number = f"each of {len(seeds)} seeds" if len(seeds) > 1 else "the one seed"
    if found.whole is None:
        return f"{label} empties a layer at every compression tried."
    text = f"{label} keeps weights in every layer up to {power(found.whole)} in {number}"
    if found.connected == found.whole:
        text += " and leaves a path from input to output as far"
    elif found.connected is None:
        text += " but leaves no path from input to output"
    else:
        text += f" but a path from input to output only up to {power(found.connected)}"
    text += _in_some_seeds(seeds, found.connected)
    if is_published(config):
        text += (
            f"; the authors' three runs: weights up to {power(theirs['critical'][method])}"
        )
        if theirs["drawn"][method] != theirs["critical"][method]:
            text += f" (Fig. 1 draws {power(theirs['drawn'][method])})"
    return text + "."


def _in_some_seeds(seeds: Sequence[Sequence[Row]], limit: float | None) -> str:
    """In how many seeds a path is left beyond the compressions at which it is in all."""
    alive: dict[float, int] = {}
    for row in (row for own in seeds for row in own if row["connected"]):
        if limit is None or row["compression"] > limit:
            alive[row["compression"]] = alive.get(row["compression"], 0) + 1
    if not alive:
        return ""
    each = [f"in {alive[c]} of {len(seeds)} seeds at {power(c)}" for c in sorted(alive)]
    return f" (and {', '.join(each)})"


def _emptied_first(method: str, seeds: Sequence[Sequence[Row]]) -> list[str]:
    """At which compression layers are empty first, and which."""
    at: dict[float, set[str]] = {}
    for row in (row for own in seeds for row in own):
        names = {name for name, kept, _ in row["layers"] if not kept}
        if names:
            at.setdefault(row["compression"], set()).update(names)
    if not at:
        return []
    names = [name for name, *_ in seeds[0][0]["layers"] if name in at[min(at)]]
    some = " in some seed" if len(seeds) > 1 else ""
    return [
        f"{methods.LABELS[method]}: empty first{some}, at {power(min(at))}: "
        f"{', '.join(names)}."
    ]


def _why_cut(seeds: Sequence[Sequence[Row]]) -> list[str]:
    """What the rounds removed in which SynFlow cut a network, if it did."""
    cut = [row for own in seeds for row in own if not row["connected"]]
    ratios = [row["largest_ratio"] for row in cut if "largest_ratio" in row]
    if not ratios:
        return []
    at = ", ".join(power(c) for c in sorted({row["compression"] for row in cut}))
    times = "once" if len(cut) == 1 else f"{len(cut)} times"
    return [
        f"SynFlow's {cut[0]['rounds']} rounds cut the network {times}, at {at}: there a "
        f"round removed more than the whole flow ({style.span(ratios, '.2f')} times R), "
        "and Theorem 3 asks that none does."
    ]


def _certified_rounds(rows: list[Row], part: str) -> list[str]:
    """What SynFlow keeps if no round may remove so much."""
    at: dict[int, list[Row]] = {}
    for own in of_method(rows, part, ["certified"]).get("certified", []):
        for row in own:
            at.setdefault(row["k"], []).append(row)
    configs, said = command.configs(rows), []
    for k, own in at.items():
        whole = sum(row["connected"] and row["kept"] == k for row in own)
        ratio = configs[own[0]["run"]]["ratio"]
        rounds = style.span([row["rounds"] for row in own])
        said.append(
            f"SynFlow in certified rounds, each removing at most {ratio:g} of the flow, "
            f"leaves a path with {k} weights ({power(own[0]['compression'])}) in {whole} "
            f"of {len(own)} seeds, in {rounds} rounds."
        )
    return said


def caption(rows: list[Row]) -> str:
    """What the figures show, in words."""
    text = (
        "Fraction of each layer's weights that is kept at initialisation, against "
        "compression (weights over weights kept), for each criterion."
    )
    for part in ("cifar", "imagenet"):
        found = of_method(rows, part)
        if not found:
            continue
        configs = command.configs(rows)
        by_method = {m: configs[seeds[0][0]["run"]] for m, seeds in found.items()}
        numbers = {methods.LABELS[m]: len(seeds) for m, seeds in found.items()}
        text += f" {_title(next(iter(by_method.values())))}: "
        if len(set(numbers.values())) == 1:
            number = next(iter(numbers.values()))
            text += f"mean of {number} seeds" if number > 1 else "one seed"
        else:
            text += "seeds: " + ", ".join(f"{m} {n}" for m, n in numbers.items())
        if "synflow" in by_method:
            text += f"; SynFlow in {by_method['synflow']['rounds']} rounds, others in one"
        looks = [
            f"{methods.LABELS[m]} sees {_looked_at(config)}"
            for m, config in by_method.items()
            if config["data"]
        ]
        text += "".join(f"; {look}" for look in looks) + "."
    if comparison(rows):
        text += " Dashed: the authors' first run, published with their code"
        if {"snip", "grasp"} & set(of_method(rows, "cifar")):
            text += "; its SNIP and GraSP were made before that code was corrected"
        text += "."
    return text


def _looked_at(config: dict[str, Any]) -> str:
    classes = config["classes"] or {
        "imagenet2012": 1000,
        "tiny_imagenet_10k": 200,
    }.get(config["data"], config["num_classes"])
    text = f"{config['each'] * classes:,} images of {config['data']}"
    if config["data"].startswith("tiny_imagenet") and config["input_shape"][0] == 224:
        text += " enlarged to 224 pixels"
    return text


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
    theirs, same = published.load("layer_collapse"), is_published(config)
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
            if same:
                _their_lines(axes, theirs["density"][method])
            axes.set_title(methods.LABELS[method])
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
        lines, rest = _handles([name for name, _, _ in layers], colors, same)
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
    x = np.array([row["compression"] for row in seeds[0]])
    kept = np.array([[[n for _, n, _ in row["layers"]] for row in own] for own in seeds])
    sizes = np.array([size for *_, size in seeds[0][0]["layers"]])
    mean = np.where((kept > 0).all(axis=0), kept.mean(axis=0), np.nan) / sizes
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
    x = np.array(sorted(map(float, density)))
    y = np.array([density[str(c)] for c in x])
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

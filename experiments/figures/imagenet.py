"""What came out of `experiments.imagenet`: weights kept in each layer, and the figure."""

import math
import pathlib
import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments import methods, published
from experiments.figures import style
from experiments.harness import command
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
        headings = [methods.LABELS[row["method"]] for row in compared]
        title = f"Weights kept of each layer at density {density:.4g}"
        made.append(Table(title, ["layer", "weights", *headings], body))
    return made


def _share(kept: int, size: int) -> str:
    return f"{kept:,} ({100 * kept / size:.3g} %)"


def sentences(rows: list[Row]) -> list[str]:
    """What came out, and the accuracies that others report for such networks."""
    theirs, found = published.load("imagenet"), []
    network = next(iter(command.configs(rows).values()))["network"]
    for density, own in of_density(rows).items():
        for method, row in own.items():
            found.append(_sentence(row))
        accuracy = theirs["accuracy"].get(f"{density:.6g}")
        if accuracy and network == theirs["network"]:
            trained = [f"{methods.LABELS[m]} {accuracy[m]:.2f} %" for m in own]
            found.append(
                f"After training on ImageNet at density {density:.4g}, which was not done "
                f"here, Wang et al. 2023 report {_listed(trained)} (dense "
                f"{theirs['dense']:.2f} %)."
            )
            cut = [methods.LABELS[m] for m, row in own.items() if row["log10_flow"] is None]
            if cut:
                found[-1] += (
                    f" No network without a path beats chance, so what they prune by "
                    f"{_listed(cut)}, or the weights it starts from, differs from ours."
                )
    rounds = [row for row in rows if row.get("method") == "synflow"]
    if rounds:
        each = statistics.median(row["round_seconds"] for row in rounds)
        device = next(row["device"] for row in rows if row["kind"] == "run")
        found.append(
            f"A round of SynFlow on {rounds[0]['size']:,} weights takes {each:.2f} s on "
            f"this machine's {device}."
        )
    return found


def _sentence(row: Row) -> str:
    shares = {name: kept / size for name, kept, size in row["layers"]}
    least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    empty = [name for name, share in shares.items() if not share]
    text = (
        f"{methods.LABELS[row['method']]} at density {row['density']:.4g} keeps "
        f"{row['kept']:,} of {row['size']:,} weights, from {100 * shares[least]:.3g} % of "
        f"{least} to {100 * shares[most]:.3g} % of {most}; "
    )
    if empty:
        text += f"of its {len(shares)} layers {_listed(empty)} "
        text += "keeps nothing; " if len(empty) == 1 else "keep nothing; "
    if row["log10_flow"] is None:
        return text + "no path is left from input to output."
    away = row["kept"] - row["on_paths"]
    return text + (
        f"{away:,} of those kept lie on no path from input to output, and the flow that is "
        f"left is 10^{row['log10_flow']:.1f}."
    )


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]


def caption(rows: list[Row]) -> str:
    """What the figure shows, at which scale."""
    config = next(iter(command.configs(rows).values()))
    height, width, _ = config["input_shape"]
    rounds = max(c["rounds"] for c in command.configs(rows).values())
    return (
        f"Fraction kept of each layer of {config['network']} at initialisation "
        f"({height}x{width} pixels, seed 0), in the order of depth; SynFlow in {rounds} "
        "rounds, the others in one. Crosses at the lower edge are layers with no weight "
        "left. The shades are the groups of residual blocks; open points are the "
        "convolutions of shortcuts. No network is trained and no image is used."
    )


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

"""What came out of `experiments.theory`: comparison, the table and the figures."""

import math
import pathlib
import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import published
from experiments.figures import style
from experiments.harness import command
from experiments.harness.sweeps import Row, by_run
from experiments.harness.tables import Table

_FAMILIES = (
    "chains",
    "ResNets for CIFAR",
    "ResNets for CIFAR, 1,202 layers",
    "ResNets",
    "wide ResNets",
)
_DATA = ("", "cifar", "tiny", "imagenet")


def networks(rows: Sequence[Row]) -> list[Row]:
    """A row for each network: its counts, and what the rounds of its pass left.

    Beside the counts (``weights``, ``layers``, ``fewest``):
      flows: log10 R by number of weights, after each round that left a path.
      lefts: the layers that are not empty, in the same way.
      before_cut: the fewest weights with a path before a round first cut the network.
      reached: the fewest, with smaller rounds after a cut.
      largest: the largest total score, as a share of R, that a round on the way to
        ``layers`` removed, up to the first that cut.
      rounds: to ``layers``.
    """
    of_runs, found = by_run(rows), []
    for name, config in command.configs(rows).items():
        own = {row["kind"]: row for row in of_runs[name]}
        about, after = own["network"], own["pass"]
        reached, cuts = min(after["kept"]), after["cuts"][:1]
        before_cut = cuts[0]["before"] if cuts else reached
        tried = zip(after["kept"], after["removed"])
        shares = [(k, share) for k, share in tried if k >= before_cut]
        shares += [(cut["after"], cut["removed"]) for cut in cuts]
        found.append(
            {
                "network": config["network"],
                "seed": config["seed"],
                "rounds": config["rounds"],
                **{count: about[count] for count in ("weights", "layers", "fewest")},
                "flows": dict(zip(after["kept"], after["log10_flow"])),
                "lefts": dict(zip(after["kept"], after["layers_left"])),
                "before_cut": before_cut,
                "reached": reached,
                "largest": max(share for k, share in shares if k >= about["layers"]),
            }
        )
    return sorted(found, key=lambda row: (*_order(row["network"]), row["seed"]))


def _label(row: Row) -> str:
    return row["network"] + (f", draw {row['seed'] + 1}" if row["seed"] else "")


def _family(network: str) -> int:
    """Which of ``_FAMILIES``, by its place: a wide ResNet for CIFAR is among those."""
    if "resnet" not in network:
        return 0
    if _depth(network) in (18, 34, 50, 101, 152):
        return 4 if network.startswith("wide_") else 3
    return 2 if _depth(network) > 1000 else 1


def _depth(network: str) -> int:
    digits = re.search(r"\d+", network)
    return int(digits[0]) if digits else 0


def _data(network: str) -> str:
    """The data set in its name, if there is one: of ``_DATA``."""
    last = network.rsplit("_", 1)[-1]
    return last if last in _DATA else ""


def _order(network: str) -> tuple[int, int, int, str]:
    """By family, depth, data set."""
    return _family(network), _depth(network), _DATA.index(_data(network)), network


def compare(rows: Sequence[Row]) -> list[str]:
    """The counts that differ from those of the authors' networks, in words."""
    theirs, apart = published.load("theory")["networks"], []
    for row in networks(rows):
        for count, theirs_is in theirs.get(row["network"], {}).items():
            if row[count] != theirs_is:
                apart.append(
                    f"{row['network']} has {count} {row[count]:,}, theirs {theirs_is:,}"
                )
    return apart


def _log(row: Row, k: int) -> float:
    return math.log10(row["weights"] / k)


def tables(rows: Sequence[Row]) -> list[Table]:
    """How far each network goes, and its flow."""
    body = []
    for row in networks(rows):
        layers, reached, flows = row["layers"], row["reached"], row["flows"]
        body.append(
            [
                _label(row),
                f"{row['weights']:,}",
                f"{layers:,}",
                f"{_log(row, layers):.3f}",
                f"{row['fewest']}",
                f"{_log(row, row['fewest']):.3f}",
                f"{row['before_cut']:,}",
                f"{row['largest']:.2g}",
                f"{reached:,}",
                f"{_log(row, reached):.3f}",
                *(_cell(flows.get(k)) for k in (row["weights"], layers, reached)),
                f"{row['lefts'][layers]:,}" if layers in flows else "",
            ]
        )
    headings = ["network", "N", "L", "log10 N/L", "fewest", "log10 N/fewest"]
    headings += ["before a cut", "largest share", "reached", "log10 N/reached"]
    headings += ["log10 R at N", "at L", "at reached", "layers left at L"]
    title = (
        "How far each network can be pruned and how far it was, in weights: before a "
        "round first cut it, and reached with smaller rounds after that; the largest total "
        "score, as a share of R, that a round to L removed up to the first cut"
    )
    return [Table(title, headings, body)]


def _cell(flow: float | None) -> str:
    return "" if flow is None else f"{flow:.2f}"


# --- the figures --------------------------------------------------------------------------

# Okabe and Ito's colours by depth within a family, then styles by data set or width.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")


def _style(network: str) -> str:
    if _family(network) in (1, 2):
        return "--" if network.startswith("wide_") else "-"
    if network.endswith("_bn_imagenet"):
        return "-."
    return {"tiny": "--", "imagenet": ":"}.get(_data(network), "-")


def draw_limits(rows: list[Row], path: pathlib.Path) -> None:
    """How far each network can go, and how far SynFlow got."""
    found, synflow = networks(rows), {"marker": "o", "color": style.MARKS["synflow"][0]}
    left = math.floor(
        min(_log(row, max(row["before_cut"], row["layers"])) for row in found)
    )
    with style.settings():
        figure = Figure((7.2, 1.6 + 0.17 * len(found)), layout="constrained")
        axes = figure.subplots()
        for height, row in enumerate(found):
            limit, paper = _log(row, row["fewest"]), _log(row, row["layers"])
            reached = _log(row, row["reached"])
            axes.plot([left, reached], [height] * 2, color="#dddddd", lw=1.0, zorder=1)
            axes.plot(paper, height, "|", color=style.INK, ms=9, mew=1.8, zorder=2)
            if row["fewest"] < row["layers"]:
                axes.plot(limit, height, "|", color=style.PALE, ms=9, mew=1.8, zorder=2)
            before = _log(row, row["before_cut"])
            axes.plot(before, height, **synflow, mfc="white", ms=4, zorder=3)
            axes.plot(reached, height, **synflow, ms=4, zorder=4)
        axes.set_yticks(range(len(found)), list(map(_label, found)), fontsize=7.5)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xlim(left, None)
        axes.set_xlabel("compression, log10 (weights / weights kept)")
        marks = {
            "N / L": {"marker": "|", "color": style.INK, "ms": 10, "mew": 1.8},
            "shortest path": {"marker": "|", "color": style.PALE, "ms": 10, "mew": 1.8},
            "SynFlow": synflow | {"ms": 5},
            "before a cut": synflow | {"ms": 5, "mfc": "white"},
        }
        for label, mark in marks.items():
            axes.plot([], [], ls="", **mark, label=label)
        handles = axes.get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=len(marks))
        figure.savefig(path, dpi=200)


def draw_flows(rows: list[Row], path: pathlib.Path) -> None:
    """R against compression, a panel for each family; one draw of each network."""
    found = [row for row in networks(rows) if not row["seed"]]
    families = sorted({_family(row["network"]) for row in found})
    with style.settings():
        columns = min(2, len(families))
        lines = math.ceil(len(families) / columns)
        size = (9.6 if columns > 1 else 5.2, 3.9 * lines)
        figure = Figure(size, layout="constrained")
        grid = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axes, family in zip(grid, families):
            own = [row for row in found if _family(row["network"]) == family]
            _flows(axes, own)
            axes.set_title(_FAMILIES[family])
        for axes in grid[len(families) :]:
            axes.remove()
        figure.savefig(path, dpi=200)


def _flows(axes: Axes, found: Sequence[Row]) -> None:
    axes.axhline(0, color=style.PALE, lw=1, zorder=1)
    hues = list(dict.fromkeys(_hue(row["network"]) for row in found))
    for row in found:
        points = sorted((_log(row, k), flow) for k, flow in row["flows"].items())
        name = row["network"]
        color = _COLOURS[hues.index(_hue(name)) % len(_COLOURS)]
        axes.plot(*zip(*points), color=color, ls=_style(name), lw=1.3, label=name, zorder=2)
        axes.plot(*points[-1], "o", color=color, ms=3, zorder=3)
    axes.set_xlabel("compression, log10 (weights / weights kept)")
    axes.set_ylabel("log10 R")
    axes.legend(fontsize=6, ncols=2, handlelength=2.4)


def _hue(network: str) -> int | str:
    """What has a colour: the depth; of networks without one in their name the network."""
    return _depth(network) or network

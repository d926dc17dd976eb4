"""What came out of `experiments.theory`: comparison, the table, sentences and figures."""

import math
import pathlib
import re
import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments import published
from experiments.figures import style
from experiments.harness import command
from experiments.harness.sweeps import Row, by_run
from experiments.harness.tables import Table
from synflow_jax import models
from synflow_jax.pruning.rounds import WHOLE

# log10 of the largest number of float32, of which R goes beyond.
_FLOAT32 = math.log10(float(np.finfo(np.float32).max))

_FAMILIES = ("chains", "ResNets for CIFAR", "ResNets", "wide ResNets")
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
                "rounds": config["rounds"],
                **{count: about[count] for count in ("weights", "layers", "fewest")},
                "flows": dict(zip(after["kept"], after["log10_flow"])),
                "lefts": dict(zip(after["kept"], after["layers_left"])),
                "before_cut": before_cut,
                "reached": reached,
                "largest": max(share for k, share in shares if k >= about["layers"]),
            }
        )
    return sorted(found, key=lambda row: _order(row["network"]))


def _family(network: str) -> int:
    """Which of ``_FAMILIES``, by its place: a wide ResNet for CIFAR is among those."""
    if "resnet" not in network:
        return 0
    if _depth(network) in (18, 34, 50, 101, 152):
        return 3 if network.startswith("wide_") else 2
    return 1


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


def sentences(rows: list[Row]) -> list[str]:
    """What came out, beside the paper's numbers."""
    found, apart = networks(rows), compare(rows)
    theirs = published.load("theory")["networks"]
    both = [row["network"] for row in found if row["network"] in theirs]
    said = []
    if both:
        said.append(
            f"Of {len(both)} networks that the authors' code has too ({', '.join(both)}), "
            "the weights N, the layers L and the fewest weights of a path "
            + (f"differ: {'; '.join(apart)}." if apart else "are all equal to theirs.")
        )
    said += _chains([row for row in found if row["fewest"] == row["layers"]])
    said += _shortcuts([row for row in found if row["fewest"] < row["layers"]])
    return said + _ratios(found) + _range(found)


def _chains(found: Sequence[Row]) -> list[str]:
    """Without shortcuts, where N / L is the limit."""
    if not found:
        return []
    planned = [row for row in found if row["before_cut"] == row["layers"]]
    reached = [row for row in found if row["reached"] == row["layers"]]
    cut = ", ".join(
        f"{row['network']} ({row['before_cut']} weights, {row['layers']} layers)"
        for row in found
        if row["before_cut"] > row["layers"]
    )
    text = (
        "Without shortcuts N / L is the limit. The rounds as planned came there, to "
        "exactly one weight a layer and a path left, in "
        f"{len(planned)} of {len(found)} networks"
    )
    if cut:
        text += (
            f"; the last that left a path in the others: {cut}. With smaller rounds after "
            f"a cut the limit was reached in {len(reached)} of {len(found)}"
        )
    return [f"{text}."]


def _shortcuts(found: Sequence[Row]) -> list[str]:
    if not found:
        return []
    planned = [row for row in found if row["before_cut"] <= row["layers"]]
    reached = [row for row in found if row["layers"] in row["flows"]]
    least = style.span([row["fewest"] for row in found])
    said = [
        f"With shortcuts {least} weights can make a path, and N / L is not the limit. A "
        f"path was left with L weights in {len(planned)} of {len(found)} such networks by "
        f"the rounds as planned, and in {len(reached)} with smaller rounds after a cut."
    ]
    if reached:
        at_layers = [(row["lefts"][row["layers"]], row) for row in reached]
        empty = style.span([1 - left / row["layers"] for left, row in at_layers], ".0%")
        already = sum(left == row["reached"] for left, row in at_layers)
        ends = style.span([row["reached"] for row in reached])
        factors = [row["layers"] / row["reached"] for row in reached]
        factor = (
            f"{style.span(factors, '.1f')} ({statistics.median(factors):.1f} in median)"
        )
        shortest = sum(row["reached"] == row["fewest"] for row in reached)
        said.append(
            f"With L weights {empty} of the layers were empty, and a path goes around "
            f"them; in {already} of {len(reached)} the others were as many as those of the "
            f"last path. The pass went on beyond N / L by a factor of {factor}, to one "
            f"path of {ends} weights, the shortest in {shortest} of {len(reached)}."
        )
    return said


def _ratios(found: Sequence[Row]) -> list[str]:
    """Theorem 3, held against every network."""
    said = []
    below = [row for row in found if row["largest"] < WHOLE]
    above = [row for row in found if row["largest"] >= WHOLE]
    for rows, which, share in (
        (below, "every", "less than R"),
        (above, "some", "R or more"),
    ):
        if rows:
            cut = sum(row["before_cut"] > row["layers"] for row in rows)
            largest = style.span([row["largest"] for row in rows], ".3f")
            said.append(
                f"In {len(rows)} of {len(found)} networks {which} round on the way to "
                "N / L, up to the first that cut, removed weights whose scores add up to "
                f"{share} (the largest share is {largest}); {cut} of these were cut on it."
            )
    return said


def _range(found: Sequence[Row]) -> list[str]:
    dense = {row["network"]: row["flows"][row["weights"]] for row in found}
    low, high = min(dense, key=dense.get), max(dense, key=dense.get)
    beyond = sum(flow > _FLOAT32 for flow in dense.values())
    return [
        f"R at initialisation goes from 10^{dense[low]:.1f} ({low}) to "
        f"10^{dense[high]:.1f} ({high}); {beyond} of {len(found)} networks have more than "
        "float32 can hold."
    ]


def _log(row: Row, k: int) -> float:
    return math.log10(row["weights"] / k)


def caption(rows: list[Row]) -> str:
    """What the figures show."""
    found = networks(rows)
    rounds = sorted({row["rounds"] for row in found})
    there = {row["network"] for row in found}
    left_out = [name for name in models.NETWORKS if name not in there]
    few = len(left_out) < len(there)
    named = ", ".join(left_out) if few else f"{len(left_out)} networks of the zoo"
    return (
        "First figure: the paper's largest compression N / L (dark bar), that beyond which "
        "no path can be left (pale bar, where shortcuts make it another) and the largest "
        "with a path left that SynFlow reached, before a round first cut the network "
        "(open) and with smaller rounds after that (filled). Second: R, the "
        "total flow, after each round; where networks are very deep the axis is "
        f"logarithmic above {_BEND}. One pass over each network, one draw of the weights: "
        f"{' or '.join(map(str, rounds))} exponential rounds to N / L and further ones at "
        "the same rate. A round that cuts the network is undone and tried again, removing "
        "half as many weights." + (f" Left out: {named}." if left_out else "")
    )


def tables(rows: Sequence[Row]) -> list[Table]:
    """How far each network goes, and its flow."""
    body = []
    for row in networks(rows):
        layers, reached, flows = row["layers"], row["reached"], row["flows"]
        body.append(
            [
                row["network"],
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
    if _family(network) == _FAMILIES.index("ResNets for CIFAR"):
        return "--" if network.startswith("wide_") else "-"
    if network.endswith("_bn_imagenet"):
        return "-."
    return {"tiny": "--", "imagenet": ":"}.get(_data(network), "-")


def draw_limits(rows: list[Row], path: pathlib.Path) -> None:
    """How far each network can go, and how far SynFlow got."""
    found, synflow = networks(rows), {"marker": "o", "color": style.COLORS["synflow"]}
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
        axes.set_yticks(range(len(found)), [row["network"] for row in found], fontsize=7.5)
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
    """R against compression, a panel for each family."""
    found = networks(rows)
    families = sorted({_family(row["network"]) for row in found})
    with style.settings():
        columns = min(2, len(families))
        lines = math.ceil(len(families) / columns)
        size = (9.6 if columns > 1 else 5.2, 3.9 * lines)
        figure = Figure(size, layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False).flat
        for axes, family in zip(grid, families):
            own = [row for row in found if _family(row["network"]) == family]
            _flows(axes, own)
            axes.set_title(_FAMILIES[family])
        for axes in list(grid)[len(families) :]:
            axes.remove()
        figure.savefig(path, dpi=200)


_TICKS = (-30, -20, -10, 0, 10, 20, 30, 100, 300, 1000)
_BEND = 30  # log10 R, where the axis turns from linear to logarithmic if it must


def _flows(axes: Axes, found: Sequence[Row]) -> None:
    axes.axhline(0, color=style.PALE, lw=1, zorder=1)
    hues = list(dict.fromkeys(_hue(row["network"]) for row in found))
    for row in found:
        points = sorted((_log(row, k), flow) for k, flow in row["flows"].items())
        name = row["network"]
        color = _COLOURS[hues.index(_hue(name)) % len(_COLOURS)]
        axes.plot(*zip(*points), color=color, ls=_style(name), lw=1.3, label=name, zorder=2)
        axes.plot(*points[-1], "o", color=color, ms=3, zorder=3)
    if max(max(row["flows"].values()) for row in found) > 300:
        axes.set_yscale("symlog", linthresh=_BEND, linscale=2)
        axes.yaxis.set_major_locator(FixedLocator(_TICKS))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.set_xlabel("compression, log10 (weights / weights kept)")
    axes.set_ylabel("log10 R")
    axes.legend(fontsize=6, ncols=2, handlelength=2.4)


def _hue(network: str) -> int | str:
    """What has a colour: the depth; of networks without one in their name the network."""
    return _depth(network) or network

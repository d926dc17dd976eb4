"""What came out of `experiments.rounds`: comparison and the figure."""

import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments import published
from experiments.figures import style
from experiments.harness import command
from experiments.harness.sweeps import Row
from experiments.harness.tables import Table

TOLERANCE = 0.1  # of a published ratio; both are of one draw of the weights


class Compared(NamedTuple):
    """A point of the published figure, and ours.

    Attributes:
      schedule, compression, rounds: which point.
      ratio: ours, the mean over seeds.
      published: theirs.
    """

    schedule: str
    compression: float
    rounds: int
    ratio: float
    published: float

    @property
    def difference(self) -> float:
        """As a fraction of theirs."""
        return self.ratio / self.published - 1

    @property
    def close(self) -> bool:
        return abs(self.difference) <= TOLERANCE


def measured(rows: Sequence[Row]) -> list[Row]:
    """The measurements, each with the settings of its run."""
    configs = command.configs(rows)
    return [
        {**row, **{k: v for k, v in configs[row["run"]].items() if k != "rounds"}}
        for row in rows
        if row["kind"] == "pruned"
    ]


def compare(rows: Sequence[Row]) -> list[Compared]:
    """Every point of Fig. 7 that was measured, beside the published one."""
    theirs, found = published.load("rounds"), []
    ours = [row for row in measured(rows) if row["network"] == theirs["network"]]
    for schedule, curves in theirs["ratios"].items():
        for compression, curve in curves.items():
            for rounds, ratio in zip(theirs["rounds"], curve):
                own = [
                    row["largest_ratio"]
                    for row in ours
                    if (row["schedule"], row["compression"], row["rounds"])
                    == (schedule, float(compression), rounds)
                ]
                if own:
                    mean = statistics.fmean(own)
                    place = schedule, float(compression), rounds
                    found.append(Compared(*place, mean, ratio))
    return found


def tables(rows: list[Row]) -> list[Table]:
    """Fig. 7 of the paper in numbers, and what flow certified rounds keep."""
    made = [_ratios_table(compare(rows)), _flows_table(measured(rows))]
    return [table for table in made if table.rows]


def _ratios_table(found: Sequence[Compared]) -> Table:
    curves = list(dict.fromkeys((p.schedule, p.compression) for p in found))
    body = []
    for rounds in sorted({point.rounds for point in found}):
        at = {(p.schedule, p.compression): p for p in found if p.rounds == rounds}
        cells = [
            f"{at[curve].ratio:.3f} ({at[curve].published:.3f})" if curve in at else ""
            for curve in curves
        ]
        body.append([str(rounds), *cells])
    title = "Largest share of R that a round removes, ours (published), by number of rounds"
    headings = ["rounds", *(f"{schedule} to 10^{c:g}" for schedule, c in curves)]
    return Table(title, headings, body)


def _flows_table(found: Sequence[Row]) -> Table:
    """Certified rounds beside a hundred exponential ones."""
    every = sorted({row["ratio"] for row in found if row["ratio"]}, reverse=True)
    body = []
    for network, compression in _settings(found):
        own, cells = _of(found, network, compression), []
        for ratio in every:
            some = [row for row in own if row["ratio"] == ratio]
            pairs = _above_reference(some, own)
            kept = " ".join(f"{flow:+.2f}" for _, flow in pairs)
            rounds = style.span([n for n, _ in pairs]) if pairs else ""
            cells.append(f"{kept} ({rounds})" if pairs else "")
        if any(cells):
            body.append([f"{network} to 10^{compression:g}", *cells])
    title = (
        f"ln R that certified rounds keep, less that of {_REFERENCE} exponential rounds "
        "from the same weights, a number a draw (rounds)"
    )
    return Table(title, ["network", *(f"certified({r:g})" for r in every)], body)


_REFERENCE = 100  # exponential rounds: the paper's


def _settings(found: Sequence[Row]) -> list[tuple[str, float]]:
    return list(dict.fromkeys((row["network"], row["compression"]) for row in found))


def _of(found: Sequence[Row], network: str, compression: float) -> list[Row]:
    return [
        row
        for row in found
        if (row["network"], row["compression"]) == (network, compression)
    ]


def _above_reference(some: Sequence[Row], own: Sequence[Row]) -> list[tuple[int, float]]:
    """Rounds, and ln R less that of the reference with the same weights; where both are."""
    reference = {
        row["seed"]: row["ln_flow"]
        for row in own
        if (row["schedule"], row["rounds"]) == ("exponential", _REFERENCE)
    }
    return [
        (row["rounds"], row["ln_flow"] - reference[row["seed"]])
        for row in some
        if row["ln_flow"] is not None and reference.get(row["seed"]) is not None
    ]


# --- the figure ---------------------------------------------------------------------------

# Okabe and Ito's colours; the markers differ as well.
_LOOKS = {
    "exponential": {"color": "#0072B2", "marker": "o"},
    "linear": {"color": "#D55E00", "marker": "s"},
    "certified": {"color": "#009E73", "marker": "D"},
}
_PUBLISHED = {"color": style.INK, "ls": (0, (3, 2)), "lw": 1.1, "zorder": 4}


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Above: the largest ratio against rounds. Below: what flow the rounds keep."""
    found, theirs = measured(rows), published.load("rounds")
    names = list(dict.fromkeys(row["network"] for row in found))
    first = theirs["network"] if theirs["network"] in names else names[0]
    above = [row for row in found if row["network"] == first]
    compressions = sorted({row["compression"] for row in above})
    compared = [name for name in names if _has_reference(found, name)]
    with style.settings():
        figure = Figure((9.2, 7.4 if compared else 4.0), layout="constrained")
        lines = GridSpec(1 + bool(compared), 1, figure=figure)
        panels = (
            lines[0]
            .subgridspec(1, len(compressions))
            .subplots(sharey=True, squeeze=False)[0]
        )
        for panel, compression in zip(panels, compressions):
            own = _of(found, first, compression)
            _ratios(panel, own)
            if first == theirs["network"]:
                for curves in theirs["ratios"].values():
                    panel.plot(theirs["rounds"], curves[f"{compression:g}"], **_PUBLISHED)
            panel.set_title(f"{first} to {style.power(compression)}")
        panels[0].set_ylabel("largest prune-size ratio")
        if compared:
            below = lines[1].subgridspec(1, len(compared)).subplots(squeeze=False)[0]
            for panel, name in zip(below, compared):
                _flows(panel, [row for row in found if row["network"] == name])
                panel.set_title(name)
            below[0].set_ylabel(f"ln R, less that of\n{_REFERENCE} exponential rounds")
        handles = _handles(found, above, published_too=first == theirs["network"])
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
        figure.savefig(path, dpi=200)


def _has_reference(found: Sequence[Row], network: str) -> bool:
    own = [row for row in found if row["network"] == network]
    return any(_above_reference(own, _of(own, *setting)) for setting in _settings(own))


def _ratios(axes: Axes, own: Sequence[Row]) -> None:
    axes.axhline(1, color=style.PALE, lw=1.2, zorder=1)
    for schedule, look in _LOOKS.items():
        some = [row for row in own if row["schedule"] == schedule]
        points = _means((row["rounds"], row["largest_ratio"]) for row in some)
        line = "" if schedule == "certified" else "-"
        axes.plot(*_columns(points), **look, ls=line, zorder=3)
        cut = {row["rounds"] for row in some if row["ln_flow"] is None}
        hollow = [point for point in points if point[0] in cut]
        axes.plot(*_columns(hollow), **look, ls="", mfc="white", zorder=5)
    axes.set_yscale("log")
    ticks = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    _rounds_axis(axes)


def _flows(axes: Axes, own: Sequence[Row]) -> None:
    """A colour for each schedule, dashes for each compression; means over the seeds."""
    axes.axhline(0, color=style.PALE, lw=1.2, zorder=1)
    for compression in sorted({row["compression"] for row in own}):
        at = [row for row in own if row["compression"] == compression]
        for schedule in ("exponential", "certified"):
            pairs: dict[Any, list[tuple[int, float]]] = {}
            for row in at:
                if row["schedule"] == schedule:
                    setting = row["ratio"] or row["rounds"]
                    pairs.setdefault(setting, []).extend(_above_reference([row], at))
            points = [
                tuple(map(statistics.fmean, zip(*some))) for some in pairs.values() if some
            ]
            axes.plot(
                *_columns(sorted(points)),
                **_LOOKS[schedule],
                ls=_dashes(compression),
                zorder=3,
            )
        look = {"color": style.INK, "ls": _dashes(compression)}
        axes.plot([], [], **look, label=f"to {style.power(compression)}")
    axes.legend(loc="lower right")
    _rounds_axis(axes)


def _dashes(compression: float) -> Any:
    looks = ((0, (1.2, 1.2)), (0, (5, 2)), "-")
    return looks[(round(compression) - 1) % len(looks)]


def _handles(
    found: Sequence[Row], above: Sequence[Row], *, published_too: bool
) -> list[Line2D]:
    handles = [
        Line2D([], [], **look, label=schedule)
        for schedule, look in _LOOKS.items()
        if any(row["schedule"] == schedule for row in found)
    ]
    if published_too:
        handles.append(Line2D([], [], **_PUBLISHED, label="published"))
    if any(row["ln_flow"] is None for row in above):
        hollow = {"color": style.INK, "marker": "o", "mfc": "white", "ls": ""}
        handles.append(Line2D([], [], **hollow, label="no path left"))
    handles.append(Line2D([], [], color=style.PALE, lw=1.2, label="below 1 a path is sure"))
    return handles


def _rounds_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    ticks = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlabel("rounds")


def _means(pairs: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    by_place: dict[float, list[float]] = {}
    for x, y in pairs:
        by_place.setdefault(x, []).append(y)
    return sorted((x, statistics.fmean(ys)) for x, ys in by_place.items())


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]

"""What came out of `experiments.chaos`: shared weights, accuracies, and the figure."""

import pathlib
import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.figures import style
from experiments.harness import command
from experiments.harness.sweeps import Row, by_run
from experiments.harness.tables import Table, power


def masks(rows: Sequence[Row]) -> dict[tuple[str, float], dict[float, list[float]]]:
    """Per cent of the kept weights that masks share: by network and compression, by the
    size of the change."""
    configs, found = command.configs(rows), {}
    for row in rows:
        if row["kind"] == "masks":
            network = configs[row["run"]]["network"]
            own = found.setdefault((network, row["compression"]), {})
            own.setdefault(row["change"], []).append(100 * row["shared"])
    return {key: dict(sorted(own.items())) for key, own in sorted(found.items())}


def pairs(rows: Sequence[Row]) -> dict[float, list[dict[str, float]]]:
    """By compression, of each pair: what its masks share and the best accuracies by what
    changed, all in per cent."""
    configs, found = command.configs(rows), {}
    wanted = [row for row in rows if row["kind"] in ("pair", "trained")]
    for run, (pair, *trained) in by_run(wanted).items():
        best = {row["what"]: 100 * row["best"] for row in trained}
        compression = configs[run]["compression"]
        found.setdefault(compression, []).append(best | {"shared": 100 * pair["shared"]})
    return dict(sorted(found.items()))


def _differences(own: Sequence[dict[str, float]], what: str) -> list[float]:
    return [pair[what] - pair["first"] for pair in own]


CHANGED = "other masks", "other order"


def tables(rows: list[Row]) -> list[Table]:
    """What masks share, and what pairs of them train to."""
    found, made = masks(rows), []
    changes = sorted({change for own in found.values() for change in own})
    body = [
        [network, power(c), *(_each(own.get(change, [])) for change in changes)]
        for (network, c), own in found.items()
    ]
    title = (
        "Per cent of the kept weights that masks share with those of changed weights, by "
        "the size of the change, a number a draw"
    )
    headings = ["network", "compression", *map(_named, changes)]
    if body:
        made.append(Table(title, headings, body))
    body = [
        [
            power(c),
            _each([pair["shared"] for pair in own]),
            f"{statistics.fmean(pair['first'] for pair in own):.1f}",
            *(
                " ".join(f"{apart:+.1f}" for apart in _differences(own, what))
                for what in CHANGED
            ),
            *(
                f"{statistics.fmean(map(abs, _differences(own, what))):.2f}"
                for what in CHANGED
            ),
        ]
        for c, own in pairs(rows).items()
    ]
    title = (
        "Best accuracy in per cent, and by how many points it differs with other masks, "
        "and with the same masks and another order of images, a number a seed"
    )
    headings = ["compression", "shared", "accuracy", *CHANGED]
    headings += [f"mean size, {what}" for what in CHANGED]
    if body:
        made.append(Table(title, headings, body))
    return made


def _each(values: Sequence[float]) -> str:
    return " ".join(f"{value:.0f}" for value in values)


def _named(change: float) -> str:
    return f"{change:g}" if change else "last bit"


# Where the change of one unit in the last place is drawn: a float32 differs by 2^-24 to
# 2^-23 of its size.
_LAST_BIT = 2.0**-23.5

_MARKERS = ("o", "s", "^", "D")


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Left: what masks share. Right: how much accuracies differ, a point a pair."""
    found, trained = masks(rows), pairs(rows)
    colors = dict(
        zip(dict.fromkeys(n for n, _ in found), ("#0072B2", "#D55E00", "#009E73"))
    )
    compressions = sorted({c for _, c in found})
    with style.settings():
        figure = Figure((9.2, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        for (network, c), own in found.items():
            look = {"color": colors[network], "marker": _MARKERS[compressions.index(c)]}
            x = [change or _LAST_BIT for change in own]
            medians = [statistics.median(values) for values in own.values()]
            left.plot(
                x, medians, **look, ms=4, lw=1.1, label=f"{network}, {style.power(c)}"
            )
        left.set_xscale("log")
        left.set_ylim(0, 103)
        left.set_xlabel("relative change of the weights (first: last bit)")
        left.set_ylabel("kept weights shared (%), median")
        left.set_title("masks", loc="left")
        if found:
            left.legend(loc="lower left", fontsize=7)
        for place, (c, own) in enumerate(trained.items()):
            for what, color, marker, step in zip(
                CHANGED, ("#0072B2", "#D55E00"), _MARKERS, (-0.12, 0.12)
            ):
                apart = _differences(own, what)
                label = what if not place else None
                x = [place + step] * len(apart)
                right.plot(x, apart, marker, color=color, alpha=0.7, label=label)
        right.axhline(0, color=style.PALE, lw=1.1, zorder=1)
        right.set_xticks(range(len(trained)), [style.power(c) for c in trained])
        right.set_xlim(-0.6, len(trained) - 0.4)
        right.set_xlabel("compression (weights / weights kept)")
        right.set_ylabel("difference in accuracy (points)")
        right.set_title("accuracies", loc="left")
        if trained:
            right.legend(loc="lower left")
        figure.savefig(path, dpi=160)

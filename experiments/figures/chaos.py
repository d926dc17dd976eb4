"""What came out of `experiments.chaos`: shared weights, accuracies, and the figure."""

import pathlib
import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.figures import style
from experiments.harness import command
from experiments.harness.sweeps import Row, by_run
from experiments.harness.tables import Table, power


def masks(rows: Sequence[Row]) -> dict[str, dict[float, list[float]]]:
    """Per cent of the kept weights that pairs share: by network, by compression."""
    configs, found = command.configs(rows), {}
    for row in rows:
        if row["kind"] == "masks":
            config = configs[row["run"]]
            own = found.setdefault(config["network"], {})
            own.setdefault(config["compression"], []).append(100 * row["shared"])
    return {network: dict(sorted(own.items())) for network, own in found.items()}


def pairs(rows: Sequence[Row]) -> list[dict[str, float]]:
    """Of each pair that was trained: the best accuracies in per cent, by what changed."""
    found = []
    for own in by_run(row for row in rows if row["kind"] == "trained").values():
        found.append({row["what"]: 100 * row["best"] for row in own})
    return [pair for pair in found if len(pair) == 3]


def tables(rows: list[Row]) -> list[Table]:
    """What pairs of masks share, and what they train to."""
    found, made = masks(rows), []
    compressions = sorted({c for own in found.values() for c in own})
    body = [
        [network, *(_each(own.get(c, [])) for c in compressions)]
        for network, own in found.items()
    ]
    title = (
        "Per cent of the kept weights that the masks of two networks share whose weights "
        "differ in the last bit, a number a draw"
    )
    if body:
        made.append(Table(title, ["network", *map(power, compressions)], body))
    trained = pairs(rows)
    if trained:
        body = [
            [
                str(number),
                f"{pair['first']:.1f}",
                f"{pair['other masks'] - pair['first']:+.1f}",
                f"{pair['other order'] - pair['first']:+.1f}",
            ]
            for number, pair in enumerate(trained, 1)
        ]
        means = [
            statistics.fmean(abs(pair[what] - pair["first"]) for pair in trained)
            for what in ("other masks", "other order")
        ]
        body.append(["mean size", "", *(f"{mean:.1f}" for mean in means)])
        title = "Best accuracy in per cent, and what it changes by with the other masks"
        headings = ["draw", "accuracy", "other masks", "same masks, other order of images"]
        made.append(Table(title, headings, body))
    return made


def _each(values: Sequence[float]) -> str:
    return " ".join(f"{value:.0f}" for value in values)


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Left: what masks share. Right: how much accuracies differ, a point a pair."""
    trained = pairs(rows)
    with style.settings():
        figure = Figure((8.6, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        looks = ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^")
        for (network, own), (color, marker) in zip(masks(rows).items(), looks):
            x = [c for c, values in own.items() for _ in values]
            y = [value for values in own.values() for value in values]
            left.plot(x, y, marker, color=color, alpha=0.6, ms=4)
            medians = [statistics.median(values) for values in own.values()]
            left.plot(list(own), medians, color=color, marker=marker, label=network)
        left.set_ylim(0, 103)
        left.set_ylabel("kept weights shared (%)")
        left.set_title("masks", loc="left")
        style.compressions(left)
        left.legend(loc="lower left")
        for place, what in enumerate(("other masks", "other order")):
            apart = [pair[what] - pair["first"] for pair in trained]
            right.plot([place] * len(apart), apart, "o", color="#0072B2", alpha=0.7)
        right.axhline(0, color=style.PALE, lw=1.1, zorder=1)
        right.set_xticks(
            [0, 1], ["last bits changed:\nother masks", "other order\nof images"]
        )
        right.set_xlim(-0.6, 1.6)
        right.set_ylabel("difference in accuracy (points)")
        right.set_title("accuracies", loc="left")
        figure.savefig(path, dpi=160)

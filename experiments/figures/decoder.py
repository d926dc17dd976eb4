"""What came out of `experiments.decoder`: bits a character, and the figure."""

import pathlib
import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments import methods
from experiments.figures import style
from experiments.figures.resampling import difference
from experiments.harness.sweeps import Row
from experiments.harness.tables import Table, power

# By method, by compression: bits a character by seed.
Points = dict[str, dict[float, dict[int, float]]]


def points(rows: Sequence[Row]) -> Points:
    """What was measured."""
    found: Points = {}
    for row in rows:
        if row["kind"] == "trained":
            own = found.setdefault(row["method"], {}).setdefault(row["compression"], {})
            own[row["seed"]] = row["bits"]
    return found


def tables(rows: list[Row]) -> list[Table]:
    """Bits a character, and how they differ from SynFlow's."""
    found = points(rows)
    compressions = sorted({c for own in found.values() for c in own})
    labels = {"dense": "Not pruned", **methods.LABELS}
    body = [
        [label, *(_mean(found[method].get(c)) for c in compressions)]
        for method, label in labels.items()
        if method in found
    ]
    title = "Bits a character on held-out text, mean over seeds (lowest to highest)"
    made = [Table(title, ["method", *map(power, compressions)], body)] if body else []
    synflow = found.get("synflow", {})
    beside = [
        [labels[method], *(_between(found[method].get(c), synflow[c]) for c in synflow)]
        for method in labels
        if method in found and method not in ("dense", "synflow")
    ]
    if beside:
        title = (
            "Bits a character less SynFlow's, mean of the differences on equal seeds and "
            "the middle 95 % of its bootstrap; * where that excludes 0"
        )
        made.append(Table(title, ["method", *map(power, synflow)], beside))
    return made


def _mean(own: dict[int, float] | None) -> str:
    if not own:
        return ""
    values = own.values()
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _between(one: dict[int, float] | None, other: dict[int, float]) -> str:
    found = difference(one or {}, other)
    if found is None:
        return ""
    sure = "*" if found.sure else ""
    return f"{found.mean:+.3f}{sure} ({found.low:+.3f} to {found.high:+.3f})"


# Between the seeds of two methods, in log10 of the compression.
_APART = 0.03


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Bits a character against compression: lines through medians, and beside them a point
    a seed, each method at a place of its own."""
    found = points(rows)
    pruned = [method for method in found if method != "dense"]
    with style.settings():
        figure = Figure((5.8, 3.9), layout="constrained")
        axes = figure.subplots()
        for number, method in enumerate(pruned):
            own, mark = found[method], style.mark(method)
            for c, by_seed in own.items():
                values = list(by_seed.values())
                look = {"color": mark["color"], "ms": 3.5, "alpha": 0.7, "mew": 0.6}
                place = c + _APART * (number - (len(pruned) - 1) / 2)
                axes.plot([place] * len(values), values, mark["marker"], **look)
            medians = [statistics.median(by_seed.values()) for by_seed in own.values()]
            axes.plot(list(own), medians, **mark, ms=5)
        if "dense" in found:
            dense = statistics.median(found["dense"][0.0].values())
            axes.axhline(dense, color=style.PALE, lw=1.1, zorder=1)
            style.note(axes, dense, "dense")
        axes.set_ylabel("bits a character, held out")
        style.compressions(axes)
        axes.legend()
        figure.savefig(path, dpi=160)

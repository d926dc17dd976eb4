"""What came out of `experiments.connected`: shares of initialisations, and the figure."""

import pathlib
import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.figures import style
from experiments.harness.sweeps import Row
from experiments.harness.tables import Table

WAYS = {
    "one_shot": "one round",
    "published": "100 rounds, as published",
    "keep_connected": "100 rounds, kept connected",
    "certified": "certified rounds",
}
_COLORS = ("#999999", "#D55E00", "#0072B2", "#009E73")


def by_network(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """The rows of each network by the way in which it was pruned."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row["kind"] == "pruned":
            found.setdefault(row["network"], {}).setdefault(row["way"], []).append(row)
    return found


def whole(row: Row) -> bool:
    """Whether one weight for each layer is left, and a path."""
    return row["kept"] == row["layers"] and row["log10_flow"] is not None


def tables(rows: list[Row]) -> list[Table]:
    """How many are connected, in how many rounds, and the flow that is left."""
    body = []
    for network, ways in by_network(rows).items():
        for way in WAYS:
            own = ways.get(way, [])
            if own:
                flows = [row["log10_flow"] for row in own if whole(row)]
                cells = [f"{network}, {WAYS[way]}", f"{len(flows)} of {len(own)}"]
                cells.append(style.span([row["rounds"] for row in own]))
                cells.append(str(sum(row["retries"] for row in own)))
                cells.append(f"{statistics.median(flows):.2f}" if flows else "")
                body.append(cells)
    title = (
        "Pruned to exactly one weight for each layer: initialisations with a path left, "
        "rounds, steps that were undone, and the median log10 R of those with a path"
    )
    return [Table(title, ["network", "connected", "rounds", "undone", "log10 R"], body)]


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """The share of initialisations with a path, a bar for each way to prune."""
    found = by_network(rows)
    with style.settings():
        figure = Figure((7.0, 3.4), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(found))
        for i, (way, color) in enumerate(zip(WAYS, _COLORS)):
            # No bar, and no 0, for what was not run.
            shares = {
                place + 0.2 * (i - 1.5): 100 * statistics.fmean(map(whole, own[way]))
                for place, own in zip(places, found.values())
                if own.get(way)
            }
            axes.bar([*shares], [*shares.values()], 0.18, color=color, label=WAYS[way])
            for x, share in shares.items():
                axes.annotate(f"{share:.0f}", (x, share), ha="center", va="bottom", size=8)
        axes.set_xticks(places, list(found))
        axes.set_ylabel("initialisations with a path (%)")
        axes.set_ylim(0, 108)
        figure.legend(loc="outside upper center", ncols=2)
        figure.savefig(path, dpi=160)

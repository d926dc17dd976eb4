"""What came out of `experiments.data_ablation`: shared weights, and the figure."""

import pathlib
import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments import methods
from experiments.figures import style
from experiments.harness.sweeps import Row
from experiments.harness.tables import Table, power

_OTHER = "other_images"
_COLORS = ("#56B4E9", "#0072B2", "#D55E00", "#009E73")


def label(row: Row) -> str:
    """What was changed, in words."""
    if row["variant"] == _OTHER:
        return f"{methods.LABELS[row['criterion']]}, other images"
    return methods.LABELS[row["variant"]]


def groups(rows: Sequence[Row]) -> dict[str, dict[str, dict[float, list[Row]]]]:
    """The pairs by network, by what was changed, by compression; a row a seed."""
    found: dict[str, dict[str, dict[float, list[Row]]]] = {}
    for row in rows:
        if row["kind"] == "pair":
            own = found.setdefault(row["network"], {}).setdefault(label(row), {})
            own.setdefault(row["compression"], []).append(row)
    return found


def tables(rows: list[Row]) -> list[Table]:
    """A table a network: what is shared, by chance, and how far the layers moved."""
    made = []
    for network, found in groups(rows).items():
        compressions = sorted({c for own in found.values() for c in own})
        body = [
            [name, *(_cell(own.get(c, [])) for c in compressions)]
            for name, own in found.items()
        ]
        title = (
            f"{network}: per cent of the kept weights that the criterion keeps too, mean "
            "over seeds (if chosen at random in each layer; per cent of the kept weights "
            "that are in other layers)"
        )
        made.append(Table(title, ["changed to", *map(power, compressions)], body))
    return made


def _cell(group: Sequence[Row]) -> str:
    if not group:
        return ""
    shared, chance, moved = (
        100 * statistics.fmean(row[what] for row in group)
        for what in ("shared", "chance", "moved")
    )
    return f"{shared:.0f} ({chance:.0f}; {moved:.0f})"


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """What masks share, a bar a change; the white line in it is what chance would share."""
    found = groups(rows)
    with style.settings():
        figure = Figure((3.6 * len(found) + 1.6, 4.2), layout="constrained")
        panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
        for axes, (network, own) in zip(panels, found.items()):
            compressions = sorted({c for at in own.values() for c in at})
            places = np.arange(len(own))
            height = 0.8 / len(compressions)
            for i, (c, color) in enumerate(zip(compressions, _COLORS)):
                at = places + height * (i - (len(compressions) - 1) / 2)
                means = {
                    what: [
                        100 * statistics.fmean(row[what] for row in groups_[c])
                        for groups_ in own.values()
                    ]
                    for what in ("shared", "chance")
                }
                axes.barh(
                    at, means["shared"], 0.9 * height, color=color, label=style.power(c)
                )
                ends = at - 0.45 * height, at + 0.45 * height
                axes.vlines(means["chance"], *ends, color="white", lw=3)
                axes.vlines(means["chance"], *ends, color=style.INK, lw=1)
            axes.set_yticks(places, list(own))
            axes.set_xlim(0, 100)
            axes.set_title(network, loc="left")
            axes.set_xlabel("shared (%); line: by chance")
        panels[0].invert_yaxis()  # and so all of them
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=len(handles[1]))
        figure.savefig(path, dpi=160)

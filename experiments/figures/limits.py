"""Up to which compression a criterion leaves a network whole, and connected.

Reads the rows of `experiments.layer_collapse`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments import published
from experiments.harness import command
from experiments.harness.sweeps import Row, by_run

# SNIP and GraSP look at their images in training mode, as in the authors' present code; the
# published densities are of its first version, in evaluation mode.
LABELS = {
    "random": "Random",
    "magnitude": "Magnitude",
    "snip": "SNIP",
    "snip_evaluated": "SNIP, evaluation mode",
    "grasp": "GraSP",
    "grasp_evaluated": "GraSP, evaluation mode",
    "synflow": "SynFlow",
}


class Critical(NamedTuple):
    """Largest compressions of the grid, log10; None if there is none.

    Attributes:
      whole: at which every layer keeps a weight, in all seeds: the paper's.
      connected: at which a path is left from input to output, in all seeds.
    """

    whole: float | None
    connected: float | None


def of_method(
    rows: Sequence[Row], part: str, names: Sequence[str] = tuple(LABELS)
) -> dict[str, list[list[Row]]]:
    """The rows of a part of the experiment by criterion: for each seed its rows, in the
    order of the compressions. Criteria are in the order of the paper's legends."""
    of_runs = by_run(row for row in rows if row["kind"] == "layers")
    configs = command.configs(rows)
    found: dict[str, list[list[Row]]] = {}
    for method in names:
        for run, own in of_runs.items():
            if (configs[run]["part"], configs[run]["method"]) == (part, method):
                found.setdefault(method, []).append(own)
    return found


def by_compression(seeds: Sequence[Sequence[Row]]) -> dict[float, list[Row]]:
    """The rows of all seeds at each compression, in order; a seed may lack some."""
    found: dict[float, list[Row]] = {}
    for row in (row for own in seeds for row in own):
        found.setdefault(row["compression"], []).append(row)
    return dict(sorted(found.items()))


def published_for(config: dict[str, Any]) -> dict[str, Any] | None:
    """What the authors published of this network; None of others."""
    for theirs in published.load("layer_collapse").values():
        if all(config[name] == theirs[name] for name in ("network", "num_classes")):
            return theirs
    return None


def published_method(method: str) -> str:
    """Under which name the authors' files have a criterion: theirs know no mode."""
    return method.removesuffix("_evaluated")


def pruned(
    rows: Sequence[Row], found: dict[str, list[list[Row]]]
) -> tuple[Sequence[Sequence[Any]], dict[str, Any]]:
    """The layers of the network of a part, and the settings of its first run."""
    first = next(iter(found.values()))[0][0]
    return first["layers"], command.configs(rows)[first["run"]]


def critical(seeds: Sequence[Sequence[Row]]) -> Critical:
    """Up to where a criterion leaves a network whole, and connected.

    Args:
      seeds: for each seed its rows, as `of_method` has them.
    """

    def largest(what: str) -> float | None:
        at = by_compression(seeds).items()
        return max((c for c, own in at if all(row[what] for row in own)), default=None)

    return Critical(largest("whole"), largest("connected"))


def largest_possible(layers: Sequence[Sequence[Any]]) -> float:
    """log10 of N/L, the compression that leaves a weight for each layer."""
    return math.log10(sum(size for *_, size in layers) / len(layers))

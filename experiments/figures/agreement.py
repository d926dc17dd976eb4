"""Published fractions kept of each layer beside ours: what agrees, and the exceptions."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.figures.limits import LABELS, by_compression, published_method
from experiments.harness.sweeps import Row
from experiments.harness.tables import Table, power

DEVIATIONS, RELATIVE = 3.0, 0.02  # what counts as agreement
FEW = 20  # weights; in smaller layers one weight is much of the whole


def comparison(
    found: Mapping[str, Sequence[Sequence[Row]]], theirs: Mapping[str, Any]
) -> list[Row]:
    """Published fractions kept beside ours, layer by layer and compression by compression.

    They agree if the published one, which is of one draw of the weights, is within
    ``DEVIATIONS`` standard deviations of ours or ``RELATIVE`` of their mean. Where we have
    one draw too, the deviation is the square root of the count.

    Args:
      found: for each criterion, for each seed its rows.
      theirs: what `limits.published_for` gives of the same network.

    Returns:
      Rows with ``method``, ``compression``, ``layer`` and its ``size``; ``published``,
      ``mean`` and ``deviation`` in weights; ``agrees``; ``seeds``.
    """
    compared = []
    for method, seeds in found.items():
        densities = theirs["density"][published_method(method)]
        by_size = {round(float(c), 4): layers for c, layers in densities.items()}
        for compression, at in by_compression(seeds).items():
            published = by_size.get(round(compression, 4))
            if published is None:
                continue
            layers = zip(*(row["layers"] for row in at), strict=True)
            for density, size, layer in zip(
                published, theirs["sizes"], layers, strict=True
            ):
                name, _, own_size = layer[0]
                if own_size != size:
                    raise ValueError(f"{name} has {own_size} weights, not {size}.")
                kept = [count for _, count, _ in layer]
                compared.append(
                    {
                        "method": method,
                        "compression": compression,
                        "layer": name,
                        "size": size,
                        "published": density * size,
                        "mean": statistics.mean(kept),
                        "deviation": _deviation(kept),
                        "agrees": agrees(density * size, kept),
                        "seeds": len(kept),
                    }
                )
    return compared


def _deviation(sample: Sequence[int]) -> float:
    """Of the draws; of one draw that of a count of independent choices, its square root."""
    return statistics.stdev(sample) if len(sample) > 1 else math.sqrt(sample[0])


def agrees(count: float, sample: Sequence[int]) -> bool:
    """Whether a number of weights could be one of the sample, or nearly is their mean."""
    mean = statistics.mean(sample)
    return abs(count - mean) <= max(DEVIATIONS * _deviation(sample), RELATIVE * mean)


def tables(title: str, compared: Sequence[Row]) -> list[Table]:
    """The agreement layer by layer, and the exceptions of the criteria that agree in most
    cases; from `comparison`."""
    if not compared:
        return []
    shown = list(dict.fromkeys(row["method"] for row in compared))
    sizes = {row["layer"]: row["size"] for row in compared}
    body = []
    for layer, size in sizes.items():
        own = [row for row in compared if row["layer"] == layer]
        body.append([layer, f"{size:,}", *(_counted(own, method) for method in shown)])
    body.append(["all", "", *(_counted(compared, method) for method in shown)])
    large = [_counted(_large(compared), method) for method in shown]
    body.append([f"all with {FEW} weights or more", "", *large])
    mostly = [m for m in shown if _share(compared, m) > 0.5]
    counts = Table(
        f"{title}, published fraction kept beside ours, layer by layer: compressions at "
        f"which it lies within {DEVIATIONS:g} standard deviations (with one seed, square "
        f"roots) or {RELATIVE:.0%} of our mean",
        ["layer", "weights", *(LABELS[method] for method in shown)],
        body,
    )
    apart = [r for r in _large(compared) if not r["agrees"] and r["method"] in mostly]
    apart.sort(key=lambda row: shown.index(row["method"]))
    exceptions = Table(
        f"{title}, {', '.join(LABELS[m] for m in mostly)}: the {len(apart)} exceptions "
        f"with {FEW} weights or more",
        ["criterion", "layer", "compression", "published", "ours, mean", "deviation"],
        [
            [
                LABELS[row["method"]],
                row["layer"],
                power(row["compression"]),
                f"{row['published']:,.0f}",
                f"{row['mean']:,.1f}",
                f"{row['deviation']:,.1f}",
            ]
            for row in apart
        ],
    )
    return [counts, exceptions] if apart else [counts]


def _counted(rows: Sequence[Row], method: str) -> str:
    own = [row for row in rows if row["method"] == method]
    return f"{sum(row['agrees'] for row in own)} of {len(own)}"


def _share(rows: Sequence[Row], method: str) -> float:
    return statistics.fmean(row["agrees"] for row in rows if row["method"] == method)


def _large(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if min(row["published"], row["mean"]) >= FEW]

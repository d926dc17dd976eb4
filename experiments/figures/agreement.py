"""Published fractions kept of each layer beside ours: what agrees, and the exceptions."""

import statistics
from collections.abc import Mapping, Sequence

from experiments import methods, published
from experiments.harness.sweeps import Row
from experiments.harness.tables import Table, power

# Of the published densities those of these criteria are sound; SNIP's and GraSP's are of
# code that was corrected after they were written.
COMPARED = ("synflow", "magnitude", "random")
DEVIATIONS, RELATIVE = 3.0, 0.02  # what counts as agreement
FEW = 20  # weights; in smaller layers one weight is much of the whole
SHOWN = 6  # exceptions in a sentence


def comparison(found: Mapping[str, Sequence[Sequence[Row]]]) -> list[Row]:
    """Published fractions kept beside ours, layer by layer and compression by compression.

    They agree if the published one, which is of one draw of the weights, is within
    ``DEVIATIONS`` standard deviations of ours or ``RELATIVE`` of their mean. Near the edge
    that is a matter of chance: ``own`` says how many of our seeds agree with the others.

    Args:
      found: for each criterion, for each seed its rows, in the order of the compressions;
        of the network whose densities are published.

    Returns:
      Rows with ``method``, ``compression``, ``layer`` and its ``size``; ``published``,
      ``mean`` and ``deviation`` in weights; ``agrees``; ``own``; ``seeds``. Empty unless
      there are two seeds.
    """
    theirs = published.load("layer_collapse")
    compared = []
    for method, seeds in found.items():
        if method not in COMPARED or len(seeds) < 2:
            continue
        for at in zip(*seeds, strict=True):
            compression = at[0]["compression"]
            densities = theirs["density"][method].get(str(compression))
            if densities is None:
                continue
            layers = zip(*(row["layers"] for row in at), strict=True)
            for density, size, layer in zip(
                densities, theirs["sizes"], layers, strict=True
            ):
                name, _, own_size = layer[0]
                if own_size != size:
                    raise ValueError(f"{name} has {own_size} weights, not {size}.")
                kept = [count for _, count, _ in layer]
                others = [kept[:i] + kept[i + 1 :] for i in range(len(kept))]
                compared.append(
                    {
                        "method": method,
                        "compression": compression,
                        "layer": name,
                        "size": size,
                        "published": density * size,
                        "mean": statistics.mean(kept),
                        "deviation": statistics.stdev(kept),
                        "agrees": agrees(density * size, kept),
                        "own": sum(map(agrees, kept, others)),
                        "seeds": len(kept),
                    }
                )
    return compared


def agrees(count: float, sample: Sequence[int]) -> bool:
    """Whether a number of weights could be one of the sample, or nearly is their mean."""
    mean = statistics.mean(sample)
    spread = statistics.stdev(sample) if len(sample) > 1 else 0.0
    return abs(count - mean) <= max(DEVIATIONS * spread, RELATIVE * mean)


def sentences(compared: Sequence[Row]) -> list[str]:
    """How many cases agree, and the largest exceptions; from `comparison`."""
    said = []
    for method in COMPARED:
        own = [row for row in compared if row["method"] == method]
        if not own:
            continue
        large = _large(own)
        good, good_large = (sum(row["agrees"] for row in some) for some in (own, large))
        chance = sum(row["own"] for row in own) / sum(row["seeds"] for row in own)
        text = (
            f"{methods.LABELS[method]}: the published fraction kept lies within "
            f"{DEVIATIONS:g} standard deviations or {RELATIVE:.0%} of ours in {good} of "
            f"{len(own)} cases (layers and compressions), and in {good_large} of the "
            f"{len(large)} with {FEW} weights or more. One of our {own[0]['seeds']} seeds "
            f"against the others does so in {chance:.1%}."
        )
        far = [row for row in large if not row["agrees"]]
        far.sort(key=lambda row: -abs(row["published"] / row["mean"] - 1))
        if far:
            text += " Exceptions of these: " + "; ".join(map(_exception, far[:SHOWN]))
            text += f"; and {len(far) - SHOWN} that differ less." if far[SHOWN:] else "."
        said.append(text)
    if said:
        said.append(
            "The published SNIP and GraSP are not compared: they were made by the first "
            "version of the authors' code, whose errors in these two were corrected later "
            "(batch norm in evaluation mode; GraSP's sign), and our images are others."
        )
    return said


def _exception(row: Row) -> str:
    place = f"{row['layer']} at {power(row['compression'])}"
    ours = f"{row['mean']:,.0f} ± {row['deviation']:,.0f}"
    return f"{place}, published {row['published']:,.0f}, ours {ours}"


def tables(compared: Sequence[Row]) -> list[Table]:
    """The agreement layer by layer, and every exception; from `comparison`."""
    if not compared:
        return []
    shown = [m for m in COMPARED if any(row["method"] == m for row in compared)]
    sizes = {row["layer"]: row["size"] for row in compared}
    body = []
    for layer, size in sizes.items():
        own = [row for row in compared if row["layer"] == layer]
        body.append([layer, f"{size:,}", *(_counted(own, method) for method in shown)])
    body.append(["all", "", *(_counted(compared, method) for method in shown)])
    large = [_counted(_large(compared), method) for method in shown]
    body.append([f"all with {FEW} weights or more", "", *large])
    counts = Table(
        "Published fraction kept beside ours, layer by layer: compressions at which it "
        f"lies within {DEVIATIONS:g} standard deviations of our seeds or {RELATIVE:.0%} of "
        "their mean",
        ["layer", "weights", *(methods.LABELS[method] for method in shown)],
        body,
    )
    apart = [row for row in compared if not row["agrees"]]
    apart.sort(key=lambda row: shown.index(row["method"]))
    exceptions = Table(
        f"Every exception, {len(apart)} in all, in weights kept",
        ["criterion", "layer", "compression", "published", "ours, mean", "deviation"],
        [
            [
                methods.LABELS[row["method"]],
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


def _large(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if min(row["published"], row["mean"]) >= FEW]

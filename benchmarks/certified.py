"""Certified rounds beside a hundred exponential ones: flow kept, rounds, time.

    python -m benchmarks.certified --out results/certified_cpu.jsonl
    python -m benchmarks.certified --markdown results/certified_cpu.jsonl

For each network and compression the schedules prune in turns, so that what slows the
machine slows all of them. ln R is the natural logarithm of the flow that is left.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import synflow_jax as sj
from benchmarks import measuring
from synflow_jax import models

RATIOS = (0.9, 0.5, 0.2, 0.1)
COMPRESSIONS = (1, 2, 3, 4)
# The first is the trial's: an MLP on images of 32x32x3.
NETWORKS = ("mlp_cifar", "resnet20", "resnet18", "vgg16_cifar")


def network(name):
    if name != "mlp_cifar":
        return models.build(name, jax.random.key(0))
    module, shape = models.MLP(), (32, 32, 3)
    variables = module.init(jax.random.key(0), jnp.ones((1, *shape)))
    return (*sj.from_linen(module, variables), shape)


def measured(name, compression, *, ratios=RATIOS, turns=3):
    """One row a schedule; exponential rounds first."""
    apply_fn, params, shape = network(name)
    score, density = sj.synflow(apply_fn, shape), 10.0**-compression
    schedules = {"exponential": sj.exponential}
    schedules |= {f"certified({ratio})": sj.certified(ratio) for ratio in ratios}

    def run(schedule):
        return lambda: sj.prune(score, params, density, schedule=schedule)

    runs = [run(schedule) for schedule in schedules.values()]
    milliseconds, turns = measuring.interleaved(runs, least=turns)
    rows = []
    for label, one, ms in zip(schedules, runs, milliseconds):
        masks, info = one()
        flow = sj.log_flow(apply_fn, sj.apply_masks(params, masks), shape)
        rows.append(
            {
                "network": name,
                "compression": compression,
                "schedule": label,
                "rounds": len(info.kept),
                "ln_flow": round(float(flow), 3),
                "largest_ratio": round(float(np.max(info.removed)), 4),
                "certificate": bool(info.certificate),
                "kept": int(info.kept[-1]),
                "stopped": bool(info.stopped[-1]),
                "seconds": round(ms / 1e3, 3),
                "time": round(ms / milliseconds[0], 3),  # of exponential rounds
                "turns": turns,
            }
        )
    return rows


def markdown(rows):
    """The table of docs/criteria.md: ln R, rounds and time, a line a network and
    compression."""
    groups, columns = {}, ["exponential", *(f"certified({ratio})" for ratio in RATIOS)]
    for row in rows:
        groups.setdefault((row["network"], row["compression"]), {})[row["schedule"]] = row
    lines = [
        "| network | 10^ | largest ratio of 100 exponential rounds | "
        + " | ".join(columns)
        + " |",
        "|---|---:|---:|" + "---:|" * len(columns),
    ]
    for (network, compression), found in groups.items():
        cells = [
            f"{row['ln_flow']:.2f}, {row['rounds']}, {_time(row['seconds'])}" if row else ""
            for row in map(found.get, columns)
        ]
        ratio = found["exponential"]["largest_ratio"]
        cells = [network, f"{compression:g}", f"{ratio:.3f}", *cells]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _time(seconds):
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def table(rows):
    shown = Table(title="certified rounds")
    keys = "network compression schedule rounds ln_flow largest_ratio certificate time"
    for key in keys.split():
        shown.add_column(key.replace("_", " "))
    for row in rows:
        shown.add_row(*(str(row[key]) for key in keys.split()))
    return shown


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NETWORKS, help="networks")
    parser.add_argument("--compressions", type=float, nargs="+", default=COMPRESSIONS)
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--turns", type=int, default=3, help="medians are of these")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines are added to it")
    parser.add_argument("--markdown", type=pathlib.Path, help="only prints this file")
    args = parser.parse_args(argv)
    if args.markdown:
        print(markdown(map(json.loads, args.markdown.read_text().splitlines())))
        return
    unknown = set(args.names) - {"mlp_cifar", *models.NETWORKS}
    if unknown:
        parser.error(f"no {', '.join(sorted(unknown))} here.")
    console, facts, rows = measuring.console(), measuring.described(), []
    for name in args.names:
        for compression in args.compressions:
            found = measured(name, compression, ratios=args.ratios, turns=args.turns)
            measuring.append(args.out, [row | facts for row in found])
            rows += found
    console.print(table(rows))


if __name__ == "__main__":
    main()

"""Pruning to one weight a layer, by Algorithm 1 to the letter and with `keep_connected`.

    python -m benchmarks.connected --out results/connected_cpu.jsonl

For each network and initialisation, 100 exponential rounds to exactly as many weights as
the network has layers: its largest compression. Published rounds cut some of the networks.
"""

import argparse
import pathlib
import time

import jax
import numpy as np
from rich.table import Table

import synflow_jax as sj
from benchmarks import measuring
from synflow_jax import models

NETWORKS = ("mlp", "conv", "vgg16_cifar")


def measured(name, seeds, rounds=100):
    """A row for each initialisation."""
    score, rows = None, []
    for seed in range(seeds):
        apply_fn, params, shape = models.build(name, jax.random.key(seed))
        if score is None:  # the statistics of batch norm are those of all initialisations
            score, network = sj.synflow(apply_fn, shape), apply_fn
            fewest = sj.fewest_weights(apply_fn, params, shape)
        row = {"network": name, "seed": seed, "weights": fewest}
        named = zip(sj.leaf_names(params), jax.tree.leaves(params))
        size = sum(leaf.size for path, leaf in named if sj.is_kernel(path, leaf))
        for key, keep in (("published", False), ("keep_connected", True)):
            began = time.perf_counter()
            masks, info = jax.block_until_ready(
                sj.prune(score, params, fewest / size, rounds=rounds, keep_connected=keep)
            )
            seconds = time.perf_counter() - began
            pruned = sj.apply_masks(params, masks)
            flow = float(sj.log_flow(network, pruned, shape))
            row[key] = {
                "connected": bool(np.isfinite(flow)),
                "kept": int(info.kept[-1]),
                "log10_flow": round(flow / np.log(10), 4) if np.isfinite(flow) else None,
                "retries": int(info.retries.sum()),
                "seconds": round(seconds, 3),
            }
        rows.append(row)
    return rows


def table(rows):
    shown = Table(title="one weight a layer in 100 rounds")
    heads = "network", "initialisations", "connected, published", "connected", "retries"
    for head in heads:
        shown.add_column(head)
    for name in dict.fromkeys(row["network"] for row in rows):
        of = [row for row in rows if row["network"] == name]
        alive = [
            str(sum(row[key]["connected"] for row in of))
            for key in ("published", "keep_connected")
        ]
        retries = str([row["keep_connected"]["retries"] for row in of])
        shown.add_row(name, str(len(of)), *alive, retries)
    return shown


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="network")
    parser.add_argument("--seeds", type=int, default=20, help="initialisations of each")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines are added to it")
    args = parser.parse_args(argv)
    if unknown := set(args.networks) - set(models.NETWORKS):
        parser.error(f"there is no network {', '.join(sorted(unknown))}.")
    facts, rows = measuring.described() | {"rounds": args.rounds}, []
    for name in args.networks:
        found = measured(name, args.seeds, args.rounds)
        measuring.append(args.out, [row | facts for row in found])
        rows += found
    measuring.console().print(table(rows))


if __name__ == "__main__":
    main()

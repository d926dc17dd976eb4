"""How the loop scales: in weights over three decades, in rounds, in seeds and densities.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --network resnet20   # for rounds, seeds and densities

Weights are those of an MLP of growing width; ten rounds of each.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
from jax import lax
from rich.table import Table

import synflow_jax as sj
from benchmarks import measuring
from synflow_jax import models

WIDTHS = (0.2, 1.0, 5.0, 15.0)
ROUNDS = (1, 10, 100)
SEEDS = (1, 2, 4, 8)
DENSITIES = 7


def _pruned(score, params, density=0.01, rounds=10):
    return lambda: sj.prune(score, params, density, rounds=rounds, keep_connected=False)


def _row(axis, value, milliseconds, turns, beside):
    return {
        "axis": axis,
        "value": value,
        "ms": round(milliseconds, 3),
        "times_one": round(milliseconds / beside, 2),
        "turns": turns,
    }


def by_weights(widths=WIDTHS, least=5):
    """Milliseconds of a round; beside the smallest network's, the number of weights is."""
    functions, sizes = [], []
    for width in widths:
        network = models.NETWORKS["mlp"]
        module = network.make(num_classes=10, width=width)
        variables = models.init(module, jax.random.key(0), network.input_shape)
        apply_fn, params = sj.from_linen(module, variables)
        functions.append(_pruned(sj.synflow(apply_fn, network.input_shape), params))
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(params)))
    medians, turns = measuring.interleaved(functions, least=least)
    return [
        _row("weights", size, ms / 10, turns, medians[0] / 10)
        for size, ms in zip(sizes, medians)
    ]


def by_rounds(network="mlp", rounds=ROUNDS, least=5):
    """Milliseconds of a round, in prunes of several lengths."""
    apply_fn, params, shape = models.build(network, jax.random.key(0))
    score = sj.synflow(apply_fn, shape)
    functions = [_pruned(score, params, rounds=n) for n in rounds]
    medians, turns = measuring.interleaved(functions, least=least)
    return [
        _row("rounds", n, ms / n, turns, medians[0] / rounds[0])
        for n, ms in zip(rounds, medians)
    ]


def by_batch(network="mlp", seeds=SEEDS, densities=DENSITIES, rounds=100, least=5):
    """Milliseconds of a batch; beside a single prune's."""
    apply_fn, params, shape = models.build(network, jax.random.key(0))
    score = sj.synflow(apply_fn, shape)

    def of_seeds(number):
        drawn = [models.build(network, jax.random.key(i))[1] for i in range(number)]
        batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
        many = jax.jit(
            jax.vmap(
                lambda p: sj.prune(score, p, 0.01, rounds=rounds, keep_connected=False)
            )
        )
        return lambda: many(batch)

    pruner = sj.iterative(score)
    counts = jnp.stack(
        [
            jnp.asarray(sj.counts_per_round(params, 10.0 ** -(i / 2), rounds))
            for i in range(densities)
        ]
    )

    @jax.jit
    @jax.vmap
    def to_densities(counts):
        def step(state, k):
            return pruner.step(state, params, k)

        return lax.scan(step, pruner.init(params), counts)

    single = _pruned(score, params, rounds=rounds)
    functions = [single, *map(of_seeds, seeds), lambda: to_densities(counts)]
    (alone, *medians), turns = measuring.interleaved(functions, least=least)
    axes = [("seeds", n) for n in seeds] + [("densities", densities)]
    return [_row(*axis, ms, turns, alone) for axis, ms in zip(axes, medians)]


def table(rows):
    shown = Table(
        title="how the loop scales",
        caption="ms of a round; of seeds and densities, all rounds",
    )
    for column in ("axis", "value", "ms", "times the first, or a single one"):
        shown.add_column(column, justify="left" if column == "axis" else "right")
    for row in rows:
        shown.add_row(
            row["axis"], *(f"{row[key]:g}" for key in ("value", "ms", "times_one"))
        )
    return shown


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="mlp", choices=list(models.NETWORKS))
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines are added to it")
    args = parser.parse_args(argv)
    rows = by_weights() + by_rounds(args.network) + by_batch(args.network)
    facts = measuring.described()
    measuring.append(args.out, [row | facts for row in rows])
    measuring.console().print(table(rows))


if __name__ == "__main__":
    main()

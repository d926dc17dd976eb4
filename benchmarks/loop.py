"""The whole loop: 100 rounds of SynFlow against PyTorch and the limits of the machine.

    python -m benchmarks.loop                      # the networks that take seconds
    python -m benchmarks.loop vgg16_cifar mlp
    python -m benchmarks.loop vgg19_imagenet       # minutes
    python -m benchmarks.loop vgg19_imagenet --rounds 5
    python -m benchmarks.loop --no-pytorch         # without the extra `bench`

Both prune the same weights to 10^2 by the same whole numbers, in turns, compilation not
included (it is reported). What is called the floor is an estimate: a round that moves each
weight's bytes as often as it must, at the rate at which a large array is read and written
in place, and then does its multiply-adds at the rate of a large matrix product, both
measured in this run.
"""

import argparse
import importlib.util
import pathlib
import time

import jax
import jax.numpy as jnp
from jax import lax
from rich.table import Table

import synflow_jax as sj
from benchmarks import measuring
from synflow_jax import models

NAMES = ("mlp", "resnet20", "resnet18", "vgg16_cifar")
DENSITY = 0.01

# Over the memory, to measure its rate.
PASSES = 20

# Of one weight in one round: read by the forward and by the backward pass, its gradient
# written, both read by the selection, its mask written.
BYTES = 4 + 4 + 4 + 4 + 4 + 1


def machine(numbers=2**26, side=2048, least=9):
    """Rates in 1/s: bytes read and written in place, and multiply-adds of a product."""
    numbers = jnp.ones(numbers)
    matrix = jnp.ones((side, side))
    square = jax.jit(lambda x: x @ x)

    @jax.jit
    def passes(x):
        # In a loop, or most of the time goes into pages that the system hands out.
        return lax.fori_loop(0, PASSES, lambda _, x: -x, x)

    (moved, product), _ = measuring.interleaved(
        [lambda: passes(numbers), lambda: square(matrix)], least=least
    )
    return {
        "bytes_per_s": 2 * PASSES * numbers.nbytes / moved * 1e3,
        "multiply_adds_per_s": side**3 / product * 1e3,
    }


def multiply_adds(apply_fn, params, input_shape):
    """Of one image's forward pass."""
    image = jnp.ones((1, *input_shape))
    return jax.jit(apply_fn).lower(params, image).cost_analysis()["flops"] / 2


def floor_ms(weights, forward, rates):
    """Milliseconds of a round at the machine's rates; a gradient is two products more."""
    moved = BYTES * weights / rates["bytes_per_s"]
    return 1e3 * (moved + 3 * forward / rates["multiply_adds_per_s"])


def measured(name, rates, *, rounds=100, turns=3, pytorch=True):
    """The row of one network; all times are of the rounds together."""
    apply_fn, params, input_shape = models.build(name, jax.random.key(0))
    score = sj.synflow(apply_fn, input_shape)
    # The first of 100 rounds to DENSITY, or all of them.
    density = DENSITY ** (rounds / 100)

    def ours():
        return sj.prune(score, params, density, rounds=rounds, keep_connected=False)

    start = time.perf_counter()
    _, info = jax.block_until_ready(ours())
    first_s = time.perf_counter() - start
    peak = measuring.peak_above(ours)
    runs = [ours]
    if pytorch:
        from benchmarks import pytorch_baseline

        runs.append(pytorch_baseline.prune(name, params, info.kept.tolist()))
    medians, turns = measuring.interleaved(runs, seconds=2.0, least=turns)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    forward = multiply_adds(apply_fn, params, input_shape)
    floor = rounds * floor_ms(weights / 4, forward, rates) / 1e3
    seconds = [round(ms / 1e3, 4) for ms in medians]
    return {
        "network": name,
        "rounds": rounds,
        "weights": weights // 4,
        "prune_s": seconds[0],
        "pytorch_s": seconds[1] if pytorch else None,
        "times_faster": round(seconds[1] / seconds[0], 2) if pytorch else None,
        "floor_s": round(floor, 4),
        "times_floor": round(seconds[0] / floor, 2),
        "turns": turns,
        "compile_s": round(first_s - seconds[0], 1),
        # Of a small network it is what the process had at hand anyway.
        "peak_over_weights": round(peak / weights, 2) if peak and weights > 2**24 else None,
        **{f"giga_{key}": round(rate / 1e9, 1) for key, rate in rates.items()},
    }


def table(rows):
    shown = Table(title=f"100 rounds of SynFlow to density {DENSITY}, against PyTorch")
    columns = "network,rounds,seconds,PyTorch,times faster,floor,times floor,compile s"
    for column in columns.split(","):
        shown.add_column(column, justify="left" if column == "network" else "right")
    shown.add_column("peak / weights", justify="right")
    for row in rows:
        keys = "rounds,prune_s,pytorch_s,times_faster,floor_s,times_floor,compile_s"
        values = [row[key] for key in (*keys.split(","), "peak_over_weights")]
        shown.add_row(row["network"], *("-" if v is None else f"{v:g}" for v in values))
    return shown


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, help="networks")
    parser.add_argument("--rounds", type=int, default=100, help="the first of 100")
    parser.add_argument("--turns", type=int, default=3, help="medians are of these")
    parser.add_argument("--no-pytorch", action="store_true", help="only ours")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines are added to it")
    args = parser.parse_args(argv)
    pytorch = not args.no_pytorch
    if pytorch and importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not installed: pip install '.[bench]', or --no-pytorch.")
    known = list(models.NETWORKS)
    if pytorch:
        from benchmarks.pytorch_baseline import NETWORKS as known
    unknown = [name for name in args.names if name not in known]
    if unknown:
        parser.error(f"no {', '.join(unknown)} here; there are {', '.join(known)}.")
    console, facts, rates = measuring.console(), measuring.described(), machine()
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()))
    rows = []
    for name in args.names:
        row = measured(name, rates, rounds=args.rounds, turns=args.turns, pytorch=pytorch)
        rows.append(row)
        measuring.report(console, args.out, row, facts)
    console.print(table(rows))


if __name__ == "__main__":
    main()

"""Speed, compile time and memory of one score, against abs-and-grad of the same network.

    python -m benchmarks.flow                    # the default set
    python -m benchmarks.flow --quick            # the two networks that targets name
    python -m benchmarks.flow resnet110 conv     # some networks
    python -m benchmarks.flow --all              # the giants too: hours
    python -m benchmarks.flow --loop vgg16_cifar # in a loop, where pruning calls it

Abs-and-grad is what one would write without this package: the network as it is, through
`lax.conv`, on the sizes of its weights and an all-ones input, and then ``|w * dR/dw|``.
"""

import argparse
import functools
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
from rich.table import Table

import synflow_jax as sj
from benchmarks import measuring
from synflow_jax import models
from synflow_jax.transform.network_flow import ones

# Compiling ResNet-1202 takes minutes on either side; only --all includes these.
GIANTS = ("resnet1202", "wide_resnet1202")
QUICK = ("vgg16_cifar", "resnet50")

# In the program of --loop.
ROUNDS = 3


def abs_and_grad(apply_fn, input_shape):
    """``score(params, masks)`` by the gradient of the network as written."""
    inputs = ones(input_shape)

    def score(params, masks):
        sizes = jax.tree.map(jnp.abs, sj.apply_masks(params, masks))
        gradients = jax.grad(lambda p: jnp.sum(apply_fn(p, inputs)))(sizes)
        return jax.tree.map(lambda w, g: jnp.abs(w * g), sizes, gradients)

    return score


def looped(score):
    """`ROUNDS` scores in a loop, each under the masks that the one before it left."""

    def rounds(params, masks):
        def step(masks, _):
            scores = score(params, masks)
            # Not `>= 0`, which the compiler knows of an absolute value.
            return jax.tree.map(lambda m, s: m & (s > 0), masks, scores), None

        return jax.lax.scan(step, masks, length=ROUNDS)[0]

    return rounds


def compiled(functions, args, repeats):
    """Each function compiled; the seconds that took, median of interleaved repeats."""
    seconds = [[] for _ in functions]
    programs = []
    for _ in range(repeats):
        programs = []
        for function, spent in zip(functions, seconds):
            jax.clear_caches()
            start = time.perf_counter()
            programs.append(jax.jit(function).lower(*args).compile())
            spent.append(time.perf_counter() - start)
    return programs, [statistics.median(spent) for spent in seconds]


def measured(name, budget, compilations, loop=False):
    """The row of one network; milliseconds are of one score, also in a loop."""
    apply_fn, params, input_shape = models.build(name, jax.random.key(0))
    args = (params, sj.all_kept(params))
    functions = [make(apply_fn, input_shape) for make in (sj.synflow, abs_and_grad)]
    if loop:
        functions = [looped(function) for function in functions]
    programs, seconds = compiled(functions, args, compilations)
    runs = [functools.partial(program, *args) for program in programs]
    milliseconds, turns = measuring.interleaved(runs, seconds=budget)
    milliseconds = [spent / (ROUNDS if loop else 1) for spent in milliseconds]
    temp = [program.memory_analysis().temp_size_in_bytes for program in programs]
    return {
        "network": name,
        "in_loop": loop,
        "weights": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "score_ms": round(milliseconds[0], 3),
        "abs_and_grad_ms": round(milliseconds[1], 3),
        "speedup": round(milliseconds[1] / milliseconds[0], 2),
        "runs": turns,
        "compile_s": round(seconds[0], 2),
        "abs_and_grad_compile_s": round(seconds[1], 2),
        "compile_ratio": round(seconds[0] / seconds[1], 2),
        "compilations": compilations,
        "temp_bytes": temp[0],
        "abs_and_grad_temp_bytes": temp[1],
    }


def table(rows, loop):
    where = ", in a loop" if loop else ""
    shown = Table(
        title=f"one score against abs-and-grad{where}",
        caption="in brackets abs-and-grad; MB: temporary memory",
    )
    columns = "network,score ms,times faster,compile s,times longer,MB"
    for column in columns.split(","):
        shown.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        mb, rival_mb = (
            row[key] / 2**20 for key in ("temp_bytes", "abs_and_grad_temp_bytes")
        )
        shown.add_row(
            row["network"],
            f"{row['score_ms']:.2f} ({row['abs_and_grad_ms']:.2f})",
            f"{row['speedup']:.2f}",
            f"{row['compile_s']:.1f} ({row['abs_and_grad_compile_s']:.1f})",
            f"{row['compile_ratio']:.2f}",
            f"{mb:.1f} ({rival_mb:.1f})",
        )
    return shown


def parsed(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="networks of synflow_jax.models")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--all", action="store_true", help=f"also {', '.join(GIANTS)}")
    parser.add_argument("--loop", action="store_true", help="scores in a loop, as pruned")
    parser.add_argument("--seconds", type=float, default=3.0, help="of runs, each network")
    parser.add_argument("--compilations", type=int, default=1, help="medians are of these")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines, one a network")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in models.NETWORKS]
    if unknown:
        parser.error(
            f"there is no network {', '.join(unknown)}; "
            f"there are {', '.join(sorted(models.NETWORKS))}."
        )
    if sum((bool(args.names), args.quick, args.all)) > 1:
        parser.error("names, --quick and --all exclude each other.")
    return args


def main(argv=None):
    args = parsed(argv)
    console = measuring.console()
    names = args.names or (QUICK if args.quick else list(models.NETWORKS))
    if not args.names and not args.all:
        left_out = [name for name in names if name in GIANTS]
        names = [name for name in names if name not in GIANTS]
        if left_out:
            console.print(f"left out, see --all: {', '.join(left_out)}")
    facts = measuring.described()
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()))
    rows = []
    for name in names:
        row = measured(name, args.seconds, args.compilations, args.loop)
        rows.append(row)
        console.print(
            f"{name}: {row['score_ms']} ms against {row['abs_and_grad_ms']} ms, "
            f"{row['speedup']} times faster; compiled in {row['compile_s']} s against "
            f"{row['abs_and_grad_compile_s']} s",
            soft_wrap=True,
        )
        measuring.append(args.out, [row | facts])
    console.print(table(rows, args.loop))


if __name__ == "__main__":
    main()

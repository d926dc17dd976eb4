"""Selecting exactly k scores: `keep_top` against a sort, top_k and numpy.partition.

    python -m benchmarks.selection                 # 10^4 to 10^7 scores, and VGG-16's
    python -m benchmarks.selection --sizes 1e5 1e6

One in a hundred is kept, all are eligible and few tie. `keep_top` gets leaves and a traced
k and returns masks; its rivals get the scores in one flat array. `numpy.partition` returns
no masks.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from rich.table import Table

import synflow_jax as sj
from benchmarks import measuring
from synflow_jax import models

KEPT = 0.01
SIZES = (1e4, 1e5, 1e6, 1e7)
# A sort of ten million takes seconds.
LARGEST_SORT = 3e6


def vgg16_shapes():
    """The kernels of VGG-16."""
    module = models.NETWORKS["vgg16_cifar"].make(num_classes=100)
    image = jnp.ones((1, 32, 32, 3))
    shapes = jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), image))
    return [leaf.shape for leaf in shapes if leaf.ndim > 1]


def by_sort(scores, k):
    order = jnp.argsort(-scores, stable=True)
    return jnp.zeros(scores.shape, bool).at[order].set(jnp.arange(scores.size) < k)


def by_top_k(k):
    def select(scores):
        chosen = lax.top_k(scores, k)[1]
        return jnp.zeros(scores.shape, bool).at[chosen].set(True)

    return select


def measured(shapes, *, seconds=2.0):
    """The row of one tree of scores, spread like SynFlow's over many orders of size.

    Args:
      shapes: of the leaves.
      seconds: of interleaved runs; the sort and top_k only up to `LARGEST_SORT` scores.
    """
    rng = np.random.default_rng(0)
    leaves = [
        jnp.asarray(np.exp(3 * rng.standard_normal(shape)), jnp.float32) for shape in shapes
    ]
    flat = np.concatenate([np.ravel(leaf) for leaf in leaves])
    k = int(flat.size * KEPT)
    select = jax.jit(sj.keep_top)
    device, count = jnp.asarray(flat), jnp.uint32(k)
    functions = {
        "keep_top": lambda: select(leaves, count),
        "numpy_partition": lambda: np.partition(flat, flat.size - k),
    }
    if flat.size <= LARGEST_SORT:
        sort, top_k = jax.jit(by_sort), jax.jit(by_top_k(k))
        functions["sort"] = lambda: sort(device, count)
        functions["top_k"] = lambda: top_k(device)
    medians, turns = measuring.interleaved(functions.values(), seconds=seconds)
    row = {"scores": flat.size, "leaves": len(shapes), "turns": turns}
    for name, milliseconds in zip(functions, medians):
        row[f"{name}_ms"] = round(milliseconds, 3)
    for name, milliseconds in list(zip(functions, medians))[1:]:
        row[f"times_faster_than_{name}"] = round(milliseconds / medians[0], 2)
    return row


def table(rows):
    shown = Table(title=f"keeping {KEPT:.0%} of the scores, milliseconds (times slower)")
    for column in ("scores", "leaves", "keep_top", "numpy_partition", "sort", "top_k"):
        shown.add_column(column, justify="right")
    for row in rows:
        rivals = [
            f"{row[f'{name}_ms']:.2f} ({row[f'times_faster_than_{name}']:.1f})"
            if f"{name}_ms" in row
            else "-"
            for name in ("numpy_partition", "sort", "top_k")
        ]
        shown.add_row(
            str(row["scores"]), str(row["leaves"]), f"{row['keep_top_ms']:.2f}", *rivals
        )
    return shown


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=float, nargs="*", help="numbers of scores")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines are added to it")
    args = parser.parse_args(argv)
    trees = [[(int(size),)] for size in args.sizes or SIZES]
    trees += [] if args.sizes else [vgg16_shapes()]
    facts = measuring.described()
    rows = [measured(shapes) for shapes in trees]
    measuring.append(args.out, [row | facts for row in rows])
    measuring.console().print(table(rows))


if __name__ == "__main__":
    main()

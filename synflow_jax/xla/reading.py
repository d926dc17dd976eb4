"""Reads entries of an array along one axis, at positions that are known while tracing.

Neither this nor its derivative is a gather or a scatter: a scatter that adds is slow on a
CPU and adds in any order on a GPU.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

# Multiply-adds up to which the product with a matrix of zeros and ones is taken, which
# compiles faster than slices do.
_SMALL = 2**21
# And up to which one product is taken for several axes.
_JOINT = 2**24
# Number of slices up to which they are concatenated.
_PIECES = 12


def read(x: Array, axis: int, entries: np.ndarray) -> Array:
    """The entries at given positions of an axis; zero where the position is -1.

    Args:
      x: floating, any shape.
      axis: the axis that is read.
      entries: integers, one for each position of the result along the axis.

    Returns:
      An array like ``x`` in which the axis is as long as ``entries``.

    Example:
      >>> read(jnp.array([[1.0, 2.0]]), 1, np.array([0, 1, 1, -1]))
      Array([[1., 2., 2., 0.]], dtype=float32)
    """
    length = x.shape[axis]
    if len(entries) == length and (entries == np.arange(length)).all():
        return x
    if not _is_float(x):  # has no derivative
        return jnp.take(x, entries, axis)
    pieces = _pieces(entries)
    work = len(entries) * x.size
    if len(pieces) > 1 and (work <= _SMALL or len(pieces) > _PIECES):
        return combined(x, axis, entries[:, None] == np.arange(length))
    parts = [_piece(x, axis, *piece) for piece in pieces]
    return parts[0] if len(parts) == 1 else lax.concatenate(parts, axis)


def read_axes(x: Array, reads: Mapping[int, np.ndarray]) -> Array:
    """`read` along several axes.

    Args:
      x: floating, any shape.
      reads: for each axis that is read, the positions.

    Returns:
      An array like ``x`` in which those axes are as long as their positions.

    Example:
      >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> read_axes(x, {0: np.array([1, 0]), 1: np.array([0, 0, -1])})
      Array([[3., 3., 0.],
             [1., 1., 0.]], dtype=float32)
    """
    axes = sorted(reads)
    adjacent = axes == [*range(axes[0], axes[0] + len(axes))] if axes else False
    work = x.size * math.prod(len(at) for at in reads.values())
    if len(axes) == 1 or not adjacent or work > _JOINT or not _is_float(x):
        for axis in axes:
            x = read(x, axis, reads[axis])
        return x
    # One product for all axes: a program compiles the slower the more products it has.
    first, last, shape = axes[0], axes[-1] + 1, x.shape
    matrix = np.ones((1, 1), bool)
    for axis in axes:
        matrix = np.kron(matrix, reads[axis][:, None] == np.arange(shape[axis]))
    x = x.reshape(*shape[:first], -1, *shape[last:])
    lengths = (len(reads[axis]) for axis in axes)
    return combined(x, first, matrix).reshape(*shape[:first], *lengths, *shape[last:])


def combined(x: Array, axis: int, matrix: np.ndarray) -> Array:
    """Sums of the entries along an axis, with the coefficients of a matrix.

    Args:
      x: floating, any shape.
      axis: the axis that is summed over.
      matrix: [results, length of the axis] numbers.

    Returns:
      An array like ``x`` in which the axis is as long as the matrix.

    Example:
      >>> combined(jnp.array([[1.0, 2.0]]), 1, np.array([[1, 1], [0, 3]]))
      Array([[3., 6.]], dtype=float32)
    """
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    rows = x.reshape(math.prod(before), x.shape[axis], math.prod(after))
    one = len(rows) == 1  # as it is for one image: two axes, so nothing is transposed
    out = lax.dot_general(
        jnp.asarray(matrix, x.dtype),
        rows[0] if one else rows,
        (((1,), (0 if one else 1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
    )
    out = out if one else lax.transpose(out, (1, 0, 2))
    return out.reshape(*before, len(matrix), *after)


def _is_float(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _pieces(entries: np.ndarray) -> list[tuple[int, int, int]]:
    """Splits positions into runs with a constant step: their start, step and number."""
    pieces, at = [], 0
    steps = np.diff(entries)
    while at < len(entries):
        start = int(entries[at])
        step = int(steps[at]) if at < len(steps) else 0
        if step < 0 or (start < 0 and step):
            step, stop = 0, at
        else:
            others = np.flatnonzero(steps[at:] != step)
            stop = at + int(others[0]) if len(others) else len(entries) - 1
            if step > 1 and stop - at == 1:  # no run of two: the second may start another
                step, stop = 0, at
        pieces.append((start, step, stop - at + 1))
        at = stop + 1
    return pieces


def _piece(x: Array, axis: int, start: int, step: int, number: int) -> Array:
    shape = (*x.shape[:axis], number, *x.shape[axis + 1 :])
    if start < 0:
        return jnp.zeros(shape, x.dtype)
    if step:
        stop = start + step * (number - 1) + 1
        return lax.slice_in_dim(x, start, stop, step, axis)
    one = lax.slice_in_dim(x, start, start + 1, 1, axis)
    return one if number == 1 else lax.broadcast_in_dim(one, shape, range(x.ndim))

"""Reads entries of an array along one axis, at positions that are known while tracing.

Neither this nor its derivative is a gather or a scatter: a scatter that adds is slow on a
CPU and adds in any order on a GPU.
"""

import functools
import itertools
import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

# Multiply-adds up to which the product with a matrix of zeros and ones is taken, which
# compiles faster than slices do.
_SMALL = 2**21
# And up to which one product is taken for several axes: a program compiles the slower the
# more products it has. Its matrix, a constant of the program, has at most so many entries.
_JOINT, _ENTRIES = 2**24, 2**20
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
    return _joined(x, axis, pieces)


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
    if _fits_one_product(x, {axis: len(at) for axis, at in reads.items()}):
        one_hot = {k: at[:, None] == np.arange(x.shape[k]) for k, at in reads.items()}
        return combined_axes(x, one_hot)
    for axis, at in reads.items():
        x = read(x, axis, at)
    return x


def read_windows(x: Array, windows: Mapping[int, np.ndarray]) -> list[Array]:
    """What the entries of a window read, one array for each, in raster order.

    Args:
      x: floating, any shape.
      windows: for each axis along which the window slides [results, window] positions; -1
        reads zero.

    Returns:
      Arrays like ``x`` in which those axes are as long as the results.

    Example:
      >>> read_windows(jnp.array([1.0, 2.0, 3.0]), {0: np.array([[0, 1], [2, -1]])})
      [Array([1., 3.], dtype=float32), Array([2., 0.], dtype=float32)]
    """
    axes = sorted(windows)
    entries, columns = [x], {axis: windows[axis].T for axis in axes}
    if _fits_one_product(x, {axis: at.size for axis, at in columns.items()}):
        # Along each axis all results of one entry, then those of the next.
        entries = [read_axes(x, {axis: at.reshape(-1) for axis, at in columns.items()})]
        for axis, at in columns.items():
            entries = [part for x in entries for part in jnp.split(x, len(at), axis)]
        return entries
    for axis, at in columns.items():
        entries = [read(x, axis, each) for x in entries for each in at]
    return entries


def combined_axes(x: Array, matrices: Mapping[int, np.ndarray]) -> Array:
    """`combined` along several axes, by one product where that is small.

    Args:
      x: floating, any shape.
      matrices: for each axis that is summed over [results, length of the axis] numbers.

    Returns:
      An array like ``x`` in which those axes are as long as their matrices.

    Example:
      >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> combined_axes(x, {0: np.array([[1, 1]]), 1: np.array([[1, 2]])})
      Array([[16.]], dtype=float32)
    """
    axes = sorted(matrices)
    if not _fits_one_product(x, {axis: len(matrices[axis]) for axis in axes}):
        for axis in axes:
            x = combined(x, axis, matrices[axis])
        return x
    first, last, shape = axes[0], axes[-1] + 1, x.shape
    matrix = functools.reduce(np.kron, (matrices[axis] for axis in axes))
    x = x.reshape(*shape[:first], -1, *shape[last:])
    lengths = (len(matrices[axis]) for axis in axes)
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


def _fits_one_product(x: Array, lengths: Mapping[int, int]) -> bool:
    """Whether results of given lengths along some axes are read by one product."""
    axes = sorted(lengths)
    if len(axes) < 2 or axes != [*range(axes[0], axes[0] + len(axes))] or not _is_float(x):
        return False
    results = math.prod(lengths.values())
    entries = results * math.prod(x.shape[axis] for axis in axes)
    return x.size * results <= _JOINT and entries <= _ENTRIES


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


def _joined(x: Array, axis: int, pieces: list[tuple[int, int, int]]) -> Array:
    """Runs of positions, one after the other.

    The axis is cut where a run begins or ends, and runs consist of those parts: the
    derivative is then one concatenation of sums of parts. That of slices would be a sum of
    arrays as large as ``x``, one for each slice.
    """
    stops = [start + step * (number - 1) + 1 for start, step, number in pieces]
    inside = [(start, stop) for (start, *_), stop in zip(pieces, stops) if start >= 0]
    cuts = sorted({0, x.shape[axis], *itertools.chain(*inside)})
    parts = lax.split(x, np.diff(cuts).tolist(), axis)
    out = []
    for (start, step, number), stop in zip(pieces, stops):
        shape = (*x.shape[:axis], number, *x.shape[axis + 1 :])
        if start < 0:
            out.append(jnp.zeros(shape, x.dtype))
            continue
        own = parts[cuts.index(start) : cuts.index(stop)]
        if step == 1:
            out += own
        elif step == 0:
            out.append(lax.broadcast_in_dim(own[0], shape, range(x.ndim)))
        else:
            whole = own[0] if len(own) == 1 else lax.concatenate(own, axis)
            out.append(lax.slice_in_dim(whole, 0, None, step, axis))
    return out[0] if len(out) == 1 else lax.concatenate(out, axis)

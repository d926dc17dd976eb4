"""Counts and sums over large arrays, fast on a CPU too.

XLA on a CPU reduces an array to one number on a single core and without SIMD instructions.
It adds a few long rows to each other like elementwise code, 20 times faster for narrow
integers and 5 times for floats. So on a CPU, arrays are reshaped to rows first.

For arrays that lie on several devices the results are plain reductions: only numbers are
exchanged, no entries.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Integer, UInt

from synflow_jax.xla.backends import Backend

# Candidates of a pass. `count_reaching` packs their counts into the fields of one uint32.
CANDIDATES = 4
_FIELD_BITS = 32 // CANDIDATES

# Rows to which `count_where` and `sum_of` reshape an array, a power of two, and the columns
# to which `sum_of` reshapes their sum.
_ROWS, _COLUMNS = 16, 512

# Rows to which `count_reaching` does: a field adds 15 rows, and the sum of 16 such fields,
# at most 240, fits into int16.
_FIELD_ROWS, _SUM_ROWS = 15, 16


def _in_rows(backend: Backend) -> bool:
    return backend.cpu and backend.one_device


def count_where(
    backend: Backend, holds: Callable[..., Array], *leaves: Array
) -> Integer[Array, ""]:
    """Number of entries, as uint32, for which an elementwise predicate holds.

    Args:
      backend: where it runs.
      holds: takes equally shaped slices of the leaves and returns booleans of that shape.
      leaves: arrays of one shape.

    Example:
      >>> cpu = Backend(cpu=True, one_device=True)
      >>> int(count_where(cpu, lambda x: x > 1, jnp.arange(4)))
      2
    """
    width = leaves[0].size // _ROWS
    if not _in_rows(backend) or width < _ROWS:
        return jnp.sum(holds(*leaves), dtype=jnp.uint32)
    first, rest = _cut(leaves, width * _ROWS)
    rows = holds(*(x.reshape(_ROWS, width) for x in first))
    columns = jnp.sum(rows, axis=0, dtype=jnp.int8)
    return jnp.sum(columns, dtype=jnp.uint32) + jnp.sum(holds(*rest), dtype=jnp.uint32)


def count_reaching(
    backend: Backend, keys: Int[Array, "..."], candidates: Int[Array, " candidates"]
) -> UInt[Array, " candidates"]:
    """Numbers of keys that are at least each of `CANDIDATES` integers, in one pass.

    Example:
      >>> cpu = Backend(cpu=True, one_device=True)
      >>> count_reaching(cpu, jnp.arange(10), jnp.array([2, 3, 8, 20])).tolist()
      [8, 7, 2, 0]
    """
    if not _in_rows(backend):
        counts = [jnp.sum(keys >= c, dtype=jnp.uint32) for c in candidates]
        return jnp.stack(counts)
    width = keys.size // (_FIELD_ROWS * _SUM_ROWS)
    (first,), (last,) = _cut([keys], width * _FIELD_ROWS * _SUM_ROWS)
    rest = jnp.sum(last[None] >= candidates[:, None], axis=1, dtype=jnp.uint32)
    if not width:
        return rest
    rows = first.reshape(_FIELD_ROWS, -1)
    shifts = [jnp.uint32(_FIELD_BITS * i) for i in range(CANDIDATES)]
    fields = [(rows >= c).astype(jnp.uint32) << s for c, s in zip(candidates, shifts)]
    columns = jnp.sum(sum(fields[1:], fields[0]), axis=0, dtype=jnp.uint32)
    # Each field is unpacked and summed by itself. If two sums covered all fields, XLA would
    # fuse them into one loop, which is 8 times slower.
    columns = columns.reshape(_SUM_ROWS, width)
    counts = [_sum_field(columns >> s & jnp.uint32(2**_FIELD_BITS - 1)) for s in shifts]
    return jnp.stack(counts) + rest


def _sum_field(values: UInt[Array, "rows columns"]) -> Integer[Array, ""]:
    return jnp.sum(jnp.sum(values, axis=0, dtype=jnp.int16), dtype=jnp.uint32)


def sum_of(backend: Backend, value: Callable[..., Array], *leaves: Array) -> Array:
    """The sum, over all entries, of an elementwise function.

    Args:
      backend: where it runs.
      value: takes equally shaped slices of the leaves and returns floats of that shape.
      leaves: arrays of one shape.

    Example:
      >>> cpu = Backend(cpu=True, one_device=True)
      >>> largest = lambda x, y: jnp.where(x > 1, y, 0.0)
      >>> float(sum_of(cpu, largest, jnp.arange(4), jnp.ones(4)))
      2.0
    """
    width = leaves[0].size // (_ROWS * _COLUMNS) * _COLUMNS
    if not _in_rows(backend) or not width:
        return jnp.sum(value(*leaves))
    first, rest = _cut(leaves, width * _ROWS)
    sums = _added(value(*(x.reshape(_ROWS, width) for x in first)))
    columns = jnp.sum(sums.reshape(-1, _COLUMNS), axis=0)
    return jnp.sum(columns) + jnp.sum(value(*rest))


def sums_of(
    backend: Backend, value: Callable[..., Array], candidates: Array, *leaves: Array
) -> Array:
    """`sum_of` for each of several candidates, in one pass.

    Args:
      backend: where it runs.
      value: takes candidates and slices of the leaves, whose shapes can be broadcast, and
        returns floats of the broadcast shape.
      candidates: an array with one axis.
      leaves: arrays of one shape.

    Example:
      >>> cpu = Backend(cpu=True, one_device=True)
      >>> at_least = lambda c, x: jnp.where(x >= c, x, 0.0)
      >>> sums_of(cpu, at_least, jnp.array([2.0, 3.0]), jnp.arange(4.0)).tolist()
      [5.0, 3.0]
    """
    if not _in_rows(backend):
        # Separate reductions, which XLA on a GPU can fuse into one pass over the leaves.
        return jnp.stack([jnp.sum(value(candidate, *leaves)) for candidate in candidates])
    size = leaves[0].size // (_ROWS * _COLUMNS) * _ROWS * _COLUMNS
    first, last = _cut(leaves, size)
    rest = jnp.sum(value(candidates[:, None], *(x[None] for x in last)), axis=1)
    if not size:
        return rest
    # All candidates for a few columns, then for the next: each entry is read once.
    rows = (x.reshape(_ROWS, -1, 1, _COLUMNS) for x in first)
    columns = _added(value(candidates.reshape(1, 1, -1, 1), *rows)).sum(0)
    return jnp.sum(columns, axis=1) + rest


def _cut(leaves: Sequence[Array], size: int) -> tuple[list[Array], list[Array]]:
    """The first ``size`` entries of each leaf, and the rest, as flat arrays.

    JAX 0.8 makes gathers of slices by indexing, with places in 32 bits, and a leaf can have
    more than 2^31 entries.
    """
    flat = [leaf.reshape(-1) for leaf in leaves]
    first = [lax.slice_in_dim(x, 0, size) for x in flat]
    return first, [lax.slice_in_dim(x, size, None) for x in flat]


def _added(rows: Array) -> Array:
    """The sum of the rows: fused into one loop, which adds 16 of them to each other."""
    while len(rows) > 1:
        rows = rows[: len(rows) // 2] + rows[len(rows) // 2 :]
    return rows[0]

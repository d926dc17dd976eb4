"""How many entries, and how much in total: numbers that need no scores of other devices.

XLA reduces an array to one number on one CPU core and without wide registers. The sum of a
few long rows it treats like elementwise code, in narrow integers twenty times faster and in
floats five times; so on a CPU entries are counted and added in rows.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Integer, UInt

# Candidates that `count_reaching` takes: their counts share one pass and one uint32.
CANDIDATES = 4
_BITS = 32 // CANDIDATES

# Rows of a pass for one number; and of a pass for CANDIDATES, where a field counts 15 rows
# and the sums of 16 fields, at most 240, fit int16.
_ROWS = 16
_FIELD_ROWS, _SUM_ROWS = 15, 16

# Scores taken of each array in proportion to its size, to guess where to count: so many,
# or a small part of all, since a sort of many takes as long as a few counts.
_LARGEST_SAMPLE, _SAMPLED_PART, _SMALLEST_SAMPLE = 16384, 128, 1024


def sample_stride(size: int) -> int:
    """Of so many entries every which one is in a sample."""
    wanted = min(max(size // _SAMPLED_PART, _SMALLEST_SAMPLE), _LARGEST_SAMPLE)
    return -(-size // wanted)


def one_device() -> bool:
    """Whether arrays cannot be spread over devices, so that reshaping moves nothing."""
    return jax.device_count() == 1


def _in_rows() -> bool:
    return jax.default_backend() == "cpu" and one_device()


def count_where(holds: Callable[..., Array], *leaves: Array) -> Integer[Array, ""]:
    """Number of entries, as uint32, for which an elementwise predicate holds.

    Args:
      holds: takes equally shaped slices of the leaves and returns booleans of that shape.
      leaves: arrays of one shape.

    Example:
      >>> int(count_where(lambda x: x > 1, jnp.arange(4)))
      2
    """
    width = leaves[0].size // _ROWS
    if not _in_rows() or width < _ROWS:
        return jnp.sum(holds(*leaves), dtype=jnp.uint32)
    flat = [leaf.reshape(-1) for leaf in leaves]
    rows = holds(*(x[: width * _ROWS].reshape(_ROWS, width) for x in flat))
    rest = holds(*(x[width * _ROWS :] for x in flat))
    columns = jnp.sum(rows, axis=0, dtype=jnp.int8)
    return jnp.sum(columns, dtype=jnp.uint32) + jnp.sum(rest, dtype=jnp.uint32)


def count_reaching(
    keys: Int[Array, "..."], candidates: Int[Array, " candidates"]
) -> UInt[Array, " candidates"]:
    """Numbers of keys that reach each of `CANDIDATES` whole numbers, in one pass.

    Example:
      >>> count_reaching(jnp.arange(10), jnp.array([2, 3, 8, 20])).tolist()
      [8, 7, 2, 0]
    """
    if not _in_rows():
        numbers = [jnp.sum(keys >= c, dtype=jnp.uint32) for c in candidates]
        return jnp.stack(numbers)
    flat = keys.reshape(-1)
    width = flat.size // (_FIELD_ROWS * _SUM_ROWS)
    size = width * _FIELD_ROWS * _SUM_ROWS
    rest = flat[None, size:] >= candidates[:, None]
    rest = jnp.sum(rest, axis=1, dtype=jnp.uint32)
    if not width:
        return rest
    rows = flat[:size].reshape(_FIELD_ROWS, -1)
    shifts = [jnp.uint32(_BITS * i) for i in range(CANDIDATES)]
    fields = [(rows >= c).astype(jnp.uint32) << s for c, s in zip(candidates, shifts)]
    columns = jnp.sum(sum(fields[1:], fields[0]), axis=0, dtype=jnp.uint32)
    # Each field by itself: two sums of all of them, one after the other, XLA makes one
    # loop of, eight times slower.
    columns = columns.reshape(_SUM_ROWS, width)
    numbers = [_total(columns >> s & jnp.uint32(2**_BITS - 1)) for s in shifts]
    return jnp.stack(numbers) + rest


def _total(small: UInt[Array, "rows columns"]) -> Integer[Array, ""]:
    return jnp.sum(jnp.sum(small, axis=0, dtype=jnp.int16), dtype=jnp.uint32)


def sum_of(value: Callable[..., Array], *leaves: Array) -> Array:
    """The sum, over all entries, of an elementwise function.

    Args:
      value: takes equally shaped slices of the leaves and returns floats of that shape.
      leaves: arrays of one shape.

    Example:
      >>> float(sum_of(lambda x, y: jnp.where(x > 1, y, 0.0), jnp.arange(4), jnp.ones(4)))
      2.0
    """
    width = leaves[0].size // _ROWS**2
    if not _in_rows() or width < _ROWS:
        return jnp.sum(value(*leaves))
    flat, size = [leaf.reshape(-1) for leaf in leaves], width * _ROWS**2
    rows = [x[:size].reshape(_ROWS, _ROWS * width) for x in flat]
    columns = _added([value(*(x[i] for x in rows)) for i in range(_ROWS)])
    columns = _added(list(columns.reshape(_ROWS, width)))
    return jnp.sum(columns) + jnp.sum(value(*(x[size:] for x in flat)))


def _added(rows: list[Array]) -> Array:
    return functools.reduce(jnp.add, rows)

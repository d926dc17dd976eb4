"""Counts of entries, exact however many there are.

JAX has no integers of 64 bits unless it is asked for them. So a count is one unsigned word
of 32 bits where a tree has no more entries than it can count, and else a `Wide` count of
two words. Both have the operators ``+``, ``-``, ``<=`` and ``>``, and the functions of this
file take both.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike

from synflow_jax.xla.backends import Backend
from synflow_jax.xla.placement import varying_with
from synflow_jax.xla.reductions import count_reaching, count_where

# The type of a word. Tests choose a smaller one.
WORD: Any = np.uint32


class Wide(NamedTuple):
    """The count ``high * 2**half + low``, where ``half`` is half of the bits of a word.

    Attributes:
      high: may have any value.
      low: less than ``2**half``, so that a few of them can be added.
    """

    high: Any
    low: Any

    @property
    def half(self) -> int:
        return _half(self.low.dtype)

    def __add__(self, other: "Wide") -> "Wide":
        return carried(self.high + other.high, self.low + other.low)

    def __sub__(self, other: "Wide") -> "Wide":
        borrows = (self.low < other.low).astype(self.low.dtype)
        low = self.low + (borrows << self.half) - other.low
        return Wide(self.high - other.high - borrows, low)

    def __le__(self, other: "Wide") -> Array:
        equal = self.high == other.high
        return (self.high < other.high) | equal & (self.low <= other.low)

    def __gt__(self, other: "Wide") -> Array:
        return ~(self <= other)


Count = ArrayLike | Wide


def _half(dtype: Any) -> int:
    return 4 * np.dtype(dtype).itemsize


def carried(high: Array, low: Array) -> Wide:
    """The count ``high * 2**half + low``, where ``low`` may have more than half a word."""
    half = _half(low.dtype)
    return Wide(high + (low >> half), low & (2**half - 1))


def is_wide(size: int) -> bool:
    """Whether the entries of a tree of this size are counted in two words."""
    return size > np.iinfo(WORD).max - 1


def as_count(number: Any, size: int) -> Any:
    """Integers as the counts of a tree of ``size`` entries.

    Args:
      number: an integer or an array of them, known on the host; or a count that was traced.
      size: the number of entries of the tree.
    """
    wide = is_wide(size)
    if isinstance(number, Wide):
        return number if wide else (number.high << number.half) + number.low
    if isinstance(number, jax.Array):  # of 32 bits
        if not wide:
            return number.astype(WORD)
        number = number.astype(jnp.uint32)
        half = _half(WORD)
        return Wide((number >> half).astype(WORD), (number & (2**half - 1)).astype(WORD))
    numbers = np.asarray(number, np.uint64)
    if not wide:
        return numbers.astype(WORD)[()]
    half = np.uint64(_half(WORD))
    low = numbers & (np.uint64(1) << half) - np.uint64(1)
    return Wide((numbers >> half).astype(WORD)[()], low.astype(WORD)[()])


def on_host(count: Any) -> np.ndarray:
    """The integers of a count that is not traced."""
    if not isinstance(count, Wide):
        return np.asarray(count)
    high, low = (np.asarray(word).astype(np.uint64) for word in count)
    return np.asarray((high << np.uint64(count.half)) + low)


def as_float(count: Count, dtype: Any = jnp.float32) -> Array:
    """Counts as floats, rounded."""
    if not isinstance(count, Wide):
        return jnp.asarray(count).astype(dtype)
    high, low = (jnp.asarray(word).astype(dtype) for word in count)
    return high * 2.0**count.half + low


def from_float(number: Array, size: int) -> Any:
    """Floats that are not negative, rounded down, as the counts of a tree."""
    if not is_wide(size):
        return number.astype(WORD)
    half = _half(WORD)
    high = jnp.floor(number * 2.0**-half)
    return Wide(high.astype(WORD), (number - high * 2.0**half).astype(WORD))


def in_one_word(count: Any) -> Array:
    """A count as one word; its largest value stands for all larger counts."""
    if not isinstance(count, Wide):
        return count
    most = np.array(np.iinfo(count.low.dtype).max, count.low.dtype)
    return jnp.where(
        count.high >> count.half > 0, most, (count.high << count.half) + count.low
    )


def where(condition: Array, yes: Count, no: Count) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def smaller(one: Any, other: Any) -> Any:
    return where(one <= other, one, other)


def larger(one: Any, other: Any) -> Any:
    return where(one <= other, other, one)


def equal(one: Any, other: Any) -> Array:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other))
    return jnp.stack([a == b for a, b in pairs]).all(0)


def is_zero(count: Count) -> Array:
    return equal(count, jax.tree.map(jnp.zeros_like, count))


def largest(counts: Count) -> Any:
    """The largest of an array of counts."""
    if not isinstance(counts, Wide):
        return jnp.max(counts)
    high = jnp.max(counts.high)
    return Wide(high, jnp.max(jnp.where(counts.high == high, counts.low, 0)))


def smallest(counts: Count) -> Any:
    """The smallest of an array of counts."""
    if not isinstance(counts, Wide):
        return jnp.min(counts)
    high = jnp.min(counts.high)
    most = 2**counts.half - 1
    return Wide(high, jnp.min(jnp.where(counts.high == high, counts.low, most)))


def halved(count: Any) -> Any:
    """Half of a count, rounded down."""
    if not isinstance(count, Wide):
        return count // 2
    odd = count.high & 1
    return Wide(count.high >> 1, ((odd << count.half) + count.low) >> 1)


def at(counts: Any, place: Any) -> Any:
    """The counts at a place of an array of them."""
    return jax.tree.map(lambda words: jnp.asarray(words)[place], counts)


def stacked(counts: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *words: jnp.stack(words), *counts)


# --- counting -----------------------------------------------------------------------------


def number_where(
    backend: Backend, holds: Callable[..., Array], leaves: Sequence[Any], size: int
) -> Any:
    """Number of entries of all leaves for which an elementwise predicate holds.

    Args:
      backend: where it runs.
      holds: takes arrays of one shape, and returns booleans of it.
      leaves: arrays; or tuples of arrays of one shape, for a predicate of several.
      size: that of the tree whose counts are meant; no leaf has more entries.
    """

    def number(leaf):
        arrays = leaf if isinstance(leaf, tuple) else (leaf,)
        if is_wide(arrays[0].size):
            return _of_parts(holds(*arrays))
        return as_count(count_where(backend, holds, *arrays), size)

    return total([number(leaf) for leaf in leaves], size)


def any_positive(backend: Backend, known: Array, leaves: Sequence[Array]) -> Array:
    """Whether any entry is above zero; they are looked at only if that is not ``known``.
    They are counted, which shares most of its code with other counts, where `jnp.any` would
    be compiled for each leaf."""
    size = sum(leaf.size for leaf in leaves)

    def look(leaves):
        return ~is_zero(number_where(backend, lambda leaf: leaf > 0, leaves, size))

    return lax.cond(known, lambda x: varying_with(jnp.bool_(True), x), look, leaves)


def numbers_reaching(
    backend: Backend, keys: Sequence[Array], candidates: Array, size: int
) -> Any:
    """Numbers of keys of all arrays that are at least each of several integers."""

    def numbers(key):
        if is_wide(key.size):
            return stacked([_of_parts(key >= candidate) for candidate in candidates])
        return as_count(count_reaching(backend, key, candidates), size)

    return total([numbers(key) for key in keys], size)


def total(counts: Sequence[Any], size: int) -> Any:
    """The sum of counts of a tree."""
    first = as_count(0, size) if not counts else counts[0]
    for count in counts[1:]:
        first = first + count
    return first


def _of_parts(holds: Array) -> Wide:
    """The number of true entries of an array that has more of them than a word counts.

    Each part is counted in one word. The lower three eighths of their bits and the higher
    ones are added up apart, so that neither sum can exceed a word.
    """
    bits = 2 * _half(WORD)
    split = 3 * bits // 8
    parts = jnp.sum(holds, axis=_axes_of_parts(holds.shape), dtype=WORD)
    low = jnp.sum(parts & (2**split - 1), dtype=WORD)
    high = jnp.sum(parts >> split, dtype=WORD)
    # high * 2**split + low, of which the second may have more than half a word.
    more = bits // 2 - split
    lower = (high & (2**more - 1)) << split
    return carried(high >> more, lower) + carried(jnp.zeros_like(low), low)


def _axes_of_parts(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes whose entries are counted together: as many as fit into a word."""
    axes, size = [], 1
    for axis in sorted(range(len(shape)), key=lambda axis: -shape[axis]):
        if not is_wide(size * shape[axis]):
            axes.append(axis)
            size *= shape[axis]
    return tuple(axes)


def check_countable(shape: tuple[int, ...], name: str) -> None:
    """Raises if a leaf has more entries than two words count.

    Raises:
      ValueError: naming the leaf.
    """
    bits = 2 * _half(WORD)
    parts = math.prod(shape)
    for axis in _axes_of_parts(shape):
        parts //= max(shape[axis], 1)
    if is_wide(math.prod(shape)) and (
        parts >= 2 ** (bits - 3 * bits // 8 - 1)
        or math.prod(shape) >= 2 ** (11 * bits // 8)
    ):
        raise ValueError(
            f"`{name}` has shape {shape}, which are too many entries along one axis, or in "
            "all, to be counted."
        )

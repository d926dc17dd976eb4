"""The search for the threshold that exactly k scores reach."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from synflow_jax.xla.reductions import CANDIDATES, count_reaching


class Bracket(NamedTuple):
    """The threshold lies in [low, high): at least k keys reach low, fewer than k high."""

    low: Array
    num_low: Array  # keys >= low
    high: Array
    num_high: Array  # keys >= high


def whole(keys: list[Array]) -> Bracket:
    """All keys reach the type's least number, none its greatest."""
    key_type = keys[0].dtype
    limits = jnp.iinfo(key_type)
    size = sum(key.size for key in keys)
    return Bracket(
        low=jnp.asarray(limits.min, key_type),
        num_low=jnp.uint32(size),
        high=jnp.asarray(limits.max, key_type),
        num_high=jnp.uint32(0),
    )


def search(
    keys: list[Array], k: Array, bracket: Bracket, guesses: Array | None = None
) -> Bracket:
    """Narrows until k keys reach `low`, or `low` is what several keys around it equal."""

    def unfinished(state):
        bracket, *_ = state
        return (bracket.num_low != k) & (bracket.high - 1 > bracket.low)

    def narrow(state):
        bracket, helped, first = state
        candidates = jnp.where(helped, _around(bracket, k), _spaced(bracket))
        if guesses is not None:
            candidates = jnp.where(first, guesses, candidates)
        numbers = sum(count_reaching(key, candidates) for key in keys)
        narrowed = _narrowed(bracket, candidates, numbers, k)
        before, after = (b.num_low - b.num_high for b in (bracket, narrowed))
        return narrowed, first | (after <= before // 4), jnp.bool_(False)

    # None at all are what reach the end of the bracket.
    none = bracket._replace(low=bracket.high, num_low=bracket.num_high)
    bracket = jax.tree.map(lambda a, b: jnp.where(k == 0, a, b), none, bracket)
    start = (bracket, jnp.bool_(False), jnp.bool_(True))
    return lax.while_loop(unfinished, narrow, start)[0]


def _narrowed(bracket: Bracket, candidates: Array, numbers: Array, k: Array) -> Bracket:
    low, num_low, high, num_high = bracket
    enough = numbers >= k
    return Bracket(
        low=jnp.maximum(low, jnp.max(jnp.where(enough, candidates, low))),
        num_low=jnp.minimum(num_low, jnp.min(jnp.where(enough, numbers, num_low))),
        high=jnp.minimum(high, jnp.min(jnp.where(enough, high, candidates))),
        num_high=jnp.maximum(num_high, jnp.max(jnp.where(enough, num_high, numbers))),
    )


def _around(bracket: Bracket, k: Array) -> Array:
    """Where k keys would reach if those in the bracket lay at random, and to each side of
    it one and three times as far as that may be wrong."""
    width, between = _extent(bracket)
    extent = width.astype(jnp.float32)
    share = (bracket.num_low - k).astype(jnp.float32) / between
    # Keys lie at random, and less densely towards the upper end: of ordinary scores, about
    # half as densely an octave further up. An octave is 2**digits keys.
    digits = {4: 23, 8: 52}[width.dtype.itemsize]
    chance = jnp.sqrt(share * (1 - share) / between)
    slope = share * (1 - share) * extent * 2.0 ** -(digits + 2)
    shares = share + jnp.array([-3.0, -1.0, 1.0, 3.0], jnp.float32) * (chance + slope)
    # Short of 1, or rounding could lead out of the type.
    shares = jnp.clip(shares, 0, 1 - 2.0**-10)
    return _at(bracket, (shares * extent).astype(width.dtype))


def _spaced(bracket: Bracket) -> Array:
    width, _ = _extent(bracket)
    step = jnp.maximum(width // (CANDIDATES + 1), 1)
    return _at(bracket, step * jnp.arange(1, CANDIDATES + 1, dtype=width.dtype))


def _extent(bracket: Bracket) -> tuple[Array, Array]:
    """The bracket's width, unsigned, and the number of keys in it, floating."""
    low, num_low, high, num_high = bracket
    unsigned = jnp.dtype(f"uint{low.dtype.itemsize * 8}")
    width = high.astype(unsigned) - low.astype(unsigned)
    return width, (num_low - num_high).astype(jnp.float32)


def _at(bracket: Bracket, ahead: Array) -> Array:
    """The keys so far ahead of `low`, inside the bracket."""
    width, _ = _extent(bracket)
    ahead = jnp.clip(ahead, 1, width - 1)
    return (bracket.low.astype(ahead.dtype) + ahead).astype(bracket.low.dtype)

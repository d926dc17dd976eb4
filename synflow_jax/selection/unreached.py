"""Leaves all of whose scores are zero, found without a pass over them where none is."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Integer

from synflow_jax.xla.backends import Backend
from synflow_jax.xla.counts import is_wide
from synflow_jax.xla.reductions import count_where

# Entries of a leaf among which an eligible score that is not zero is looked for first.
_FIRST = 8192


def unreached(
    backend: Backend, keys: list[Array], sizes: list[list[int]]
) -> Bool[Array, " leaves"]:
    """For each leaf, whether it has eligible scores, all of them zero.

    Args:
      backend: where the keys lie.
      keys: the arrays of joined leaves.
      sizes: the sizes of the leaves of each array.
    """
    lowest = jnp.iinfo(keys[0].dtype).min

    def nonzero(key):
        return (key != lowest) & (key != 0)

    def look(keys):
        some, zero = (
            [_count_in_leaves(backend, test, *pair) for pair in zip(keys, sizes)]
            for test in (nonzero, lambda key: key == 0)
        )
        return (jnp.concatenate(some) == 0) & (jnp.concatenate(zero) > 0)

    # Nearly always the first entries of every leaf show that it is reached.
    seen = [_seen(backend, nonzero, *pair) for pair in zip(keys, sizes)]
    seen = jnp.concatenate(seen)
    return lax.cond(jnp.all(seen), lambda _: jnp.zeros_like(seen), look, keys)


def _seen(
    backend: Backend, holds: Callable[[Array], Array], key: Array, sizes: list[int]
) -> Bool[Array, " leaves"]:
    """Whether a predicate holds for one of the first entries of each leaf."""
    if len(sizes) > 1:
        return jnp.any(holds(_first_entries(key, sizes)), axis=1)
    # On several devices the first entries lie on one of them.
    first = key.reshape(-1)[:_FIRST] if backend.one_device else key
    return jnp.any(holds(first))[None]


def _first_entries(key: Array, sizes: list[int]) -> Int[Array, "leaves entries"]:
    """A row of each leaf's first entries, repeated where a leaf has fewer."""
    flat = key.reshape(-1)
    starts, width = np.cumsum([0, *sizes[:-1]]), _FIRST // len(sizes) + 1
    starts, each = (jnp.asarray(x, jnp.int32)[:, None] for x in (starts, sizes))
    at = starts + jnp.arange(width, dtype=jnp.int32)[None] % jnp.maximum(each, 1)
    return flat[jnp.minimum(at, flat.size - 1)]


def _count_in_leaves(
    backend: Backend, holds: Callable[[Array], Array], key: Array, sizes: list[int]
) -> Integer[Array, " leaves"]:
    """The number of entries of each leaf for which a predicate holds; 1 for any number of
    them in a leaf with more than a word counts."""
    if len(sizes) == 1 and is_wide(key.size):
        return jnp.any(holds(key)).astype(jnp.int32)[None]
    if len(sizes) == 1:
        return count_where(backend, holds, key).astype(jnp.int32)[None]
    # One scatter of the sums of blocks, none of which lies in two leaves.
    block = math.gcd(*sizes)
    sums = jnp.sum(holds(key.reshape(-1, block)), axis=1, dtype=jnp.int32)
    ends = jnp.asarray(np.cumsum(sizes) // block, jnp.int32)
    number = jnp.arange(sums.size, dtype=jnp.int32)
    leaf = jnp.searchsorted(ends, number, side="right")
    return jax.ops.segment_sum(sums, leaf, len(sizes), indices_are_sorted=True)

"""Scores to masks: exactly k, without a sort.

Floats order like their bits read as whole numbers, so the k-th highest score is found by
bisection: count the scores above a candidate, halve the bracket, stop as soon as a
candidate has exactly k above it. A small sample narrows the first bracket. Counts are all
that a round needs to know of the scores, so the leaves are never sorted, copied together
or gathered.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Integer, PyTree

from synflow_jax.masks import count_where
from synflow_jax.trees import (
    Leaf,
    Masks,
    Scores,
    check_masks,
    is_floating,
    scoring_dtype,
)

# Scores taken from each leaf in proportion to its size, to guess the first bracket.
_SAMPLE = 16384


class _Bracket(NamedTuple):
    """The threshold lies in [low, high): at least k keys reach low, fewer than k high."""

    low: Array
    num_low: Array  # keys >= low
    high: Array
    num_high: Array  # keys >= high


def keep_top(
    scores: Scores, k: int | np.integer | Integer[Leaf, ""], masks: Masks | None = None
) -> Masks:
    """Keeps the ``k`` highest scores, counted over the whole tree.

    Exactly ``k`` entries are kept, ties included: among equal scores the one that comes
    first wins (leaves in `jax.tree.leaves` order, then flat index). A NaN ranks below every
    number, minus infinity included.

    Args:
      scores: floating leaves of any shapes; higher means keep.
      k: number of entries to keep, from 0 to the total. May be traced, so one compilation
        serves every round of a schedule.
      masks: boolean leaves shaped like ``scores``: what may be kept. If fewer than ``k``
        entries are eligible, all of them are kept. Default: everything is eligible.

    Returns:
      Boolean leaves shaped like ``scores``; True marks a kept entry.

    Raises:
      ValueError: while tracing, if a leaf is not floating, if ``masks`` does not mirror
        ``scores``, if a concrete ``k`` is out of range, or if the tree has 2**32 entries
        or more.

    Example:
      >>> keep_top({"a": jnp.array([0.1, 0.9]), "b": jnp.array([0.5])}, 2)
      {'a': Array([False,  True], dtype=bool), 'b': Array([ True], dtype=bool)}

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), Algorithm 1, lines 5 and 6; the paper keeps
      the scores above a percentile, and so drops every tie at the threshold.
    """
    leaves, treedef = jax.tree.flatten(scores)
    size = _checked_size(scores)
    _check_count(k, size)
    eligible = [None] * len(leaves)
    if masks is not None:
        check_masks(masks, scores)
        eligible = jax.tree.leaves(masks)
    if size == 0:
        return jax.tree.map(lambda s: jnp.zeros(s.shape, bool), scores)
    dtype = jax.dtypes.canonicalize_dtype(scoring_dtype(*leaves))
    keys = [_keys(jnp.asarray(s, dtype), m) for s, m in zip(leaves, eligible)]
    k = jnp.clip(jnp.asarray(k), 0).astype(jnp.uint32)
    bracket = _search(keys, k, size)
    # Where k keys reach `low` there is no tie to break, and only a comparison is left.
    kept = lax.cond(
        bracket.num_low == k,
        lambda keys: [key >= bracket.low for key in keys],
        lambda keys: _first_of_equals(keys, bracket, k),
        keys,
    )
    if masks is not None:
        kept = [a & b for a, b in zip(kept, eligible)]
    return jax.tree.unflatten(treedef, kept)


def keep_top_per_layer(
    scores: Scores,
    ks: PyTree[int | np.integer | Integer[Leaf, ""]],
    masks: Masks | None = None,
) -> Masks:
    """Keeps the highest scores of every leaf, each leaf with a count of its own.

    Args:
      scores: floating leaves of any shapes; higher means keep.
      ks: a tree like ``scores`` with one count a leaf. May be traced.
      masks: boolean leaves shaped like ``scores``: what may be kept.

    Returns:
      Boolean leaves shaped like ``scores``; True marks a kept entry.

    Raises:
      ValueError: as `keep_top` does, or if ``ks`` does not have one count a leaf.

    Example:
      >>> scores = {"a": jnp.array([0.1, 0.9]), "b": jnp.array([0.5])}
      >>> keep_top_per_layer(scores, {"a": 1, "b": 0})
      {'a': Array([False,  True], dtype=bool), 'b': Array([False], dtype=bool)}
    """
    if jax.tree.structure(ks) != jax.tree.structure(scores):
        raise ValueError(
            "`ks` must hold one count for every leaf of `scores`.\n"
            f"  scores: {jax.tree.structure(scores)}\n  ks: {jax.tree.structure(ks)}"
        )
    if masks is None:
        return jax.tree.map(keep_top, scores, ks)
    check_masks(masks, scores)
    return jax.tree.map(keep_top, scores, ks, masks)


def _check_count(k: int | np.integer | Leaf, size: int) -> None:
    if not jnp.issubdtype(jnp.result_type(k), jnp.integer):
        raise ValueError(f"`k` is a whole number; got {k!r}.")
    if not isinstance(k, jax.core.Tracer) and not 0 <= int(k) <= size:
        raise ValueError(f"`k` must lie between 0 and the {size} scores; got {k}.")


def _checked_size(scores: PyTree) -> int:
    size = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(scores):
        if not is_floating(leaf):
            raise ValueError(
                f"`scores{jax.tree_util.keystr(path)}` has dtype {leaf.dtype}; scores are "
                "floating."
            )
        size += leaf.size
    if size >= 2**32:
        raise ValueError(f"`scores` has {size} entries; at most 2**32 - 1 are counted.")
    return size


def _keys(scores: Array, eligible: Array | None) -> Int[Array, "..."]:
    """Whole numbers in the order of the scores, NaN below all, the ineligible lowest."""
    signed = {4: jnp.int32, 8: jnp.int64}[scores.dtype.itemsize]
    lowest = jnp.iinfo(signed).min
    bits = lax.bitcast_convert_type(scores, signed)
    # Sign and magnitude to two's complement; minus zero becomes zero.
    keys = jnp.where(bits < 0, lowest - bits, bits)
    keys = jnp.where(jnp.isnan(scores), lowest + 1, keys)
    return keys if eligible is None else jnp.where(eligible, keys, lowest)


def _search(keys: list[Array], k: Array, size: int) -> _Bracket:
    limits = jnp.iinfo(keys[0].dtype)
    guesses = _guesses(keys, k, size)
    bracket = _Bracket(
        low=jnp.where(k == 0, limits.max, limits.min).astype(keys[0].dtype),
        num_low=jnp.where(k == 0, jnp.uint32(0), jnp.uint32(size)),
        high=jnp.asarray(limits.max, keys[0].dtype),
        num_high=jnp.uint32(0),
    )

    def unfinished(state):
        bracket, _ = state
        return (bracket.num_low != k) & (bracket.high - 1 > bracket.low)

    def narrow(state):
        bracket, step = state
        middle = (bracket.low & bracket.high) + ((bracket.low ^ bracket.high) >> 1)
        guess = guesses[jnp.minimum(step, 1)]
        useful = (step < 2) & (guess > bracket.low) & (guess < bracket.high)
        candidate = jnp.where(useful, guess, middle)
        number = sum(
            (count_where(lambda x: x >= candidate, key) for key in keys), jnp.uint32(0)
        )
        low = _Bracket(candidate, number, bracket.high, bracket.num_high)
        high = _Bracket(bracket.low, bracket.num_low, candidate, number)
        enough = number >= k
        return jax.tree.map(lambda a, b: jnp.where(enough, a, b), low, high), step + 1

    return lax.while_loop(unfinished, narrow, (bracket, jnp.int32(0)))[0]


def _guesses(keys: list[Array], k: Array, size: int) -> Array:
    """Two keys that enclose the threshold, most likely, from a sample of every leaf."""
    stride = -(-size // _SAMPLE)
    sample = jnp.sort(jnp.concatenate([key.reshape(-1)[::stride] for key in keys]))
    fraction = k.astype(jnp.float32) / float(size)
    expected = (1.0 - fraction) * sample.size
    spread = 4.0 * jnp.sqrt(sample.size * fraction * (1.0 - fraction)) + 2.0
    places = jnp.stack([expected - spread, expected + spread]).astype(jnp.int32)
    return sample[jnp.clip(places, 0, sample.size - 1)]


def _first_of_equals(keys: list[Array], bracket: _Bracket, k: Array) -> list[Array]:
    """All keys above the threshold and the first few of those equal to it."""
    room = k - bracket.num_high
    kept = []
    for key in keys:
        equal = key == bracket.low
        number = count_where(lambda x: x == bracket.low, key)
        here = jnp.minimum(room, number)
        first = lax.cond(
            here == number,
            lambda equal, here: equal,
            lambda equal, here: equal & (_running_count(equal) <= here),
            *(equal, here),
        )
        kept.append((key > bracket.low) | first)
        room = room - here
    return kept


def _running_count(x: Bool[Array, "..."]) -> Array:
    return jnp.cumsum(x.reshape(-1), dtype=jnp.uint32).reshape(x.shape)

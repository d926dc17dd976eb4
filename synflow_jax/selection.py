"""Scores to masks: exactly k, without a sort.

Floats order like their bits read as whole numbers, their keys, so the k-th highest score is
found by counting: how many keys reach a candidate tells on which side of it the threshold
lies, and so on until exactly k reach one. A small sample makes the first two candidates;
then each is where the threshold would be if keys were evenly spread between the nearest
two, or, where that did not help, half-way. Counts are all that a round needs to know of the
scores, so the leaves are never sorted, copied together or gathered, nor keys stored.
"""

from collections.abc import Callable
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

# The scores of a leaf and, if not all may be kept, which.
_Leaf = tuple[Array] | tuple[Array, Array]

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
    eligible = [()] * len(leaves)
    if masks is not None:
        check_masks(masks, scores)
        eligible = [(mask,) for mask in jax.tree.leaves(masks)]
    if size == 0:
        return jax.tree.map(lambda s: jnp.zeros(s.shape, bool), scores)
    dtype = jax.dtypes.canonicalize_dtype(scoring_dtype(*leaves))
    ranked = [(jnp.asarray(s, dtype), *m) for s, m in zip(leaves, eligible)]
    k = jnp.clip(jnp.asarray(k), 0).astype(jnp.uint32)
    bracket = _search(ranked, k, size)
    # Where k keys reach `low` there is no tie to break, and only a comparison is left.
    kept = lax.cond(
        bracket.num_low == k,
        lambda ranked: [_key(*leaf) >= bracket.low for leaf in ranked],
        lambda ranked: _first_of_equals(ranked, bracket, k),
        ranked,
    )
    if masks is not None:
        kept = [a & b for a, (b,) in zip(kept, eligible)]
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


def _key(scores: Array, eligible: Array | None = None) -> Int[Array, "..."]:
    """Whole numbers in the order of the scores, NaN below all, the ineligible lowest."""
    signed = _key_type(scores.dtype)
    lowest = jnp.iinfo(signed).min
    bits = lax.bitcast_convert_type(scores, signed)
    # Sign and magnitude to two's complement; minus zero becomes zero.
    keys = jnp.where(bits < 0, lowest - bits, bits)
    keys = jnp.where(jnp.isnan(scores), lowest + 1, keys)
    return keys if eligible is None else jnp.where(eligible, keys, lowest)


def _key_type(dtype) -> jnp.dtype:
    return jnp.dtype({4: jnp.int32, 8: jnp.int64}[jnp.dtype(dtype).itemsize])


def _count(holds: Callable[[Array], Array], leaf: _Leaf) -> Integer[Array, ""]:
    """Number of the leaf's keys for which it holds."""
    return count_where(lambda *parts: holds(_key(*parts)), *leaf)


def _search(leaves: list[_Leaf], k: Array, size: int) -> _Bracket:
    key_type = _key_type(leaves[0][0].dtype)
    limits = jnp.iinfo(key_type)
    guesses = _guesses(leaves, k, size)
    bracket = _Bracket(
        low=jnp.where(k == 0, limits.max, limits.min).astype(key_type),
        num_low=jnp.where(k == 0, jnp.uint32(0), jnp.uint32(size)),
        high=jnp.asarray(limits.max, key_type),
        num_high=jnp.uint32(0),
    )

    def unfinished(state):
        bracket, *_ = state
        return (bracket.num_low != k) & (bracket.high - 1 > bracket.low)

    def narrow(state):
        bracket, step, helped = state
        guess = guesses[jnp.minimum(step, 1)]
        useful = (step < 2) & (guess > bracket.low) & (guess < bracket.high)
        candidate = jnp.where(helped, _evenly(bracket, k), _middle(bracket))
        candidate = jnp.where(useful, guess, candidate)
        number = sum(
            (_count(lambda key: key >= candidate, leaf) for leaf in leaves), jnp.uint32(0)
        )
        low = bracket._replace(low=candidate, num_low=number)
        high = bracket._replace(high=candidate, num_high=number)
        narrowed = jax.tree.map(lambda a, b: jnp.where(number >= k, a, b), low, high)
        before, after = (b.num_low - b.num_high for b in (bracket, narrowed))
        return narrowed, step + 1, (step < 2) | (after <= before // 2)

    return lax.while_loop(unfinished, narrow, (bracket, jnp.int32(0), jnp.bool_(True)))[0]


def _middle(bracket: _Bracket) -> Array:
    low, high = bracket.low, bracket.high
    return (low & high) + ((low ^ high) >> 1)


def _evenly(bracket: _Bracket, k: Array) -> Array:
    """Where k keys would reach if those in the bracket were evenly spread."""
    low, num_low, high, num_high = bracket
    unsigned = jnp.dtype(f"uint{low.dtype.itemsize * 8}")
    width = high.astype(unsigned) - low.astype(unsigned)
    share = (num_low - k).astype(jnp.float32) / (num_low - num_high).astype(jnp.float32)
    share = jnp.minimum(share, 1 - 2.0**-10)  # or rounding could lead beyond the bracket
    ahead = (share * width.astype(jnp.float32)).astype(unsigned)
    ahead = jnp.clip(ahead, 1, width - 1)
    return (low.astype(unsigned) + ahead).astype(low.dtype)


def _guesses(leaves: list[_Leaf], k: Array, size: int) -> Array:
    """Two keys that enclose the threshold, most likely, from a sample of every leaf."""
    stride = -(-size // _SAMPLE)
    keys = [_key(*(x.reshape(-1)[::stride] for x in leaf)) for leaf in leaves]
    sample = jnp.sort(jnp.concatenate(keys))
    fraction = k.astype(jnp.float32) / float(size)
    expected = (1.0 - fraction) * sample.size
    spread = 4.0 * jnp.sqrt(sample.size * fraction * (1.0 - fraction)) + 2.0
    places = jnp.stack([expected - spread, expected + spread]).astype(jnp.int32)
    return sample[jnp.clip(places, 0, sample.size - 1)]


def _first_of_equals(leaves: list[_Leaf], bracket: _Bracket, k: Array) -> list[Array]:
    """All keys above the threshold and the first few of those equal to it."""
    room = k - bracket.num_high
    kept = []
    for leaf in leaves:
        key = _key(*leaf)
        equal = key == bracket.low
        number = _count(lambda key: key == bracket.low, leaf)
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

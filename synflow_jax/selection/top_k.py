"""Scores to masks: exactly k, without a sort.

A score's key is its bits, read as an integer that sorts like the score. Counting the keys
below a threshold shows whether it is too high or too low, so `search` finds the threshold
that exactly k keys reach; if it does not exist because of ties, it finds the key of the
ties. Only counts leave an array, so the leaves are neither sorted nor gathered.
Small leaves are concatenated first, since a program with separate code for each leaf of a
deep network would take minutes to compile.

Ties are broken by a second search: among the entries equal to the threshold, for the
first few (`ties`).
"""

import collections
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from synflow_jax.precision import scoring_dtype
from synflow_jax.selection.arguments import as_count, size_of_scores
from synflow_jax.selection.keys import of_eligible, to_key, to_score
from synflow_jax.selection.threshold import (
    Bracket,
    around,
    counting,
    sampled_candidates,
    search,
)
from synflow_jax.selection.ties import keep_first_ties
from synflow_jax.selection.unreached import unreached
from synflow_jax.trees import Masks, Scores, check_masks
from synflow_jax.xla import counts
from synflow_jax.xla.backends import Backend, on_backend
from synflow_jax.xla.placement import varying_with
from synflow_jax.xla.reductions import sum_of

# Leaves with at least this many entries each, and at least so many in all leaves of their
# size, are not concatenated: copying them would take longer than loops of their own, whose
# code leaves of one size share. Compiling loops for others takes longer than all copies,
# and so it does for more than so many leaves of at most twice the size.
_LARGE, _ENOUGH, _MANY = 2**18, 2**20, 16


class Selection(NamedTuple):
    """Masks, and statistics of the scores that they were selected from.

    Attributes:
      masks: True = kept.
      kept: how many are, as a count of all entries.
      removed: total of the eligible scores that are not kept, NaN left out.
      positive: True if any eligible score was above zero.
      nonfinite: number of eligible scores that were NaN or infinite.
      unreached: for each leaf, whether it has eligible scores, all of them zero.
    """

    masks: Masks
    kept: Integer[Array, ""] | counts.Wide
    removed: Float[Array, ""]
    positive: Bool[Array, ""]
    nonfinite: Integer[Array, ""]
    unreached: Bool[Array, " leaves"]


def keep_top(
    scores: Scores,
    k: int | np.integer | Integer[Array | np.ndarray, ""],
    masks: Masks | None = None,
) -> Masks:
    """Keeps the ``k`` highest scores, counted over the whole tree.

    Exactly ``k`` entries are kept, ties included: among equal scores the one that comes
    first wins (leaves in `jax.tree.leaves` order, then flat index). A NaN ranks below every
    number, minus infinity included.

    Args:
      scores: floating leaves of any shapes; higher means keep.
      k: number of entries to keep, from 0 to the total. May be traced, so one compilation
        serves every round of a schedule.
      masks: boolean leaves shaped like ``scores``; True marks an eligible entry, one that
        may be kept. If fewer than ``k`` entries are eligible, all of them are kept.
        Default: all entries are eligible.

    Returns:
      Boolean leaves shaped like ``scores``; True marks a kept entry.

    Raises:
      ValueError: while tracing, if a leaf is not floating, if ``masks`` does not mirror
        ``scores``, if a concrete ``k`` is out of range, or if a leaf has more than 2**32
        entries along one axis.

    Example:
      >>> keep_top({"a": jnp.array([0.1, 0.9]), "b": jnp.array([0.5])}, 2)
      {'a': Array([False,  True], dtype=bool), 'b': Array([ True], dtype=bool)}

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), Algorithm 1, lines 5 and 6. The paper keeps
      the scores above a percentile, and so removes all ties at the threshold.
    """
    return select(scores, k, masks).masks


def select(
    scores: Scores,
    k: Any,
    masks: Masks | None = None,
    backend: Backend | None = None,
    near: Float[Array, ""] | None = None,
) -> Selection:
    """Like `keep_top`, and returns statistics of the scores as well. ``k`` may be a count
    of two words; ``backend`` is where the scores lie, and ``near`` a score at which the
    lowest of the best is expected, if the caller knows them."""
    leaves, treedef = jax.tree.flatten(scores)
    size = size_of_scores(scores)
    eligible = None
    if masks is not None:
        check_masks(masks, scores)
        eligible = jax.tree.leaves(masks)
    k = as_count(k, size)
    selection = on_backend(_selected, leaves, k, eligible, near, backend=backend)
    return selection._replace(masks=jax.tree.unflatten(treedef, selection.masks))


@functools.partial(jax.jit, static_argnums=0)
def _selected(
    backend: Backend,
    leaves: list[Array],
    k: Any,
    masks: list[Array] | None,
    near: Array | None,
) -> Selection:
    """The ``k`` best of all leaves, with their masks as a list."""
    size = sum(leaf.size for leaf in leaves)
    dtype = jax.dtypes.canonicalize_dtype(scoring_dtype(*leaves))
    if size == 0:
        nothing = [jnp.zeros(leaf.shape, bool) for leaf in leaves]
        zero, no = jnp.zeros((), dtype), jnp.zeros(len(leaves), bool)
        none = jnp.asarray(counts.as_count(0, 0))
        return Selection(nothing, none, zero, jnp.bool_(False), jnp.uint32(0), no)
    always = k <= counts.as_count(size, size)
    groups = _leaf_groups(backend, [leaf.size for leaf in leaves])
    ranked = [jnp.asarray(leaf, dtype) for leaf in leaves]
    ranked = _join(backend, ranked, groups, always)
    keys = [to_key(array) for array in ranked]
    if masks is not None:
        keys = [*map(of_eligible, keys, _join(backend, masks, groups, always))]
    limits, measure = jnp.iinfo(keys[0].dtype), counting(backend, keys)
    start = Bracket(
        low=jnp.asarray(limits.min, keys[0].dtype),
        below_low=counts.as_count(0, size),
        high=jnp.asarray(limits.max, keys[0].dtype),
        below_high=counts.as_count(size, size),
    )
    start = varying_with(start, (keys, k))
    num_removed = counts.as_count(size, size) - k
    if near is None:
        first = sampled_candidates(backend, keys, measure, num_removed)
    else:
        first = around(to_key(near.astype(dtype)))
    bracket = search(measure, num_removed, start, first)
    # Where exactly k keys reach `low` there are no ties to break; one comparison suffices.
    ties = num_removed - bracket.below_low
    first_ties = functools.partial(keep_first_ties, backend)
    kept = lax.cond(
        counts.is_zero(ties), _keep_reaching, first_ties, keys, bracket, num_removed
    )
    sizes = [[leaf.size for leaf in leaves[group]] for group in groups]
    return Selection(
        _split(kept, groups, [leaf.shape for leaf in leaves]),
        # Counted before they are split: code for each leaf would take long to compile.
        counts.number_where(backend, lambda mask: mask, kept, size),
        _total_removed(backend, keys, bracket.low, ties),
        # Zero is the threshold only where fewer scores are positive than are kept.
        counts.any_positive(backend, (bracket.low > 0) & ~counts.is_zero(k), keys),
        _count_nonfinite(backend, keys),
        unreached(backend, keys, sizes),
    )


def _leaf_groups(backend: Backend, sizes: list[int]) -> list[slice]:
    """Groups of leaves to concatenate: neighbours that are small, and others by themselves.

    On several devices no leaves are concatenated, as that could move entries; nor where
    there are more entries than a word counts, since one axis cannot have so many.
    """
    joins = backend.one_device and not counts.is_wide(sum(sizes))
    copies = collections.Counter(sizes)

    def is_small(size):
        too_many = size <= 2 * _LARGE and copies[size] > _MANY
        return joins and (size < _LARGE or size * copies[size] < _ENOUGH or too_many)

    small = [*map(is_small, sizes)]
    starts = [i for i in range(len(sizes)) if i == 0 or not (small[i - 1] and small[i])]
    return [slice(*ends) for ends in zip(starts, [*starts[1:], len(sizes)])]


def _join(
    backend: Backend, leaves: list[Array], groups: list[slice], always: Array
) -> list[Array]:
    """Concatenates the leaves of each group.

    On a CPU, XLA fuses a concatenation with its neighbours into one loop, which searches
    for the leaf of every single entry. It does not fuse across a branch, so the
    concatenation is put into one. The condition ``always`` is always true, but XLA cannot
    know that (if k is traced).
    """

    def join(leaves):
        if len(leaves) == 1:
            return leaves[0]
        flat = [leaf.reshape(-1) for leaf in leaves]
        if not backend.cpu:
            return jnp.concatenate(flat)
        return lax.cond(always, jnp.concatenate, _zeros, flat)

    return [join(leaves[group]) for group in groups]


def _zeros(flat: list[Array]) -> Array:
    return varying_with(jnp.zeros(sum(x.size for x in flat), flat[0].dtype), flat)


def _split(
    joined: list[Array], groups: list[slice], shapes: list[tuple[int, ...]]
) -> list[Array]:
    """Undoes `_join`: splits each array into leaves of the given shapes."""
    leaves = []
    for array, group in zip(joined, groups):
        if len(shapes[group]) == 1:
            leaves.append(array)
            continue
        ends = np.cumsum([math.prod(shape) for shape in shapes[group]])
        flat = jnp.split(array, ends[:-1])
        leaves += [part.reshape(shape) for part, shape in zip(flat, shapes[group])]
    return leaves


def _count_nonfinite(backend: Backend, keys: list[Array]) -> Integer[Array, ""]:
    dtype = keys[0].dtype
    lowest = jnp.iinfo(dtype).min
    infinity = jnp.asarray(jnp.inf, f"float{8 * dtype.itemsize}")
    low, high = to_key(-infinity), to_key(infinity)

    def holds(key):
        return (key != lowest) & ((key <= low) | (key >= high))

    size = sum(key.size for key in keys)
    number = counts.in_one_word(counts.number_where(backend, holds, keys, size))
    return number.astype(jnp.uint32)


def _total_removed(
    backend: Backend, keys: list[Array], threshold: Array, ties: Any
) -> Float[Array, ""]:
    """The total of the scores below a threshold and of several that equal it."""
    nan = jnp.iinfo(threshold.dtype).min + 1

    def removed(key):
        counts = (key > nan) & (key < threshold)
        return jnp.where(counts, to_score(key), jnp.zeros((), to_score(key).dtype))

    score = to_score(threshold)
    none = counts.is_zero(ties) | (threshold <= nan)
    number = counts.as_float(ties, score.dtype)
    tied = jnp.where(none, jnp.zeros_like(score), number * score)
    return sum((sum_of(backend, removed, key) for key in keys), tied)


def _keep_reaching(keys: list[Array], bracket: Bracket, num_removed: Any) -> list[Array]:
    """Masks of the eligible entries whose keys reach ``low``."""
    # The lowest key marks entries that are not eligible. It can be the threshold if fewer
    # than k others are.
    low = jnp.maximum(bracket.low, jnp.iinfo(bracket.low.dtype).min + 1)
    return [key >= low for key in keys]

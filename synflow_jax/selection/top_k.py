"""Scores to masks: exactly k, without a sort.

Floats order like their bits read as whole numbers, their keys, so the k-th highest score is
found by counting: how many keys reach a candidate tells on which side of it the threshold
lies, and so on until exactly k reach one. A small sample makes the first candidates; then
they are where the threshold would be if keys were evenly spread between the nearest two,
or, where that did not help, evenly spaced. Counts are all that a round needs to know of the
scores, so the leaves are never sorted or gathered. Only small leaves are copied together,
since a program with code for each leaf of a deep network would compile for minutes.

Ties are a selection of their own: of the places of equal scores, the first few.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer, PyTree

from synflow_jax.precision import scoring_dtype
from synflow_jax.selection.threshold import Bracket, search, whole
from synflow_jax.trees import Leaf, Masks, Scores, check_masks, is_floating
from synflow_jax.xla.reductions import count_where, one_device, sample_stride, sum_of

# Entries from which a leaf is counted by itself: copying it would take longer than a loop
# of its own.
_LARGE = 2**16


class Selection(NamedTuple):
    """What is kept, and what is known of the scores on the way.

    Attributes:
      masks: True = kept.
      removed: total score of what was eligible and is not kept.
      positive: whether any eligible score was above zero.
      nonfinite: eligible scores that were NaN or infinite.
    """

    masks: Masks
    removed: Float[Array, ""]
    positive: Bool[Array, ""]
    nonfinite: Integer[Array, ""]


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
        ``scores``, if a concrete ``k`` is out of range, or if the tree has more than
        2**32 - 2 entries.

    Example:
      >>> keep_top({"a": jnp.array([0.1, 0.9]), "b": jnp.array([0.5])}, 2)
      {'a': Array([False,  True], dtype=bool), 'b': Array([ True], dtype=bool)}

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), Algorithm 1, lines 5 and 6; the paper keeps
      the scores above a percentile, and so drops every tie at the threshold.
    """
    return select(scores, k, masks).masks


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
    return select_per_layer(scores, ks, masks).masks


def select(
    scores: Scores, k: int | np.integer | Integer[Leaf, ""], masks: Masks | None = None
) -> Selection:
    """As `keep_top`, with what is known of the scores on the way."""
    leaves, treedef = jax.tree.flatten(scores)
    size = _checked_size(scores)
    _check_count(k, size)
    if masks is not None:
        check_masks(masks, scores)
    dtype = jax.dtypes.canonicalize_dtype(scoring_dtype(*leaves))
    if size == 0:
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, bool), scores)
        return Selection(nothing, jnp.zeros((), dtype), jnp.bool_(False), jnp.uint32(0))
    if isinstance(k, jax.core.Tracer):
        # Before it loses its sign, or what uint32 does not hold.
        largest = jnp.asarray(min(size, jnp.iinfo(k.dtype).max), k.dtype)
        k = jnp.clip(k, 0, largest)
    k = jnp.minimum(jnp.asarray(k, jnp.uint32), jnp.uint32(size))
    always = k <= jnp.uint32(size)
    groups = _groups([leaf.size for leaf in leaves])
    ranked = _joined([jnp.asarray(leaf, dtype) for leaf in leaves], groups, always)
    keys = [_key(leaf) for leaf in ranked]
    if masks is not None:
        lowest = jnp.iinfo(_key_type(dtype)).min
        eligible = [jnp.asarray(mask) for mask in jax.tree.leaves(masks)]
        eligible = _joined(eligible, groups, always)
        keys = [jnp.where(m, key, lowest) for m, key in zip(eligible, keys)]
    bracket = search(keys, k, whole(keys), _guesses(keys, k))
    # Where k keys reach `low` there is no tie to break, and only a comparison is left.
    kept = lax.cond(bracket.num_low == k, _all_reaching, _first_of_equals, keys, bracket, k)
    nonfinite = sum((_count_nonfinite(key) for key in keys), jnp.uint32(0))
    return Selection(
        jax.tree.unflatten(treedef, _parted(kept, groups, [leaf.shape for leaf in leaves])),
        _removed(keys, bracket, k),
        lax.cond(
            (bracket.low > 0) & (k > 0), lambda keys: jnp.bool_(True), _any_positive, keys
        ),
        nonfinite,
    )


def select_per_layer(scores: Scores, ks: PyTree, masks: Masks | None = None) -> Selection:
    """As `keep_top_per_layer`, with what is known of the scores on the way."""
    if jax.tree.structure(ks) != jax.tree.structure(scores):
        raise ValueError(
            "`ks` must hold one count for every leaf of `scores`.\n"
            f"  scores: {jax.tree.structure(scores)}\n  ks: {jax.tree.structure(ks)}"
        )
    leaves, treedef = jax.tree.flatten(scores)
    eligible = [None] * len(leaves)
    if masks is not None:
        check_masks(masks, scores)
        eligible = jax.tree.leaves(masks)
    dtype = jax.dtypes.canonicalize_dtype(scoring_dtype(*leaves))
    parts = [select(*each) for each in zip(leaves, jax.tree.leaves(ks), eligible)]
    return Selection(
        jax.tree.unflatten(treedef, [part.masks for part in parts]),
        sum((part.removed.astype(dtype) for part in parts), jnp.zeros((), dtype)),
        functools.reduce(jnp.logical_or, [part.positive for part in parts], False),
        sum((part.nonfinite for part in parts), jnp.uint32(0)),
    )


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
    if size > 2**32 - 2:
        raise ValueError(f"`scores` has {size} entries; at most 2**32 - 2 are counted.")
    return size


def _groups(sizes: list[int]) -> list[slice]:
    """Leaves that are counted as one: neighbours that are small, where arrays are whole."""
    small = [size < _LARGE and one_device() for size in sizes]
    starts = [i for i in range(len(sizes)) if i == 0 or not (small[i - 1] and small[i])]
    return [slice(*ends) for ends in zip(starts, [*starts[1:], len(sizes)])]


def _joined(leaves: list[Array], groups: list[slice], always: Array) -> list[Array]:
    """An array for each group, with the entries of its leaves in their order.

    XLA on a CPU fuses a concatenation with its neighbours into one loop, in which every
    entry looks for its leaf. It does not fuse across a branch: so this is one, which is
    ``always`` taken, though XLA does not know that (where k is traced).
    """

    def join(leaves):
        if len(leaves) == 1:
            return leaves[0]
        flat = [leaf.reshape(-1) for leaf in leaves]
        if jax.default_backend() != "cpu":
            return jnp.concatenate(flat)
        return lax.cond(always, jnp.concatenate, _zeros, flat)

    return [join(leaves[group]) for group in groups]


def _zeros(flat: list[Array]) -> Array:
    return jnp.zeros(sum(leaf.size for leaf in flat), flat[0].dtype)


def _parted(
    joined: list[Array], groups: list[slice], shapes: list[tuple[int, ...]]
) -> list[Array]:
    """What `_joined` copied together, in the shapes of the leaves."""
    parts = []
    for array, group in zip(joined, groups):
        own = shapes[group]
        if len(own) == 1:
            parts.append(array)
            continue
        ends = np.cumsum([math.prod(shape) for shape in own])
        flat = jnp.split(array, ends[:-1])
        parts += [part.reshape(shape) for part, shape in zip(flat, own)]
    return parts


def _key(scores: Array) -> Int[Array, "..."]:
    """Whole numbers in the order of the scores. NaN is below all, above the type's least,
    which is for what may not be kept; the type's greatest is no key."""
    signed = _key_type(scores.dtype)
    lowest = jnp.iinfo(signed).min
    bits = lax.bitcast_convert_type(scores, signed)
    # Sign and magnitude to two's complement; minus zero becomes zero.
    keys = jnp.where(bits < 0, lowest - bits, bits)
    return jnp.where(jnp.isnan(scores), lowest + 1, keys)


def _score(key: Array) -> Float[Array, "..."]:
    """The score that has this key."""
    bits = jnp.where(key < 0, jnp.iinfo(key.dtype).min - key, key)
    return lax.bitcast_convert_type(bits, f"float{key.dtype.itemsize * 8}")


def _key_type(dtype) -> jnp.dtype:
    return jnp.dtype({4: jnp.int32, 8: jnp.int64}[jnp.dtype(dtype).itemsize])


def _count_nonfinite(keys: Array) -> Integer[Array, ""]:
    lowest = jnp.iinfo(keys.dtype).min
    infinity = jnp.asarray(jnp.inf, f"float{keys.dtype.itemsize * 8}")
    low, high = _key(-infinity), _key(infinity)
    return count_where(lambda key: (key != lowest) & ((key <= low) | (key >= high)), keys)


def _removed(keys: list[Array], bracket: Bracket, k: Array) -> Float[Array, ""]:
    """The total below the threshold, and of those equal to it what is too many."""
    nan = jnp.iinfo(bracket.low.dtype).min + 1

    def below(key):
        counts = (key > nan) & (key < bracket.low)
        return jnp.where(counts, _score(key), jnp.zeros((), _score(key).dtype))

    ties = bracket.num_low - k
    threshold = _score(bracket.low)
    tied = ties.astype(threshold.dtype) * threshold
    tied = jnp.where(ties == 0, jnp.zeros_like(tied), tied)
    return sum((sum_of(below, key) for key in keys), tied)


def _any_positive(keys: list[Array]) -> Bool[Array, ""]:
    return sum(count_where(lambda key: key > 0, key) for key in keys) > 0


def _guesses(keys: list[Array], k: Array) -> Array | None:
    """Candidates around the threshold, most likely, from a sample of every array."""
    if not one_device():
        return None  # a sample would have to be gathered
    size = sum(key.size for key in keys)
    stride = sample_stride(size)
    sample = jnp.sort(jnp.concatenate([key.reshape(-1)[::stride] for key in keys]))
    fraction = k.astype(jnp.float32) / float(size)
    expected = (1.0 - fraction) * sample.size
    deviation = jnp.sqrt(sample.size * fraction * (1.0 - fraction))
    places = expected + jnp.array([-4.0, -1.0, 1.0, 4.0], jnp.float32) * deviation
    places = places + jnp.array([-2.0, 0.0, 0.0, 2.0], jnp.float32)
    return sample[jnp.clip(places.astype(jnp.int32), 0, sample.size - 1)]


def _all_reaching(keys: list[Array], bracket: Bracket, k: Array) -> list[Array]:
    # The lowest key is not eligible, and reaches only if fewer than k others are.
    low = jnp.maximum(bracket.low, jnp.iinfo(bracket.low.dtype).min + 1)
    return [key >= low for key in keys]


def _first_of_equals(keys: list[Array], bracket: Bracket, k: Array) -> list[Array]:
    """All keys above the threshold, and the first few of those equal to it."""
    tied, last = _places(keys, bracket.low)
    all_tied = Bracket(
        low=last,
        num_low=bracket.num_low - bracket.num_high,
        high=jnp.int32(jnp.iinfo(jnp.int32).max),
        num_high=jnp.uint32(0),
    )
    chosen = search(tied, k - bracket.num_high, all_tied)
    lowest = jnp.iinfo(bracket.low.dtype).min
    return [
        (key > bracket.low) | (place >= chosen.low) & (key > lowest)
        for key, place in zip(keys, tied)
    ]


def _places(keys: list[Array], tie: Array) -> tuple[list[Array], Array]:
    """For keys that equal the tie a key that is higher the earlier they come, and the one
    that the very last entry would have."""
    limits = jnp.iinfo(jnp.int32)
    first, start = jnp.uint32(limits.max - 1), 0

    def place(index):
        return lax.bitcast_convert_type(first - index, jnp.int32)

    places = []
    for key in keys:
        index = lax.iota(jnp.uint32, key.size).reshape(key.shape) + jnp.uint32(start)
        places.append(jnp.where(key == tie, place(index), limits.min))
        start += key.size
    return places, place(jnp.uint32(start - 1))

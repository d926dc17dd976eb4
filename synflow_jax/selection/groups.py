"""Exactly k of every group of leaves, such as each leaf by itself."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, PyTree

from synflow_jax.precision import scoring_dtype
from synflow_jax.selection.arguments import as_count, size_of_scores
from synflow_jax.selection.top_k import Selection, select
from synflow_jax.trees import Masks, Scores, check_masks
from synflow_jax.xla import counts
from synflow_jax.xla.backends import Backend, on_backend


def keep_top_per_layer(
    scores: Scores,
    ks: PyTree[int | np.integer | Integer[Array | np.ndarray, ""]],
    masks: Masks | None = None,
) -> Masks:
    """Keeps the highest scores of every leaf, with a separate count for each leaf.

    Args:
      scores: floating leaves of any shapes; higher means keep.
      ks: a tree like ``scores`` with one count per leaf. Counts may be traced.
      masks: boolean leaves shaped like ``scores``; True marks an entry that may be kept.
        Default: all entries may.

    Returns:
      Boolean leaves shaped like ``scores``; True marks a kept entry.

    Raises:
      ValueError: as `keep_top` does, or if ``ks`` does not have one count per leaf.

    Example:
      >>> scores = {"a": jnp.array([0.1, 0.9]), "b": jnp.array([0.5])}
      >>> keep_top_per_layer(scores, {"a": 1, "b": 0})
      {'a': Array([False,  True], dtype=bool), 'b': Array([False], dtype=bool)}
    """
    return select_per_layer(scores, ks, masks).masks


def select_per_layer(scores: Scores, ks: PyTree, masks: Masks | None = None) -> Selection:
    """Like `keep_top_per_layer`, and returns statistics of the scores as well."""
    if jax.tree.structure(ks) != jax.tree.structure(scores):
        raise ValueError(
            "`ks` must hold one count for every leaf of `scores`.\n"
            f"  scores: {jax.tree.structure(scores)}\n  ks: {jax.tree.structure(ks)}"
        )
    leaves, treedef = jax.tree.flatten(scores)
    eligible = None
    if masks is not None:
        check_masks(masks, scores)
        eligible = jax.tree.leaves(masks)
    pairs = zip(leaves, jax.tree.leaves(ks))
    ks = [as_count(k, size_of_scores(leaf)) for leaf, k in pairs]
    selection = select_in_groups(leaves, ks, range(len(leaves)), eligible)
    return selection._replace(masks=jax.tree.unflatten(treedef, selection.masks))


def select_in_groups(
    scores: Sequence[Array],
    ks: Sequence[Any],
    groups: Sequence[int],
    masks: Sequence[Array] | None = None,
    backend: Backend | None = None,
) -> Selection:
    """Keeps the highest scores of every group of leaves.

    Args:
      scores: floating leaves of any shapes; higher means keep.
      ks: the number of entries that each group keeps; may be traced.
      groups: for each leaf the number of its group, from 0.
      masks: boolean leaves shaped like ``scores``; True marks an entry that may be kept.
      backend: where they lie, if it is known.

    Returns:
      The masks as a list, and statistics of all scores.

    Example:
      >>> scores = [jnp.array([1.0, 2.0]), jnp.array([3.0]), jnp.array([4.0, 0.0])]
      >>> [mask.tolist() for mask in select_in_groups(scores, [1, 1], [0, 1, 0]).masks]
      [[False, False], [True], [True, False]]
    """
    body = functools.partial(_selected, tuple(groups))
    args = list(scores), list(ks), masks and list(masks)
    return on_backend(body, *args, backend=backend)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _selected(
    groups: tuple[int, ...],
    backend: Backend,
    leaves: list[Array],
    ks: list[Any],
    masks: list[Array] | None,
) -> Selection:
    """The best of each group, with their masks as a list."""
    kept: dict[int, Array] = {}
    unreached: dict[int, Array] = {}
    parts = []
    for group, k in enumerate(ks):
        at = [i for i, own in enumerate(groups) if own == group]
        eligible = None if masks is None else [masks[i] for i in at]
        part = select([leaves[i] for i in at], k, eligible, backend)
        parts.append(part)
        for i, mask, unseen in zip(at, part.masks, part.unreached):
            kept[i], unreached[i] = mask, unseen
    dtype = jax.dtypes.canonicalize_dtype(scoring_dtype(*leaves))
    size = sum(leaf.size for leaf in leaves)
    return Selection(
        [kept[i] for i in range(len(leaves))],
        counts.total([counts.as_count(part.kept, size) for part in parts], size),
        sum((part.removed.astype(dtype) for part in parts), jnp.zeros((), dtype)),
        functools.reduce(jnp.logical_or, [p.positive for p in parts], jnp.bool_(False)),
        functools.reduce(jnp.add, [p.nonfinite for p in parts], jnp.uint32(0)),
        jnp.array([unreached[i] for i in range(len(leaves))], bool),
    )

"""Exactly k of every group of leaves, such as each leaf by itself."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from synflow_jax.precision import scoring_dtype
from synflow_jax.selection.top_k import Selection, select
from synflow_jax.xla.backends import Backend


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
    kept: dict[int, Array] = {}
    unreached: dict[int, Array] = {}
    parts = []
    for group, k in enumerate(ks):
        at = [i for i, own in enumerate(groups) if own == group]
        of_group = [scores[i] for i in at]
        eligible = None if masks is None else [masks[i] for i in at]
        part = select(of_group, k, eligible, backend)
        parts.append(part)
        for i, mask, unseen in zip(at, part.masks, part.unreached):
            kept[i], unreached[i] = mask, unseen
    dtype = jax.dtypes.canonicalize_dtype(scoring_dtype(*scores))
    return Selection(
        [kept[i] for i in range(len(scores))],
        sum((part.removed.astype(dtype) for part in parts), jnp.zeros((), dtype)),
        functools.reduce(jnp.logical_or, [part.positive for part in parts]),
        functools.reduce(jnp.add, [part.nonfinite for part in parts]),
        jnp.stack([unreached[i] for i in range(len(scores))]),
    )

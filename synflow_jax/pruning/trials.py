"""A round that may be undone: how it stands, what it has done, and where it leads."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from synflow_jax.masks import count_on
from synflow_jax.pruning.rounds import Method, PruneInfo
from synflow_jax.trees import Masks, Params
from synflow_jax.xla import counts


class Trial(NamedTuple):
    """How a round stands that may be undone.

    Counts have one entry for each group of leaves that is ranked by itself.

    Attributes:
      slot: which of the pair of masks is scored next, 0 or 1.
      kept: weights kept by the masks that are scored next.
      removed: weights that the last step removed, or that the next one shall remove.
      open: whether it is still to be seen if the network has flow.
      halved: whether the next step removes ``removed`` weights, and not the rest of the
        round.
      cut: whether the network has no flow any more, so that nothing is undone.
      info: the report of the round in progress.
      confirmed: the same without the last step.
    """

    slot: Array
    kept: Any
    removed: Any
    open: Array
    halved: Array
    cut: Array
    info: PruneInfo
    confirmed: PruneInfo


def number_at_start(method: Method, params: Params, masks: Masks | None) -> Any:
    """Prunable weights that are kept at the start, of all leaves or of each group."""
    leaves = jax.tree.leaves(params if masks is None else masks)
    leaves = [leaf for leaf, yes in zip(leaves, method.is_prunable) if yes]
    groups = method.groups or [0] * len(leaves)
    of_groups = [[] for _ in range(max(groups) + 1)]
    for leaf, group in zip(leaves, groups):
        of_groups[group].append(leaf)
    sizes = [sum(leaf.size for leaf in group) for group in of_groups]
    if masks is None:
        number = jax.tree.map(jnp.asarray, counts.as_count(sizes, sum(sizes)))
    else:
        numbers = [count_on(method.backend, group) for group in of_groups]
        each = [counts.as_count(n, sum(sizes)) for n in numbers]
        number = counts.stacked(each)
    return counts.at(number, 0) if method.groups is None else number


def target_of(targets: PyTree, number: Array, limit: int) -> Any:
    """The counts that a round leaves; after the last, those of the last."""
    return counts.at(targets, jnp.minimum(number, limit - 1))


def nothing_done(info: PruneInfo) -> PruneInfo:
    """The report of a round before its first step."""
    zeros = jax.tree.map(jnp.zeros_like, info)
    return zeros._replace(certified=jnp.ones_like(info.certified))


def together_with(begun: PruneInfo, step: PruneInfo) -> PruneInfo:
    """The report of the steps of a round so far, and of one more."""
    first = counts.is_zero(begun.kept)
    left = jnp.maximum(1 - begun.removed, 0) * jnp.maximum(1 - step.removed, 0)
    return step._replace(
        removed=jnp.where(first, step.removed, 1 - left),
        certified=begun.certified & step.certified,
        nonfinite=jnp.maximum(begun.nonfinite, step.nonfinite),
        unreached=jnp.where(first, step.unreached, begun.unreached),
        retries=begun.retries,
    )

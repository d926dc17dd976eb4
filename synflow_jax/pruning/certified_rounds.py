"""Rounds as large as cannot cut the last path of the flow, in one compiled while loop."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike

from synflow_jax.masks import all_kept, count
from synflow_jax.pruning.rounds import (
    WHOLE,
    PruneInfo,
    check_finite,
    outcome,
    prunable_scores,
    why_unbounded,
)
from synflow_jax.pruning.schedules import check_density, num_kept
from synflow_jax.selection import budget
from synflow_jax.selection.top_k import select
from synflow_jax.trees import Masks, Params, ScoreFn
from synflow_jax.xla.batching import one_by_one
from synflow_jax.xla.reductions import count_where

# What a certified schedule may take; each of its rounds removes at least one weight.
MAX_ROUNDS = 10_000


def certified_rounds(
    score_fn: ScoreFn,
    chosen: tuple[bool, ...],
    params: Params,
    density: float,
    max_ratio: float,
    on_round: Callable[[PruneInfo], None] | None,
) -> tuple[Masks, PruneInfo]:
    """`prune` with a `certified` schedule: see there.

    Args:
      score_fn, params, density, on_round: as for `prune`.
      chosen: for each leaf, whether it is pruned.
      max_ratio: of the flow, which a round may remove.
    """
    check_density(density)
    leaves = [leaf for leaf, yes in zip(jax.tree.leaves(params), chosen) if yes]
    if not sum(leaf.size for leaf in leaves):
        raise ValueError("the prunable leaves have no entries, so nothing can be pruned.")
    target = np.uint32(num_kept(sum(leaf.size for leaf in leaves), density))
    ratio = np.float32(min(max_ratio, WHOLE))
    if on_round is None:
        masks, infos, rounds = _adaptive_rounds(score_fn, chosen, params, target, ratio)
        if not isinstance(rounds, jax.core.Tracer):
            infos = jax.tree.map(lambda x: x[: int(rounds)], infos)
        check_finite(infos, params, first=1)
        return masks, infos
    masks, infos = all_kept(params), []
    while not infos or _unfinished(infos[-1], target, len(infos)):
        masks, info = _adaptive_round(score_fn, chosen, params, masks, target, ratio)
        check_finite(jax.tree.map(lambda x: x[None], info), params, first=len(infos) + 1)
        infos.append(info)
        on_round(info)
    return masks, jax.tree.map(lambda *xs: jnp.stack(xs), *infos)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _adaptive_rounds(score_fn, chosen, params, target, ratio):
    """The masks, what each of `MAX_ROUNDS` reports, and how many rounds there were."""

    def all_rounds(params, target, ratio):
        def round_(masks):
            return _affordable_round(score_fn, chosen, params, masks, target, ratio)

        def unfinished(state):
            _, info, _, done = state
            return _unfinished(info, target, done)

        def another(state):
            masks, _, infos, done = state
            masks, info = round_(masks)
            infos = jax.tree.map(lambda xs, x: xs.at[done].set(x), infos, info)
            return masks, info, infos, done + 1

        masks, info = round_(all_kept(params))
        infos = jax.tree.map(lambda x: jnp.zeros((MAX_ROUNDS,), x.dtype).at[0].set(x), info)
        start = (masks, info, infos, jnp.int32(1))
        masks, last, infos, done = lax.while_loop(unfinished, another, start)
        # Rounds that did not take place leave everything as it is.
        last = last._replace(removed=jnp.zeros_like(last.removed))
        took_place = jnp.arange(MAX_ROUNDS, dtype=done.dtype) < done
        infos = jax.tree.map(lambda xs, x: jnp.where(took_place, xs, x), infos, last)
        return masks, infos, done

    return one_by_one(all_rounds)(params, target, ratio)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _adaptive_round(score_fn, chosen, params, masks, target, ratio):
    return _affordable_round(score_fn, chosen, params, masks, target, ratio)


def _unfinished(info: PruneInfo, target: ArrayLike, done: ArrayLike) -> Array:
    going = (info.kept.astype(jnp.uint32) > target) & ~info.stopped
    return going & (info.nonfinite == 0) & (done < MAX_ROUNDS)


def _affordable_round(
    score_fn: ScoreFn,
    chosen: Sequence[bool],
    params: Params,
    masks: Masks,
    target: Array,
    ratio: Array,
) -> tuple[Masks, PruneInfo]:
    """Removes as many weights as carry ``ratio`` of the flow, or one that carries more."""
    why = why_unbounded(score_fn, params, chosen)
    if why is not None:
        raise ValueError(f"`schedule` cannot certify rounds of this criterion: {why}")
    every = score_fn(params, masks)
    scores, alive = prunable_scores(every, chosen, params, masks)
    before = count(alive).astype(jnp.uint32)
    affordable = budget.within(scores, alive, ratio.astype(scores[0].dtype))
    one = (affordable.kept == before) & (affordable.next < WHOLE)
    k = jnp.maximum(jnp.where(one, before - 1, affordable.kept), target)
    # Nothing flows if nothing scores: then no weight is the right one.
    flows = sum(count_where(lambda s: s > 0, s) for s in jax.tree.leaves(every)) > 0
    k = jnp.where(flows, k, before)
    masks, info = outcome(select(scores, k, alive), chosen, masks, certifies=True)
    return masks, info._replace(stopped=(k == before) & (before > target))


class Certified(NamedTuple):
    """Rounds as large as a share of the flow allows; `certified` makes it.

    Attributes:
      max_ratio: the largest share of the flow that a round removes.
    """

    max_ratio: float


def certified(max_ratio: float = 0.5) -> Certified:
    """Takes in each round as many weights as carry a given share of the flow.

    Removing weights whose scores have the total ``s`` leaves at least ``1 - s`` of the
    flow, so no such round can cut the last path from the input to the output: Theorem 3 of
    the paper with its condition met by construction, and in as few rounds as that takes.
    The number of rounds follows from the network and grows with one over the ratio
    (docs/criteria.md has a table).

    Where not even one weight fits into the ratio, one goes by itself as long as it carries
    less than the whole flow. Where that would cut the last path, pruning ends above its
    target, and ``info.stopped`` says so. It also ends after 10,000 rounds.

    Args:
      max_ratio: the largest share of the flow that a round removes, between 0 and 1: the
        paper's prune-size ratio. Smaller ratios take more rounds and keep a little more
        flow.

    Returns:
      A schedule for `prune`, whose ``rounds`` is then not read.

    Raises:
      ValueError: if ``max_ratio`` is not between 0 and 1.

    Example:
      >>> certified(0.2)
      Certified(max_ratio=0.2)

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), Theorem 3 and, for the ratio, Fig. 7.
    """
    if not 0.0 < max_ratio < 1.0:
        raise ValueError(
            f"`max_ratio` is a share of the flow, between 0 and 1; got {max_ratio}."
        )
    return Certified(float(max_ratio))

"""Rounds as large as a share of the flow allows, so that none can cut the last path."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from synflow_jax.masks import count_on
from synflow_jax.pruning.rounds import WHOLE, Choice, Plan, PruneInfo, Scored
from synflow_jax.pruning.schedules import as_density, num_kept
from synflow_jax.selection import budget
from synflow_jax.xla import counts

# The largest number of rounds. Each round removes at least one weight.
MAX_ROUNDS = 10_000


class Certified(NamedTuple):
    """Rounds as large as a share of the flow allows; `certified` makes it.

    Attributes:
      max_ratio: the largest share of the flow that a round removes.
    """

    max_ratio: float


def certified(max_ratio: float = 0.5) -> Certified:
    """Takes in each round as many weights as carry a given share of the flow.

    Removing weights whose scores sum to ``s`` leaves at least ``1 - s`` of the flow, so no
    such round can cut the last path from the input to the output: Theorem 3 of the paper,
    with its condition met by construction. The number of rounds depends on the network and
    grows with one over the ratio (docs/criteria.md has a table).

    If a single weight carries more than the ratio, it is removed by itself as long as it
    carries less than the whole flow. If that would cut the last path, pruning ends above
    its target, and ``info.stopped`` says so. It also ends after 10,000 rounds.

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


class Targets(NamedTuple):
    """Where certified rounds lead: a count to end at, and a share of the flow a round."""

    k: Any  # a count
    max_ratio: ArrayLike


def certified_targets(size: int, density: float, max_ratio: float) -> Targets:
    """The targets of ``certified(max_ratio)`` for ``size`` prunable weights."""
    density = as_density(density)
    if not size:
        raise ValueError("the prunable leaves have no entries, so nothing can be pruned.")
    ratio = np.float32(min(max_ratio, WHOLE))
    return Targets(counts.as_count(num_kept(size, density), size), ratio)


def _choose(targets: Targets, number: ArrayLike, scored: Scored) -> Choice:
    """Removes as many weights as carry the ratio of the flow, or one that carries more."""
    if scored.why_not_certified is not None:
        raise ValueError(
            "`schedule` cannot certify rounds of this criterion: "
            f"{scored.why_not_certified}"
        )
    scores, alive = scored.scores, scored.alive
    backend, size = scored.backend, sum(mask.size for mask in alive)
    before = counts.as_count(count_on(backend, alive), size)
    ratio = jnp.asarray(targets.max_ratio).astype(scores[0].dtype)
    affordable = budget.within(backend, scores, alive, ratio)
    one = counts.equal(affordable.kept, before) & (affordable.next < WHOLE)
    without_one = before - counts.as_count(1, size)
    k = counts.where(one, without_one, affordable.kept)
    k = counts.larger(k, targets.k)
    # If all scores are zero nothing flows, and no weight is the right one to remove.
    every = jax.tree.leaves(scored.every)
    flows = counts.any_positive(backend, affordable.total > 0, every)
    k = counts.where(flows, k, before)
    stopped = counts.equal(k, before) & (before > targets.k)
    return Choice(k, stopped, near=affordable.next)


def _goes_on(targets: Targets, number: Any, info: PruneInfo) -> Array:
    kept: Any = info.kept
    kept = kept if isinstance(kept, counts.Wide) else kept.astype(jnp.uint32)
    going = (kept > targets.k) & ~info.stopped
    return going & (info.nonfinite == 0) & (number < MAX_ROUNDS)


CERTIFIED = Plan(_choose, _goes_on)

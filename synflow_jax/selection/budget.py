"""How many of the lowest scores fit into a budget."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from synflow_jax.selection.threshold import Bracket, Measure, sampled_candidates, search
from synflow_jax.xla import counts
from synflow_jax.xla.backends import Backend
from synflow_jax.xla.placement import varying_with
from synflow_jax.xla.reductions import sums_of


class Affordable(NamedTuple):
    """How many scores remain once a budget is spent on the lowest ones.

    Attributes:
      kept: number of eligible scores that remain, as a count of them all.
      next: the lowest score that remains; infinite if none does.
    """

    kept: Integer[Array, ""] | counts.Wide
    next: Float[Array, ""]


def within(
    backend: Backend,
    scores: list[Float[Array, "..."]],
    eligible: list[Bool[Array, "..."]],
    budget: Float[Array, ""],
) -> Affordable:
    """Removes as many of the lowest scores as possible with a total of at most a budget.

    `search` finds the highest threshold such that all scores below it fit into the budget;
    the rest of the budget is spent on scores equal to the threshold.

    Args:
      backend: where they lie.
      scores: leaves of non-negative numbers, all of one dtype.
      eligible: boolean leaves shaped like ``scores``; True marks what may be removed.
      budget: the largest total that may be removed, of the dtype of the scores.

    Returns:
      An `Affordable`. Nothing remains if the budget suffices for all eligible scores.

    Example:
      >>> cpu = Backend(cpu=True, one_device=True)
      >>> scores, eligible = [jnp.array([4.0, 1.0, 2.0, 2.0])], [jnp.ones(4, bool)]
      >>> within(cpu, scores, eligible, jnp.float32(3.5))
      Affordable(kept=Array(2, dtype=uint32), next=Array(2., dtype=float32))
    """
    dtype = scores[0].dtype
    key_type = jnp.dtype(f"int{8 * dtype.itemsize}")

    # The bits of non-negative floats, read as integers, sort like the floats.
    def to_score(key):
        return lax.bitcast_convert_type(key, dtype)

    def to_key(score):
        return lax.bitcast_convert_type(score, key_type)

    def removed(threshold, score, mask):
        below = mask & (score < to_score(threshold))
        return jnp.where(below, score, jnp.zeros_like(score))

    def totals_below(candidates):
        pairs = zip(scores, eligible)
        sums = [sums_of(backend, removed, candidates, *pair) for pair in pairs]
        return sum(sums[1:], sums[0])

    measure = Measure(totals_below, lambda key: to_score(key).astype(jnp.float32))
    infinity = jnp.asarray(jnp.inf, dtype)
    start = Bracket(
        low=jnp.zeros((), key_type),
        below_low=jnp.zeros((), dtype),
        high=to_key(infinity),
        below_high=totals_below(to_key(infinity)[None])[0],
    )
    start = varying_with(start, (scores, eligible, budget))
    keys = [to_key(jnp.where(m, s, jnp.zeros_like(s))) for s, m in zip(scores, eligible)]
    first = sampled_candidates(backend, keys, measure, budget)
    bracket = search(measure, budget, start, first)
    threshold = to_score(bracket.low)

    def reaches(score, mask):
        return mask & (score >= threshold)

    size = sum(score.size for score in scores)
    kept = counts.number_where(backend, reaches, [*zip(scores, eligible)], size)
    left = budget - bracket.below_low
    ties = counts.from_float(jnp.where(threshold > 0, left / threshold, 0), size)
    kept = kept - counts.smaller(ties, kept)
    # An infinite threshold means that the budget suffices for all.
    none = jax.tree.map(jnp.zeros_like, kept)
    kept = counts.where(threshold < infinity, kept, none)
    return Affordable(kept, threshold)

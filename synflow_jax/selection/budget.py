"""How many of the lowest scores fit into a budget."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from synflow_jax.precision import scoring_dtype
from synflow_jax.selection.keys import of_eligible, to_key, to_score
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
      total: of all eligible scores.
    """

    kept: Integer[Array, ""] | counts.Wide
    next: Float[Array, ""]
    total: Float[Array, ""]


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
      >>> kept, lowest, total = within(cpu, scores, eligible, jnp.float32(3.5))
      >>> int(kept), float(lowest), float(total)
      (2, 2.0, 9.0)
    """
    # The keys that the selection searches, too: they are computed once for both.
    dtype = jax.dtypes.canonicalize_dtype(scoring_dtype(*scores))
    keys = [
        of_eligible(to_key(jnp.asarray(score, dtype)), mask)
        for score, mask in zip(scores, eligible)
    ]

    def as_float(key):
        return lax.bitcast_convert_type(key, dtype)

    def removed(threshold, key):
        # Compared as floats: XLA on a CPU adds eight times slower where integers decide.
        # What is not eligible has the bits of minus zero.
        score = as_float(key)
        return jnp.where(score < as_float(threshold), score, jnp.zeros_like(score))

    def totals_below(candidates):
        sums = [sums_of(backend, removed, candidates, key) for key in keys]
        return sum(sums[1:], sums[0])

    def weight(key):
        return to_score(jnp.maximum(key, 0)).astype(jnp.float32)

    measure = Measure(totals_below, weight)
    infinity = to_key(jnp.asarray(jnp.inf, dtype))
    total = totals_below(infinity[None])[0]
    start = Bracket(
        low=jnp.zeros_like(infinity),
        below_low=jnp.zeros_like(total),
        high=infinity,
        below_high=total,
    )
    start = varying_with(start, (scores, eligible, budget))
    first = sampled_candidates(backend, keys, measure, budget)
    bracket = search(measure, budget, start, first)
    threshold = to_score(bracket.low)
    size = sum(key.size for key in keys)
    kept = counts.number_where(backend, lambda key: key >= bracket.low, keys, size)
    left = budget - bracket.below_low
    ties = counts.from_float(jnp.where(threshold > 0, left / threshold, 0), size)
    kept = kept - counts.smaller(ties, kept)
    # An infinite threshold means that the budget suffices for all.
    none = jax.tree.map(jnp.zeros_like, kept)
    kept = counts.where(threshold < jnp.inf, kept, none)
    return Affordable(kept, threshold, total)

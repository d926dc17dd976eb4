"""How many weights one round may take: as many as have a total score within a budget."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer

from synflow_jax.xla.reductions import (
    CANDIDATES,
    count_where,
    one_device,
    sample_stride,
    sum_of,
)


class Affordable(NamedTuple):
    """What a budget pays for.

    Attributes:
      kept: how many eligible scores stay if the lowest go, as many as the budget pays for.
      next: the lowest score that stays; infinite if none does.
    """

    kept: Integer[Array, ""]
    next: Float[Array, ""]


class _Bracket(NamedTuple):
    """Bits of two floats: what is below `low` costs no more than the budget, what is below
    `high` more."""

    low: Int[Array, ""]
    cost_low: Float[Array, ""]
    high: Int[Array, ""]
    cost_high: Float[Array, ""]


def within(
    scores: list[Float[Array, "..."]],
    eligible: list[Bool[Array, "..."]],
    budget: Float[Array, ""],
) -> Affordable:
    """The most of the lowest scores whose total is at most a budget.

    Non-negative floats order like their bits, and the total below a threshold grows with
    it, so the threshold is found by adding up what is below a few candidates, again and
    again; of scores that equal it as many go as are paid for.

    Args:
      scores: leaves of non-negative numbers, all of one dtype.
      eligible: boolean leaves shaped like them: which count.
      budget: the largest total, less than that of all.

    Returns:
      An `Affordable`. If all eligible scores are within the budget, none stays.

    Example:
      >>> scores, eligible = [jnp.array([4.0, 1.0, 2.0, 2.0])], [jnp.ones(4, bool)]
      >>> within(scores, eligible, jnp.float32(3.5))
      Affordable(kept=Array(2, dtype=uint32), next=Array(2., dtype=float32))
    """
    dtype = scores[0].dtype
    bits = jnp.dtype(f"int{dtype.itemsize * 8}")

    def as_float(number):
        return lax.bitcast_convert_type(number, dtype)

    def cost(candidate):
        def below(score, mask):
            return jnp.where(mask & (score < candidate), score, jnp.zeros_like(score))

        return sum(sum_of(below, *pair) for pair in zip(scores, eligible))

    end = lax.bitcast_convert_type(jnp.asarray(jnp.inf, dtype), bits)
    total = cost(as_float(end))
    nothing = jnp.zeros_like(total)
    whole = _Bracket(jnp.zeros((), bits), nothing, end, total)

    def unfinished(state):
        bracket, _ = state
        return bracket.high - 1 > bracket.low

    def narrow(state):
        bracket, passes = state
        candidates = jnp.where(passes % 2 == 1, _around(bracket, budget), _spaced(bracket))
        if guesses is not None:
            candidates = jnp.where(passes == 0, guesses, candidates)
        costs = jnp.stack([cost(as_float(c)) for c in candidates])
        return _narrowed(bracket, candidates, costs, budget), passes + 1

    guesses = _guesses(scores, eligible, budget, bits)
    bracket, _ = lax.while_loop(unfinished, narrow, (whole, jnp.int32(0)))
    price = as_float(bracket.low)

    def reach(score, mask):
        return mask & (score >= price)

    kept = sum(count_where(reach, *pair) for pair in zip(scores, eligible))
    # Of those that cost the same, as many as the rest of the budget pays for.
    ties = jnp.where(price > 0, (budget - bracket.cost_low) / price, 0)
    kept = kept - jnp.minimum(ties.astype(jnp.uint32), kept)
    all_paid = total <= budget
    kept = jnp.where(all_paid, jnp.zeros_like(kept), kept)
    return Affordable(kept, jnp.where(all_paid, jnp.full_like(price, jnp.inf), price))


def _guesses(
    scores: list[Array], eligible: list[Array], budget: Array, bits: jnp.dtype
) -> Int[Array, " candidates"] | None:
    """Bits of thresholds at which a sample would cost about as much as the budget."""
    if not one_device():
        return None  # a sample would have to be gathered
    size = sum(score.size for score in scores)
    stride = sample_stride(size)

    def sampled(score, mask):
        every = score.reshape(-1)[::stride], mask.reshape(-1)[::stride]
        return jnp.where(every[1], every[0], jnp.zeros_like(every[0]))

    sample = jnp.sort(jnp.concatenate(list(map(sampled, scores, eligible))))
    costs = jnp.cumsum(sample) * stride
    shares = jnp.array([0.8, 0.97, 1.03, 1.25], sample.dtype)
    places = jnp.searchsorted(costs, budget * shares)
    return lax.bitcast_convert_type(sample[jnp.clip(places, 0, sample.size - 1)], bits)


def _narrowed(
    bracket: _Bracket, candidates: Array, costs: Array, budget: Array
) -> _Bracket:
    low, cost_low, high, cost_high = bracket
    paid = costs <= budget
    return _Bracket(
        low=jnp.maximum(low, jnp.max(jnp.where(paid, candidates, low))),
        cost_low=jnp.maximum(cost_low, jnp.max(jnp.where(paid, costs, cost_low))),
        high=jnp.minimum(high, jnp.min(jnp.where(paid, high, candidates))),
        cost_high=jnp.minimum(cost_high, jnp.min(jnp.where(paid, cost_high, costs))),
    )


def _spaced(bracket: _Bracket) -> Int[Array, " candidates"]:
    width = bracket.high - bracket.low
    step = jnp.maximum(width // (CANDIDATES + 1), 1)
    ahead = step * jnp.arange(1, CANDIDATES + 1, dtype=width.dtype)
    return bracket.low + jnp.minimum(ahead, width - 1)


def _around(bracket: _Bracket, budget: Array) -> Int[Array, " candidates"]:
    """Close to where the budget would end if costs grew evenly, and further from there."""
    width = bracket.high - bracket.low
    share = (budget - bracket.cost_low) / (bracket.cost_high - bracket.cost_low)
    shares = share + jnp.array([-1 / 6, -1 / 64, 1 / 64, 1 / 6], share.dtype)
    shares = jnp.clip(shares, 0, 1 - 2.0**-10)
    ahead = (shares * width.astype(share.dtype)).astype(width.dtype)
    return bracket.low + jnp.clip(ahead, 1, width - 1)

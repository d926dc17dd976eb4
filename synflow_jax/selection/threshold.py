"""One search for a threshold, by any measure that grows with it.

Entries are represented by their keys, integers that sort like the scores. The measure of a
threshold is the total weight of the entries whose keys are below it: their number if each
of them weighs 1, the sum of their scores if each weighs its score. The search evaluates the
measure at a few candidates at a time and never sorts or gathers the entries.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt

from synflow_jax.xla import counts
from synflow_jax.xla.backends import Backend
from synflow_jax.xla.reductions import CANDIDATES

# Numbers of entries, perhaps of two words (`counts.Wide`), or the sums of their scores.
Amount = Any

# The sample has one entry in 128 within these limits: sorting a larger one would take as
# long as a few passes over all entries.
_SAMPLED_PART, _SMALLEST_SAMPLE, _LARGEST_SAMPLE = 128, 1024, 16384


class Measure(NamedTuple):
    """The total weight of the entries below a threshold.

    Attributes:
      below: maps `CANDIDATES` thresholds to their measures, integers or floats. No measure
        may be lower than that of a lower threshold.
      weight: maps keys to what an entry with this key adds to the measure, in float32. It
        serves only to choose candidates.
    """

    below: Callable[[Int[Array, " candidates"]], Amount]
    weight: Callable[[Int[Array, "..."]], Float[Array, "..."]]


class Bracket(NamedTuple):
    """Two thresholds and their measures; the search keeps the limit between them.

    Attributes:
      low: a threshold whose measure is at most the limit.
      below_low: its measure.
      high: a threshold whose measure is above the limit.
      below_high: its measure.
    """

    low: Int[Array, ""]
    below_low: Amount
    high: Int[Array, ""]
    below_high: Amount


def search(
    measure: Measure,
    limit: Amount,
    bracket: Bracket,
    first: Int[Array, " candidates"] | None = None,
) -> Bracket:
    """Finds the highest threshold whose measure is at most a limit.

    Each pass evaluates the measure at a few candidates inside the bracket and narrows the
    bracket to the two neighbours between which the limit lies. Candidates are interpolated
    if the last pass left at most a quarter of the measure between the ends of the bracket,
    and evenly spaced if not.

    The search ends when no threshold is left between the ends. If the measure is a count,
    it ends already when ``below_low`` equals the limit: all thresholds with this count have
    the same entries below them. Equal sums do not imply that, since small scores are lost
    in rounding.

    Args:
      measure: what is limited.
      limit: of the dtype of the measure.
      bracket: thresholds to search between, with their measures; that of ``low`` is at most
        the limit.
      first: candidates of the first pass. Default: evenly spaced.

    Returns:
      The bracket whose ``low`` is the threshold. If even the measure of ``high`` is at most
      the limit, both ends are the given ``high``.

    Example:
      >>> keys = jnp.array([10, 20, 30, 40])
      >>> def below(candidates):
      ...     return jnp.sum(keys[None] < candidates[:, None], axis=1, dtype=jnp.uint32)
      >>> measure = Measure(below, lambda key: jnp.ones(key.shape))
      >>> start = Bracket(jnp.int32(0), jnp.uint32(0), jnp.int32(99), jnp.uint32(4))
      >>> 20 < search(measure, jnp.uint32(2), start).low <= 30
      Array(True, dtype=bool)
    """
    is_count = jnp.issubdtype(jax.tree.leaves(limit)[0].dtype, jnp.integer)

    def unfinished(state):
        bracket, _ = state
        several = bracket.high - 1 > bracket.low
        return several & ~counts.equal(bracket.below_low, limit) if is_count else several

    def one_pass(state):
        bracket, candidates = state
        narrower = _narrowed(bracket, candidates, measure.below(candidates), limit)
        helped = _measure_between(narrower) <= _measure_between(bracket) / 4
        interpolated = _interpolated(narrower, limit, measure.weight)
        distances = jnp.where(helped, interpolated, _evenly_spaced(narrower))
        return narrower, _above_low(narrower, distances)

    all_within = bracket.below_high <= limit
    bracket = bracket._replace(
        low=jnp.where(all_within, bracket.high, bracket.low),
        below_low=counts.where(all_within, bracket.below_high, bracket.below_low),
    )
    if first is None:
        first = _above_low(bracket, _evenly_spaced(bracket))
    else:
        first = jnp.clip(first, bracket.low + 1, bracket.high - 1)
    return lax.while_loop(unfinished, one_pass, (bracket, first))[0]


def counting(backend: Backend, keys: list[Array]) -> Measure:
    """The measure that counts the keys below a threshold."""
    size = sum(key.size for key in keys)

    def below(candidates):
        reaching = counts.numbers_reaching(backend, keys, candidates, size)
        return counts.as_count(size, size) - reaching

    return Measure(below, weight=lambda key: jnp.ones(key.shape, jnp.float32))


def sampled_candidates(
    backend: Backend,
    keys: list[Int[Array, "..."]],
    measure: Measure,
    limit: Amount,
) -> Int[Array, " candidates"] | None:
    """Estimates the threshold from a sample, to begin a search with.

    Args:
      backend: where the keys lie.
      keys: of all entries, in arrays of any shapes.
      measure: as for `search`; only its ``weight`` is used.
      limit: as for `search`.

    Returns:
      Candidates at -4, -1, +1 and +4 standard errors. None if the keys lie on several
      devices: the sample would have to be gathered.
    """
    if not backend.one_device:
        return None
    stride = _sample_stride(sum(key.size for key in keys))
    # Slices of lax, not by indexing, as in xla/reductions.
    parts = [lax.slice_in_dim(key.reshape(-1), 0, None, stride) for key in keys]
    sample = jnp.sort(jnp.concatenate(parts))
    weights = measure.weight(sample)
    totals = jnp.cumsum(weights)
    # The variance of a total over a sample of fixed size.
    variances = jnp.cumsum(weights * weights) - totals * totals / sample.size
    errors = jnp.sqrt(jnp.maximum(variances, 0))
    shifts = jnp.array([[4.0], [1.0], [-1.0], [-4.0]], totals.dtype)
    too_low = totals[None] + shifts * errors[None] < counts.as_float(limit) / stride
    places = jnp.sum(too_low, axis=1, dtype=jnp.int32) + jnp.array([-2, 0, 0, 2], jnp.int32)
    return sample[jnp.clip(places, 0, sample.size - 1)]


def around(key: Int[Array, ""]) -> Int[Array, " candidates"]:
    """The first candidates where the threshold is known, but for ties: if it is ``key``,
    one pass finds it."""
    return key + jnp.arange(CANDIDATES, dtype=key.dtype) - 1


def _sample_stride(size: int) -> int:
    """Stride of the sample: every n-th of ``size`` entries is taken."""
    wanted = min(max(size // _SAMPLED_PART, _SMALLEST_SAMPLE), _LARGEST_SAMPLE)
    return -(-size // wanted)


def _narrowed(
    bracket: Bracket, candidates: Array, measures: Amount, limit: Amount
) -> Bracket:
    """The narrowest bracket whose ends are candidates or ends of the given one."""
    low, below_low, high, below_high = bracket
    within = measures <= limit
    below = counts.largest(counts.where(within, measures, below_low))
    above = counts.smallest(counts.where(within, below_high, measures))
    return Bracket(
        low=jnp.maximum(low, jnp.max(jnp.where(within, candidates, low))),
        below_low=counts.larger(below_low, below),
        high=jnp.minimum(high, jnp.min(jnp.where(within, high, candidates))),
        below_high=counts.smaller(below_high, above),
    )


def _measure_between(bracket: Bracket) -> Float[Array, ""]:
    """The measure of the entries between the ends of the bracket, in float32."""
    return counts.as_float(bracket.below_high - bracket.below_low)


def _interpolated(bracket: Bracket, limit: Amount, weight: Callable) -> Array:
    """Interpolates the threshold and returns candidates at -3, -1, +1, +3 standard errors.

    Candidates are given by their distances from ``low``.
    """
    width, between = _num_thresholds(bracket), _measure_between(bracket)
    share = counts.as_float(limit - bracket.below_low) / between
    # The measure does not grow evenly with the threshold. First, entries lie at random.
    entries = jnp.maximum(between / weight(bracket.high), 1)
    by_chance = jnp.sqrt(share * (1 - share) / entries)
    # Second, they become sparser upwards: ordinary scores about by half in an octave. An
    # octave has as many keys as a mantissa has values.
    octave = 2.0 ** jnp.finfo(f"float{8 * width.dtype.itemsize}").nmant
    by_slope = share * (1 - share) * width.astype(jnp.float32) / (4 * octave)
    errors = jnp.array([-3.0, -1.0, 1.0, 3.0], jnp.float32) * (by_chance + by_slope)
    # Less than 1, so that rounding cannot exceed the integer type.
    shares = jnp.clip(share + errors, 0, 1 - 2.0**-10)
    return (shares * width.astype(jnp.float32)).astype(width.dtype)


def _evenly_spaced(bracket: Bracket) -> Array:
    """Divides the bracket into equal parts; candidates as distances from ``low``."""
    step = jnp.maximum(_num_thresholds(bracket) // (CANDIDATES + 1), 1)
    return step * jnp.arange(1, CANDIDATES + 1, dtype=step.dtype)


def _num_thresholds(bracket: Bracket) -> UInt[Array, ""]:
    """Distance between the ends of the bracket; unsigned, so that it cannot overflow."""
    unsigned = jnp.dtype(f"uint{8 * bracket.low.dtype.itemsize}")
    return bracket.high.astype(unsigned) - bracket.low.astype(unsigned)


def _above_low(bracket: Bracket, distances: UInt[Array, " candidates"]) -> Array:
    """The thresholds at these distances from ``low``, clipped to lie between the ends."""
    inside = jnp.clip(distances, 1, _num_thresholds(bracket) - 1)
    return (bracket.low.astype(inside.dtype) + inside).astype(bracket.low.dtype)

"""Ties at the threshold: of equal scores the first few are kept, found by their places."""

import itertools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from synflow_jax.selection.threshold import Bracket, Measure, counting, search
from synflow_jax.xla import counts
from synflow_jax.xla.backends import Backend
from synflow_jax.xla.loops import as_if_from
from synflow_jax.xla.placement import varying_with

# Numbers of places: one less than there are integers of 32 bits without the lowest.
_NUM_PLACES = 2**32 - 2


def keep_first_ties(
    backend: Backend, keys: list[Array], bracket: Bracket, num_removed: Any
) -> list[Array]:
    """Masks of all keys above ``low``, and of the first few of those equal to it."""
    size, shapes = sum(key.size for key in keys), [key.shape for key in keys]
    if backend.one_device and size < _NUM_PLACES:
        # Of an array with one axis the places are a row of integers: ten times faster on a
        # CPU than those that are put together from several positions.
        keys = [key.reshape(-1) for key in keys]
    first = [False] * len(keys)
    tied = [key == bracket.low for key in keys]
    num_tied = bracket.below_high - bracket.below_low
    removed = num_removed - bracket.below_low  # of those that are tied
    for number, places in enumerate(_places([key.shape for key in keys])):
        if number:
            num_tied = counts.number_where(backend, lambda t: t, tied, size)
        ranks, last = _ranks(keys, places, tied)
        # Entries that are not tied have the lowest rank.
        others = counts.as_count(size, size) - num_tied
        start = Bracket(
            low=last,
            below_low=others,
            high=jnp.int32(jnp.iinfo(jnp.int32).max),
            below_high=counts.as_count(size, size),
        )
        start = varying_with(start, (keys, num_removed))
        measure = _counting_ranks(backend, keys, places, tied)
        chosen = search(measure, others + removed, start)
        first = [f | t & (r > chosen.low) for f, t, r in zip(first, tied, ranks)]
        tied = [t & (r == chosen.low) for t, r in zip(tied, ranks)]
        removed = others + removed - chosen.below_low
    # No two entries are tied any more. Compared before the searches, these would be kept.
    low = as_if_from(chosen.low, bracket.low)
    lowest = as_if_from(chosen.low, jnp.iinfo(low.dtype).min)
    masks = [((key > low) | f | t) & (key > lowest) for key, f, t in zip(keys, first, tied)]
    return [mask.reshape(shape) for mask, shape in zip(masks, shapes)]


class _Place(NamedTuple):
    """A number for each entry of an array: its position along some of the axes.

    Attributes:
      start: the number of the first.
      axes: the first of these axes, and the one after the last.
    """

    start: int
    axes: tuple[int, int]


def _places(shapes: list[tuple[int, ...]]) -> list[list[_Place]]:
    """Numbers of the entries of all arrays, in their order, that fit into a word.

    One is the position among all entries. If there are too many for that, the first is that
    of the array, the second that of a part of it, and the third the position in the part.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if sum(sizes) < _NUM_PLACES:
        starts = [0, *itertools.accumulate(sizes)]
        return [[_Place(start, (0, len(shape))) for start, shape in zip(starts, shapes)]]
    parts, positions = [], []
    for shape in shapes:
        axis = len(shape)
        while axis and math.prod(shape[axis - 1 :]) < _NUM_PLACES:
            axis -= 1
        parts.append(_Place(0, (0, axis)))
        positions.append(_Place(0, (axis, len(shape))))
    return [[_Place(i, (0, 0)) for i in range(len(shapes))], parts, positions]


def _counting_ranks(
    backend: Backend, keys: list[Array], places: list[_Place], tied: list[Array]
) -> Measure:
    """The measure that counts the ranks below a threshold.

    Ranks are made anew in each pass: kept from pass to pass they would take as much memory
    as the keys.
    """

    def below(candidates):
        now, start = tied, np.uint32(0)
        # On several devices XLA does that by itself, and would gather what is made so.
        if backend.one_device:
            start = as_if_from(candidates, start)
            now = [t & (start == 0) for t in tied]
        ranks, _ = _ranks(keys, places, now, start)
        return counting(backend, ranks).below(candidates)

    return counting(backend, keys)._replace(below=below)


def _ranks(
    keys: list[Array],
    places: list[_Place],
    tied: list[Array],
    start: Any = np.uint32(0),
) -> tuple[list[Array], Array]:
    """Integers that rank tied entries by place: the earlier an entry, the higher its rank.

    Entries that are not tied get the lowest integer.

    Returns:
      The ranks, and that of the last place.
    """
    limits = jnp.iinfo(jnp.int32)
    highest = jnp.uint32(limits.max - 1)
    ranks, last = [], 0
    for key, (place, axes), is_tied in zip(keys, places, tied):
        # Made from the key, so that it is divided over devices as the key.
        number = jnp.zeros_like(key, jnp.uint32) + (start + jnp.uint32(place))
        stride = 1
        for axis in reversed(range(*axes)):
            along = lax.broadcasted_iota(jnp.uint32, key.shape, axis)
            number, stride = number + along * jnp.uint32(stride), stride * key.shape[axis]
        rank = lax.bitcast_convert_type(highest - number, jnp.int32)
        ranks.append(jnp.where(is_tied, rank, limits.min))
        last = max(last, place + stride - 1)
    return ranks, lax.bitcast_convert_type(highest - jnp.uint32(last), jnp.int32)

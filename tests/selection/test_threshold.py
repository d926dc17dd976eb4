"""The threshold search against its definition: the highest threshold within a limit."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synflow_jax.selection.threshold import (
    Bracket,
    Measure,
    around,
    sampled_candidates,
    search,
)
from synflow_jax.xla.backends import Backend

SIZE = 30
LIMITS = np.iinfo(np.int32)
ENDS = -50, 50


def counted(keys):
    """The number of keys below a threshold."""

    def below(candidates):
        return jnp.sum(keys[None] < candidates[:, None], axis=1, dtype=jnp.uint32)

    return Measure(below, lambda key: jnp.ones(key.shape))


def added(keys, weights):
    """The sum of the weights of the keys below a threshold."""

    def below(candidates):
        is_below = keys[None] < candidates[:, None]
        return jnp.sum(jnp.where(is_below, weights[None], 0.0), axis=1)

    return Measure(below, lambda key: jnp.ones(key.shape))


def between(measure, low, high):
    """The bracket with these ends."""
    low, high = jnp.int32(low), jnp.int32(high)
    below_low, below_high = measure.below(jnp.stack([low, high]))
    return Bracket(low, below_low, high, below_high)


@functools.partial(jax.jit, static_argnums=(2, 3))
def search_counts(keys, limit, low, high, first=None):
    measure = counted(keys)
    return search(measure, limit, between(measure, low, high), first)


@jax.jit
def search_sums(keys, weights, limit, first):
    measure = added(keys, weights)
    return search(measure, limit, between(measure, *ENDS), first)


near = st.integers(ENDS[0], ENDS[1] - 1)
far = st.sampled_from([LIMITS.min, LIMITS.min + 1, LIMITS.max - 1]) | st.integers(
    LIMITS.min, LIMITS.max - 1
)


def keys_from(elements):
    return hnp.arrays(np.int32, SIZE, elements=elements)


candidates = hnp.arrays(np.int32, 4, elements=st.integers(LIMITS.min, LIMITS.max))


@pytest.mark.parametrize(
    ("elements", "ends"),
    [(near, ENDS), (far, (LIMITS.min, LIMITS.max))],
    ids=["near", "far"],
)
@pytest.mark.parametrize("starts_from", ["a guess", "nothing"])
def test_a_count_is_brought_to_its_limit_or_the_threshold_is_the_highest(
    elements, ends, starts_from
):
    @hypothesis.given(keys_from(elements), st.integers(0, SIZE), candidates)
    def check(keys, limit, guess):
        first = jnp.asarray(guess) if starts_from == "a guess" else None
        got = search_counts(jnp.asarray(keys), jnp.uint32(limit), *ends, first)
        low, high = int(got.low), int(got.high)
        assert int(got.below_low) == (keys < low).sum() <= limit
        assert int(got.below_high) == (keys < high).sum()
        if limit == SIZE:
            assert low == high == ends[1]
        elif int(got.below_low) < limit:
            assert high == low + 1 and int(got.below_high) > limit
        else:
            assert low < high and int(got.below_high) > limit

    check()


@hypothesis.given(
    keys_from(near),
    hnp.arrays(np.float32, SIZE, elements=st.integers(0, 5).map(float)),
    st.integers(0, 5 * SIZE),
    candidates,
)
def test_of_sums_it_is_the_highest_threshold_within_the_limit(keys, weights, limit, first):
    thresholds = range(*ENDS)
    sums = [weights[keys < t].sum() for t in (*thresholds, ENDS[1])]
    got = search_sums(*map(jnp.asarray, (keys, weights, np.float32(limit), first)))
    if sums[-1] <= limit:
        assert int(got.low) == int(got.high) == ENDS[1]
    else:
        want = max(t for t, total in zip(thresholds, sums) if total <= limit)
        assert int(got.low) == want and int(got.high) == want + 1
        assert float(got.below_low) == sums[thresholds.index(want)]
        assert float(got.below_high) == sums[thresholds.index(want) + 1]


@pytest.mark.parametrize("dtype", [jnp.uint32, jnp.float32])
def test_any_measure_that_grows_is_searched(dtype):
    """Of squares the search finds integer square roots."""
    squares = Measure(
        lambda candidates: (candidates * candidates).astype(dtype),
        lambda key: jnp.ones(key.shape),
    )
    root = jax.jit(lambda limit: search(squares, limit, between(squares, 0, 4000)).low)
    for limit in (0, 1, 2, 3, 4, 15, 16, 17, 9_999, 10_000, 3999**2 - 1, 3999**2):
        assert int(root(jnp.asarray(limit, dtype))) == int(limit**0.5)


def test_vmap_searches_for_each_limit():
    keys = jnp.asarray(np.random.default_rng(0).integers(*ENDS, SIZE), jnp.int32)
    limits = jnp.array([0, 1, 10, SIZE - 1, SIZE], jnp.uint32)
    find = functools.partial(search_counts, keys)
    got = jax.vmap(lambda limit: find(limit, *ENDS))(limits)
    for i, limit in enumerate(limits):
        assert [int(x[i]) for x in got] == [int(x) for x in find(limit, *ENDS)]


# --- candidates from a sample -------------------------------------------------------------

ONE = Backend(cpu=True, one_device=True)
WEIGHTS = {
    "number": lambda key: jnp.ones(key.shape),
    "sum": lambda key: jax.lax.bitcast_convert_type(key, jnp.float32),
}


def normal_keys(size):
    """Keys and scores in ascending order."""
    scores = np.abs(np.random.default_rng(1).standard_normal(size)).astype(np.float32)
    return np.sort(scores.view(np.int32)), np.sort(scores)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("what", ["number", "sum"])
def test_candidates_of_a_sample_enclose_the_threshold_closely(what, share):
    keys, scores = normal_keys(40_003)
    weights = np.ones_like(scores) if what == "number" else scores
    totals = np.cumsum(weights, dtype=np.float64)
    below = dict(zip(keys.tolist(), np.concatenate([[0], totals[:-1]])))
    shuffled = np.random.default_rng(2).permutation(keys)
    leaves = [jnp.asarray(part) for part in np.split(shuffled, [7, 20_000])]
    measure = Measure(None, WEIGHTS[what])
    limit = jnp.asarray(share * totals[-1], jnp.float32)
    got = np.asarray(sampled_candidates(ONE, leaves, measure, limit))
    assert (np.diff(got) >= 0).all() and np.isin(got, keys).all()
    shares = [below[key] / totals[-1] for key in got.tolist()]
    # The standard error of a share, from 1,001 sampled entries, is at most 0.02.
    assert shares[0] <= share <= shares[-1]
    assert 0.005 < shares[-1] - shares[0] < 0.2
    assert max(abs(shares[1] - share), abs(shares[2] - share)) < 0.06


def test_several_devices_take_no_sample():
    several = ONE._replace(one_device=False)
    measure = counted(jnp.arange(3, dtype=jnp.int32))
    assert sampled_candidates(several, [jnp.arange(3)], measure, jnp.uint32(1)) is None


# --- how long it takes --------------------------------------------------------------------


@pytest.mark.parametrize(("what", "most"), [("number", 16), ("sum", 25)])
def test_few_passes_find_a_threshold_of_a_million_entries(what, most):
    """Three searches. Without interpolation they take 19 and 29 passes."""
    keys, scores = map(jnp.asarray, normal_keys(1_000_000))
    totals = jnp.concatenate([jnp.zeros(1), jnp.cumsum(scores)])
    passes = []

    def below(candidates):
        jax.debug.callback(lambda: passes.append(None))
        index = jnp.searchsorted(keys, candidates)
        return index.astype(jnp.uint32) if what == "number" else totals[index]

    measure = Measure(below, WEIGHTS[what])
    start = Bracket(
        low=jnp.int32(0),
        below_low=jnp.zeros((), jnp.uint32 if what == "number" else jnp.float32),
        high=jax.lax.bitcast_convert_type(jnp.float32(jnp.inf), jnp.int32),
        below_high=jnp.uint32(keys.size) if what == "number" else totals[-1],
    )

    @jax.jit
    def find(limit):
        first = sampled_candidates(ONE, [keys], measure, limit)
        return search(measure, limit, start, first)

    for share in (0.02, 0.5, 0.98):
        limit = np.asarray(share * float(start.below_high), start.below_high.dtype)
        find(jnp.asarray(limit))
    jax.effects_barrier()
    assert 0 < len(passes) <= most


@pytest.mark.parametrize("limit", [3, 4], ids=["below the ties", "among the ties"])
def test_one_pass_ends_a_search_that_begins_at_its_threshold(limit):
    passes, keys = [], jnp.array([1, 2, 3, 50, 50, 90])

    def below(candidates):
        jax.debug.callback(lambda: passes.append(None))
        return jnp.sum(keys[None] < candidates[:, None], axis=1, dtype=jnp.uint32)

    measure = Measure(below, WEIGHTS["number"])
    start = Bracket(jnp.int32(0), jnp.uint32(0), jnp.int32(100), jnp.uint32(6))
    found = search(measure, jnp.uint32(limit), start, around(jnp.int32(50)))
    jax.effects_barrier()
    assert found.low == 50 and found.below_low == 3 and len(passes) == 1

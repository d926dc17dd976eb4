"""`within` against its definition: the running total of the sorted scores."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synflow_jax.selection.budget import within
from synflow_jax.xla.backends import Backend
from synflow_jax.xla.reductions import sum_of, sums_of

SHAPES = [(4, 5), (), (0,), (13,)]
SIZE = sum(int(np.prod(shape)) for shape in SHAPES)
ONE = Backend(cpu=True, one_device=True)
affordable = jax.jit(functools.partial(within, ONE))


def split(flat):
    """Leaves of `SHAPES`."""
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES])
    parts = np.split(flat, ends[:-1])
    return [jnp.asarray(part.reshape(shape)) for part, shape in zip(parts, SHAPES)]


def within_by_sorting(scores, eligible, budget):
    """The definition: how many of the lowest scores have a total within the budget."""
    ascending = np.sort(scores[eligible])
    removed = int((np.cumsum(ascending, dtype=np.float64) <= budget).sum())
    return len(ascending) - removed, [*ascending, np.inf][removed]


# Integers, since their float32 sums are exact; few of them, so that ties are the rule.
# Multiplied by a power of two, they are as far apart as scores can be.
integers = st.integers(0, 5).map(float)
exponents = st.sampled_from([-100, -3, 0, 100])


@hypothesis.given(
    hnp.arrays(np.float32, SIZE, elements=integers),
    hnp.arrays(bool, SIZE),
    st.integers(0, 5 * SIZE),
    exponents,
)
def test_it_agrees_with_sorting(scores, eligible, budget, exponent):
    scores, budget = np.ldexp(scores, exponent), np.float32(np.ldexp(budget, exponent))
    got = affordable(split(scores), split(eligible), jnp.asarray(budget))
    kept, lowest = within_by_sorting(scores, eligible, budget)
    assert (int(got.kept), float(got.next)) == (kept, lowest)


@pytest.mark.parametrize("largest", [1, 7, 300])
def test_large_leaves_agree_with_sorting(largest):
    """Large enough for a sample and for sums in rows."""
    rng = np.random.default_rng(largest)
    scores = rng.integers(0, largest + 1, 40_007).astype(np.float32)
    eligible = rng.random(scores.size) < 0.7
    total = scores[eligible].sum()
    assert total < 2**24  # sums are exact
    leaves = [
        [jnp.asarray(part) for part in np.split(x, [5000, 5003])]
        for x in (scores, eligible)
    ]
    for share in (0, 1e-3, 0.1, 0.5, 0.99, 1):
        budget = np.float32(np.floor(share * total))
        got = affordable(*leaves, jnp.asarray(budget))
        kept, lowest = within_by_sorting(scores, eligible, budget)
        assert (int(got.kept), float(got.next)) == (kept, lowest)


@pytest.mark.parametrize("budget", [0.0, 1.0, 7.4, 7.5, 24.9, 25.0, 30.0])
def test_of_equal_scores_as_many_are_removed_as_the_budget_allows(budget):
    scores = np.full(SIZE, 2.5, np.float32)
    eligible = np.arange(SIZE) < 10
    got = affordable(split(scores), split(eligible), jnp.float32(budget))
    kept, lowest = within_by_sorting(scores, eligible, budget)
    assert (int(got.kept), float(got.next)) == (kept, lowest)


def test_no_more_are_removed_than_there_are_where_rounding_raises_their_sum(monkeypatch):
    """Of 8 million equal scores the float32 sum may be off by several of them."""
    raised = lambda *args: 1.5 * sums_of(*args)  # noqa: E731
    monkeypatch.setattr("synflow_jax.selection.budget.sums_of", raised)
    got = within(ONE, [jnp.ones(4)], [jnp.ones(4, bool)], jnp.float32(5.0))
    assert int(got.kept) == 0


def test_scores_lost_in_rounding_still_count():
    """The budget is reached at 1, and 1e-9 more does not change the sum."""
    scores = [jnp.array([1.0, 1e-9, 1e-9, 4.0, 1.5])]
    got = affordable(scores, [jnp.ones(5, bool)], jnp.float32(1.0))
    assert int(got.kept) == 2 and float(got.next) == 1.5


def test_the_highest_float_is_a_threshold_too():
    """Its bits are next to those of infinity, beyond which there are only NaNs."""
    low, high = np.nextafter(np.float32(1), np.float32(2)), np.finfo(np.float32).max
    scores = jnp.zeros(4096).at[:2].set([low, high])  # every fourth is sampled, not `high`
    got = affordable([scores], [jnp.ones(4096, bool)], jnp.asarray(low))
    assert int(got.kept) == 1 and float(got.next) == float(high)


def test_a_nan_is_neither_removed_nor_counted():
    scores = [jnp.array([1.0, jnp.nan, 4.0, 2.0])]
    got = affordable(scores, [jnp.ones(4, bool)], jnp.float32(3.0))
    assert int(got.kept) == 1 and float(got.next) == 4.0


def test_nothing_eligible_leaves_nothing():
    got = affordable(split(np.ones(SIZE, np.float32)), split(np.zeros(SIZE, bool)), 0.0)
    assert int(got.kept) == 0 and float(got.next) == np.inf


def test_vmap_has_a_budget_for_each_element():
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.integers(0, 9, (3, SIZE)), jnp.float32)
    budgets = jnp.array([0.0, 20.0, 1000.0])
    got = jax.jit(jax.vmap(lambda s, b: within(ONE, [s], [s > 1], b)))(scores, budgets)
    for i, budget in enumerate(budgets):
        one = np.asarray(scores[i])
        want = within_by_sorting(one, one > 1, float(budget))
        assert (int(got.kept[i]), float(got.next[i])) == want


@pytest.mark.parametrize("size", [0, 3, 4096, 40_007])
def test_sums_of_candidates_are_the_sums_of_each(size):
    x = jnp.asarray(np.exp(3 * np.random.default_rng(0).standard_normal(size)), jnp.float32)
    candidates = jnp.array([0.0, 0.1, 1.0, jnp.inf])

    def below(candidate, x):
        return jnp.where(x < candidate, x, 0.0)

    got = jax.jit(functools.partial(sums_of, ONE, below))(candidates, x)
    one = jax.jit(lambda c: sum_of(ONE, functools.partial(below, c), x))
    np.testing.assert_allclose(got, [one(c) for c in candidates], rtol=1e-6)

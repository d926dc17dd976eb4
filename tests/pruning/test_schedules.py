"""Schedules and the rounding rule, against exact fractions."""

import math
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import synflow_jax as sj

densities = st.floats(1e-7, 1.0)
rounds = st.integers(1, 200)


@hypothesis.given(st.integers(0, 10**10), st.floats(0.0, 1.0))
def test_num_kept_is_the_smallest_whole_number_not_below(size, density):
    exact = Fraction(density) * size
    slack = Fraction(1, 10**9) * exact + Fraction(1, 10**6)
    k = sj.num_kept(size, density)
    assert 0 <= k <= size
    assert math.ceil(exact - slack) <= k <= math.ceil(exact)


@hypothesis.given(st.integers(1, 10**8), st.data())
def test_a_density_made_from_a_count_gives_the_count(size, data):
    k = data.draw(st.integers(0, size))
    assert sj.num_kept(size, k / size) == k


def test_the_slack_undoes_rounding():
    """7 / 25 * 25 is 7.000000000000001."""
    assert sj.num_kept(25, 7 / 25) == 7


@pytest.mark.parametrize("compression", range(1, 6))
def test_counts_of_the_paper(compression):
    """VGG-16 for CIFAR-100: the published remaining counts."""
    published = [1_476_167, 147_617, 14_762, 1_477, 148]
    kept = sj.num_kept(14_761_664, 10.0**-compression)
    assert kept == published[compression - 1]


@pytest.mark.parametrize("density", [-0.1, 1.1, math.nan])
def test_num_kept_refuses_what_is_no_fraction(density):
    with pytest.raises(ValueError, match="`density` is the fraction kept"):
        sj.num_kept(10, density)


def test_num_kept_refuses_a_negative_size():
    with pytest.raises(ValueError, match="`size`.*-1"):
        sj.num_kept(-1, 0.5)


@hypothesis.given(densities, rounds)
def test_exponential_removes_the_same_fraction_each_round(density, n):
    d = sj.exponential(density, n)
    assert d.dtype == np.float64 and d.shape == (n,)
    ratios = d / np.concatenate([[1.0], d[:-1]])
    np.testing.assert_allclose(ratios, density ** (1 / n), rtol=1e-9)
    assert d[-1] == density


@hypothesis.given(densities, rounds)
def test_linear_removes_the_same_number_each_round(density, n):
    d = sj.linear(density, n)
    assert d.dtype == np.float64 and d.shape == (n,)
    steps = np.diff(np.concatenate([[1.0], d]))
    np.testing.assert_allclose(steps, (density - 1) / n, atol=1e-12)
    assert d[-1] == density


@pytest.mark.parametrize("schedule", [sj.exponential, sj.linear])
@pytest.mark.parametrize(
    ("density", "n", "word"), [(0.0, 5, "density"), (1.5, 5, "density"), (0.5, 0, "rounds")]
)
def test_schedules_refuse_what_is_out_of_range(schedule, density, n, word):
    with pytest.raises(ValueError, match=f"`{word}`"):
        schedule(density, n)


@hypothesis.given(densities, rounds)
def test_cubic_falls_ever_more_slowly_and_ends_at_the_density(density, n):
    d = sj.cubic(density, n)
    assert d.dtype == np.float64 and d.shape == (n,) and d[-1] == density
    steps = np.diff(np.concatenate([[1.0], d]))
    assert (steps <= 1e-12).all() and (np.diff(steps) >= -1e-12).all()


def test_cubic_is_the_formula_of_zhu_and_gupta():
    """By hand: sparsity 0.8 + (0.2 - 0.8) * (1 - t / n)**3 at t = 1, 2, 3, 4 of n = 4."""
    want = 1 - np.array([0.546875, 0.725, 0.790625, 0.8])
    np.testing.assert_allclose(sj.cubic(0.2, 4, initial=0.8), want, rtol=1e-12)


@pytest.mark.parametrize("initial", [0.1, 1.5, "1"])
def test_cubic_refuses_a_start_below_its_end(initial, no_typecheck):
    with pytest.raises(ValueError, match="`initial` is the fraction kept before"):
        sj.cubic(0.2, 4, initial=initial)

"""Scaled arrays: the contract of normalising, entry by entry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synflow_jax.transform import scaled as scaled

pytestmark = pytest.mark.parametrize(
    "normalised", [scaled.normalised, scaled.normalised_once]
)


@pytest.mark.parametrize("largest", [1.0, -1.0, 1.6e38, -1.6e38, 1e-36, 0.7, -5.0])
def test_the_largest_size_lies_in_one_to_two_and_nothing_is_rounded(largest, normalised):
    x = jnp.array([largest, largest / 3, -largest / 7, 0.0])
    mantissa, exponent = normalised(x)
    assert 1 <= float(jnp.abs(mantissa).max()) < 2
    back = np.asarray(mantissa, np.float64) * 2.0 ** float(exponent)
    np.testing.assert_array_equal(back, np.asarray(x, np.float64))


def test_what_is_too_small_to_see_is_zero_and_passes_no_gradient(normalised):
    x = jnp.array([1.0, 2.0**-100, -(2.0**-100), 0.99 * 2.0**-100, -(2.0**-101), 0.0])
    mantissa, _ = normalised(x)
    seen = np.array([1, 1, 1, 0, 0, 0], bool)
    np.testing.assert_array_equal(mantissa, np.where(seen, x, 0))
    gradient = jax.grad(lambda x: normalised(x).mantissa.sum())(x)
    np.testing.assert_array_equal(gradient, np.where(seen, 1, 0))


@pytest.mark.parametrize("x", [[jnp.nan, 1.0], [1.0, jnp.nan], [jnp.nan, -jnp.inf]])
def test_a_nan_stays(x, normalised):
    mantissa, _ = normalised(jnp.array(x))
    assert bool(jnp.isnan(mantissa[jnp.isnan(jnp.array(x))]).all())


@pytest.mark.parametrize("shape", [(3,), (0,), (2, 0), ()])
def test_zeros_are_smaller_than_any_other_flow(shape, normalised):
    mantissa, exponent = normalised(jnp.zeros(shape), jnp.int32(7))
    assert mantissa.shape == shape and not mantissa.any()
    assert exponent.dtype == jnp.int32 and int(exponent) < -(2**20)


def test_zeros_stay_where_they_are_however_often_they_are_multiplied(normalised):
    """2**24 below, 200 times, would leave an int32, on the side of the largest flows."""
    _, exponent = jax.lax.fori_loop(
        0, 200, lambda _, x: normalised(40.0 * x[0], x[1]), normalised(jnp.zeros(3))
    )
    assert int(exponent) == int(normalised(jnp.zeros(3)).exponent)


def test_zeros_times_a_number_are_zeros_also_after_xla_reordered_the_products(normalised):
    """XLA computes (x * 40) * f as x * (40 * f)."""

    def network(x):
        return normalised(normalised(x).mantissa * 40.0).mantissa

    np.testing.assert_array_equal(jax.jit(network)(jnp.zeros((4, 4))), np.zeros((4, 4)))


def test_exponents_add_up(normalised):
    mantissa, exponent = normalised(jnp.array([12.0]), jnp.int32(30))
    assert (float(mantissa[0]), int(exponent)) == (1.5, 33)

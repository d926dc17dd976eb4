"""Selection where numbers are in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj

keep = jax.jit(sj.keep_top)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("digits", [1, 12])
def test_scores_of_both_precisions_agree_with_a_stable_sort(dtype, digits):
    """With ties and without, and numbers that only float64 tells apart."""
    scores = np.round(np.random.default_rng(0).standard_normal(50_000), digits)
    scores = (1 + scores * 1e-3).astype(dtype)
    scores[:3] = [np.nan, np.inf, -np.inf]
    order = np.argsort(-scores, kind="stable")  # NaN is last here too
    for k in (0, 1, 777, 25_000, scores.size - 1, scores.size):
        kept = keep({"w": jnp.asarray(scores)}, jnp.int32(k))["w"]
        np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(order[:k]))


def test_a_traced_k_beyond_uint32_keeps_all():
    assert bool(keep({"w": jnp.arange(5.0)}, jnp.int64(2**32))["w"].all())
    assert not bool(keep({"w": jnp.arange(5.0)}, jnp.int64(-(2**32)))["w"].any())

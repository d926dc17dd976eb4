"""Branches of a batch: one predicate for all, and each element's own result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synflow_jax.xla.batching import when

CALLS = []


def sine(x, y):
    jax.debug.callback(lambda: CALLS.append(0))
    return {"x": jnp.sin(x["x"]) + y}


@pytest.mark.parametrize("some", [False, True])
def test_a_batch_computes_only_if_some_element_asks_for_it(some):
    x, y = {"x": jnp.arange(6.0).reshape(2, 3)}, jnp.ones(2)
    yes = jnp.array([False, some])
    CALLS.clear()
    got = jax.jit(jax.vmap(lambda p, x, y: when(p, sine, x, y)))(yes, x, y)
    jax.effects_barrier()
    want = np.where(np.asarray(yes)[:, None], np.sin(x["x"]) + 1, x["x"])
    np.testing.assert_allclose(got["x"], want, rtol=1e-6)
    assert bool(CALLS) == some


def test_batches_of_batches_and_predicates_that_are_no_batch():
    yes = jnp.array([[True, False], [False, False]])
    x = jnp.ones((2, 2))
    double = lambda p, x: when(p, lambda x: 2 * x, x)  # noqa: E731
    np.testing.assert_array_equal(jax.vmap(jax.vmap(double))(yes, x), [[2, 1], [1, 1]])
    np.testing.assert_array_equal(jax.vmap(double, (None, 0))(yes[0, 0], x), 2 * x)
    np.testing.assert_array_equal(double(yes[0, 1], x), x)

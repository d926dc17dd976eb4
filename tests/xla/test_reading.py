"""Positions that are read along an axis, run by run, and the derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synflow_jax.xla import reading

# Of an axis of 7: overlapping runs, nothing, one entry over and over, strides, backwards.
RUNS = {
    "all": [0, 1, 2, 3, 4, 5, 6],
    "overlapping": [0, 1, 2, 3, 2, 3, 4, 5, 6],
    "with padding": [-1, -1, 0, 1, 2, 6, -1],
    "one entry": [3, 3, 3, 3],
    "an edge, a period, an edge": [0, 1, 2, 2, 2, 5, 6],
    "strides across other runs": [0, 2, 4, 6, 1, 2, 3],
    "backwards": [6, 4, 5, 3],
    "nothing": [-1, -1],
}


@pytest.mark.parametrize("entries", [*map(np.array, RUNS.values())], ids=[*RUNS])
def test_runs_are_read_and_the_derivative_adds_what_is_read_twice(entries, monkeypatch):
    monkeypatch.setattr(reading, "_SMALL", 0)  # no product where there are a few runs
    x = jnp.arange(1.0, 43.0).reshape(2, 7, 3)
    out, backwards = jax.vjp(lambda x: reading.read(x, 1, entries), x)
    inside = entries >= 0
    want = np.where(inside[:, None], np.asarray(x)[:, entries], 0.0)
    np.testing.assert_array_equal(out, want)
    change = np.arange(1.0, 1 + out.size, dtype=np.float32).reshape(out.shape)
    total = np.zeros(x.shape, np.float32)
    np.add.at(total, (slice(None), entries[inside]), change[:, inside])
    np.testing.assert_array_equal(backwards(jnp.asarray(change))[0], total)


def test_the_derivative_of_runs_is_one_concatenation():
    """Slices would be padded to the whole axis, one array for each run, and added."""
    x, entries = jnp.ones((2, 400, 64)), np.r_[0:150, 140:260, 250:400]

    def backwards(x):
        return jax.vjp(lambda x: reading.read(x, 1, entries), x)[1]

    change = jnp.ones((2, len(entries), 64))
    jaxpr = jax.make_jaxpr(lambda x, change: backwards(x)(change))(x, change)
    names = [eqn.primitive.name for eqn in jaxpr.eqns]
    assert "pad" not in names and names.count("concatenate") >= 1

"""Programs are found again while their function lives, and not after."""

import gc
import weakref

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import synflow_jax as sj
from synflow_jax.xla.programs import _PROGRAMS, program

W = jnp.array([[1.0, -2.0], [-3.0, 4.0]])


def test_a_program_is_dropped_with_its_function():
    """As many networks as there are can be ranked."""
    gc.collect()
    before, alive = len(_PROGRAMS), []
    for width in range(3):

        def network(params, x, width=width):
            return (1 + width) * (x @ params)

        assert sj.log_flow(network, W, (2,)) == np.float32(np.log(10 * (1 + width)))
        sj.effective_masks(network, W, W > 0, (2,), prunable=lambda *_: True)
        alive.append(weakref.ref(network))
    del network
    gc.collect()
    assert not any(reference() for reference in alive)
    assert len(_PROGRAMS) == before


def test_methods_of_equal_modules_share_a_program():
    """``model.apply`` is a new object each time."""
    first, second = nn.Dense(2), nn.Dense(2)
    assert program(map, first.apply) is program(map, first.apply)
    assert program(map, first.apply) is program(map, second.apply)
    assert program(map, first.apply) is not program(map, nn.Dense(3).apply)
    assert program(map, first.apply) is not program(map, first.init)
    params = first.init(jax.random.key(0), jnp.ones((1, 2)))
    expected = np.log(abs(np.asarray(params["params"]["kernel"])).sum())
    np.testing.assert_allclose(sj.log_flow(first.apply, params, (2,)), expected, rtol=1e-6)


def test_options_tell_programs_apart():
    function = lambda x: x  # noqa: E731
    assert program(map, function, 1) is program(map, function, 1)
    assert program(map, function, 1) is not program(map, function, 2)
    assert program(map, function) is not program(filter, function)


def test_a_function_with_arrays_works_without_being_kept():
    class Network(eqx.Module):
        factor: jax.Array

        def __call__(self, params, x):
            return self.factor * (x @ params)

    network = Network(jnp.float32(3.0))
    np.testing.assert_allclose(sj.log_flow(network, W, (2,)), np.log(30), rtol=1e-6)
    np.testing.assert_allclose(
        sj.log_flow(network.__call__, W, (2,)), np.log(30), rtol=1e-6
    )

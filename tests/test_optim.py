"""Training under masks: pruned weights stay exactly zero."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import synflow_jax as sj

PARAMS = {"w": jnp.arange(1.0, 7).reshape(2, 3), "b": jnp.ones(3)}
MASKS = {
    "w": jnp.array([[True, False, True], [False, True, False]]),
    "b": jnp.ones(3, bool),
}
OPTIMIZERS = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "weight decay": lambda: optax.chain(
        optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)
    ),
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1),
}


def train(optimizer, masks=MASKS, steps=50):
    @jax.jit
    def step(params, state, x):
        loss = lambda p: jnp.sum((x @ p["w"] + p["b"][None] - 1) ** 2)  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = sj.apply_masks(PARAMS, masks)
    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    # Optax's own updates rely on promotion.
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(steps):
            x = jnp.asarray(rng.standard_normal((4, 2)), jnp.float32)
            params, state = step(params, state, x)
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_stay_zero_and_the_others_move(name):
    params = train(optax.chain(OPTIMIZERS[name](), sj.freeze_pruned(MASKS)))
    w, mask = np.asarray(params["w"]), np.asarray(MASKS["w"])
    np.testing.assert_array_equal(w[~mask], 0.0)
    assert (w[mask] != np.asarray(PARAMS["w"])[mask]).all()
    assert (np.asarray(params["b"]) != 1).all()


def test_without_it_momentum_moves_them():
    """Guards the test above: the zeros are not there by chance."""
    w = np.asarray(train(OPTIMIZERS["momentum"]())["w"])
    assert (w[~np.asarray(MASKS["w"])] != 0).any()


def test_a_nan_update_of_a_pruned_weight_is_dropped():
    freeze = sj.freeze_pruned({"w": jnp.array([False, True])})
    state = freeze.init({"w": jnp.ones(2)})
    updates, _ = freeze.update({"w": jnp.array([jnp.nan, 3.0])}, state)
    np.testing.assert_array_equal(updates["w"], [0.0, 3.0])


def test_masks_are_arguments_of_the_compiled_step():
    traces = 0

    @jax.jit
    def update(updates, state):
        nonlocal traces
        traces += 1
        return sj.freeze_pruned(MASKS).update(updates, state)

    for fill in (True, False):
        masks = jax.tree.map(lambda m, fill=fill: jnp.full(m.shape, fill), MASKS)
        state = sj.freeze_pruned(masks).init(PARAMS)
        updates, _ = update(PARAMS, state)
        assert bool((updates["w"] != 0).all()) is fill
    assert traces == 1


def test_a_step_that_donates_its_state_leaves_the_masks_alone():
    freeze = sj.freeze_pruned(MASKS)
    step = jax.jit(freeze.update, donate_argnums=1)
    step(PARAMS, freeze.init(PARAMS))
    assert int(sj.count(MASKS)) == 6


def test_masks_that_do_not_fit_are_refused_at_init(no_typecheck):
    with pytest.raises(ValueError, match=r"masks\['b'\]"):
        sj.freeze_pruned({"w": MASKS["w"], "b": jnp.ones(2, bool)}).init(PARAMS)

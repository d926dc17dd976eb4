"""Training under masks: pruned weights stay exactly zero."""

import collections
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx
from flax.core import FrozenDict
from flax.training.train_state import TrainState

import synflow_jax as sj
from tests import nets

STEPS = 200
# Optax's own updates rely on promotion.
promoted = pytest.mark.usefixtures("standard_promotion")


def draw_masks(seed=0):
    w = np.random.default_rng(seed).permutation(12).reshape(3, 4) < 6
    return {"w": jnp.asarray(w), "b": jnp.ones(4, bool)}


PARAMS = nets.draw({"w": (3, 4), "b": (4,)})
INPUTS = nets.draw({"x": (STEPS, 5, 3)})["x"]
TARGET = nets.draw({"w": (3, 4)}, seed=1)["w"]
MASKS = draw_masks()


def frozen(*parts):
    """What most rows are: a chain with `freeze_pruned` at its end."""
    return lambda masks: optax.chain(*parts, sj.freeze_pruned(masks))


def accumulated(optimizer):
    return optax.MultiSteps(optimizer, every_k_schedule=4).gradient_transformation()


def injected(make):
    return optax.inject_hyperparams(make)(
        learning_rate=optax.linear_schedule(0.1, 0.01, 99)
    )


# Each: an optimizer made for masks. A chain that needs a special order shows it here.
OPTIMIZERS = {
    "momentum and weight decay": frozen(
        optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9, nesterov=True)
    ),
    "adam": frozen(optax.adam(0.02)),
    "adamw": frozen(optax.adamw(0.02, weight_decay=0.1)),
    "lion": frozen(optax.lion(0.01, weight_decay=0.1)),
    "adafactor": frozen(optax.adafactor(0.1, min_dim_size_to_factor=2)),
    "EMA of the updates": frozen(optax.sgd(0.05), optax.ema(0.9)),
    "accumulation around": lambda masks: accumulated(frozen(optax.adam(0.05))(masks)),
    "accumulation before": frozen(accumulated(optax.adam(0.05))),
    "multi_transform before": frozen(
        optax.multi_transform(
            {"decayed": optax.adamw(0.02), "plain": optax.sgd(0.05, momentum=0.9)},
            {"w": "decayed", "b": "plain"},
        )
    ),
    "inject_hyperparams around": lambda masks: injected(
        lambda learning_rate: frozen(optax.adamw(learning_rate))(masks)
    ),
    "inject_hyperparams before": frozen(injected(optax.adamw)),
    "clipping between two": lambda masks: optax.chain(
        sj.freeze_pruned(masks),
        optax.clip_by_global_norm(1.0),
        frozen(optax.adam(0.02))(masks),
    ),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def loss(params, x):
    return jnp.mean((x @ params["w"] + params["b"][None] - x @ TARGET - 1) ** 2)


def start(name, params, masks):
    """What training carries: parameters, their moving average, the optimizer's state."""
    params = sj.apply_masks(params, masks)
    return params, params, OPTIMIZERS[name](masks).init(params)


TRACES = collections.Counter()


def steps(name, carry, inputs):
    TRACES[name] += 1
    # Not the masks that a test looks for: only those in the state may count.
    optimizer = OPTIMIZERS[name](sj.all_kept(PARAMS))

    def step(carry, x):
        params, average, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
        params = optax.apply_updates(params, updates)
        return (params, optax.incremental_update(params, average, 0.1), state), None

    return jax.lax.scan(step, carry, inputs)[0]


train = jax.jit(steps, static_argnums=0)


@functools.cache
def first_half(name):
    return train(name, start(name, PARAMS, MASKS), INPUTS)


def assert_trained_under(masks, carry, start):
    params, average, _ = carry
    for tree in (params, average):
        for new, old, mask in zip(*map(jax.tree.leaves, (tree, start, masks))):
            new, old, mask = map(np.asarray, (new, old, mask))
            np.testing.assert_array_equal(new[~mask], 0.0)
            assert np.isfinite(new).all() and (new != old)[mask].all()


@promoted
@every_optimizer
def test_pruned_weights_and_their_average_stay_zero_and_the_others_move(name):
    carry = first_half(name)
    assert_trained_under(MASKS, carry, PARAMS)
    assert float(loss(carry[0], INPUTS[0])) < float(loss(PARAMS, INPUTS[0]))


@promoted
@every_optimizer
def test_each_seed_of_a_vmap_keeps_its_own_masks(name):
    stack = lambda trees: jax.tree.map(lambda *xs: jnp.stack(xs), *trees)  # noqa: E731
    masks = [draw_masks(seed) for seed in range(3)]
    params = [nets.draw({"w": (3, 4), "b": (4,)}, seed) for seed in range(3)]
    one_seed = functools.partial(steps, name, inputs=INPUTS)
    carries = jax.vmap(functools.partial(start, name))(stack(params), stack(masks))
    carries = jax.jit(jax.vmap(one_seed))(carries)
    for seed in range(3):
        assert_trained_under(masks[seed], nets.element(carries, seed), params[seed])


@promoted
@every_optimizer
def test_masks_are_replaced_without_another_compilation(name):
    params, average, state = first_half(name)
    masks = draw_masks(7)
    for now, then in ((MASKS, masks), (masks, MASKS)):  # some weights go, some come back
        assert bool((now["w"] & ~then["w"]).any())
    params, average = sj.apply_masks(params, masks), sj.apply_masks(average, masks)
    before = TRACES[name], train._cache_size()
    carry = train(name, (params, average, sj.replace_masks(state, masks)), INPUTS)
    assert (TRACES[name], train._cache_size()) == before
    assert_trained_under(masks, carry, params)


@promoted
@every_optimizer
def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(name, tmp_path):
    carry = first_half(name)
    shapes = jax.eval_shape(lambda: carry)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "half", carry)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "half", shapes)
    finished = train(name, restored, INPUTS)
    nets.assert_equal(finished, train(name, carry, INPUTS))
    assert_trained_under(MASKS, finished, carry[0])


# --- freeze_pruned ------------------------------------------------------------------------


def test_a_nan_update_of_a_pruned_weight_is_dropped():
    freeze = sj.freeze_pruned({"w": jnp.array([False, True])})
    state = freeze.init({"w": jnp.ones(2)})
    updates, _ = freeze.update({"w": jnp.array([jnp.nan, 3.0])}, state)
    np.testing.assert_array_equal(updates["w"], [0.0, 3.0])


def test_a_step_that_donates_its_state_leaves_the_masks_alone():
    freeze = sj.freeze_pruned(MASKS)
    step = jax.jit(freeze.update, donate_argnums=1)
    _, state = step(PARAMS, freeze.init(PARAMS))
    step(PARAMS, sj.replace_masks(state, MASKS))
    assert int(sj.count(MASKS)) == 10


@promoted
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "mixing",
    [optax.clip_by_global_norm(1.0), optax.adafactor(0.1, min_dim_size_to_factor=2)],
)
def test_a_first_one_keeps_gradients_of_pruned_weights_out_of_the_others(mixing, first):
    freeze = sj.freeze_pruned(MASKS)
    optimizer = optax.chain(*[freeze][:first], mixing, freeze)
    state = optimizer.init(PARAMS)
    other = jax.tree.map(lambda g, m: jnp.where(m, g, 100.0), PARAMS, MASKS)
    got, want = (optimizer.update(g, state, PARAMS)[0] for g in (other, PARAMS))
    assert bool((got["w"] == want["w"]).all()) is first


def test_masks_that_do_not_fit_are_refused_at_init(no_typecheck):
    with pytest.raises(ValueError, match=r"masks\['b'\]"):
        sj.freeze_pruned({"w": MASKS["w"], "b": jnp.ones(2, bool)}).init(PARAMS)
    part = frozen(optax.sgd(0.1))(MASKS)
    whole = optax.multi_transform({"w": part, "b": optax.sgd(0.1)}, {"w": "w", "b": "b"})
    with pytest.raises(ValueError, match="`masks` must have the structure"):
        whole.init(PARAMS)


# --- replace_masks ------------------------------------------------------------------------


def test_a_weight_that_comes_back_has_the_momentum_of_its_cut_updates():
    masks = {"w": jnp.array([True, False])}
    optimizer = frozen(optax.sgd(1.0, momentum=0.5))(masks)
    state = optimizer.init({"w": jnp.zeros(2)})
    for _ in range(2):
        updates, state = optimizer.update({"w": jnp.ones(2)}, state)
    np.testing.assert_array_equal(updates["w"], [-1.5, 0])
    state = sj.replace_masks(state, {"w": jnp.array([False, True])})
    updates, _ = optimizer.update({"w": jnp.zeros(2)}, state)
    np.testing.assert_array_equal(updates["w"], [0, -0.75])


def test_masks_that_do_not_fit_the_state_are_refused(no_typecheck):
    state = frozen(optax.adam(0.1))(MASKS).init(PARAMS)
    with pytest.raises(ValueError, match=r"`masks\['b'\]` has shape \(2,\)"):
        sj.replace_masks(state, {"w": MASKS["w"], "b": jnp.ones(2, bool)})
    with pytest.raises(ValueError, match=r"`masks\['b'\]` has dtype float32"):
        sj.replace_masks(state, {"w": MASKS["w"], "b": jnp.ones(4)})
    with pytest.raises(ValueError, match="`masks` must have the structure"):
        sj.replace_masks(state, {"w": MASKS["w"]})
    with pytest.raises(ValueError, match="`opt_state` holds no masks"):
        sj.replace_masks(optax.adam(0.1).init(PARAMS), MASKS)


# --- mask_train_state ---------------------------------------------------------------------

ROWS = nets.draw({"x": (6, 5)})["x"]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(2)(nn.relu(x))


class StateWithStats(TrainState):
    batch_stats: Any


def new_state(optimizer):
    variables = Net().init(jax.random.key(0), ROWS)
    state = StateWithStats.create(apply_fn=Net().apply, tx=optimizer, **variables)
    return state.replace(step=jnp.int32(0))  # a Python int would compile once more


@jax.jit
def train_step(state):
    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        y, new = state.apply_fn(variables, ROWS, train=True, mutable=["batch_stats"])
        return ((y - 1) ** 2).mean(), new["batch_stats"]

    gradients, stats = jax.grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradients, batch_stats=stats)


def trained(state, steps=5):
    for _ in range(steps):
        state = train_step(state)
    return state


def random_masks(params, density, seed=0):
    """Masks of a network's kernels, quicker than `sj.prune` makes them."""
    rng = np.random.default_rng(seed)
    keep = lambda p: jnp.asarray(rng.random(p.shape) < density)  # noqa: E731
    return jax.tree.map(
        lambda p: keep(p) if p.ndim > 1 else jnp.ones(p.shape, bool), params
    )


def assert_zero_exactly_where_pruned(params, masks, least=1.0):
    """At least this share of kept weights: one that comes back may have no gradient."""
    kernels = [(params[n]["kernel"], masks[n]["kernel"]) for n in ("Dense_0", "Dense_1")]
    for kernel, mask in kernels:
        assert 0 < int(mask.sum()) < mask.size
        np.testing.assert_array_equal(kernel[~mask], 0)
        assert int((kernel != 0)[mask].sum()) >= least * int(mask.sum())


@promoted
def test_a_trained_train_state_goes_on_under_masks():
    before = trained(new_state(optax.adam(0.01)))
    masks, _ = sj.prune(sj.magnitude(), before.params, 0.5, rounds=1)
    state = sj.mask_train_state(before, masks)
    assert type(state) is StateWithStats
    assert jax.tree.structure(state.tx.init(state.params)) == jax.tree.structure(
        state.opt_state
    )
    kept = sj.apply_masks(before.opt_state[0].mu, masks)  # moments too
    nets.assert_equal(state.opt_state.inner[0].mu, kept)
    assert state.opt_state.inner[0].count == before.opt_state[0].count
    nets.assert_equal(state.params, sj.apply_masks(before.params, masks))
    after = trained(state)
    assert int(after.step) == 10
    assert_zero_exactly_where_pruned(after.params, masks)
    for name in ("Dense_0", "Dense_1"):
        new, old = (tree.params[name]["kernel"] for tree in (after, state))
        assert ((new != old) == masks[name]["kernel"]).all()
    stats = jax.tree.map(
        lambda a, b: bool((a != b).any()), after.batch_stats, state.batch_stats
    )
    assert all(jax.tree.leaves(stats))


@promoted
@pytest.mark.parametrize("placed", [False, True])
def test_masks_of_a_train_state_are_replaced_without_another_compilation(placed):
    state, before = new_state(optax.adam(0.01)), train_step._cache_size()
    if placed:  # arrays that lie elsewhere are other arguments to a compiled step
        state = jax.device_put(state, jax.devices()[0])
    state = trained(sj.mask_train_state(state, sj.all_kept(state.params)))
    # From one state under many masks, and one after the other.
    for density, seed in ((0.7, 0), (0.4, 1), (0.5, 2)):
        masks = random_masks(state.params, density, seed)
        one = trained(sj.mask_train_state(state, masks))
        assert_zero_exactly_where_pruned(one.params, masks, least=0.6)
        masks = random_masks(state.params, density, seed + 3)
        other = trained(sj.mask_train_state(one, masks))
        assert_zero_exactly_where_pruned(other.params, masks, least=0.6)
        assert other.tx is state.tx
        nets.assert_equal(sj.masks_of(other.opt_state), masks)
    assert train_step._cache_size() == before + 1


def test_the_optimizer_of_a_train_state_starts_with_the_first_masks():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=optax.sgd(0.1))
    state = sj.mask_train_state(sj.mask_train_state(state, MASKS), draw_masks(7))
    reset = state.replace(opt_state=state.tx.init(state.params))
    nets.assert_equal(sj.masks_of(reset.opt_state), MASKS)
    nets.assert_equal(sj.mask_train_state(reset, draw_masks(7)).opt_state, state.opt_state)


def test_a_train_state_that_was_made_with_masks_only_gets_others():
    optimizer = accumulated(frozen(optax.sgd(0.1))(MASKS))
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=optimizer)
    masks = draw_masks(7)
    state = sj.mask_train_state(state, masks)
    assert state.tx is optimizer
    nets.assert_equal(state.opt_state.inner_opt_state[1].masks, masks)
    nets.assert_equal(state.params, sj.apply_masks(PARAMS, masks))


def test_a_donated_train_state_leaves_the_masks_alone():
    step = jax.jit(lambda state: state.apply_gradients(grads=PARAMS), donate_argnums=0)
    params = jax.tree.map(jnp.copy, PARAMS)
    state = TrainState.create(apply_fn=None, params=params, tx=optax.sgd(0.1, momentum=0.9))
    for _ in range(2):
        state = step(sj.mask_train_state(state, MASKS))
    assert int(sj.count(MASKS)) == 10 and int(sj.count(sj.masks_of(state.opt_state))) == 10


def test_a_frozen_dict_takes_masks_of_its_kind():
    params, masks = FrozenDict(PARAMS), FrozenDict(MASKS)
    state = TrainState.create(apply_fn=None, params=params, tx=optax.sgd(0.1))
    state = sj.mask_train_state(state, masks).apply_gradients(grads=params)
    assert isinstance(state.params, FrozenDict)
    np.testing.assert_array_equal(np.asarray(state.params["w"]) != 0, MASKS["w"])


def test_what_is_no_train_state_or_does_not_fit_is_refused(no_typecheck):
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=optax.sgd(0.1))
    wrong = {"w": MASKS["w"], "b": jnp.ones(2, bool)}
    for at_first_or_later in (state, sj.mask_train_state(state, MASKS)):
        with pytest.raises(ValueError, match=r"`masks\['b'\]` has shape \(2,\)"):
            sj.mask_train_state(at_first_or_later, wrong)
    with pytest.raises(ValueError, match="`masks` must have the structure"):
        sj.mask_train_state(state, {"params": MASKS})
    with pytest.raises(ValueError, match="TrainState; dict has no params, tx, opt_state"):
        sj.mask_train_state(PARAMS, MASKS)


# --- nnx ----------------------------------------------------------------------------------


@promoted
def test_an_nnx_optimizer_takes_masks_and_other_masks_without_another_trace():
    model = nnx.Sequential(*(nnx.Linear(5, 5, rngs=nnx.Rngs(i)) for i in range(3)))
    _, params = sj.from_nnx(model)
    masks, _ = sj.prune(sj.magnitude(), params, 0.4, rounds=1)
    others = random_masks(params, 0.4)
    model = sj.to_nnx(model, sj.apply_masks(params, masks))
    freeze = sj.freeze_pruned(nnx.state(sj.to_nnx(model, masks), nnx.Param))
    optimizer = nnx.Optimizer(model, optax.chain(optax.adam(0.01), freeze), wrt=nnx.Param)
    traces = 0

    @nnx.jit
    def step(model, optimizer):
        nonlocal traces
        traces += 1
        gradients = nnx.grad(lambda model: ((model(ROWS) - 1) ** 2).mean())(model)
        optimizer.update(model, gradients)

    def assert_trained_under(masks):
        for _ in range(10):
            step(model, optimizer)
        after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        for layer, mask in zip(after["layers"].values(), masks["layers"].values()):
            np.testing.assert_array_equal(layer["kernel"] != 0, mask["kernel"])
        return after

    params = sj.apply_masks(assert_trained_under(masks), others)
    nnx.update(model, nnx.state(sj.to_nnx(model, params), nnx.Param))
    nnx.replace_by_pure_dict(optimizer.opt_state[-1].masks, others)
    assert_trained_under(others)
    assert traces == 1

"""What gradual pruning and dynamic sparsity both promise of training loops and wrappers."""

import functools
import os
import re
import subprocess
import sys

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import synflow_jax as sj
from tests import nets

pytestmark = pytest.mark.usefixtures("standard_promotion")

SHAPES = {"a": (4, 8), "b": (8, 3)}
PARAMS = {
    name: {"kernel": leaf, "bias": jnp.ones(leaf.shape[1])}
    for name, leaf in nets.draw(SHAPES).items()
}
INPUTS = nets.draw({"x": (12, 6, 4)}, 3)["x"]
STEPS = len(INPUTS)


def masks_from(seed, params=PARAMS):
    rng = np.random.default_rng(seed)
    half = lambda p: jnp.asarray(rng.permutation(p.size).reshape(p.shape) < p.size // 2)  # noqa: E731
    return jax.tree.map(
        lambda p: half(p) if p.ndim > 1 else jnp.ones(p.shape, bool), params
    )


def gradual(optimizer, masks=None, seed=0, density=0.2):
    """By random scores, so that its key matters."""
    score = sj.random(jax.random.key(seed))
    times = {"begin": 3, "end": 11, "every": 4}
    return sj.gradual_pruning(optimizer, score, density, masks=masks, **times)


def dynamic(optimizer, masks=None, seed=0):
    masks = masks_from(0) if masks is None else masks
    key, grow = jax.random.key(seed), sj.grow_at_random()
    return sj.dynamic_sparsity(
        optimizer, masks, grow, every=4, until=STEPS, fraction=0.8, key=key
    )


MADE = {"gradual": gradual, "dynamic": dynamic}
both = pytest.mark.parametrize("make", MADE.values(), ids=MADE)


def network(params, x):
    x = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    return x @ params["b"]["kernel"] + params["b"]["bias"][None]


def loss(params, x):
    return jnp.mean((network(params, x) - 1) ** 2)


def stepping(optimizer):
    def step(carry, x):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
        return (optax.apply_updates(params, updates), state), None

    return step


def trained(optimizer, params=PARAMS, inputs=INPUTS, jit=lambda step: step):
    """Step by step, without jit unless it is given, as compiling takes longest."""
    step = jit(stepping(optimizer))
    carry = params, optimizer.init(params)
    for x in inputs:
        carry, _ = step(carry, x)
    return carry


def assert_zero_exactly_where_pruned(params, masks, fewest=1):
    for name in SHAPES:
        leaf, mask = params[name]["kernel"], masks[name]["kernel"]
        assert fewest <= int(mask.sum()) < mask.size
        np.testing.assert_array_equal(leaf[~mask], 0)


@functools.cache
def reference(make):
    return trained(make(optax.adamw(0.05)), jit=jax.jit)


# --- compiled loops -----------------------------------------------------------------------


@both
def test_one_program_serves_every_step_and_may_take_its_arguments(make):
    params, state = reference(make)
    assert_zero_exactly_where_pruned(params, state.masks)
    # A step that donates its state must not take the masks and the key that were given.
    masks = masks_from(0) if make is dynamic else sj.all_kept(PARAMS)
    optimizer = make(optax.adamw(0.05), masks)
    step = jax.jit(stepping(optimizer), donate_argnums=0)
    given = jax.tree.map(jnp.copy, PARAMS)
    carry = given, optimizer.init(given)
    for x in INPUTS:
        carry, _ = step(carry, x)
    nets.assert_equal(carry, (params, state))
    assert step._cache_size() == 1
    assert not any(mask.is_deleted() for mask in jax.tree.leaves(masks))
    optimizer.init(PARAMS)  # with the same key


@pytest.mark.parametrize("make", [pytest.param(gradual, marks=pytest.mark.long), dynamic])
def test_each_seed_of_a_vmap_and_a_scan_has_its_own_masks_and_key(make):
    stack = lambda trees: jax.tree.map(lambda *xs: jnp.stack(xs), *trees)  # noqa: E731
    seeds = range(2)
    masks = [masks_from(seed) for seed in seeds]
    firsts = [sj.apply_masks(PARAMS, m) for m in masks]
    options = {"density": 0.1} if make is gradual else {}
    one_by_one = [
        trained(make(optax.adamw(0.05), m, seed, **options), p)
        for seed, m, p in zip(seeds, masks, firsts)
    ]

    def start(params, seed, masks):
        if make is dynamic:
            return make(optax.adamw(0.05), masks, seed).init(params)
        # Its counts need the masks on the host; the key may differ.
        optimizer = make(optax.adamw(0.05), masks_from(0), seed, **options)
        return sj.replace_masks(optimizer.init(params), masks)

    states = jax.vmap(start)(stack(firsts), jnp.arange(2), stack(masks))
    optimizer = make(optax.adamw(0.05))  # of other masks and another key
    run = jax.jit(jax.vmap(lambda c: jax.lax.scan(stepping(optimizer), c, INPUTS)[0]))
    params, states = run((stack(firsts), states))
    for seed in seeds:
        want, state = one_by_one[seed]
        nets.assert_equal(nets.element(states.masks, seed), state.masks)
        nets.assert_close(nets.element(params, seed), want, rtol=1e-4)
    assert not np.array_equal(
        states.masks["a"]["kernel"][0], states.masks["a"]["kernel"][1]
    )


def test_schedules_vary_under_vmap():
    optimizer = gradual(optax.sgd(0.1))
    start = optimizer.init(PARAMS)
    asked = [{}, {"density": 0.5}, {"begin": 7, "end": 11}, {"end": 3, "density": 0.05}]
    states = [sj.replace_schedule(start, **one) for one in asked]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *states)
    run = lambda s: jax.lax.scan(stepping(optimizer), (PARAMS, s), INPUTS)[0][1].masks  # noqa: E731
    masks = jax.jit(jax.vmap(run))(stacked)
    one = jax.jit(run)
    counts = np.sum([np.asarray(masks[n]["kernel"]).sum((1, 2)) for n in SHAPES], axis=0)
    assert counts.tolist() == [sj.num_kept(56, d) for d in (0.2, 0.5, 0.2, 0.05)]
    for i, state in enumerate(states):
        nets.assert_equal(nets.element(masks, i), one(state))
    assert one._cache_size() == 1


def computations(text):
    """The lines of each computation of a compiled program, by name; the entry is ENTRY."""
    found = {}
    for block in re.split(r"\n\n", text):
        head = block.lstrip().split("\n", 1)[0]
        match = re.match(r"(ENTRY )?%?([\w.-]+) ", head)
        if match and head.rstrip().endswith("{"):
            found["ENTRY" if match[1] else match[2]] = block
    return found


def reached(blocks, name, through_branches):
    """Names of the computations that one calls, by way of conditionals or not."""
    seen, todo = set(), [name]
    while todo:
        for line in blocks[todo.pop()].splitlines():
            if not through_branches and re.search(r"= .* conditional\(", line):
                continue
            for called in re.findall(r"%([\w.-]+)", line):
                if called in blocks and called not in seen:
                    seen.add(called)
                    todo.append(called)
    return seen


@both
@pytest.mark.parametrize("seeds", [None, 8])
def test_the_selection_stands_inside_a_conditional(make, seeds):
    """In the compiled text: the loops of the search are reached through branches only, with
    eight seeds under vmap too, where `jax.lax.cond` would compute both branches."""
    optimizer = make(optax.sgd(0.1))
    params, state = PARAMS, optimizer.init(PARAMS)
    update = optimizer.update
    if seeds:
        params, state = jax.tree.map(lambda x: jnp.stack([x] * seeds), (params, state))
        update = jax.vmap(update)
    text = jax.jit(update).lower(params, state, params).compile().as_text()
    blocks = computations(text)
    outside = {"ENTRY"} | reached(blocks, "ENTRY", through_branches=False)
    inside = reached(blocks, "ENTRY", through_branches=True) - outside
    loops = lambda names: sum(" while(" in blocks[name] for name in names)  # noqa: E731
    assert loops(inside) >= 1 and loops(outside) == 0


# --- checkpoints --------------------------------------------------------------------------


@both
def test_a_checkpoint_in_mid_schedule_goes_on_bit_for_bit(make, tmp_path):
    optimizer = make(optax.adamw(0.05))
    half = trained(optimizer, inputs=INPUTS[:6], jit=jax.jit)
    shapes = jax.eval_shape(lambda: half)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "half", half)
        checkpointer.wait_until_finished()
        carry = checkpointer.restore(tmp_path / "half", shapes)
    nets.assert_equal(carry, half)
    step = jax.jit(stepping(optimizer))
    for x in INPUTS[6:]:
        carry, _ = step(carry, x)
    nets.assert_equal(carry, reference(make))


# --- masks in a state ---------------------------------------------------------------------


def by_label(optimizer):
    labels = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key, PARAMS)
    return optax.multi_transform({"kernel": optimizer, "bias": optax.sgd(0.1)}, labels)


AROUND = {
    "chain": lambda make: optax.chain(optax.clip(1.0), make(optax.adam(0.05))),
    "MultiSteps": lambda make: optax.MultiSteps(make(optax.adam(0.05)), 2),
    "apply_if_finite": lambda make: optax.apply_if_finite(make(optax.adam(0.05)), 3),
    "inject_hyperparams": lambda make: optax.inject_hyperparams(
        lambda learning_rate: make(optax.adam(learning_rate))
    )(0.05),
    "MultiSteps inside": lambda make: make(optax.MultiSteps(optax.adam(0.05), 2)),
    "multi_transform inside": lambda make: make(by_label(optax.adam(0.05))),
    "inject_hyperparams inside": lambda make: make(
        optax.inject_hyperparams(optax.adam)(0.05)
    ),
    "schedule_free inside": lambda make: make(
        optax.contrib.schedule_free(optax.sgd(0.05), 0.05)
    ),
}


# They put the update into a branch, so each of their steps would be compiled anew.
BRANCHES = {"MultiSteps", "MultiSteps inside", "apply_if_finite"}


@functools.cache
def trained_in(name, make):
    inputs = INPUTS.at[1].set(jnp.nan) if name == "apply_if_finite" else INPUTS
    jit = {"jit": jax.jit} if name in BRANCHES else {}
    return trained(AROUND[name](make), inputs=inputs, **jit)


@both
@pytest.mark.parametrize("name", AROUND)
def test_masks_are_found_and_replaced_and_hold_in_every_wrapper(name, make):
    params, state = trained_in(name, make)
    masks = sj.masks_of(state)
    assert_zero_exactly_where_pruned(params, masks)
    if name == "schedule_free inside":
        shown = optax.contrib.schedule_free_eval_params(state.inner, params)
        assert_zero_exactly_where_pruned(shown, masks)
    others = masks_from(5)
    state = sj.replace_masks(state, others)
    nets.assert_equal(sj.masks_of(state), others)
    if name in BRANCHES:
        return
    params = sj.apply_masks(params, others)
    (params, state), _ = stepping(AROUND[name](make))((params, state), INPUTS[0])
    nets.assert_equal(sj.masks_of(state), others)
    assert_zero_exactly_where_pruned(params, others)
    if name == "schedule_free inside":
        shown = optax.contrib.schedule_free_eval_params(state.inner, params)
        assert_zero_exactly_where_pruned(shown, others)


def test_gradual_pruning_may_be_a_part_of_multi_transform():
    params, state = trained(by_label(gradual(optax.adam(0.05))))
    counts = [int((params[n]["kernel"] != 0).sum()) for n in SHAPES]
    assert sum(counts) == sj.num_kept(56, 0.2)
    assert jax.tree.leaves(sj.masks_of(state))[0].shape == (4, 8)


@both
def test_what_counts_as_an_update(make):
    """A rejected one does not; inside MultiSteps, those that are accumulated do."""
    counts = {}
    for name in ("apply_if_finite", "MultiSteps", "MultiSteps inside"):
        _, state = trained_in(name, make)
        inner = {
            "apply_if_finite": lambda s: s.inner_state,
            "MultiSteps": lambda s: s.inner_opt_state,
            "MultiSteps inside": lambda s: s,
        }[name](state)
        counts[name] = int(inner.step)
    assert counts == {
        "apply_if_finite": STEPS - 1,
        "MultiSteps": STEPS // 2,
        "MultiSteps inside": STEPS,
    }


@both
def test_extra_arguments_reach_the_optimizer(make):
    optimizer = make(optax.contrib.reduce_on_plateau(patience=1, factor=0.5))
    state = optimizer.init(PARAMS)
    for _ in range(2):
        _, state = optimizer.update(PARAMS, state, PARAMS, value=1.0)
    assert float(state.inner.scale) == 0.5
    polyak = make(optax.polyak_sgd(1.0))
    updates, _ = polyak.update(PARAMS, polyak.init(PARAMS), PARAMS, value=2.0)
    assert bool(jnp.isfinite(updates["a"]["kernel"]).all())


@both
def test_a_pair_of_lookahead_is_pruned_in_both(make):
    optimizer = make(optax.lookahead(optax.sgd(0.05), 2, 0.5))
    pair = optax.LookaheadParams.init_synced(PARAMS)
    state = optimizer.init(pair)
    for x in INPUTS:
        updates, state = optimizer.update(jax.grad(loss)(pair.fast, x), state, pair)
        pair = optax.apply_updates(pair, updates)
    for params in pair:
        assert_zero_exactly_where_pruned(params, state.masks)


# --- other libraries ----------------------------------------------------------------------

ROWS = INPUTS[0]


@both
def test_flax_train_states(make):
    net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
    params = net.init(jax.random.key(0), ROWS)["params"]
    optimizer = make(optax.adam(0.05), masks_from(0, params))
    params = sj.apply_masks(params, masks_from(0, params))
    state = TrainState.create(apply_fn=net.apply, params=params, tx=optimizer)
    state = state.replace(step=jnp.int32(0))

    @jax.jit
    def step(state, x):
        grads = jax.grad(lambda p: jnp.mean((net.apply({"params": p}, x) - 1) ** 2))
        return state.apply_gradients(grads=grads(state.params))

    for x in INPUTS:
        state = step(state, x)
    masks = sj.masks_of(state.opt_state)
    for leaf, mask in zip(*map(jax.tree.leaves, (state.params, masks))):
        np.testing.assert_array_equal(leaf[~mask], 0)
    assert step._cache_size() == 1
    assert bool(
        (masks["layers_0"]["kernel"] != masks_from(0, params)["layers_0"]["kernel"]).any()
    )


@both
def test_nnx_optimizers(make):
    model = nnx.Sequential(*(nnx.Linear(4, 4, rngs=nnx.Rngs(i)) for i in range(2)))
    _, params = sj.from_nnx(model)
    masks = masks_from(0, params)
    model = sj.to_nnx(model, sj.apply_masks(params, masks))
    first = nnx.state(sj.to_nnx(model, masks), nnx.Param)
    optimizer = nnx.Optimizer(model, make(optax.adam(0.05), first), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        grads = nnx.grad(lambda model: ((model(x) - 1) ** 2).mean())(model)
        optimizer.update(model, grads)

    for x in INPUTS:
        step(model, optimizer, x)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    new = nnx.to_pure_dict(optimizer.opt_state.masks)
    moved = False
    for i, layer in after["layers"].items():
        mask = new["layers"][i]["kernel"]
        np.testing.assert_array_equal(layer["kernel"][~mask], 0)
        moved |= bool((mask != masks["layers"][i]["kernel"]).any())
    assert moved


@both
def test_filtered_updates_of_equinox(make):
    model = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    masks = masks_from(0, params)
    optimizer = make(optax.adam(0.05), masks)
    model = eqx.combine(sj.apply_masks(params, masks), model)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, x):
        grads = eqx.filter_grad(lambda m: jnp.mean((jax.vmap(m)(x) - 1) ** 2))(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = optimizer.update(grads, state, params)
        return eqx.apply_updates(model, updates), state

    for x in INPUTS:
        model, state = step(model, state, x)
    for layer, mask, old in zip(model.layers, sj.masks_of(state).layers, masks.layers):
        np.testing.assert_array_equal(layer.weight[~mask.weight], 0)
        assert bool((mask.weight != old.weight).any())


# --- many devices -------------------------------------------------------------------------

SHARDED = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import synflow_jax as sj

# Integers, so that sums are the same in every order.
rng = np.random.default_rng(0)
draw = lambda *shape: jnp.asarray(rng.integers(-8, 8, shape), jnp.float32)
params = {"a": {"kernel": draw(16, 32)}, "b": {"kernel": draw(32, 8)}}
data = draw(5, 16, 16)
masks = {n: {"kernel": jnp.asarray(rng.random(p["kernel"].shape) < 0.5)}
         for n, p in params.items()}
network = lambda p, x: jnp.sum((x @ p["a"]["kernel"] / 64) ** 2) + jnp.sum(
    p["b"]["kernel"] ** 2 * jnp.sum(x)) / 64
mesh = Mesh(np.array(jax.devices()), ("x",))
put = lambda tree, *axes: jax.device_put(tree, NamedSharding(mesh, P(*axes)))
made = {
    "gradual": sj.gradual_pruning(
        optax.sgd(1.0), sj.magnitude(), 0.2, begin=1, end=5, every=2, masks=masks),
    "dynamic": sj.dynamic_sparsity(
        optax.sgd(1.0), masks, sj.grow_by_gradient(), every=2, until=6,
        prunable=sj.matching("a/*")),
}
for name, optimizer in made.items():
    @jax.jit
    def step(params, state, x):
        grads = jax.grad(network)(params, x)
        grads = jax.tree.map(lambda g: jnp.round(g) / 8, grads)
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(jnp.round, optax.apply_updates(params, updates)), state

    def trained(params, data):
        state = optimizer.init(params)
        for x in data:
            params, state = step(params, state, x)
        return params, state

    first = sj.apply_masks(params, masks)
    want = trained(first, data)
    replicated = trained(put(first), put(data, None, "x"))
    sharded = trained(put(first, "x"), put(data, None, "x"))
    for got in (replicated, sharded):
        jax.tree.map(np.testing.assert_array_equal, got[1].masks, want[1].masks)
        jax.tree.map(np.testing.assert_array_equal, got[0], want[0])
    assert int(sj.count(want[1].masks)) < 768
    for leaf, mask in zip(*map(jax.tree.leaves, (sharded[0], sharded[1].masks))):
        assert len({str(s.index) for s in leaf.addressable_shards}) == 8, name
        assert mask.sharding.is_equivalent_to(leaf.sharding, 2), (name, mask.sharding)
"""


def test_masks_on_eight_devices_are_those_of_one():
    """Data-parallel, and with parameters, masks and moments divided (FSDP)."""
    flags = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", SHARDED], env=environment, check=True)

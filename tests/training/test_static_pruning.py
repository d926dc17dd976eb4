"""static_pruning: pruned weights stay zero under every optimizer that optax exports."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import synflow_jax as sj
from tests import nets

pytestmark = [
    pytest.mark.usefixtures("promoted"),
    # Of names that are exported and go out of use.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Specifying a key"),
]

STEPS = 5
MASKS = {
    "w": jnp.asarray(np.random.default_rng(0).permutation(12).reshape(3, 4) < 6),
    "b": jnp.ones(4, bool),
}
PARAMS = sj.apply_masks(nets.draw({"w": (3, 4), "b": (4,)}), MASKS)
GRADIENTS = [nets.draw({"w": (3, 4), "b": (4,)}, seed) for seed in range(1, STEPS + 1)]
SGD = optax.sgd(0.1)
contrib = optax.contrib


@pytest.fixture
def promoted():
    """Optax's updates rely on promotion, some of ranks too."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def value_fn(params):
    return sum(jnp.sum((p - 1) ** 2) for p in jax.tree.leaves(params))


def at(params, gradients):
    """Extra arguments of optimizers that look along a line."""
    value = value_fn(params)
    return {"value": value, "grad": gradients, "value_fn": value_fn}


def of_value(params, gradients):
    return {"value": value_fn(params)}


def of_examples(params, gradients):
    return jax.tree.map(lambda g: jnp.stack([g, -g, 2 * g]), gradients)


# Optimizers and wrappers, by name; those that need nothing but a learning rate are below.
MADE = {
    "MultiSteps": lambda: optax.MultiSteps(SGD, 2),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
    "adaptive_grad_clip": lambda: optax.adaptive_grad_clip(0.1),
    "add_decayed_weights": lambda: optax.add_decayed_weights(0.1),
    "add_noise": lambda: optax.add_noise(0.1, 0.5, 0),
    "apply_if_finite": lambda: optax.apply_if_finite(SGD, 3),
    "chain": lambda: optax.chain(optax.trace(0.9), SGD),
    "clip": lambda: optax.clip(0.1),
    "clip_by_block_rms": lambda: optax.clip_by_block_rms(0.1),
    "clip_by_global_norm": lambda: optax.clip_by_global_norm(0.1),
    "conditionally_mask": lambda: optax.conditionally_mask(SGD, lambda step: step < 2),
    "conditionally_transform": lambda: optax.conditionally_transform(
        SGD, lambda step: step < 2
    ),
    "ema": lambda: optax.ema(0.9),
    "flatten": lambda: optax.flatten(optax.adam(0.1)),
    "freeze": lambda: optax.freeze({"w": False, "b": True}),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(0.1),
    "inject_stateful_hyperparams": lambda: optax.inject_stateful_hyperparams(optax.adam)(
        learning_rate=0.1
    ),
    "lookahead": lambda: optax.lookahead(optax.adam(0.1), 2, 0.5, reset_state=True),
    "masked": lambda: optax.masked(optax.adam(0.1), {"w": True, "b": False}),
    # What it returns is no update.
    "measure_with_ema": lambda: optax.monitor(
        {"norm": optax.measure_with_ema(optax.tree.norm, 0.9)}
    ),
    "monitor": lambda: optax.monitor({"norm": optax.tree.norm}),
    "named_chain": lambda: optax.named_chain(("a", optax.trace(0.9)), ("b", SGD)),
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, eta=1.0),
    "partition": lambda: optax.partition(
        {"a": optax.adamw(0.1), "b": SGD}, {"w": "a", "b": "b"}
    ),
    "scale": lambda: optax.scale(-0.1),
    "scale_by_backtracking_linesearch": lambda: optax.chain(
        SGD, optax.scale_by_backtracking_linesearch(3)
    ),
    "scale_by_learning_rate": lambda: optax.scale_by_learning_rate(0.1),
    "scale_by_muon": lambda: optax.masked(
        contrib.scale_by_muon(
            weight_dimension_numbers={
                "w": contrib.MuonDimensionNumbers(),
                "b": optax.MaskedNode(),
            }
        ),
        {"w": True, "b": False},
    ),
    "scale_by_rprop": lambda: optax.scale_by_rprop(0.1),
    "scale_by_schedule": lambda: optax.scale_by_schedule(lambda step: -0.1),
    "scale_by_zoom_linesearch": lambda: optax.chain(SGD, optax.scale_by_zoom_linesearch(3)),
    "selective_transform": lambda: optax.selective_transform(
        SGD, freeze_mask={"w": False, "b": True}
    ),
    "snapshot": lambda: optax.snapshot("norm", optax.tree.norm),
    "stateless": lambda: optax.stateless(lambda updates, params: updates),
    "stateless_with_tree_map": lambda: optax.stateless_with_tree_map(lambda g, p: -g),
    "trace": lambda: optax.trace(0.9),
    "with_extra_args_support": lambda: optax.with_extra_args_support(SGD),
    "lbfgs": lambda: optax.lbfgs(
        memory_size=2, linesearch=optax.scale_by_backtracking_linesearch(3)
    ),
    "differentially_private_aggregate": lambda: contrib.differentially_private_aggregate(
        1.0, 0.1, 0
    ),
    "dpsgd": lambda: contrib.dpsgd(0.1, 1.0, 0.1, 0),
    "galore": lambda: contrib.galore(0.1, rank=2),
    "scale_by_galore": lambda: contrib.scale_by_galore(rank=2),
    "hutchinson_estimator_diag_hessian": lambda: contrib.hutchinson_estimator_diag_hessian(
        jax.random.key(0)
    ),
    "mechanize": lambda: contrib.mechanize(SGD),
    "reduce_on_plateau": lambda: contrib.reduce_on_plateau(patience=1),
    "sam": lambda: contrib.sam(SGD, optax.adam(0.1), sync_period=3, reset_state=False),
    "schedule_free": lambda: contrib.schedule_free(optax.adam(0.1, b1=0.0), 0.1),
    "split_real_and_imaginary": lambda: contrib.split_real_and_imaginary(SGD),
}
EXTRA = {
    "lbfgs": at,
    "hutchinson_estimator_diag_hessian": lambda p, g: {"obj_fn": value_fn},
    "momo": of_value,
    "momo_adam": of_value,
    "polyak_sgd": of_value,
    "reduce_on_plateau": of_value,
    "scale_by_backtracking_linesearch": at,
    "scale_by_polyak": of_value,
    "scale_by_zoom_linesearch": at,
    "sophia": lambda p, g: {"obj_fn": value_fn},
}
EXAMPLES = {"differentially_private_aggregate", "dpsgd"}  # want gradients of examples
NONE = {"apply_updates", "init_empty_state"}
STILL = {"set_to_zero"}  # moves nothing


def exported():
    """Names of all that makes a transformation: its code says so. Of two names of one
    function, the first."""
    names = {optax.MultiSteps: "MultiSteps"}
    for module in (optax, contrib):
        for name, value in vars(module).items():
            function = getattr(value, "func", value)  # nadam is a partial function
            if name.startswith("_") or name in NONE:
                continue
            if inspect.isfunction(function):
                if "GradientTransformation" in inspect.getsource(function):
                    key = value if function is value else name
                    names.setdefault(key, name)
    return sorted(names.values())


NAMES = exported()


def make(name):
    if name in MADE:
        return MADE[name]()
    function = getattr(optax, name, None) or getattr(contrib, name)
    needed = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    assert needed in ([], ["learning_rate"]), f"`{name}` is new: it needs a row in MADE"
    return function(*[0.1] * len(needed))


@functools.cache
def step_of(name):
    # Not the masks that a test looks for: only those in the state may count.
    optimizer = sj.static_pruning(make(name), sj.all_kept(PARAMS))

    @jax.jit
    def step(params, state, gradients):
        now = getattr(params, "fast", params)
        extra = EXTRA[name](now, gradients) if name in EXTRA else {}
        if name in EXAMPLES:
            gradients = jax.tree.map(lambda g: jnp.stack([g, -g, 2 * g]), gradients)
        updates, state = optimizer.update(gradients, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


def trained(name, gradients):
    params = PARAMS
    if name == "lookahead":
        params = optax.LookaheadParams.init_synced(PARAMS)
    state = sj.static_pruning(make(name), MASKS).init(params)
    for one in gradients:
        params, state = step_of(name)(params, state, one)
    return params, state


def with_nan(where):
    """The gradients with NaN among them: all of them for True, or where pruned."""
    put = lambda g, m: jnp.where(m if where is None else True, jnp.nan, g)  # noqa: E731
    pruned = jax.tree.map(jnp.logical_not, MASKS)
    return [jax.tree.map(put, g, pruned) for g in GRADIENTS]


def assert_zero_where_pruned(tree, leaves):
    """In all copies of the weights, of which there are so many at least."""
    found = [np.asarray(x) for x in jax.tree.leaves(tree) if jnp.shape(x) == (3, 4)]
    copies = [x for x in found if x.dtype != bool]
    assert len(copies) >= leaves
    for copy in copies:
        np.testing.assert_array_equal(copy[~np.asarray(MASKS["w"])], 0)


@pytest.mark.parametrize("name", NAMES)
def test_pruned_weights_and_their_copies_stay_zero_under(name):
    params, state = trained(name, GRADIENTS)
    assert_zero_where_pruned(params, 1)
    assert_zero_where_pruned(state.inner, 0)
    if name.startswith("schedule_free"):
        assert_zero_where_pruned(contrib.schedule_free_eval_params(state.inner, params), 1)
    kept = np.asarray(getattr(params, "fast", params)["w"])[np.asarray(MASKS["w"])]
    assert np.isfinite(kept).all() and ((kept != 0).any())
    moved = kept != np.asarray(PARAMS["w"])[np.asarray(MASKS["w"])]
    assert moved.any() or name in STILL

    # What the gradients of pruned weights are makes no difference.
    other = trained(name, with_nan(None))
    nets.assert_equal((params, state), other)

    params, state = trained(name, with_nan(True))
    assert_zero_where_pruned(params, 1)
    assert_zero_where_pruned(state.inner, 0)


def test_a_link_of_a_chain_cannot_reach_the_average_that_is_evaluated():
    """The limit of `freeze_pruned` that its docstring states."""
    average = optax.contrib.schedule_free(SGD, 0.1)
    optimizer = optax.chain(average, sj.freeze_pruned(MASKS))
    state = optimizer.init(PARAMS)
    updates, state = optimizer.update(GRADIENTS[0], state, PARAMS)
    params = optax.apply_updates(PARAMS, updates)
    assert_zero_where_pruned(params, 1)
    shown = contrib.schedule_free_eval_params(state[0], params)
    assert bool((shown["w"] != 0)[~MASKS["w"]].all())


@pytest.mark.parametrize("around", [lambda o: optax.apply_if_finite(o, 3), None])
def test_two_wrappers_may_be_around_it(around):
    inner = sj.static_pruning(optax.adam(0.1), MASKS)
    optimizer = optax.MultiSteps(inner, 2) if around is None else around(inner)
    params, state = PARAMS, optimizer.init(PARAMS)
    for gradients in GRADIENTS[:2]:
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    assert_zero_where_pruned(params, 1)
    assert bool((params["w"] != PARAMS["w"]).any())
    nets.assert_equal(sj.masks_of(state), MASKS)


def test_copies_are_told_from_the_states_of_a_chain_and_by_their_shapes():
    """Parameters in a tuple, as the states of a chain are."""
    masks = (jnp.array([True, False]), jnp.array([False, True]))
    params = sj.apply_masks((jnp.ones(2), jnp.ones(2)), masks)
    optimizer = sj.static_pruning(optax.chain(optax.trace(0.9), optax.adam(0.1)), masks)
    updates, state = optimizer.update((jnp.ones(2), jnp.ones(2)), optimizer.init(params))
    for copy in (updates, state.inner[0].trace, state.inner[1][0].mu):
        for leaf, mask in zip(copy, masks):
            np.testing.assert_array_equal(np.asarray(leaf) != 0, mask)


@pytest.mark.parametrize("make", [sj.freeze_pruned, lambda m: sj.static_pruning(SGD, m)])
def test_none_among_updates_stays_none_and_what_does_not_fit_is_named(make):
    optimizer = make(MASKS)
    state = optimizer.init(PARAMS)
    updates, _ = optimizer.update({"w": GRADIENTS[0]["w"], "b": None}, state)
    assert updates["b"] is None
    np.testing.assert_array_equal(np.asarray(updates["w"]) != 0, MASKS["w"])
    with pytest.raises(ValueError, match=r"`updates\['w'\]` has shape \(4, 3\), but its"):
        optimizer.update({"w": jnp.ones((4, 3)), "b": None}, state)
    with pytest.raises(ValueError, match="`updates` must have the structure of the masks"):
        optimizer.update({"w": jnp.ones((3, 4))}, state)


def test_parameters_that_were_not_masked_leave_nothing_in_the_state():
    raw = nets.draw({"w": (3, 4), "b": (4,)})
    state = sj.static_pruning(contrib.sam(SGD, SGD), MASKS).init(raw)
    assert_zero_where_pruned(state.inner, 1)
    # A copy in one vector has not the structure of the masks.
    state = sj.static_pruning(optax.flatten(contrib.sam(SGD, SGD)), MASKS).init(raw)
    assert int((state.inner.cache != 0).sum()) == 6 + 4


def test_masks_under_vmap_are_each_their_own():
    masks = jax.tree.map(lambda m: jnp.stack([m, ~m]), MASKS)

    @jax.vmap
    def run(masks):
        optimizer = sj.static_pruning(contrib.schedule_free(SGD, 0.1), masks)
        params = sj.apply_masks(GRADIENTS[1], masks)
        updates, state = optimizer.update(GRADIENTS[0], optimizer.init(params), params)
        return optax.apply_updates(params, updates), sj.masks_of(state)

    params, got = run(masks)
    nets.assert_equal(got, masks)
    np.testing.assert_array_equal(params["w"] != 0, masks["w"])


# --- masks of a state ---------------------------------------------------------------------

OTHERS = jax.tree.map(lambda m: ~m, MASKS)


def test_new_masks_reach_every_copy_and_compile_nothing():
    params, state = trained("sam", GRADIENTS[:2])
    step = step_of("sam")
    before = step._cache_size()
    masks = {"w": OTHERS["w"], "b": MASKS["b"]}
    state = sj.replace_masks(state, masks)
    nets.assert_equal(sj.masks_of(state), masks)
    for copy in (state.inner.cache, state.inner.adv_state[0].mu):
        np.testing.assert_array_equal(copy["w"][MASKS["w"]], 0)
    params, state = step(sj.apply_masks(params, masks), state, GRADIENTS[2])
    np.testing.assert_array_equal(params["w"][MASKS["w"]], 0)
    assert step._cache_size() == before


def test_two_different_sets_of_masks_are_named():
    def state_of(masks):
        chain = optax.chain(SGD, sj.freeze_pruned(masks))
        return sj.static_pruning(chain, MASKS).init(PARAMS)

    state = state_of(MASKS)
    nets.assert_equal(sj.masks_of(state), MASKS)
    nets.assert_equal(sj.replace_masks(state, OTHERS).inner[1].masks, OTHERS)
    wrong = state_of(OTHERS)
    for call in (sj.masks_of, lambda state: sj.replace_masks(state, MASKS)):
        with pytest.raises(ValueError, match=r"`opt_state\.masks` and `opt_state\.inner"):
            call(wrong)
    with pytest.raises(ValueError, match="traced"):
        jax.jit(sj.masks_of)(state)
    new = jax.jit(sj.replace_masks)(state, OTHERS)
    nets.assert_equal(sj.masks_of(new), OTHERS)


def test_a_state_without_masks_is_refused():
    with pytest.raises(ValueError, match=r"`opt_state` holds no masks.*static_pruning\("):
        sj.masks_of(SGD.init(PARAMS))


def test_a_train_state_of_lookahead_takes_masks_of_one_of_the_pair():
    pair = optax.LookaheadParams.init_synced(GRADIENTS[0])
    state = TrainState.create(
        apply_fn=None, params=pair, tx=optax.lookahead(optax.adam(0.1), 2, 0.5)
    )
    state = sj.mask_train_state(state, MASKS)
    for gradients in GRADIENTS[:2]:
        state = state.apply_gradients(grads=gradients)
    assert_zero_where_pruned((state.params, state.opt_state.inner), 4)
    state = sj.mask_train_state(state, OTHERS)
    np.testing.assert_array_equal(state.params.slow["w"], 0)

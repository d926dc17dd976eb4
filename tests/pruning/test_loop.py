"""The loop: exact counts, nothing returns, one compilation, a batch in one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from synflow_jax.models import build
from tests import nets


def params_of(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *s: jnp.asarray(rng.standard_normal(s), jnp.float32)  # noqa: E731
    return {
        "a": {"kernel": draw(6, 20), "bias": draw(20)},
        "b": {"kernel": draw(20, 20), "scale": draw(20)},
        "c": {"kernel": draw(20, 3)},
    }


def apply_fn(params, x):
    x = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    x = jax.nn.relu(x @ params["b"]["kernel"] * params["b"]["scale"][None])
    return x @ params["c"]["kernel"]


SIZE = 6 * 20 + 20 * 20 + 20 * 3
SYNFLOW = sj.synflow(apply_fn, (6,))


def kernels(tree):
    return [tree[layer]["kernel"] for layer in "abc"]


@pytest.mark.parametrize("schedule", [sj.exponential, sj.linear])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.01, 1 / SIZE])
def test_every_round_keeps_exactly_the_scheduled_count(schedule, density):
    masks, info = sj.prune(SYNFLOW, params_of(), density, rounds=7, schedule=schedule)
    want = [sj.num_kept(SIZE, d) for d in schedule(density, 7)]
    np.testing.assert_array_equal(info.kept, want)
    np.testing.assert_allclose(info.density, np.array(want) / SIZE, rtol=1e-6)
    assert sum(int(m.sum()) for m in kernels(masks)) == want[-1]


def test_leaves_that_are_not_prunable_stay_whole_and_do_not_count():
    masks, _ = sj.prune(SYNFLOW, params_of(), 0.1)
    assert masks["a"]["bias"].all() and masks["b"]["scale"].all()

    masks, info = sj.prune(
        SYNFLOW, params_of(), 0.1, prunable=lambda path, leaf: path == "b/kernel"
    )
    assert masks["a"]["kernel"].all() and masks["c"]["kernel"].all()
    assert int(masks["b"]["kernel"].sum()) == info.kept[-1] == 40


def test_scope_layer_prunes_each_leaf_to_the_density():
    masks, info = sj.prune(SYNFLOW, params_of(), 0.1, rounds=5, scope="layer")
    assert [int(m.sum()) for m in kernels(masks)] == [12, 40, 6]
    assert info.kept[-1] == 58


def test_pruned_weights_never_return_whatever_the_scores():
    """Signed scores, drawn afresh in each round: the reference brings weights back."""

    def fickle(params, masks):
        alive = sum(m.sum() for m in jax.tree.leaves(masks))
        key = jax.random.fold_in(jax.random.key(0), alive)
        return jax.tree.map(lambda p: jax.random.normal(key, p.shape), params)

    pruner = sj.iterative(fickle)
    state, before, step = pruner.init(params_of()), SIZE, jax.jit(pruner.step)
    for k in sj.counts_per_round(params_of(), 0.05, 10):
        new, info = step(state, params_of(), k)
        for old_mask, mask in zip(kernels(state.masks), kernels(new.masks)):
            assert not (np.asarray(mask) & ~np.asarray(old_mask)).any()
        assert int(info.kept) == int(k) < before
        state, before = new, int(k)


def test_the_scan_equals_a_loop_of_steps():
    masks, info = sj.prune(SYNFLOW, params_of(), 0.05, rounds=8)
    pruner = sj.iterative(SYNFLOW)
    state = pruner.init(params_of())
    step = jax.jit(pruner.step)
    for i, k in enumerate(sj.counts_per_round(params_of(), 0.05, 8)):
        state, one = step(state, params_of(), k)
        assert int(one.kept) == int(info.kept[i])
    nets.assert_equal(masks, state.masks)


def test_progress_is_reported_after_each_round_and_changes_nothing():
    seen = []
    masks, info = sj.prune(SYNFLOW, params_of(), 0.05, rounds=8)
    shown, again = sj.prune(
        SYNFLOW, params_of(), 0.05, rounds=8, on_round=lambda info: seen.append(info.kept)
    )
    np.testing.assert_array_equal(seen, info.kept)
    nets.assert_equal((masks, info), (shown, again))


def test_one_trace_serves_all_rounds_densities_and_calls():
    traces = 0

    def counted(params, x):
        nonlocal traces
        traces += 1
        return apply_fn(params, x)

    score = sj.synflow(counted, (6,))
    sj.prune(score, params_of(), 0.1)
    assert traces <= 2  # a scan may trace its body twice to settle its types
    before = traces
    for density in (0.5, 0.02):
        sj.prune(score, params_of(seed=1), density)
    assert traces == before


def test_vmap_over_seeds_equals_a_loop_over_seeds():
    batch = jax.tree.map(lambda *xs: jnp.stack(xs), *map(params_of, range(4)))
    masks, info = jax.vmap(lambda p: sj.prune(SYNFLOW, p, 0.1, rounds=10))(batch)
    for seed in range(4):
        want, want_info = sj.prune(SYNFLOW, params_of(seed), 0.1, rounds=10)
        nets.assert_equal(nets.element(masks, seed), want)
        np.testing.assert_array_equal(info.kept[seed], want_info.kept)


def test_vmap_over_counts_prunes_to_several_densities_at_once():
    pruner = sj.iterative(SYNFLOW)
    densities = (0.5, 0.1, 0.02)
    counts = np.stack([sj.counts_per_round(params_of(), d, 6) for d in densities])

    @jax.jit
    @jax.vmap
    def run(counts):
        step = lambda state, k: pruner.step(state, params_of(), k)  # noqa: E731
        return jax.lax.scan(step, pruner.init(params_of()), counts)

    states, _ = run(counts)
    for i, density in enumerate(densities):
        want, _ = sj.prune(SYNFLOW, params_of(), density, rounds=6)
        nets.assert_equal(nets.element(states.masks, i), want)


def test_vmap_over_what_a_criterion_closes_over():
    """A batch of keys, and of data: none of it is an argument of `prune`."""
    params = params_of()
    keys = jax.random.split(jax.random.key(0), 3)
    got = jax.vmap(lambda key: sj.prune(sj.random(key), params, 0.1, rounds=2)[0])(keys)
    for i, key in enumerate(keys):
        one, _ = sj.prune(sj.random(key), params, 0.1, rounds=2)
        nets.assert_equal(nets.element(got, i), one)

    def scaled(by):
        return lambda params, masks: jax.tree.map(lambda p: p * by, params)

    signs = jnp.array([1.0, -1.0])
    got = jax.vmap(lambda by: sj.prune(scaled(by), params, 0.1, rounds=1)[0])(signs)
    one, _ = sj.prune(scaled(-1.0), params, 0.1, rounds=1)
    nets.assert_equal(nets.element(got, 1), one)


def test_a_step_refuses_a_count_beyond_the_weights():
    pruner, params = sj.iterative(SYNFLOW), params_of()
    with pytest.raises(ValueError, match=f"between 0 and the {SIZE} scores; got 1000"):
        pruner.step(pruner.init(params), params, 1000)


def test_gradients_of_a_pruned_network_take_the_masks_as_given():
    params = {"kernel": jnp.array([[1.0, -2.0], [-3.0, 4.0]])}
    score = sj.magnitude()

    def squares(params):
        masks, _ = sj.prune(score, params, 0.5, rounds=2)
        return jnp.sum(sj.apply_masks(params, masks)["kernel"] ** 2)

    got = jax.grad(squares)(params)["kernel"]
    np.testing.assert_array_equal(got, [[0.0, 0.0], [-6.0, 8.0]])
    batch = jax.tree.map(lambda p: jnp.stack([p, -p]), params)
    got = jax.vmap(jax.grad(squares))(batch)["kernel"]
    np.testing.assert_array_equal(got[1], [[0.0, 0.0], [6.0, -8.0]])


def test_criteria_are_not_differentiated_where_a_batch_runs_at_once(monkeypatch):
    """As on an accelerator."""
    at_once = "synflow_jax.pruning.progress.one_by_one"
    monkeypatch.setattr(at_once, lambda backend, function: function)

    @jax.custom_jvp
    def size(weights):
        return jnp.abs(weights)

    @size.defjvp
    def derivative(weights, tangents):
        raise AssertionError("a derivative of the criterion")

    def squares(params):
        score = lambda params, masks: jax.tree.map(size, params)  # noqa: E731
        masks, _ = sj.prune(score, params, 0.5, rounds=2)
        return jnp.sum(sj.apply_masks(params, masks)["kernel"] ** 2)

    got = jax.grad(squares)({"kernel": jnp.array([[1.0, -2.0], [-3.0, 4.0]])})
    np.testing.assert_array_equal(got["kernel"], [[0.0, 0.0], [-6.0, 8.0]])


def test_prune_works_inside_jit():
    masks, _ = jax.jit(lambda p: sj.prune(SYNFLOW, p, 0.1))(params_of())
    nets.assert_equal(masks, sj.prune(SYNFLOW, params_of(), 0.1)[0])


def test_arrays_of_numpy_are_parameters_too():
    params = jax.tree.map(np.asarray, params_of())
    masks, _ = sj.prune(SYNFLOW, params, 0.1)
    nets.assert_equal(masks, sj.prune(SYNFLOW, params_of(), 0.1)[0])


def test_one_round_of_random_is_many_rounds_of_random():
    score = sj.random(jax.random.key(3))
    once, _ = sj.prune(score, params_of(), 0.1, rounds=1)
    many, _ = sj.prune(score, params_of(), 0.1, rounds=20)
    nets.assert_equal(once, many)


def test_a_nan_is_an_error_that_names_the_leaf_and_the_round():
    params = params_of()
    params["b"]["kernel"] = params["b"]["kernel"].at[0, 0].set(jnp.nan)
    with pytest.raises(FloatingPointError, match="round 1, .*b/kernel"):
        sj.prune(SYNFLOW, params, 0.1)
    with pytest.raises(FloatingPointError, match="round 1, .*b/kernel"):
        sj.prune(SYNFLOW, params, 0.1, on_round=lambda info: None)


def test_a_nan_that_comes_late_is_told_with_its_round():
    def late(params, masks):
        few = sum(m.sum() for m in jax.tree.leaves(masks)) < SIZE
        return jax.tree.map(lambda p: jnp.where(few, jnp.nan, jnp.abs(p)), params)

    for on_round in (None, lambda info: None):
        with pytest.raises(FloatingPointError, match="round 2, .*criterion made them"):
            sj.prune(late, params_of(), 0.1, rounds=5, on_round=on_round)


def test_what_is_pruned_may_score_anything():
    def careless(params, masks):
        return jax.tree.map(lambda p, m: jnp.where(m, jnp.abs(p), jnp.nan), params, masks)

    masks, info = sj.prune(careless, params_of(), 0.1, rounds=5)
    assert not np.asarray(info.nonfinite).any()
    nets.assert_equal(masks, sj.prune(sj.magnitude(), params_of(), 0.1, rounds=5)[0])


def test_one_count_for_each_layer_is_wanted():
    pruner = sj.iterative(SYNFLOW, scope="layer")
    with pytest.raises(ValueError, match="one count for each of the 3 groups"):
        pruner.step(pruner.init(params_of()), params_of(), 3)


def test_under_vmap_nonfinite_scores_are_counted():
    batch = jax.tree.map(lambda *xs: jnp.stack(xs), *map(params_of, range(2)))
    batch["c"]["kernel"] = batch["c"]["kernel"].at[1, 0, 0].set(jnp.inf)
    info = jax.vmap(lambda p: sj.prune(SYNFLOW, p, 0.5, rounds=3)[1])(batch)
    np.testing.assert_array_equal(info.nonfinite[0], 0)
    assert info.nonfinite[1, 0] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(density=0.0), "`density`"),
        (dict(density=1.01), "`density`"),
        (dict(rounds=0), "`rounds`"),
        (dict(rounds=2.5), "`rounds`"),
        (dict(scope="local"), "`scope`.*'local'"),
        (dict(prunable=lambda path, leaf: False), "`prunable` chose no leaf"),
        (dict(rounds=0, schedule=lambda d, n: np.ones(n)), "`rounds`"),
        (dict(schedule=lambda d, n: np.ones(3)), "`schedule`"),
        (dict(schedule=lambda d, n: 2 * np.ones(n)), "`schedule`.*round 1 it returned 2.0"),
        (dict(score_fn=lambda p, m: kernels(p)), "`scores`"),
    ],
)
def test_arguments_out_of_range_are_named(changes, message, no_typecheck):
    arguments = dict(score_fn=SYNFLOW, params=params_of(), density=0.5) | changes
    with pytest.raises(ValueError, match=f"(?s){message}"):
        sj.prune(**arguments)


def test_counts_are_whole_numbers_made_on_the_host():
    counts = sj.counts_per_round(params_of(), 0.1, 3, scope="layer")
    assert isinstance(counts, np.ndarray) and counts.shape == (3, 3)
    assert [int(k) for k in counts[-1]] == [12, 40, 6]


@pytest.mark.long  # in test_certified_rounds on a chain
def test_synflow_keeps_a_path_where_one_round_of_it_does_not():
    """The paper's reason to iterate, on its own MLP at a compression of 10."""
    apply_fn, params, shape = build("mlp", jax.random.key(0))
    score = sj.synflow(apply_fn, shape)
    flows = {}
    for rounds in (1, 100):
        masks, _ = sj.prune(score, params, 0.1, rounds=rounds)
        flows[rounds] = sj.log_flow(apply_fn, sj.apply_masks(params, masks), shape)
    assert flows[1] == -jnp.inf and jnp.isfinite(flows[100])

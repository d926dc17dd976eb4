"""Controls do what they say: the reference's do not."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from tests import nets

SHAPES = {"0": (4, 8), "1": (8, 8), "2": (8, 3)}


def chain(params, x):
    return nets.mlp([params[str(i)] for i in range(len(params))], x)


def everything(path, leaf):
    return True


SYNFLOW = sj.synflow(chain, (4,))


def test_shuffling_keeps_every_count_and_moves_the_masks():
    params = nets.draw(SHAPES)
    masks, _ = sj.prune(SYNFLOW, params, 0.3, prunable=everything)
    mixed = sj.shuffled(jax.random.key(0), masks)
    again = sj.shuffled(jax.random.key(1), masks)
    for name in SHAPES:
        assert mixed[name].shape == masks[name].shape and mixed[name].dtype == bool
        assert int(mixed[name].sum()) == int(masks[name].sum())
        assert (mixed[name] != masks[name]).any() and (mixed[name] != again[name]).any()
    nets.assert_equal(mixed, jax.jit(sj.shuffled)(jax.random.key(0), masks))


def test_every_place_is_as_likely_as_any_other():
    masks = {"w": jnp.arange(20).reshape(4, 5) < 5}
    keys = jax.random.split(jax.random.key(0), 4000)
    mean = jax.vmap(lambda key: sj.shuffled(key, masks)["w"])(keys).mean(0)
    np.testing.assert_allclose(mean, 0.25, atol=0.04)


def test_leaves_of_one_shape_are_shuffled_differently():
    masks = {name: jnp.arange(50) < 25 for name in "ab"}
    mixed = sj.shuffled(jax.random.key(0), masks)
    assert (mixed["a"] != mixed["b"]).any()


def test_a_key_and_masks_are_wanted(no_typecheck):
    with pytest.raises(ValueError, match="`key`"):
        sj.shuffled(0, {"w": jnp.ones(3, bool)})
    with pytest.raises(ValueError, match=r"masks\['w'\].*float32"):
        sj.shuffled(jax.random.key(0), {"w": jnp.ones(3)})


def test_reinitialising_draws_anew_under_the_old_masks():
    net = nn.Dense(5)
    init = lambda key: net.init(key, jnp.ones((1, 4)))  # noqa: E731
    params = init(jax.random.key(0))
    masks, _ = sj.prune(sj.magnitude(), params, 0.5, rounds=1)
    fresh = sj.reinitialised(init, jax.random.key(1), masks)
    old, new = (tree["params"]["kernel"] for tree in (params, fresh))
    kept = masks["params"]["kernel"]
    assert (np.asarray(new)[~kept] == 0).all()
    np.testing.assert_array_equal(
        new[kept], init(jax.random.key(1))["params"]["kernel"][kept]
    )
    assert (new[kept] != old[kept]).all()


def test_other_weights_do_not_fit_the_masks(no_typecheck):
    masks = {"w": jnp.array([True, False])}
    with pytest.raises(ValueError, match="`masks` must have the structure"):
        sj.reinitialised(lambda key: {"other": jnp.ones(3)}, jax.random.key(1), masks)


def test_rescaling_restores_the_variance_of_every_leaf():
    draw = np.random.default_rng(0)
    params = {
        "a": {"kernel": jnp.asarray(draw.normal(size=(400, 50)), jnp.float32)},
        "b": {"kernel": jnp.asarray(draw.normal(size=(50, 40)), jnp.bfloat16)},
        "bias": jnp.ones(3),
        "steps": jnp.arange(4),
    }
    masks = jax.tree.map(lambda p: jnp.asarray(draw.random(p.shape) < 0.1), params)
    masks |= {"bias": jnp.ones(3, bool), "steps": jnp.ones(4, bool)}
    found = sj.rescaled(params, masks)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, params)
    chex.assert_trees_all_equal(found["bias"], params["bias"])
    chex.assert_trees_all_equal(found["steps"], params["steps"])
    for name in "ab":
        old, new = (np.asarray(t[name]["kernel"], np.float32) for t in (params, found))
        kept = np.asarray(masks[name]["kernel"])
        assert (new[~kept] == 0).all()
        np.testing.assert_allclose(new[kept], old[kept] / np.sqrt(kept.mean()), rtol=5e-3)
        np.testing.assert_allclose(np.square(new).mean(), 1, rtol=0.25)


def test_a_leaf_without_weights_left_is_zero_and_not_nan():
    masks = {"w": jnp.zeros((2, 2), bool), "none": jnp.zeros((0, 2), bool)}
    found = sj.rescaled({"w": jnp.ones((2, 2)), "none": jnp.ones((0, 2))}, masks)
    assert (np.asarray(found["w"]) == 0).all() and found["none"].shape == (0, 2)


def test_rescaling_wants_masks_of_the_parameters(no_typecheck):
    with pytest.raises(ValueError, match="`masks` must have the structure"):
        sj.rescaled({"w": jnp.ones(3)}, {"v": jnp.ones(3, bool)})


def test_inverted_keeps_what_would_go_first():
    params = {"kernel": jnp.array([[3.0, -1.0, 2.0, 0.5]])}
    score = sj.inverted(sj.magnitude())
    for rounds in (1, 2):
        masks, _ = sj.prune(score, params, 0.5, rounds=rounds)
        np.testing.assert_array_equal(masks["kernel"], [[False, True, False, True]])


def test_inverted_rounds_keep_the_pruned_out():
    """In the reference the second round divides zero by zero."""
    params = nets.draw(SHAPES)
    masks, info = sj.prune(
        sj.inverted(SYNFLOW), params, 0.2, rounds=10, prunable=everything
    )
    assert not np.asarray(info.nonfinite).any()
    scores = jax.jit(SYNFLOW)(params, sj.all_kept(params))
    first, _ = sj.prune(sj.inverted(SYNFLOW), params, 0.9, rounds=1, prunable=everything)
    gone = jax.tree.map(lambda s, m: s[~m], scores, first)
    stay = jax.tree.map(lambda s, m: s[m], scores, first)
    least = min(float(x.min()) for x in jax.tree.leaves(gone) if x.size)
    assert least >= max(float(x.max()) for x in jax.tree.leaves(stay))


def test_another_input_weighs_the_paths_that_start_there():
    params = nets.draw(SHAPES)
    x = jax.random.normal(jax.random.key(0), (4,))
    score = sj.synflow(sj.on_input(chain, x), (4,))
    got = score(params, sj.all_kept(params))
    # The same as weights of the first layer times the sizes of their inputs.
    weighed = params | {"0": params["0"] * x[:, None]}
    nets.assert_close(got, SYNFLOW(weighed, sj.all_kept(params)))
    ones = sj.synflow(sj.on_input(chain, jnp.ones(4)), (4,))
    nets.assert_equal(
        ones(params, sj.all_kept(params)), SYNFLOW(params, sj.all_kept(params))
    )


@pytest.mark.parametrize("x", [jnp.ones(5), jnp.ones((2, 4)), {"x": jnp.ones(4)}])
def test_inputs_that_do_not_fit_are_refused(x):
    params = nets.draw(SHAPES)
    score = sj.synflow(sj.on_input(chain, x), (4,))
    with pytest.raises(ValueError, match="`inputs`"):
        score(params, sj.all_kept(params))


def test_an_input_of_zero_starts_no_path():
    params = nets.draw(SHAPES)
    x = jnp.array([0.0, 1.0, 0.0, 2.0])
    score = sj.synflow(sj.on_input(chain, x), (4,))
    got = score(params, sj.all_kept(params))["0"]
    np.testing.assert_array_equal(got[0], 0)
    assert (got[1] > 0).all()


class Normed(nn.Module):
    """Convolutions without bias, batch norm, ReLU, an average, a dense layer."""

    @nn.compact
    def __call__(self, x, train=False):
        for width in (6, 5):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3, use_bias=False)(x.mean((1, 2)))


def normed():
    net, shape = Normed(), (8, 8, 2)
    variables = jax.jit(net.init)(jax.random.key(0), jnp.ones((1, *shape)))
    rest = {"batch_stats": variables["batch_stats"]}

    def training(params, x):
        variables = {"params": params, **rest}
        return net.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    return *sj.from_linen(net, variables), training, shape


def kernels(scores):
    named = zip(sj.leaf_names(scores), jax.tree.leaves(scores))
    return {name: leaf for name, leaf in named if name.endswith("kernel")}


def test_as_written_in_evaluation_mode_it_is_synflow_times_r():
    evaluating, params, _, shape = normed()
    masks, _ = sj.prune(sj.magnitude(), params, 0.7, rounds=1)
    written, synflow = (
        sj.synflow_as_written(evaluating, shape),
        sj.synflow(evaluating, shape),
    )

    @jax.jit
    def both(params, masks):
        flow = sj.log_flow(evaluating, sj.apply_masks(params, masks), shape)
        return written(params, masks), synflow(params, masks), jnp.exp(flow)

    got, shares, total = both(params, masks)
    got, shares, total = kernels(got), kernels(shares), float(total)
    for name, score in got.items():
        np.testing.assert_allclose(score, shares[name] * total, rtol=2e-5, atol=1e-6)


def test_with_batch_norm_in_training_mode_nothing_is_conserved():
    """The control is the module as it trains; `synflow` of it is a flow all the same."""
    evaluating, params, training, shape = normed()
    masks = sj.all_kept(params)
    written = kernels(jax.jit(sj.synflow_as_written(training, shape))(params, masks))
    totals = np.array([float(score.sum()) for score in written.values()])
    assert np.ptp(totals) / totals.max() > 0.1
    for network in (evaluating, training):
        flow = kernels(jax.jit(sj.synflow(network, shape))(params, masks))
        np.testing.assert_allclose([float(s.sum()) for s in flow.values()], 1, rtol=1e-4)

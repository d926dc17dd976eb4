"""Criteria: one table of promises that every public criterion keeps, then each its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from tests import nets


def apply_fn(params, x):
    x = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    return x @ params["b"]["kernel"]


def loss_fn(params, batch):
    return jnp.mean((apply_fn(params, batch["x"]) - batch["y"]) ** 2)


def batches(number=2, size=4):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((number, size, 3)), rng.standard_normal((number, size, 2))
    return {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.float32)}


# A new criterion is a new row.
CRITERIA = {
    "synflow": lambda: sj.synflow(apply_fn, (3,)),
    "synflow_l2": lambda: sj.synflow_l2(apply_fn, (3,)),
    "magnitude": sj.magnitude,
    "random": lambda: sj.random(jax.random.key(0)),
    "snip": lambda: sj.snip(loss_fn, batches()),
    "grasp": lambda: sj.grasp(loss_fn, batches()),
    "fisher": lambda: sj.fisher(loss_fn, batches()),
    "gradient_norm": lambda: sj.gradient_norm(loss_fn, batches()),
    "ntk_sap": lambda: sj.ntk_sap(apply_fn, batches()["x"], jax.random.key(0)),
}

# What is pruned scores what it would if it came back, which only `regrow` reads.
OF_A_LOSS = ("snip", "grasp", "fisher", "gradient_norm")
RETURNING = (*OF_A_LOSS, "ntk_sap")


def example(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {"a": {"kernel": (3, 5), "bias": (5,)}, "b": {"kernel": (5, 2)}}
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.standard_normal(s), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    masks = jax.tree.map(lambda p: jnp.asarray(rng.random(p.shape) < 0.8), params)
    return params, masks


def test_the_table_holds_every_public_criterion():
    made = {
        name
        for name in dir(sj)
        if getattr(getattr(sj, name), "__module__", "")
        in {f"synflow_jax.criteria.{m}" for m in ("synaptic_flow", "baselines", "saliency")}
    }
    assert made == set(CRITERIA)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_scores_are_finite_float32_shaped_like_the_parameters(name, dtype):
    params, masks = example(dtype)
    scores = CRITERIA[name]()(params, masks)
    assert jax.tree.structure(scores) == jax.tree.structure(params)
    for score, param in zip(jax.tree.leaves(scores), jax.tree.leaves(params)):
        assert score.shape == param.shape and score.dtype == jnp.float32
        assert np.isfinite(score).all()


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_tell_weights_apart_and_pruned_ones_score_zero(name):
    params, masks = example()
    scores = CRITERIA[name]()(params, masks)
    for layer in ("a", "b"):
        score, mask = scores[layer]["kernel"], masks[layer]["kernel"]
        assert len(np.unique(score)) > 5
        if name not in RETURNING:
            np.testing.assert_array_equal(np.asarray(score)[~np.asarray(mask)], 0)


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_are_the_same_under_jit_and_when_repeated(name):
    params, masks = example()
    score = CRITERIA[name]()
    once, jitted = score(params, masks), jax.jit(score)(params, masks)
    nets.assert_close(once, jitted)
    nets.assert_equal(once, CRITERIA[name]()(params, masks))


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_can_be_mapped_over_parameters(name):
    params, masks = example()
    batch = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p]), params)
    score = CRITERIA[name]()
    alone, got = jax.jit(score), jax.jit(jax.vmap(score, in_axes=(0, None)))(batch, masks)
    for i in range(3):
        nets.assert_close(nets.element(got, i), alone(nets.element(batch, i), masks))


@pytest.mark.parametrize("name", CRITERIA)
def test_masks_that_do_not_fit_are_refused(name, no_typecheck):
    params, masks = example()
    masks["b"]["kernel"] = jnp.ones((2, 5), bool)
    with pytest.raises(ValueError, match=r"masks\['b'\]\['kernel'\].*\(2, 5\)"):
        CRITERIA[name]()(params, masks)


@pytest.mark.parametrize("name", CRITERIA)
def test_parameters_that_are_not_floating_score_zero_or_are_ignored(name):
    params, masks = example()
    params["step"], masks["step"] = jnp.arange(3), jnp.ones(3, bool)
    params["key"], masks["key"] = jax.random.key(0), jnp.ones((), bool)
    scores = CRITERIA[name]()(params, masks)
    assert scores["step"].shape == (3,) and scores["key"].shape == ()


def test_synflow_scores_are_shares_of_the_flow():
    params, masks = example()
    scores = sj.synflow(apply_fn, (3,))(params, masks)
    for layer in ("a", "b"):
        np.testing.assert_allclose(scores[layer]["kernel"].sum(), 1, rtol=1e-5)
        assert (np.asarray(scores[layer]["kernel"]) >= 0).all()
    np.testing.assert_array_equal(scores["a"]["bias"], 0)


def test_synflow_of_half_precision_weights_is_that_of_the_same_weights_in_float32():
    half, masks = example(jnp.bfloat16)
    full = jax.tree.map(lambda p: p.astype(jnp.float32), half)
    score = sj.synflow(apply_fn, (3,))
    nets.assert_close(score(half, masks), score(full, masks), rtol=1e-6)


def test_synflow_without_a_path_scores_zero():
    params, masks = example()
    masks["b"]["kernel"] = jnp.zeros((5, 2), bool)
    for score in jax.tree.leaves(sj.synflow(apply_fn, (3,))(params, masks)):
        np.testing.assert_array_equal(score, 0)


def test_synflow_of_a_deep_network_sums_to_one_in_every_layer():
    """The reference overflows: R is about 1e400 here."""
    rng = np.random.default_rng(0)
    params = [jnp.asarray(rng.standard_normal((8, 8)) * 1e6, jnp.float32)] * 60
    masks = sj.all_kept(params)
    scores = jax.jit(sj.synflow(nets.mlp, (8,)))(params, masks)
    np.testing.assert_allclose([s.sum() for s in scores], 1, rtol=1e-5)


def test_synflow_reads_parameters_that_the_output_ignores_as_zero():
    params, masks = example()
    params["unused"], masks["unused"] = jnp.ones((2, 2)), jnp.ones((2, 2), bool)
    scores = sj.synflow(apply_fn, (3,))(params, masks)
    np.testing.assert_array_equal(scores["unused"], 0)


def test_synflow_of_weights_computed_from_parameters_is_finite_and_not_negative():
    w = jnp.array([[0.0, -1.0], [2.0, 3.0]])
    masks = {"w": jnp.array([[True, True], [False, True]])}
    roots = sj.synflow(lambda p, x: x @ jnp.sqrt(jnp.abs(p["w"])), (2,))({"w": w}, masks)
    centred = sj.synflow(lambda p, x: x @ (p["w"] - p["w"].mean(0, keepdims=True)), (2,))(
        {"w": w}, masks
    )
    for scores in (roots["w"], centred["w"]):
        assert np.isfinite(scores).all() and (np.asarray(scores) >= 0).all()
        assert scores[1, 0] == 0 and scores[1, 1] > 0


def test_synflow_counts_a_shared_weight_once_for_each_use():
    def shared(params, x):
        return x @ params["w"] @ params["w"]

    w = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3)), jnp.float32)
    scores = sj.synflow(shared, (3,))({"w": w}, {"w": jnp.ones((3, 3), bool)})
    np.testing.assert_allclose(scores["w"].sum(), 2, rtol=1e-5)


def test_synflow_with_biases_sees_the_flow_that_they_add():
    params, masks = example()
    scores = sj.synflow(apply_fn, (3,), biases=True)(params, masks)
    assert float(scores["a"]["bias"].sum()) > 0
    inflow = scores["a"]["kernel"].sum() + scores["a"]["bias"].sum()
    np.testing.assert_allclose(inflow, 1, rtol=1e-5)


def test_synflow_l2_is_the_sum_over_the_squares_of_paths():
    weights = [
        np.random.default_rng(0).standard_normal(s) for s in ((2, 3), (3, 4), (4, 2))
    ]
    params = [jnp.asarray(w, jnp.float32) for w in weights]
    got = sj.synflow_l2(nets.mlp, (2,))(params, sj.all_kept(params))
    total, want = nets.flow_by_paths([w**2 for w in weights])
    for g, w in zip(got, want):
        np.testing.assert_allclose(g, w / total, rtol=1e-5)


def test_random_scores_are_uniform_and_depend_on_the_key():
    params = {"w": jnp.zeros((100, 100))}
    masks = sj.all_kept(params)
    first = np.asarray(sj.random(jax.random.key(0))(params, masks)["w"])
    second = np.asarray(sj.random(jax.random.key(1))(params, masks)["w"])
    np.testing.assert_allclose(
        np.quantile(first, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02
    )
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_random_draws_differ_between_leaves_of_one_shape():
    params = {"a": jnp.zeros(50), "b": jnp.zeros(50)}
    scores = sj.random(jax.random.key(0))(params, sj.all_kept(params))
    assert not np.array_equal(scores["a"], scores["b"])


def test_random_draws_leaf_by_leaf():
    """Each leaf's numbers are its own, whatever other leaves there are."""
    key, shapes = jax.random.key(3), [(2, 3), (4,), (2, 3), (), (0, 2), (4,)]
    params = [jnp.zeros(shape) for shape in shapes]
    scores = jax.jit(sj.random(key))(params, sj.all_kept(params))
    for i, (score, shape) in enumerate(zip(scores, shapes)):
        want = jax.random.uniform(jax.random.fold_in(key, i), shape)
        np.testing.assert_array_equal(score, want)


@pytest.mark.parametrize("make", [sj.random, lambda k: sj.ntk_sap(apply_fn, 1.0, k)])
def test_one_typed_key_is_wanted(make, no_typecheck):
    keys = 0, jnp.zeros(2, jnp.uint32), jax.random.split(jax.random.key(0), 2)
    for key in keys:
        with pytest.raises(ValueError, match="jax.random.key"):
            make(key)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA's CPU compiler")
def test_the_compiled_program_grows_with_the_depth_and_not_with_its_square():
    """XLA computes sums of flows anew in every later layer, unless it is kept from it."""

    def lines(depth):
        def apply_fn(params, x):
            for w in params:
                x = x + jax.nn.relu(x @ w) @ w.T
            return x

        params = [jnp.ones((64, 32))] * depth
        score = jax.jit(sj.synflow(apply_fn, (16, 64)))
        compiled = score.lower(params, sj.all_kept(params)).compile()
        return len(compiled.as_text().splitlines())

    assert lines(12) - lines(8) < 1.3 * (lines(8) - lines(4))

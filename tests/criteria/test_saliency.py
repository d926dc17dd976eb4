"""Criteria of the loss, against what they are made of: differences and Hessians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from tests import nets
from tests.criteria.test_synaptic_flow import (
    CRITERIA,
    OF_A_LOSS,
    apply_fn,
    batches,
    example,
    loss_fn,
)


def total_loss(params, data):
    return sum(loss_fn(params, nets.element(data, i)) for i in range(len(data["x"])))


def test_snip_is_the_difference_of_the_loss_in_the_mask():
    params, masks = example()
    got = sj.snip(loss_fn, batches())(params, masks)["a"]["kernel"]
    masked = sj.apply_masks(params, masks)

    def at(entry, strength):
        kernel = (
            masked["a"]["kernel"].at[entry].set(params["a"]["kernel"][entry] * strength)
        )
        return total_loss({**masked, "a": {**masked["a"], "kernel": kernel}}, batches())

    for entry in [(0, 0), (1, 3), (2, 4)]:
        kept = float(masks["a"]["kernel"][entry])
        change = (at(entry, kept + 1e-2) - at(entry, kept - 1e-2)) / 2e-2
        # A central difference in float32.
        np.testing.assert_allclose(got[entry], abs(change), rtol=1e-2, atol=1e-4)


def test_grasp_is_the_hessian_times_the_gradient_of_the_kernels():
    params, masks = example()
    kernels = [params["a"]["kernel"], params["b"]["kernel"]]
    alive = [masks["a"]["kernel"], masks["b"]["kernel"]]
    sizes = [k.size for k in kernels]
    bias = jnp.where(masks["a"]["bias"], params["a"]["bias"], 0.0)

    def of(flat):
        first, second = jnp.split(flat, [sizes[0]])
        a = {"kernel": first.reshape(kernels[0].shape), "bias": bias}
        b = {"kernel": second.reshape(kernels[1].shape)}
        return total_loss({"a": a, "b": b}, batches())

    flat = jnp.concatenate([k.ravel() for k in kernels])
    kept = jnp.concatenate([m.ravel() for m in alive])
    masked = jnp.where(kept, flat, 0.0)
    gradient = jnp.where(kept, jax.grad(of)(masked), 0.0)
    want = flat * (jax.hessian(of)(masked) @ gradient)
    scores = sj.grasp(loss_fn, batches())(params, masks)
    got = [scores[layer]["kernel"].ravel() for layer in "ab"]
    np.testing.assert_allclose(jnp.concatenate(got), want, rtol=1e-4, atol=1e-5)
    assert (want < 0).any() and (want > 0).any()


def test_fisher_squares_before_it_sums():
    params, masks = example()
    masks = sj.all_kept(params)
    x, y = batches()["x"], batches()["y"]
    halves = [{"x": x[:1], "y": y[:1]}, {"x": x[1:], "y": y[1:]}]
    each = [sj.snip(loss_fn, half)(params, masks) for half in halves]
    want = jax.tree.map(lambda a, b: a**2 + b**2, *each)
    nets.assert_close(sj.fisher(loss_fn, batches())(params, masks), want)


def test_the_gradient_norm_does_not_know_the_weight():
    params, masks = example()
    gradients = jax.grad(total_loss)(sj.apply_masks(params, masks), batches())
    got = sj.gradient_norm(loss_fn, batches())(params, masks)
    nets.assert_close(got, jax.tree.map(jnp.abs, gradients))


def test_ntk_sap_is_the_derivative_of_the_kernel_along_what_it_draws():
    """Against dense Jacobians: |J (m * v)|**2 for the directions that were drawn, and on
    average over many the trace of the neural tangent kernel."""
    params, masks = example()
    x, key = batches()["x"], jax.random.key(3)
    leaves, treedef = jax.tree.flatten(params)
    kept = [m.astype(jnp.float32) for m in jax.tree.leaves(masks)]

    def change(kept, number):
        keys = jax.random.split(jax.random.fold_in(key, number), len(leaves))
        draws = [jax.random.normal(k, w.shape) for k, w in zip(keys, leaves)]

        def outputs(weights):
            return apply_fn(jax.tree.unflatten(treedef, weights), x[number])

        jacobian = jax.jacobian(outputs)([m * w for m, w in zip(kept, leaves)])
        moved = [m * v for m, v in zip(kept, draws)]
        parts = [jnp.tensordot(j, v, v.ndim) for j, v in zip(jacobian, moved)]
        return jnp.sum(sum(parts) ** 2)

    want = [jax.grad(change)(kept, number) for number in (0, 1)]
    want = jax.tree.map(lambda a, b: jnp.abs(a + b), *want)
    got = jax.tree.leaves(sj.ntk_sap(apply_fn, x, key)(params, masks))
    for g, w in zip(got, want):
        np.testing.assert_allclose(g, w, rtol=1e-3, atol=1e-4)


def test_ntk_sap_draws_another_direction_for_each_batch():
    params, masks = example()
    x, key = batches()["x"], jax.random.key(0)
    same = jnp.concatenate([x[:1], x[:1]])
    once, twice = (sj.ntk_sap(apply_fn, b, key)(params, masks) for b in (x[:1], same))
    ratio = twice["b"]["kernel"] / once["b"]["kernel"]
    assert (abs(ratio - 2) > 1e-2).any()


def test_inputs_without_a_leading_axis_are_refused(no_typecheck):
    params, masks = example()
    with pytest.raises(ValueError, match="`inputs`.*leading axis"):
        sj.ntk_sap(apply_fn, {}, jax.random.key(0))(params, masks)


@pytest.mark.parametrize("name", OF_A_LOSS)
def test_batches_are_gone_through_one_by_one(name):
    """One loop whatever their number: the program does not grow, nor does its memory."""
    params, masks = example()
    make = getattr(sj, name)
    programs = [
        jax.jit(make(loss_fn, batches(number))).lower(params, masks).as_text()
        for number in (2, 64)
    ]
    assert programs[0].count("\n") == programs[1].count("\n")


@pytest.mark.parametrize("name", OF_A_LOSS)
def test_whole_numbers_among_the_parameters_score_zero(name):
    params, masks = example()
    with_steps = {**params, "steps": jnp.arange(3)}

    def loss(params, batch):
        return loss_fn({"a": params["a"], "b": params["b"]}, batch)

    masks_too = {**masks, "steps": jnp.ones(3, bool)}
    scores = getattr(sj, name)(loss, batches())(with_steps, masks_too)
    np.testing.assert_array_equal(scores.pop("steps"), 0)
    nets.assert_close(scores, CRITERIA[name]()(params, masks))


@pytest.mark.parametrize("name", OF_A_LOSS)
@pytest.mark.parametrize(
    "data",
    [{}, {"x": 1.0}, {"x": jnp.ones((0, 4, 3))}, {"x": jnp.ones((2, 3)), "y": jnp.ones(3)}],
)
def test_batches_without_one_leading_axis_are_refused(name, data, no_typecheck):
    params, masks = example()
    with pytest.raises(ValueError, match="`batches`.*leading axis"):
        getattr(sj, name)(loss_fn, data)(params, masks)


@pytest.mark.parametrize("name", OF_A_LOSS)
def test_a_loss_that_is_no_scalar_is_refused(name, no_typecheck):
    params, masks = example()
    score = getattr(sj, name)(lambda params, batch: batch["x"] @ jnp.ones(3), batches())
    with pytest.raises(ValueError, match=r"`loss_fn`.*\(4,\).*scalar"):
        score(params, masks)


def test_in_rounds_what_is_pruned_stays_pruned():
    params, _ = example()
    score = sj.snip(loss_fn, batches())
    pruner = sj.iterative(score)
    state = pruner.init(params)
    for k in (20, 15, 9, 4):
        before = state.masks
        state, info = pruner.step(state, params, k)
        assert int(info.kept) == k
        gone = jax.tree.map(lambda new, old: bool((new & ~old).any()), state.masks, before)
        assert not any(jax.tree.leaves(gone))


def test_with_regrow_a_pruned_weight_returns_if_its_score_does():
    params = {"kernel": jnp.array([[3.0, 2.0, 1.0, 0.5]])}

    def score(params, masks):
        # Whatever is pruned is wanted most.
        return jax.tree.map(lambda p, m: jnp.where(m, p, p + 10), params, masks)

    plain = [sj.prune(score, params, 0.5, rounds=n)[0]["kernel"] for n in (1, 2, 3)]
    for masks in plain:
        np.testing.assert_array_equal(masks, [[True, True, False, False]])
    masks, info = sj.prune(score, params, 0.5, rounds=2, regrow=True)
    # Three kept, without the last; then the last returns, with the largest of the rest.
    np.testing.assert_array_equal(masks["kernel"], [[True, False, False, True]])
    np.testing.assert_array_equal(info.kept, [3, 2])

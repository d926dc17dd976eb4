"""Loops whose steps are counted, branches by platform, and checks of equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

import synflow_jax as sj
from synflow_jax.transform import Scaled

W = {"kernel": jnp.array([[1.0, -1.0], [2.0, 0.5]])}


def in_a_while(steps):
    """``x @ w`` several times, by a loop that JAX sees as a while."""

    def network(params, x):
        def test(carry):
            return carry[0] < steps(params)

        def body(carry):
            i, h, unused = carry
            return i + 1, jax.nn.relu(h @ params["kernel"]), unused + h.sum()

        return lax.while_loop(test, body, (0, x, jnp.float32(0)))[1]

    return network


def written_out(params, x):
    for _ in range(3):
        x = jax.nn.relu(x @ params["kernel"])
    return x


def scores(network, params):
    return sj.synflow(network, (2,))(params, sj.all_kept(params))


def test_a_while_loop_with_a_fixed_number_of_steps_has_scores():
    networks = {
        "three": in_a_while(lambda _: 3),
        "counted down": lambda p, x: lax.while_loop(
            lambda c: c[1] > 0.5, lambda c: (c[0] @ p["kernel"], c[1] - 1.0), (x, 3.0)
        )[0],
        "from an array": in_a_while(lambda _: jnp.arange(4)[-1]),
        "doubled": lambda p, x: lax.while_loop(
            lambda c: c[0] < 8, lambda c: (2 * c[0], c[1] @ p["kernel"]), (1, x)
        )[1],
    }

    @jax.jit
    def of(params):
        return {name: scores(f, params) for name, f in networks.items()}, scores(
            written_out, params
        )

    found, want = of(W)
    for name, got in found.items():
        np.testing.assert_allclose(got["kernel"], want["kernel"], rtol=1e-5, err_msg=name)
    none = in_a_while(lambda _: 0)
    assert float(jnp.exp(sj.log_flow(none, W, (2,)))) == pytest.approx(2)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_while_loop_whose_steps_depend_on_a_parameter_has_a_flow_and_no_scores(compiled):
    params = W | {"steps": jnp.float32(3)}
    network = in_a_while(lambda p: p["steps"].astype(jnp.int32))
    want = float(sj.log_flow(written_out, W, (2,)))
    assert float(sj.log_flow(network, params, (2,))) == pytest.approx(want, rel=1e-6)
    score = sj.synflow(network, (2,))
    score = jax.jit(score) if compiled else score
    with pytest.raises(
        sj.FlowError, match=r"`while`, called at .*test_control_flow.py:\d+"
    ):
        jax.jit(lambda p: score(p, sj.all_kept(p)))(params)
    flow = sj.flow(network)

    @jax.jit
    def forward(params):
        return jax.jvp(lambda p: flow(p, jnp.ones((1, 2)))[0], (params,), (params,))[1]

    assert np.isfinite(forward(params)).all()


# --- platforms ----------------------------------------------------------------------------


def test_branches_of_other_platforms_are_not_compiled():
    """A primitive that only a TPU has, beside a branch for all others."""
    tpu_only = Primitive("tpu_only")
    tpu_only.def_abstract_eval(lambda x: x)
    negated = mlir.lower_fun(jnp.negative, multiple_results=False)
    mlir.register_lowering(tpu_only, negated, platform="tpu")

    def network(params, x):
        y = x @ params["kernel"]
        return lax.platform_dependent(
            y, tpu=lambda y: tpu_only.bind(y), cpu=lambda y: y * 2, default=lambda y: y
        )

    def rule(equation, flow):
        return [Scaled(tpu_only.bind(flow.mantissa), flow.exponent)]

    def flow(params):
        return sj.log_flow(network, params, (2,), rules={**sj.flow_rules, "tpu_only": rule})

    assert float(jnp.exp(jax.jit(flow)(W))) == pytest.approx(9, rel=1e-6)
    lowered = jax.jit(flow).trace(W).lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.negate" in lowered


def test_scores_go_through_a_choice_by_platform():
    def network(params, x):
        y = x @ params["kernel"]
        return lax.platform_dependent(y, cpu=jax.nn.relu, default=jnp.tanh)

    got = jax.jit(lambda p: scores(network, p))(W)["kernel"]
    np.testing.assert_allclose(got, abs(W["kernel"]) / 4.5, rtol=1e-5)
    masks = sj.effective_masks(network, W, sj.all_kept(W), (2,))
    assert masks["kernel"].all()
    assert sj.fewest_weights(network, W, (2,)) == 1


# --- checks -------------------------------------------------------------------------------


def checked(params, x):
    y = eqx.error_if(x @ params["kernel"], jnp.any(x > 5), "large")
    y = jax.vmap(lambda row: eqx.error_if(row, row > 9.0, "larger"))(y)
    pair = eqx.error_if((y, params["kernel"]), jnp.any(params["kernel"] > 9), "weights")
    return pair[0] @ pair[1]


def test_a_check_of_equinox_is_left_out():
    def plain(params, x):
        return x @ params["kernel"] @ params["kernel"]

    got, want = jax.jit(lambda p: (scores(checked, p), scores(plain, p)))(W)
    np.testing.assert_allclose(got["kernel"], want["kernel"], rtol=1e-5)
    assert sj.effective_masks(checked, W, sj.all_kept(W), (2,))["kernel"].all()


def test_a_function_named_like_a_check_is_looked_into():
    @jax.jit
    def branched_error_if_impl(y):
        return 2 * y

    def network(params, x):
        return branched_error_if_impl(x @ params["kernel"])

    assert float(jnp.exp(sj.log_flow(network, W, (2,)))) == pytest.approx(9, rel=1e-6)


def test_whether_any_of_a_batch_is_true():
    def network(params, x):
        y = x @ params["kernel"]
        some = jax.vmap(lambda row: eqx.internal.unvmap_any(row > 0))(y)
        return jnp.where(some[:, None], y, 0.0)

    assert float(jnp.exp(sj.log_flow(network, W, (2,)))) == pytest.approx(4.5, rel=1e-6)

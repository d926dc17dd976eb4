"""flow: every rule against its definition, depth without overflow, errors that point."""

import functools
import pathlib

import flax.linen as nn
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import synflow_jax as sj
from synflow_jax.transform.rules import flow_rules
from tests import nets

small = st.floats(-4, 4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)


def flow(network):
    """The flow, compiled as one program."""
    return jax.jit(sj.flow(network))


def value(pair):
    mantissa, exponent = pair
    return np.asarray(mantissa, np.float64) * 2.0 ** np.asarray(exponent, np.float64)


def matrices(*shapes):
    return st.tuples(*(hnp.arrays(np.float32, s, elements=small) for s in shapes))


mlp_weights = matrices(*zip(nets.WIDTHS, nets.WIDTHS[1:]))
total_of_mlp = jax.jit(lambda w: sj.flow(nets.mlp)(w, jnp.ones((1, nets.WIDTHS[0]))))


@hypothesis.given(mlp_weights)
def test_the_flow_of_relu_layers_is_the_sum_over_paths(weights):
    got = value(total_of_mlp([jnp.asarray(w) for w in weights])).sum()
    np.testing.assert_allclose(got, nets.flow_by_paths(weights)[0], rtol=1e-5)


# Each: a function of (w, x), and what its flow is, written with |w| and no nonlinearity.
W = jnp.asarray(np.random.default_rng(1).standard_normal((4, 4)), jnp.float32)
X = jnp.asarray(np.random.default_rng(2).random((3, 4)), jnp.float32)
B = W[:1]
RULE_CASES = {
    "dot": (lambda w, x: x @ w, lambda w, x: x @ abs(w)),
    "dot, weights first": (lambda w, x: w @ x.T, lambda w, x: abs(w) @ x.T),
    "batched dot": (
        lambda w, x: jnp.einsum("bi,bij->bj", x, jnp.stack([w, w, -w])),
        lambda w, x: x @ abs(w),
    ),
    "bias": (lambda w, x: x @ w + w[:1] - 3.0, lambda w, x: x @ abs(w)),
    "bias of a larger shape": (lambda w, x: x[:1] + w, lambda w, x: x[:1] + 0 * w),
    "relu": (lambda w, x: jax.nn.relu(x @ w), lambda w, x: x @ abs(w)),
    "residual": (lambda w, x: x + x @ w, lambda w, x: x + x @ abs(w)),
    "scale": (lambda w, x: -x * w[:1], lambda w, x: x * abs(w[:1])),
    "division": (lambda w, x: x / w[:1], lambda w, x: x / abs(w[:1])),
    "weights computed from weights": (
        lambda w, x: x @ (w - w.mean(0, keepdims=True)),
        lambda w, x: x @ abs(w - w.mean(0, keepdims=True)),
    ),
    "batch norm": (
        lambda w, x: (x - w[:1]) * lax.rsqrt(w[1:2] ** 2 + 1e-5) * w[2:3] + w[3:],
        lambda w, x: x * lax.rsqrt(w[1:2] ** 2 + 1e-5) * abs(w[2:3]),
    ),
    "sum": (lambda w, x: (x @ w).sum(0), lambda w, x: (x @ abs(w)).sum(0)),
    "mean": (lambda w, x: (x @ w).mean(1), lambda w, x: (x @ abs(w)).mean(1)),
    "moves": (
        lambda w, x: jnp.flip((x @ w).T.reshape(2, 6)[None], 1)[0, :, 1:5],
        lambda w, x: jnp.flip((x @ abs(w)).T.reshape(2, 6)[None], 1)[0, :, 1:5],
    ),
    "product of flows": (
        lambda w, x: (x @ w) * (x @ w.T),
        lambda w, x: jnp.sqrt((x @ abs(w)) * (x @ abs(w).T)),
    ),
    "large product of flows": (
        lambda w, x: (50 * x @ w) * (x @ w.T * 70),
        lambda w, x: jnp.sqrt((50 * x @ abs(w)) * (x @ abs(w).T * 70)),
    ),
    "contraction of flows": (
        lambda w, x: (50 * x @ w) @ (x @ w.T * 70).T,
        lambda w, x: jnp.sqrt(50 * x @ abs(w)) @ jnp.sqrt(x @ abs(w).T * 70).T,
    ),
    "difference of flows": (lambda w, x: x @ w - x, lambda w, x: x @ abs(w)),
    "quotient of flows": (lambda w, x: (x @ w) / (1 + x), lambda w, x: x @ abs(w)),
    "jit": (lambda w, x: jax.jit(lambda y: y @ w)(x), lambda w, x: x @ abs(w)),
    "remat": (jax.checkpoint(lambda w, x: x @ w), lambda w, x: x @ abs(w)),
    "custom_vjp": (
        lambda w, x: _halved(x @ w),
        lambda w, x: x @ abs(w) / 2,
    ),
    "stop_gradient": (
        lambda w, x: lax.stop_gradient(x) @ w,
        lambda w, x: x @ abs(w),
    ),
    "half precision inside": (
        lambda w, x: x.astype(jnp.bfloat16) @ jnp.round(w * 2).astype(jnp.bfloat16),
        lambda w, x: x @ abs(jnp.round(w * 2)),
    ),
}


STRUCTURE_CASES = {
    "concatenate": lambda w, x: jnp.concatenate([x @ w, 100 * x, w], 0),
    "split": lambda w, x: jnp.split(x @ w, [1], axis=1)[1],
    "pad": lambda w, x: jnp.pad(x @ w, ((1, 2), (0, 1)), constant_values=3.0),
    "slices": lambda w, x: lax.dynamic_slice(x @ w, (1, 0), (2, 3)),
    "gather": lambda w, x: (x @ w)[jnp.array([2, 0, 0]), jnp.array([1, 1, 3])],
    "cumsum": lambda w, x: jnp.cumsum(x @ w, axis=1),
    "where": lambda w, x: jnp.where(jnp.arange(12).reshape(3, 4) % 2 == 0, x @ w, -1e9),
    "cond": lambda w, x: lax.cond(w[0, 0] > 9, lambda x: x, lambda x: x @ w, x),
    "cond without flow": lambda w, x: lax.cond(
        w[0, 0] < 9, lambda x: x @ w, lambda x: jnp.ones((3, 4)), x
    ),
    "recurrence": lambda w, x: lax.scan(
        lambda h, row: (jax.nn.relu(h @ w + row[None]), h), jnp.ones((1, 4)), x
    ),
    "reversed recurrence": lambda w, x: lax.scan(
        lambda h, _: (h @ w, (h, w)), x, None, length=3, reverse=True
    ),
    "loop": lambda w, x: lax.fori_loop(0, 3, lambda i, h: h @ w, x),
    "largest": lambda w, x: (x @ w).max(axis=(0,)),
    "largest of all": lambda w, x: (x @ w).max(),
    "larger": lambda w, x: jnp.maximum(x @ w, x),
    "clip": lambda w, x: jnp.clip(x @ w, 0.0, 1e9),
}


@pytest.mark.parametrize("name", STRUCTURE_CASES)
def test_structure_and_control_flow_pass_the_flow_on(name):
    """On positive weights the network, its shifts taken away, is its own flow."""
    network, w = STRUCTURE_CASES[name], jnp.abs(W)
    got = jax.tree.map(lambda m, e: value((m, e)), *flow(network)(w, X))
    # What enters beside the flow (a constant, a starting state) does so at the size 1, so
    # it drops out of the difference between two inputs, and of nothing else.
    big = network(w, X * 2**10)
    small = network(w, X * 2**9)
    want = jax.tree.map(lambda a, b: (np.float64(a) - b) / 2**9, big, small)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3), got, want)


def test_recurrences_of_any_length_do_not_overflow():
    def network(w, x):
        h, states = lax.scan(lambda h, _: (h @ w, h), x, None, length=500)
        return h, states[:2]

    (last, first), (e, _) = sj.flow(network)(jnp.full((2, 2), 50.0), jnp.ones((1, 2)))
    assert float(e) == pytest.approx(500 * np.log2(100), rel=1e-2)
    assert 1 <= float(last.max()) < 2


@jax.custom_vjp
def _halved(x):
    return x / 2


_halved.defvjp(lambda x: (x / 2, None), lambda _, g: (g / 2,))


@pytest.mark.parametrize("name", RULE_CASES)
def test_a_rule_does_what_its_definition_says(name):
    network, definition = RULE_CASES[name]
    got = value(flow(network)(W, X))
    np.testing.assert_allclose(got, definition(W, X), rtol=1e-5)


CONVS = {
    "plain": {},
    "strides": dict(window_strides=(2, 1)),
    "padding": dict(padding=((1, 2), (0, 1))),
    "dilated kernel": dict(rhs_dilation=(2, 1)),
    "transposed": dict(lhs_dilation=(2, 2), padding=((1, 1), (1, 1))),
    "groups": dict(feature_group_count=2),
    "channels first": dict(dimension_numbers=("NCHW", "OIHW", "NCHW")),
    "odd layout": dict(dimension_numbers=("HNWC", "IHWO", "CNHW")),
    "one dimension": dict(dimension_numbers=("NWC", "WIO", "NWC"), window_strides=(1,)),
    "large": {},
}


def _conv_case(name):
    settings = dict(
        window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    settings |= CONVS[name]
    if len(settings["window_strides"]) == 1:
        settings["window_strides"] = (2,)
    sizes = {"N": 2, "H": 7, "W": 6, "C": 4, "I": 4, "O": 6}
    if name == "large":  # too many positions for the product of patches
        sizes |= {"H": 40, "W": 30}
    kernel_sizes = sizes | {"H": 3, "W": 2}
    if "feature_group_count" in settings:
        kernel_sizes["I"] //= settings["feature_group_count"]
    image, kernel, _ = settings["dimension_numbers"]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random([sizes[c] for c in image]), jnp.float32)
    w = jnp.asarray(rng.standard_normal([kernel_sizes[c] for c in kernel]), jnp.float32)
    return functools.partial(lax.conv_general_dilated, **settings), x, w


@pytest.mark.parametrize("name", CONVS)
def test_convolutions_of_every_layout_take_the_kernels_size(name):
    conv, x, w = _conv_case(name)
    got = value(flow(lambda w, x: conv(x, w))(w, x))
    np.testing.assert_allclose(got, conv(x, abs(w)), rtol=1e-5)


@pytest.mark.parametrize(
    ("window", "strides", "padding", "dilation"),
    [
        ((1, 2, 2, 1), (1, 2, 2, 1), "VALID", (1, 1, 1, 1)),
        ((1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)), (1, 1, 1, 1)),
        ((1, 2, 3, 2), (1, 1, 2, 1), "SAME", (1, 2, 1, 1)),
    ],
)
def test_pooling_of_the_flow(window, strides, padding, dilation):
    x = jnp.asarray(np.random.default_rng(0).random((2, 7, 6, 3)), jnp.float32)
    shape = (window, strides, padding)
    pools = [
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, *shape, window_dilation=dilation),
        lambda x: lax.reduce_window(x, 0.0, lax.add, *shape, window_dilation=dilation),
    ]
    for pool in pools:
        got = value(flow(lambda _, x, pool=pool: pool(x))(jnp.zeros(()), x))
        np.testing.assert_allclose(got, pool(x), rtol=1e-3)


def test_max_pooling_passes_the_first_of_equals_whatever_the_rounding():
    def pool(x):
        f = sj.flow(lambda _, x: nn.max_pool(x, (2, 2), (2, 2)))
        return f(jnp.zeros(()), x)[0].sum()

    rng = np.random.default_rng(0)
    noisy = 1 + 1e-6 * rng.standard_normal((1, 4, 4, 1)).astype(np.float32)
    want = np.zeros((4, 4))
    want[::2, ::2] = 1
    np.testing.assert_array_equal(jax.grad(pool)(jnp.asarray(noisy))[0, :, :, 0], want)


def test_max_pooling_with_padding_ranks_negative_entries():
    pool = functools.partial(
        nn.max_pool, window_shape=(2, 2), strides=(2, 2), padding=((1, 1), (1, 1))
    )
    x = -jnp.arange(1.0, 17).reshape(1, 4, 4, 1)
    got = value(flow(lambda _, x: pool(x))(jnp.zeros(()), x))
    np.testing.assert_allclose(got, pool(x), rtol=1e-3)


@hypothesis.given(st.integers(0, 10), st.floats(0.01, 100))
@hypothesis.settings(max_examples=10)
def test_the_flow_is_positively_homogeneous_in_each_layer(seed, factor):
    params = nets.draw(nets.CONVNET_SHAPES, seed)
    scaled = params | {"c": params["c"] * factor}
    before, after = log_of_convnet(params), log_of_convnet(scaled)
    np.testing.assert_allclose(after - before, np.log(factor), atol=1e-4)


log_of_convnet = jax.jit(
    lambda params: sj.log_flow(nets.convnet, params, nets.CONVNET_INPUT)
)


def test_nothing_overflows_or_vanishes_at_any_depth():
    depth = 100

    @jax.jit
    def deep(w, x):
        for _ in range(depth):
            x = jax.nn.relu(x @ w)
        return x

    for size in (1e-20, 1e20):
        w = jnp.full((2, 2), size)
        got = sj.log_flow(deep, w, (2,))
        want = depth * np.log(2 * size) + np.log(2)
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_residual_streams_of_unequal_size_add_up():
    def network(w, x):
        for _ in range(150):
            x = x + x @ w
        return x

    got = sj.log_flow(network, jnp.full((2, 2), 50.0), (2,))
    np.testing.assert_allclose(got, 150 * np.log(101) + np.log(2), rtol=1e-5)


def test_mantissas_are_near_one_and_exponents_whole():
    mantissa, exponent = sj.flow(lambda w, x: x @ w)(jnp.full((3, 3), 1e30), jnp.ones(3))
    assert exponent.dtype == jnp.int32 and exponent.shape == ()
    assert 1 <= float(mantissa.max()) < 2
    np.testing.assert_allclose(value((mantissa, exponent)), 3e30, rtol=1e-6)


def test_outputs_keep_their_tree_and_those_without_input_carry_nothing():
    def network(w, x):
        return {"y": x @ w, "w": w, "pair": (x, x)}

    mantissas, exponents = sj.flow(network)(W, X)
    assert jax.tree.structure(mantissas) == jax.tree.structure(exponents)
    np.testing.assert_array_equal(mantissas["w"], jnp.zeros((4, 4)))
    np.testing.assert_allclose(value((mantissas["pair"][1], exponents["pair"][1])), X)


def test_no_path_means_no_flow():
    assert sj.log_flow(lambda w, x: x @ w, jnp.zeros((2, 2)), (2,)) == -jnp.inf
    assert sj.log_flow(lambda w, x: w, jnp.ones((2, 2)), (2,)) == -jnp.inf


def test_a_zero_branch_leaves_the_other_alone():
    def network(w, x):
        return x @ w["a"] @ w["b"] + x @ w["c"]

    tiny = {"a": jnp.zeros((2, 2)), "b": jnp.ones((2, 2)), "c": jnp.full((2, 2), 1e-30)}
    got = sj.log_flow(network, tiny, (2,))
    np.testing.assert_allclose(got, np.log(4e-30), rtol=1e-5)


def test_a_branch_that_dies_late_leaves_the_other_alone():
    """The zeros of a dead branch carry no size, however large the branch was before."""

    def network(p, x):
        return x @ p["a"] @ p["a"] @ p["zero"] + x @ p["w"]

    params = {"a": jnp.full((2, 2), 1e30), "zero": jnp.zeros((2, 1)), "w": jnp.ones((2, 1))}
    np.testing.assert_allclose(sj.log_flow(network, params, (2,)), np.log(2), rtol=1e-5)


TAKES = {
    "slice": lambda x: x[:, :1],
    "dynamic slice": lambda x: lax.dynamic_slice(x, (0, 0), (1, 1)),
    "gather": lambda x: x[:, jnp.array([0])],
    "where": lambda x: jnp.where(jnp.array([[True, False]]), x, 0.0)[:, :1],
    "split": lambda x: jnp.split(x, 2, axis=1)[0],
}


@pytest.mark.parametrize("name", TAKES)
def test_zeros_taken_from_a_large_array_leave_another_branch_alone(name):
    def network(p, x):
        return TAKES[name](x @ p["a"] @ p["b"]) + x @ p["w"]

    params = {"a": jnp.eye(2) * 1e23, "b": jnp.diag(jnp.array([0.0, 1e23]))}
    params["w"] = jnp.ones((2, 1))
    np.testing.assert_allclose(sj.log_flow(network, params, (2,)), np.log(2), rtol=1e-5)


def test_a_nan_passes_max_pooling_to_be_reported():
    pool = sj.flow(lambda _, x: nn.max_pool(x, (1, 2), (1, 2)))
    for pair in ([jnp.nan, 1.0], [1.0, jnp.nan]):
        x = jnp.array(pair).reshape(1, 1, 2, 1)
        assert jnp.isnan(pool(jnp.zeros(()), x)[0]).all()


def test_a_users_function_named_like_an_activation_is_looked_into():
    @jax.jit
    def silu(w, x):
        return x @ w

    @jax.jit
    def elu(x):
        return x @ W

    for network in (lambda w, x: silu(w, x), lambda w, x: elu(x)):
        got = value(flow(network)(W, X))
        np.testing.assert_allclose(got, X @ abs(W), rtol=1e-5)


@pytest.mark.parametrize("name", ["relu", "relu6", "elu", "silu", "leaky_relu", "softplus"])
def test_activations_of_jax_nn_are_removed(name):
    activation = getattr(jax.nn, name)
    got = value(flow(lambda w, x: activation(x @ w))(W, X))
    np.testing.assert_allclose(got, X @ abs(W), rtol=1e-5)


def test_parameters_of_numpy_in_double_precision_are_taken_as_jax_takes_them():
    got = sj.flow(lambda w, x: x @ w)(np.eye(2), np.ones((1, 2)))
    np.testing.assert_array_equal(value(got), np.ones((1, 2)))


def test_biases_join_when_asked():
    def network(params, x):
        return x @ params["w"] + params["b"] - params["mean"]

    params = {"w": W, "b": B, "mean": 3 * B}
    got = value(sj.flow(network, biases=True)(params, X))
    np.testing.assert_allclose(got, X @ abs(W) + abs(B) - 3 * abs(B), rtol=1e-4)


def test_a_model_of_layers_alone_is_named_by_its_layer():
    model = nn.Sequential([nn.Dense(3), functools.partial(lax.polygamma, jnp.ones((1, 3)))])
    variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
    with pytest.raises(sj.FlowError, match=r"flax.linen.*\.py:\d+ \(Sequential"):
        sj.log_flow(model.apply, variables, (2,))


def test_it_can_be_jitted_mapped_and_differentiated():
    f = sj.flow(lambda w, x: x @ w)
    ws = jnp.stack([W, 2 * W])
    m, e = jax.jit(jax.vmap(f, in_axes=(0, None)))(ws, X)
    np.testing.assert_allclose(value((m[1], e[1])), 2 * value((m[0], e[0])), rtol=1e-6)
    g = jax.grad(lambda w: jnp.sum(f(w, X)[0]))(W)
    np.testing.assert_allclose(
        g * 2.0 ** f(W, X)[1],
        jnp.sign(W) * X.sum(0)[:, None],
        rtol=1e-5,
    )
    jax.hessian(lambda w: jnp.sum(f(w, X)[0]))(W)


def test_an_unknown_primitive_is_named_with_the_line_that_calls_it():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(3)(x)
            return lax.polygamma(jnp.ones_like(x), x)  # the line to name

    model = Model()
    variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
    with pytest.raises(sj.FlowError, match="primitive `polygamma`") as error:
        sj.log_flow(model.apply, variables, (2,))
    source = pathlib.Path(__file__).read_text().splitlines()
    line = next(i for i, text in enumerate(source, 1) if "# the line to name" in text)
    assert f"test_network_flow.py:{line} (Model.__call__)" in str(error.value)


def test_a_library_call_is_traced_to_the_users_line():
    def model(params, x):
        return jnp.linalg.svd(x @ params, compute_uv=False)[None] * x

    with pytest.raises(
        sj.FlowError, match=r"called at .*test_network_flow\.py:\d+ \(model\)"
    ):
        sj.log_flow(model, W, (4,))


def test_misuse_of_a_known_primitive_is_named_once():
    def inner(x):
        return lax.polygamma(jnp.ones_like(x), x)

    with pytest.raises(sj.FlowError) as error:
        sj.log_flow(lambda w, x: jax.jit(inner)(x) @ w, W, (4,))
    assert str(error.value).count("flow has no rule for the primitive `polygamma`") == 1
    assert "(inner)" in str(error.value)


@pytest.mark.parametrize("shape", ["32", (3, "x"), 7, None, (-1,), {"x": (3,)}])
def test_a_bad_input_shape_is_shown(shape, no_typecheck):
    with pytest.raises(ValueError, match="`input_shape`"):
        sj.log_flow(lambda w, x: x @ w, W, shape)


def test_several_inputs_are_described_by_their_shapes():
    shapes = {"a": jax.ShapeDtypeStruct((1, 4), jnp.float32)} | {
        "b": jax.ShapeDtypeStruct((5, 4), jnp.float32)
    }
    got = sj.log_flow(lambda w, x: (x["a"] @ w, x["b"]), W, shapes)
    np.testing.assert_allclose(got, np.log(abs(W).sum() + 20), rtol=1e-5)


def test_every_rule_is_explained():
    assert all(rule.apply.__doc__ for rule in flow_rules.values())

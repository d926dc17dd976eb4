"""Activations, however they are written: the flow of each, and of what scales it."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import synflow_jax as sj

W = jnp.array([[1.0, -2.0], [-3.0, 4.0]])  # R(x @ W) is 10 on an all-ones input


def R(network, params=W, shape=(2,)):
    return float(jnp.exp(jax.jit(lambda p: sj.log_flow(network, p, shape))(params)))


def scores_of(network, params, shape=(2,)):
    scores = jax.jit(lambda p: sj.synflow(network, shape)(p, sj.all_kept(p)))(params)
    return jax.tree.map(lambda s: float(s.sum()), scores)


def prelu(y):
    module = nn.PReLU()
    return module.apply(module.init(jax.random.key(0), y), y)


@jax.custom_jvp
def own_silu(y):
    return y * jax.nn.sigmoid(y)


@jax.custom_jvp
def own_leaky_relu(y):
    return jnp.where(y > 0, y, 0.1 * y)


@jax.custom_vjp
def own_square(y):
    return y * y


own_silu.defjvps(lambda dy, value, y: dy * jax.nn.sigmoid(y) * (1 + y - value))
own_leaky_relu.defjvps(lambda dy, value, y: dy * jnp.where(y > 0, 1.0, 0.1))
own_square.defvjp(lambda y: (y * y, y), lambda y, dy: (2 * y * dy,))


NAMED = {
    **{
        f"jax.nn.{name}": getattr(jax.nn, name)
        for name in (
            "celu elu gelu hard_sigmoid hard_silu hard_tanh identity leaky_relu "
            "log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_sign softmax "
            "softplus sparse_plus sparse_sigmoid squareplus tanh swish hard_swish"
        ).split()
    },
    "jax.nn.gelu, exact": lambda y: jax.nn.gelu(y, approximate=False),
    "jax.nn.standardize": jax.nn.standardize,
    "flax.linen.PReLU": prelu,
    "flax.nnx.silu": nnx.silu,
    "flax.nnx.gelu": nnx.gelu,
    "flax.nnx.PReLU": nnx.PReLU(),
    "equinox.nn.PReLU": eqx.nn.PReLU(0.25),
}
WRITTEN = {
    "silu": lambda y: y * jax.nn.sigmoid(y),
    "silu, as a quotient": lambda y: y / (1 + jnp.exp(-y)),
    "silu, by tanh": lambda y: 0.5 * y * (1 + jnp.tanh(0.5 * y)),
    "gelu, by erf": lambda y: 0.5 * y * (1 + lax.erf(y / np.sqrt(2))),
    "gelu, by erfc": lambda y: y * lax.erfc(-y * np.sqrt(0.5)) / 2 * 2,
    "gelu, by tanh": lambda y: (
        0.5 * y * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    ),
    "quick gelu": lambda y: y * jax.nn.sigmoid(1.702 * y),
    "mish": lambda y: y * jnp.tanh(jnp.log1p(jnp.exp(y))),
    "leaky relu": lambda y: jnp.where(y > 0, y, 0.1 * y),
    "elu": lambda y: jnp.where(y > 0, y, jnp.expm1(y)),
    "relu squared": lambda y: jax.nn.relu(y) ** 2,
    "square": lambda y: y * y,
    "snake": lambda y: y + 0 * jnp.sin(y) ** 2,
    "tanh, by exponentials": lambda y: (
        (jnp.exp(y) - jnp.exp(-y)) / (jnp.exp(y) + jnp.exp(-y))
    ),
    "logistic, as a quotient": lambda y: jnp.exp(y) / (1 + jnp.exp(y)),
    "step": lambda y: jnp.where(y > 0, 1.0, -1.0),
    "sign": jnp.sign,
    "clipped": lambda y: jnp.clip(y, -1.0, 1.0),
    "silu with a derivative of one's own": own_silu,
    "leaky relu with a derivative of one's own": own_leaky_relu,
    "square with a derivative of one's own": own_square,
}
# Their functions are not products of functions of y. What stands outside of the last
# nonlinearity multiplies, and a sum of two functions is a sum.
OTHERS = {
    "selu, written": (lambda y: 1.05 * jnp.where(y > 0, y, jnp.expm1(y)), 1.05),
    "hard swish, written": (lambda y: y * jnp.clip(y + 3, 0.0, 6.0) / 6, 1 / 6),
    "softplus, as a sum": (lambda y: jnp.maximum(y, 0) + jnp.log1p(jnp.exp(-abs(y))), 2),
    "jnp.logaddexp": (lambda y: jnp.logaddexp(y, 0.0), None),
    "tanh, by a logistic": (lambda y: 2 * jax.nn.sigmoid(2 * y) - 1, 4),
    "crelu-like sum": (lambda y: jax.nn.relu(y) + jax.nn.relu(-y), 2),
    "snake, as a sum": (lambda y: y + jnp.sin(y) ** 2, 2),
}
INNER = {
    "a constant": (lambda p, y: 0.5 * y - 3.0, 5),
    "a constant, traced": (lambda p, y: jnp.sqrt(jnp.float32(0.25)) * y, 5),
    "a learned number": (lambda p, y: p["g"] * y + p["b"], 3),
    "a learned divisor": (lambda p, y: y / p["g"], 10 / 0.3),
    "a learned array": (lambda p, y: y * p["array"] + p["b"], 13),
    "a sum": (lambda p, y: y + jax.nn.relu(y), 20),
}
PARAMS = {
    "w": W,
    "g": jnp.float32(0.3),
    "b": jnp.float32(7.0),
    "array": jnp.array([[1.0, -1.5]]),
}


@pytest.mark.parametrize("inner", INNER)
def test_an_activation_has_the_flow_of_what_it_is_a_function_of(inner):
    """All activations of one argument in one program."""
    arguments = {**NAMED, **WRITTEN}
    argument, want = INNER[inner]

    @jax.jit
    def flows(params):
        def network(act):
            return lambda p, x: act(argument(p, x @ p["w"]))

        return {n: sj.log_flow(network(a), params, (2,)) for n, a in arguments.items()}

    with jax.numpy_dtype_promotion("standard"):
        got = {name: float(jnp.exp(value)) for name, value in flows(PARAMS).items()}
    assert got == pytest.approx(dict.fromkeys(arguments, want), rel=1e-5)


def test_a_traced_number_is_no_constant_of_the_model():
    """It stays outside of a nonlinearity too, since it may be a parameter."""

    @jax.jit
    def flows(c):
        def network(function):
            return lambda p, x: function(c, x @ p)

        forms = {
            "before": lambda c, y: WRITTEN["silu"](c * y),
            "outside": lambda c, y: (c * y) * jax.nn.sigmoid(y),
            "inside": lambda c, y: y * jax.nn.sigmoid(c * y),
            "added": lambda c, y: (c + 0 * y) * y,
        }
        return {n: sj.log_flow(network(f), W, (2,)) for n, f in forms.items()}

    got = {name: float(jnp.exp(value)) for name, value in flows(0.5).items()}
    assert got == pytest.approx({"before": 5, "outside": 5, "inside": 10, "added": 10})


@pytest.mark.parametrize("name", OTHERS)
def test_forms_that_are_sums_or_have_an_outer_factor(name):
    act, factor = OTHERS[name]
    assert R(lambda w, x: act(x @ w)) == pytest.approx(10 * (factor or 1), rel=1e-5)


def test_a_learned_number_before_an_activation_is_a_cut():
    params = {"w": W, "g": jnp.float32(0.3)}
    for act in (jax.nn.gelu, WRITTEN["silu"], prelu, jax.nn.tanh):
        scores = scores_of(lambda p, x, act=act: act(p["g"] * (x @ p["w"])), params)
        assert scores == pytest.approx({"w": 1, "g": 1}, rel=1e-5)


def test_a_learned_number_outside_of_every_nonlinearity_stays():
    params = {"w": W, "g": jnp.float32(0.3), "h": jnp.float32(0.5)}

    def value(function):
        return R(lambda p, x: function(p["g"], p["h"], x @ p["w"]), params)

    sigmoid = jax.nn.sigmoid
    assert value(lambda g, h, y: (g * y) * sigmoid(y)) == pytest.approx(3)
    assert value(lambda g, h, y: y * (g * sigmoid(y))) == pytest.approx(3)
    assert value(lambda g, h, y: (g * y) * (h * sigmoid(y))) == pytest.approx(1.5)
    assert value(lambda g, h, y: ((g * y) * sigmoid(y)) * jnp.tanh(y)) == pytest.approx(3)
    assert value(lambda g, h, y: (y / g) * sigmoid(y)) == pytest.approx(10 / 0.3)
    assert value(lambda g, h, y: jnp.where(y > 0, g * y, 0.1 * (g * y))) == pytest.approx(3)
    # Inside of a nonlinearity it is a parameter of the activation, as the slope here is.
    assert value(lambda g, h, y: y * sigmoid(g * y)) == pytest.approx(10)
    assert value(lambda g, h, y: jnp.where(y > 0, y, g * y)) == pytest.approx(10)


def test_two_branches_pass_as_much_as_they_are_scaled():
    params = {"a": W, "b": W}
    gelu = jax.nn.gelu
    scores = scores_of(lambda p, x: gelu(0.01 * (x @ p["a"])) + gelu(x @ p["b"]), params)
    assert scores == pytest.approx({"a": 1 / 101, "b": 100 / 101}, rel=1e-5)


def test_the_input_chooses_between_parameters():
    params = {"w": W, "a": jnp.array([[2.0, -1.0]]), "b": jnp.array([[1.0, 1.0]])}
    params["o"] = jnp.ones((2, 1))

    def network(p, x):
        return jnp.where(x @ p["w"] > 0, p["a"], p["b"]) @ p["o"]

    assert R(network, params) == pytest.approx(4 * 3 + 6 * 2)
    scores = scores_of(network, params)
    assert scores["w"] == pytest.approx(1) == scores["o"]
    assert scores["a"] + scores["b"] == pytest.approx(1)


def test_flows_that_the_input_chooses_between_must_have_one_origin():
    def network(w, x):
        return jnp.where(x @ w > 0, x @ w, x)

    with pytest.raises(sj.FlowError, match="chooses between two flows"):
        R(network)


# --- numbers that are added and then multiply ---------------------------------------------

SHIFTED = {
    "1 + s": lambda p, s, x: (1 + s) * x,
    "s + 1, after x": lambda p, s, x: x * (s + 1.0),
    "2 (1 + s) / 2": lambda p, s, x: (2 * (1 + s)) / 2 * x,
    "1 - s": lambda p, s, x: (1 - s) * x,
    "-(s - 1)": lambda p, s, x: -(s - 1) * x,
    "a bias between": lambda p, s, x: ((1 + s) + p["b"]) * x,
    "moved": lambda p, s, x: jnp.broadcast_to((1 + s)[:, None], (1, 1, 2))[:, 0] * x,
    "split": lambda p, s, x: jnp.split(1 + jnp.tile(s, (1, 2)), 2, axis=1)[1] * x,
    "cast": lambda p, s, x: (1 + s).astype(jnp.bfloat16).astype(jnp.float32) * x,
    "filled": lambda p, s, x: (jnp.ones_like(s) + s) * x,
    "concatenated": lambda p, s, x: jnp.concatenate([1 + s, 1 + s], 1)[:, 2:] * x,
    "selected": lambda p, s, x: jnp.where(jnp.array([True, False])[None], 1 + s, s + 1) * x,
    "leaving a rematerialised part": lambda p, s, x: jax.checkpoint(lambda s: 1 + s)(s) * x,
    "two halves": lambda p, s, x: ((0.5 + s) + (0.5 + 0 * s)) * x,
    "einsum": lambda p, s, x: jnp.einsum("bd,btd->btd", 1 + s, x[:, None])[:, 0],
    "in a branch": lambda p, s, x: lax.cond(
        p["b"] > 0, lambda a, x: a * x, lambda a, x: x, 1 + s, x
    ),
    "rematerialised": lambda p, s, x: jax.checkpoint(lambda a, x: a * x)(1 + s, x),
    "in a scan": lambda p, s, x: lax.scan(
        lambda c, _, a=1 + s: (c, a * c), x, None, length=1
    )[1][0],
}


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_one_plus_s_times_x_is_x_plus_s_times_x(size):
    params = {"w": W, "s": size * W.T, "b": jnp.float32(7.0)}

    @jax.jit
    def flows(params):
        def network(function):
            return lambda p, x: function(p, x @ p["s"], x @ p["w"])

        written_out = network(lambda p, s, x: x + s * x)
        want = sj.log_flow(written_out, params, (2,))
        return want, {n: sj.log_flow(network(f), params, (2,)) for n, f in SHIFTED.items()}

    want, got = flows(params)
    assert np.isfinite(want)
    got = {name: float(value) for name, value in got.items()}
    assert got == pytest.approx(dict.fromkeys(SHIFTED, float(want)), rel=1e-4)


def test_two_shifted_flows_are_multiplied_out():
    def network(written):
        def apply(p, x):
            s, t = x @ p["s"], x @ p["w"]
            return 2 * t + 3 * s + s * t if written else (2 + s) * (3 + t)

        return apply

    params = {"w": W, "s": W.T}
    assert R(network(False), params) == pytest.approx(R(network(True), params), rel=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda p, s, x: (p["b"] + s) * x,
        lambda p, s, x: (p["array"] + s) * x,
        lambda p, s, x: (jnp.arange(1.0, 3.0)[None] + s) * x,
        lambda p, s, x: jax.nn.sigmoid(1 + s) * x,
        lambda p, s, x: jnp.tanh(1 + s) * x,
    ],
    ids=["a bias", "biases", "an array", "before a logistic", "before a tanh"],
)
def test_biases_arrays_and_what_a_nonlinearity_hides_do_not_multiply(function):
    params = {**PARAMS, "s": 0 * W}
    network = lambda p, x: function(p, x @ p["s"], x @ p["w"])  # noqa: E731
    assert R(network, params) == 0


def test_a_residual_gate_that_starts_at_zero_lets_the_flow_pass():
    """A block of adaLN-zero, FiLM, and squeeze-and-excitation with a residual."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            condition = nn.Dense(8)(x.mean(axis=1))
            zeros = nn.initializers.zeros_init()
            modulation = nn.Dense(12, kernel_init=zeros)(nn.silu(condition))
            shift, scale, gate = jnp.split(modulation[:, None], 3, axis=-1)
            h = nn.LayerNorm(use_scale=False, use_bias=False)(x) * (1 + scale) + shift
            h = x + gate * nn.Dense(4)(h)
            squeezed = nn.sigmoid(nn.Dense(4, kernel_init=zeros)(h.mean(axis=1)))
            return nn.Dense(1)(h * (1 + squeezed[:, None]))

    model = Block()
    x = jax.ShapeDtypeStruct((1, 3, 4), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), jnp.ones(x.shape))
    assert np.isfinite(jax.jit(lambda p: sj.log_flow(model.apply, p, x))(params))


# --- masks of attention -------------------------------------------------------------------


def attention(mask):
    def network(p, x):
        logits = (x @ p["q"]) @ (x @ p["k"]).T
        return jax.nn.softmax(mask(p, logits)) @ (x @ p["v"])

    return network


LOW = {
    "-1e4": jnp.float32(-1e4),
    "-1e4 in bfloat16": jnp.bfloat16(-1e4),
    "float16": jnp.finfo(jnp.float16).min,
    "bfloat16": jnp.finfo(jnp.bfloat16).min,
    "float32": jnp.finfo(jnp.float32).min,
    "-1e8": jnp.float32(-1e8),
    "-inf": jnp.float32(-jnp.inf),
}
CAUSAL = jnp.array([[0.0, 1.0], [0.0, 0.0]])


def test_what_is_masked_before_a_softmax_carries_no_flow():
    params = {"q": W, "k": W, "v": W}
    shape = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    masks = {
        name: lambda p, y, low=low: y + jnp.where(CAUSAL > 0, low.astype(jnp.float32), 0)
        for name, low in LOW.items()
    }
    masks |= {
        "before a scale": lambda p, y: (y + CAUSAL * -1e5) * 0.5 / 0.5,
        "subtracted": lambda p, y: y - CAUSAL * 1e9,
        "moved": lambda p, y: (y + CAUSAL * -1e9)[None].swapaxes(1, 2)[0].T,
        "with a bias": lambda p, y: (y + p["q"] + CAUSAL * -1e9) + p["k"],
        "selected": lambda p, y: jnp.where(CAUSAL > 0, -1e9, y),
        "selected after": lambda p, y: jnp.where(CAUSAL >= 0, y + CAUSAL * -1e9, -1e30),
        "with a low bound": lambda p, y: jnp.maximum(y + CAUSAL * -1e9, -1e30),
        "concatenated": lambda p, y: jnp.concatenate([y + CAUSAL * -1e9, y], 1)[:, :2],
        "leaving a rematerialised part": lambda p, y: jax.checkpoint(
            lambda y: y + CAUSAL * -1e9
        )(y),
    }

    @jax.jit
    def flows(params):
        return {n: sj.log_flow(attention(mask), params, shape) for n, mask in masks.items()}

    def causal(params):
        """Row 0 sees entry 0 alone, row 1 both."""
        x = jnp.ones((2, 2))
        q, k, v = (x @ abs(params[name]) for name in "qkv")
        weights = (jnp.sqrt(q) @ jnp.sqrt(k).T) * (1 - CAUSAL)
        return (jnp.sqrt(weights) @ jnp.sqrt(v)).sum()

    got = {name: float(jnp.exp(value)) for name, value in flows(params).items()}
    assert got == pytest.approx(dict.fromkeys(masks, float(causal(params))), rel=1e-5)


def test_a_mask_is_read_in_branches_and_loops_and_beside_them():
    """What was added is computed where it is asked for, and nowhere kept."""
    mask = jnp.array([[0.0, -1e9]])
    forms = {
        "cond": lambda y: lax.cond(W[0, 0] > 0, jax.nn.softmax, lambda y: y, y[None])[0],
        "scan": lambda y: lax.scan(
            lambda c, _: (c, jax.nn.softmax(y[None])[0]), 0, None, length=1
        )[1][0],
        "checkpoint and beside": lambda y: (
            jax.checkpoint(jax.nn.softmax)(y[None])[0] + 0 * jax.nn.softmax(y[None])[0]
        ),
    }
    for function in forms.values():
        network = lambda w, x, f=function: f(x @ w + mask)  # noqa: E731
        assert R(network) == pytest.approx(4)
        assert float(sj.log_flow(network, W, (2,))) == pytest.approx(np.log(4))


def test_a_history_leaves_a_rematerialised_part():
    params = {"w": W, "g": jnp.float32(0.3)}

    def value(function):
        return R(lambda p, x: function(p, x @ p["w"]), params)

    gate = jax.checkpoint(lambda g, y: g * jax.nn.sigmoid(y))
    assert value(lambda p, y: y * gate(p["g"], y)) == pytest.approx(3)
    inverse = jax.checkpoint(lambda y: lax.rsqrt(jnp.mean(y * y)))
    assert value(lambda p, y: y * inverse(y)) == pytest.approx(10)


def test_slopes_of_each_channel_and_a_parameter_that_is_used_twice():
    params = {"w": W, "g": jnp.float32(0.3), "slopes": jnp.array([[0.1, 0.2]])}

    def value(function):
        return R(lambda p, x: function(p, x @ p["w"]), params)

    leaky = lambda p, y: jnp.where(y >= 0, y, p["slopes"] * y)  # noqa: E731
    assert value(leaky) == pytest.approx(10)
    both = lambda p, y: jnp.where(y >= 0, p["slopes"] * y, -p["slopes"] * y)  # noqa: E731
    assert value(both) == pytest.approx(4 * 0.1 + 6 * 0.2)
    assert value(lambda p, y: (p["g"] * y) * (p["g"] * y)) == pytest.approx(3)
    assert value(lambda p, y: jnp.square(p["g"] * y)) == pytest.approx(3)
    # A product with an array starts a new history: this is a gate.
    gate = lambda p, y: (p["slopes"] * y) * jax.nn.sigmoid(y)  # noqa: E731
    assert value(gate) == pytest.approx(4 * 0.1**0.5 + 6 * 0.2**0.5)


def test_a_large_negative_bias_elsewhere_is_a_bias():
    params = {"w": W, "b": jnp.full((2,), -2e9)}
    for act in (jax.nn.relu, jax.nn.sigmoid, jnp.tanh, lambda y: y):
        assert R(
            lambda p, x, act=act: act(x @ p["w"] + p["b"][None]), params
        ) == pytest.approx(10)


# --- weights that are added up ------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "want"),
    [
        (lambda w, x: jnp.einsum("bi,ij->b", x, w), 10),
        (lambda w, x: x @ w.sum(axis=1, keepdims=True), 10),
        (lambda w, x: x @ jnp.mean(w.T, axis=0)[:, None], 5),
        (lambda w, x: x @ (-w[None] * 0.5).sum(axis=(0, 2))[:, None], 5),
        (lambda w, x: x * w.sum(axis=1)[None], 10),
        (lambda w, x: x @ (w - w.mean(axis=0, keepdims=True)), 10),
    ],
    ids=["einsum", "sum", "mean", "moved", "scale", "standardised"],
)
def test_absolute_values_are_taken_of_weights_and_not_of_their_sums(network, want):
    assert R(network) == pytest.approx(want)

"""Every function of jax.nn and every layer of Flax: conserved, or refused by name."""

import inspect
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import synflow_jax as sj

pytestmark = pytest.mark.usefixtures("standard_promotion")

W = jnp.asarray(np.random.default_rng(0).standard_normal((6, 8)), jnp.float32)


def drawn(shapes):
    """Numbers of these shapes. No layer's own: each of those is a program to compile."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes
    )


def scores_of(network, params, input_shape):
    """In one program with the masks of ones."""
    score = sj.synflow(network, input_shape)
    return jax.device_get(jax.jit(lambda p: score(p, sj.all_kept(p)))(params))


def flow_of(network, *args):
    mantissa, exponent = jax.jit(sj.flow(network))(*args)
    return np.asarray(mantissa, np.float64) * 2.0 ** np.asarray(exponent, np.float64)


# --- jax.nn -------------------------------------------------------------------------------

IDENTITIES = (
    "celu elu gelu hard_sigmoid hard_silu hard_swish hard_tanh identity leaky_relu "
    "log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_sign softmax softplus "
    "sparse_plus sparse_sigmoid squareplus standardize swish tanh"
).split()
OTHER_FUNCTIONS = {
    "glu": lambda x: np.sqrt(x[:, :4] * x[:, 4:]),
    "logsumexp": lambda x: x.sum(),
    "logmeanexp": lambda x: x.sum(),
}
# Their input is no activation, or they do not compute on one.
NOT_ACTIVATIONS = {
    "dot_product_attention": "tested below",
    "one_hot": "tested below",
    "log1mexp": "of log-probabilities: refused or passed as written",
    "scaled_matmul": "needs a GPU",
    "scaled_dot_general": "needs a GPU",
    "get_scaled_dot_general_config": "makes a configuration",
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_an_activation_of_jax_nn_is_the_identity(name):
    activation = getattr(jax.nn, name)
    got = flow_of(lambda w, x: activation(x @ w), W, jnp.ones((3, 6)))
    np.testing.assert_allclose(got, jnp.ones((3, 6)) @ abs(W), rtol=1e-5)


@pytest.mark.parametrize("approximate", [True, False])
def test_both_forms_of_gelu_are_the_identity(approximate):
    got = flow_of(lambda w, x: jax.nn.gelu(x @ w, approximate), W, jnp.ones((3, 6)))
    np.testing.assert_allclose(got, jnp.ones((3, 6)) @ abs(W), rtol=1e-5)


@pytest.mark.parametrize("name", OTHER_FUNCTIONS)
def test_other_functions_of_jax_nn(name):
    got = flow_of(lambda w, x: getattr(jax.nn, name)(x @ w), W, jnp.ones((3, 6)))
    want = OTHER_FUNCTIONS[name](np.ones((3, 6)) @ np.abs(W))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_no_function_of_jax_nn_is_missing_here():
    known = {*IDENTITIES, *OTHER_FUNCTIONS, *NOT_ACTIVATIONS}
    there = {n for n in dir(jax.nn) if inspect.isroutine(getattr(jax.nn, n))}
    there |= {n for n in dir(jax.nn) if callable(getattr(jax.nn, n)) and n[0] != "_"}
    assert {n for n in there if n[0] != "_"} <= known


HAND_WRITTEN = {
    "relu": lambda x: jnp.where(x > 0, x, 0),
    "relu by a product": lambda x: x * (x > 0),
    "leaky relu": lambda x: jnp.where(x < 0, 0.1 * x, x),
    "elu": lambda x: jnp.where(x > 0, x, jnp.expm1(x)),
    "swish": lambda x: x / (1 + jnp.exp(-x)),
    "swish by its sigmoid": lambda x: x * (1 / (1 + jnp.exp(-x))),
    "sigmoid": lambda x: 1 / (1 + jnp.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x / 2**0.5)),
    "square of relu": lambda x: jnp.square(jax.nn.relu(x)),
    "cube": lambda x: x**3,
    "softmax": lambda x: (
        jnp.exp(x - x.max(-1, keepdims=True))
        / jnp.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)
    ),
    "softplus": lambda x: jnp.log1p(jnp.exp(x)),
    "norm": lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
    "root mean square norm": lambda x: (
        x * (jnp.mean(x**2, -1, keepdims=True) + 1e-6) ** -0.5
    ),
    "clip": lambda x: jnp.clip(x, 0, 6),
    "sine": jnp.sin,
    "straight-through rounding": lambda x: x + jax.lax.stop_gradient(jnp.round(x) - x),
}


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_nonlinearities_written_by_hand_are_the_identity(name):
    got = flow_of(lambda w, x: HAND_WRITTEN[name](x @ w), W, jnp.ones((3, 6)))
    np.testing.assert_allclose(got, jnp.ones((3, 6)) @ abs(W), rtol=1e-5)


def test_a_choice_between_foreign_flows_is_refused():
    def network(w, x):
        return jnp.where(x @ w > 0, x @ w[:, ::-1], x @ (2 * w))

    with pytest.raises(sj.FlowError, match="chooses between two flows"):
        sj.log_flow(network, W, (6,))


# --- layers -------------------------------------------------------------------------------

VECTOR, SEQUENCE, IMAGE = (2, 6), (2, 5, 6), (2, 6, 7, 6)


class Case(types.SimpleNamespace):
    """A layer, the shape that it acts on, and which of its leaves form cuts."""

    def __init__(self, layer, shape=VECTOR, cuts=(), **call):
        super().__init__(layer=layer, shape=shape, cuts=cuts, call=call)


def scores_around(case):
    """Scores of a network that has the layer between two dense ones."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(x.shape[-1], name="before")(x)
            x = case.layer().copy(name="layer")(x, **case.call) if case.layer else x
            return nn.Dense(3, name="after")(x)

    module, shape = Network(), jax.ShapeDtypeStruct(case.shape, jnp.float32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = dict(jax.eval_shape(module.init, keys, shape))
    params = nn.meta.unbox(drawn(variables.pop("params")))
    rest = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), variables)

    def apply_fn(params, x):
        return module.apply(
            {"params": params, **rest},
            x,
            rngs={"dropout": jax.random.key(2)},
            mutable=[*rest],
        )[0]

    return scores_of(apply_fn, params, shape)


def named(tree):
    return dict(zip(sj.leaf_names(tree), jax.tree.leaves(tree)))


def assert_conserved(case, scores):
    scores = named(scores)
    assert all(np.isfinite(s).all() and (s >= 0).all() for s in scores.values())
    for cut in ["before/kernel", "after/kernel", *case.cuts]:
        names = cut.split(" + ")
        total = sum(float(scores[name].sum()) for name in names)
        assert total == pytest.approx(1, rel=1e-5), cut


K = "layer/kernel"
Q = "layer/query/kernel + layer/key/kernel + layer/value/kernel"
ATTENTION = (Q, "layer/out/kernel")


def rnn(cell, **settings):
    return lambda: nn.RNN(cell(6), **settings)


LSTM = " + ".join(f"layer/cell/i{gate}/kernel" for gate in "fgio")
LINEN = {
    "BatchNorm": Case(lambda: nn.BatchNorm(use_running_average=True), cuts=["layer/scale"]),
    "BatchNorm in training": Case(lambda: nn.BatchNorm(use_running_average=False)),
    "Bidirectional": Case(
        lambda: nn.Bidirectional(nn.RNN(nn.SimpleCell(6)), nn.RNN(nn.SimpleCell(6))),
        SEQUENCE,
        ["layer/forward_rnn/cell/i/kernel + layer/backward_rnn/cell/i/kernel"],
    ),
    "Conv": Case(lambda: nn.Conv(5, (3, 3)), IMAGE, [K]),
    "Conv, strided, dilated, in groups": Case(
        lambda: nn.Conv(4, (3, 3), 2, kernel_dilation=2, feature_group_count=2), IMAGE, [K]
    ),
    "ConvLocal": Case(lambda: nn.ConvLocal(5, (3, 3)), IMAGE, [K]),
    "ConvLSTMCell": Case(
        lambda: nn.RNN(nn.ConvLSTMCell(6, (3, 3))),
        (2, 3, 4, 4, 6),
        ["layer/cell/ih/kernel"],
    ),
    "ConvTranspose": Case(lambda: nn.ConvTranspose(5, (3, 3), (2, 2)), IMAGE, [K]),
    "Dense": Case(lambda: nn.Dense(5), cuts=[K]),
    "Dense in half precision": Case(lambda: nn.Dense(5, dtype=jnp.float16), cuts=[K]),
    "DenseGeneral": Case(lambda: nn.DenseGeneral((3, 4), axis=(-2, -1)), SEQUENCE, [K]),
    "Dropout": Case(lambda: nn.Dropout(0.5), deterministic=True),
    "Dropout in training": Case(lambda: nn.Dropout(0.5), (32, 6), deterministic=False),
    "Einsum": Case(lambda: nn.Einsum((6, 5), "...i,ij->...j"), cuts=[K]),
    "GRUCell": Case(
        lambda: nn.RNN(nn.GRUCell(6)),
        SEQUENCE,
        ["layer/cell/in/kernel + layer/cell/ir/kernel + layer/cell/iz/kernel"],
    ),
    "GroupNorm": Case(lambda: nn.GroupNorm(2), IMAGE, ["layer/scale"]),
    "InstanceNorm": Case(lambda: nn.InstanceNorm(), IMAGE, ["layer/scale"]),
    "LSTMCell": Case(lambda: nn.RNN(nn.LSTMCell(6)), SEQUENCE, [LSTM]),
    "LayerNorm": Case(lambda: nn.LayerNorm(), SEQUENCE, ["layer/scale"]),
    "MGUCell": Case(
        lambda: nn.RNN(nn.MGUCell(6)),
        SEQUENCE,
        ["layer/cell/in/kernel + layer/cell/if/kernel"],
    ),
    "MultiHeadAttention": Case(lambda: nn.MultiHeadAttention(2), SEQUENCE, ATTENTION),
    "MultiHeadDotProductAttention": Case(
        lambda: nn.MultiHeadDotProductAttention(2),
        SEQUENCE,
        ATTENTION,
        mask=nn.make_causal_mask(jnp.ones((2, 5))),
    ),
    "OptimizedLSTMCell": Case(
        lambda: nn.RNN(nn.OptimizedLSTMCell(6), reverse=True), SEQUENCE, [LSTM]
    ),
    "PReLU": Case(nn.PReLU),
    "RMSNorm": Case(lambda: nn.RMSNorm(), SEQUENCE, ["layer/scale"]),
    "RNN": Case(lambda: nn.RNN(nn.SimpleCell(6)), SEQUENCE, ["layer/cell/i/kernel"]),
    "SelfAttention": Case(lambda: nn.MultiHeadAttention(3), SEQUENCE, ATTENTION),
    "Sequential": Case(
        lambda: nn.Sequential([nn.Dense(4), nn.relu]), cuts=["layer/layers_0/kernel"]
    ),
    "SimpleCell": Case(
        lambda: nn.RNN(nn.SimpleCell(6), unroll=2), SEQUENCE, ["layer/cell/i/kernel"]
    ),
    "SpectralNorm": Case(
        lambda: nn.SpectralNorm(nn.Dense(5)),
        cuts=["layer/layer_instance/kernel"],
        update_stats=False,
    ),
    "WeightNorm": Case(
        lambda: nn.WeightNorm(nn.Dense(5)),
        cuts=["layer/layer_instance/kernel", "layer/layer_instance/kernel/scale"],
    ),
}
OTHER_LINEN = {
    "Embed": "tested below",
    "Module": "the base of all",
    "RNNCellBase": "the base of the cells",
    "Fp8DirectDotGeneralOp": "a product in eight bits",
    "Fp8DotGeneral": "a product in eight bits",
    "Fp8DotGeneralOp": "a product in eight bits",
    "Fp8Einsum": "a product in eight bits",
    "NANOOFp8DotGeneralOp": "a product in eight bits",
}


def test_no_layer_of_linen_is_missing_here():
    there = {
        name
        for name, value in vars(nn).items()
        if inspect.isclass(value) and issubclass(value, nn.Module)
    }
    assert there <= {*LINEN, *OTHER_LINEN}


@pytest.mark.parametrize("name", LINEN)
def test_a_layer_of_linen_conserves_the_flow(name):
    assert_conserved(LINEN[name], scores_around(LINEN[name]))


RNGS = nnx.Rngs
NNX = {
    "BatchNorm": (lambda r: nnx.BatchNorm(6, rngs=r), VECTOR),
    "Bidirectional": (
        lambda r: nnx.Bidirectional(
            nnx.RNN(nnx.SimpleCell(6, 6, rngs=r)), nnx.RNN(nnx.SimpleCell(6, 6, rngs=r))
        ),
        SEQUENCE,
    ),
    "Conv": (lambda r: nnx.Conv(6, 5, (3, 3), rngs=r), IMAGE),
    "ConvTranspose": (lambda r: nnx.ConvTranspose(6, 5, (3, 3), (2, 2), rngs=r), IMAGE),
    "Dropout": (lambda r: nnx.Dropout(0.5, rngs=r), VECTOR),
    "Einsum": (lambda r: nnx.Einsum("...i,ij->...j", (6, 5), rngs=r), VECTOR),
    "GRUCell": (lambda r: nnx.RNN(nnx.GRUCell(6, 6, rngs=r)), SEQUENCE),
    "GroupNorm": (lambda r: nnx.GroupNorm(6, 2, rngs=r), IMAGE),
    "InstanceNorm": (lambda r: nnx.InstanceNorm(6, rngs=r), IMAGE),
    "LSTMCell": (lambda r: nnx.RNN(nnx.LSTMCell(6, 6, rngs=r)), SEQUENCE),
    "LayerNorm": (lambda r: nnx.LayerNorm(6, rngs=r), SEQUENCE),
    "Linear": (lambda r: nnx.Linear(6, 5, rngs=r), VECTOR),
    "LinearGeneral": (
        lambda r: nnx.LinearGeneral((5, 6), (3, 4), axis=(-2, -1), rngs=r),
        SEQUENCE,
    ),
    "LoRA": (
        lambda r: nnx.LoRA(6, 2, 5, b_initializer=nnx.initializers.normal(), rngs=r),
        VECTOR,
    ),
    "LoRALinear": (lambda r: nnx.LoRALinear(6, 5, lora_rank=2, rngs=r), VECTOR),
    "MultiHeadAttention": (
        lambda r: nnx.MultiHeadAttention(2, 6, decode=False, rngs=r),
        SEQUENCE,
    ),
    "OptimizedLSTMCell": (lambda r: nnx.RNN(nnx.OptimizedLSTMCell(6, 6, rngs=r)), SEQUENCE),
    "PReLU": (lambda r: nnx.PReLU(), VECTOR),
    "RMSNorm": (lambda r: nnx.RMSNorm(6, rngs=r), SEQUENCE),
    "RNN": (lambda r: nnx.RNN(nnx.SimpleCell(6, 6, rngs=r), reverse=True), SEQUENCE),
    "Sequential": (lambda r: nnx.Sequential(nnx.Linear(6, 4, rngs=r), nnx.relu), VECTOR),
    "RoPE": (lambda r: nnx.RoPE(), SEQUENCE),
    "SimpleCell": (lambda r: nnx.RNN(nnx.SimpleCell(6, 6, rngs=r)), SEQUENCE),
    "SpectralNorm": (
        lambda r: nnx.SpectralNorm(nnx.Linear(6, 5, rngs=r), rngs=r),
        VECTOR,
    ),
    "WeightNorm": (lambda r: nnx.WeightNorm(nnx.Linear(6, 5, rngs=r), rngs=r), VECTOR),
}
OTHER_NNX = {
    "Dict": "a container",
    "Embed": "as in linen, tested below",
    "List": "a container",
    "Module": "the base of all",
    "RNNCellBase": "the base of the cells",
}


def test_no_layer_of_nnx_is_missing_here():
    there = {
        name
        for name, value in vars(nnx).items()
        if inspect.isclass(value) and issubclass(value, nnx.Module)
    }
    assert there <= {*NNX, *OTHER_NNX}


# Layers that the lowest or the newest version of Flax does not have.
NNX = {name: row for name, row in NNX.items() if hasattr(nnx, name)}


MADE = {"WeightNorm"}  # it holds arrays outside its variables
# Slow to trace, and the operations of the layer of linen of the same name.
SLOW = {"Bidirectional", "GRUCell", "LSTMCell", "MultiHeadAttention", "OptimizedLSTMCell"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] * (n in SLOW)) for n in NNX]
)
def test_a_layer_of_nnx_conserves_the_flow(name):
    """The kernels before and after it are cuts."""
    make, shape = NNX[name]
    layer = make(nnx.Rngs(0)) if name in MADE else nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    layer.eval()
    graph, variables, rest = nnx.split(layer, nnx.Param, ...)
    variables = drawn(variables)

    def ones(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return np.ones(leaf.shape, leaf.dtype)

    rest = jax.tree.map(ones, rest)
    shaped = jax.eval_shape(
        lambda v, r, x: nnx.merge(graph, v, r)(x), variables, rest, jnp.ones(shape)
    )
    last = jax.ShapeDtypeStruct((shaped.shape[-1], 3), jnp.float32)
    params = {"before": W[:, :6], "layer": variables, "after": drawn(last)}

    def apply_fn(params, x):
        layer = nnx.merge(graph, params["layer"], rest, copy=True)
        return layer(x @ params["before"]) @ params["after"]

    scores = scores_of(apply_fn, params, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert all((s >= 0).all() for s in jax.tree.leaves(scores))
    assert float(scores["before"].sum()) == pytest.approx(1, rel=1e-5)
    assert float(scores["after"].sum()) == pytest.approx(1, rel=1e-5)


# --- attention ----------------------------------------------------------------------------

HEADS = (2, 5, 3, 4)  # batch, length, heads, features
QKV = [np.random.default_rng(i).standard_normal(HEADS, np.float32) for i in range(3)]


def attention_by_definition(query, key, value, mask):
    """Entry by entry, of degree one: the roots of what is multiplied."""
    query, key, value = (np.abs(np.asarray(x, np.float64)) for x in (query, key, value))
    weights = np.einsum("bqhd,bkhd->bhqk", np.sqrt(query), np.sqrt(key))
    weights = np.where(mask, weights, 0) / np.sqrt(query.shape[-1])
    return np.einsum("bhqk,bkhd->bqhd", np.sqrt(weights), np.sqrt(value))


CAUSAL = np.tril(np.ones((5, 5), bool))
PADDING = np.arange(5)[None, None, None, :] < np.array([5, 3])[:, None, None, None]
ATTENTIONS = {
    "jax": (lambda q, k, v: jax.nn.dot_product_attention(q, k, v), np.True_),
    "jax, causal": (
        lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True),
        CAUSAL,
    ),
    "jax, padded": (
        lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, key_value_seq_lengths=jnp.array([5, 3])
        ),
        PADDING,
    ),
    "jax, a bias that masks": (
        lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, bias=jnp.where(CAUSAL, 0.5, -1e10)[None, None]
        ),
        CAUSAL,
    ),
    "flax": (lambda q, k, v: nn.dot_product_attention(q, k, v), np.True_),
    "flax, masked": (
        lambda q, k, v: nn.dot_product_attention(q, k, v, mask=jnp.asarray(CAUSAL)),
        CAUSAL,
    ),
    "flax, a bias that masks": (
        lambda q, k, v: nn.dot_product_attention(
            q, k, v, bias=jnp.where(CAUSAL, 0.0, -jnp.inf)[None, None]
        ),
        CAUSAL,
    ),
    "a penalty taken away": (
        lambda q, k, v: jnp.einsum(
            "bhqk,bkhd->bqhd",
            jax.nn.softmax(
                jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2
                - 1e10 * (1 - CAUSAL.astype("f"))[None, None]
            ),
            v,
        ),
        CAUSAL,
    ),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_is_of_degree_one_and_masked(name):
    attention, mask = ATTENTIONS[name]
    got = flow_of(lambda w, x: attention(*(x * scale for scale in w)), QKV, jnp.ones(HEADS))
    want = attention_by_definition(*QKV, mask)
    # The scale of the queries may stand before the product or after it.
    np.testing.assert_allclose(got / got.sum(), want / want.sum(), rtol=1e-5)


def test_queries_and_keys_carry_a_quarter_each_and_values_half():
    def network(params, x):
        heads = [x @ params[name] for name in "qkv"]
        return jax.nn.dot_product_attention(*(h.reshape(1, 5, 2, 3) for h in heads))

    params = drawn(dict.fromkeys("qkv", W[:, :6]))
    scores = scores_of(network, params, (5, 6))
    shares = {name: float(s.sum()) for name, s in scores.items()}
    assert shares == pytest.approx({"q": 0.25, "k": 0.25, "v": 0.5}, rel=1e-5)


def test_a_gate_dies_with_either_factor_and_shares_its_flow():
    def network(params, x):
        return (x @ params["a"]) * jax.nn.sigmoid(x @ params["b"])

    params = {
        "a": jnp.array([[1.0, 0.0], [2.0, 0.0]]),
        "b": jnp.array([[3.0, 3.0], [0.0, 1.0]]),
    }
    got = flow_of(network, params, jnp.ones((1, 2)))
    np.testing.assert_allclose(got, [[3.0, 0.0]], rtol=1e-6)
    scores = scores_of(network, params, (2,))
    np.testing.assert_allclose(scores["a"], [[1 / 6, 0], [1 / 3, 0]], rtol=1e-5)
    np.testing.assert_allclose(scores["b"], [[1 / 2, 0], [0, 0]], rtol=1e-5)


# --- whole numbers ------------------------------------------------------------------------

IDS = jax.ShapeDtypeStruct((2, 5), jnp.int32)
TABLE = jnp.asarray(np.random.default_rng(0).standard_normal((7, 6)), jnp.float32)
LOOK_UPS = {
    "take": lambda table, ids: jnp.take(table, ids, axis=0),
    "index": lambda table, ids: table[ids],
    "one at a time": lambda table, ids: jax.lax.map(
        lambda row: jnp.stack([table[i] for i in row]), ids
    ),
    "mapped": lambda table, ids: jax.vmap(jax.vmap(lambda i: table[i]))(ids),
    "one-hot": lambda table, ids: jax.nn.one_hot(ids, 7) @ table,
    "compared": lambda table, ids: (
        (ids[..., None] == jnp.arange(7)[None, None]).astype("f") @ table
    ),
    "layer": lambda table, ids: nn.Embed(7, 6).apply({"params": {"embedding": table}}, ids),
    "in a loop": lambda table, ids: jnp.moveaxis(
        jax.lax.scan(lambda c, i: (c + i, table[i]), jnp.zeros(2, jnp.int32), ids.T)[1],
        0,
        1,
    ),
    "masked": lambda table, ids: jnp.where((ids > 0)[..., None], table[ids], 0),
}


@pytest.mark.parametrize("name", LOOK_UPS)
def test_the_flow_starts_at_the_embedding_as_at_a_dense_layer_of_ones(name):
    mantissa, exponent = jax.jit(sj.flow(LOOK_UPS[name]))(
        TABLE, jnp.ones(IDS.shape, jnp.int32)
    )
    want = jnp.broadcast_to(jnp.abs(TABLE).sum(0), (2, 5, 6))
    np.testing.assert_allclose(mantissa * 2.0**exponent, want, rtol=1e-5)
    scores = scores_of(LOOK_UPS[name], TABLE, IDS)
    np.testing.assert_allclose(scores, abs(TABLE) / jnp.abs(TABLE).sum(), rtol=1e-5)


def test_whole_numbers_as_pixels_are_the_input():
    images = jnp.arange(6, dtype=jnp.uint8).reshape(1, 6)
    got = flow_of(lambda w, x: (x.astype(jnp.float32) / 255.0) @ w, W, images)
    np.testing.assert_allclose(got, (np.arange(6) / 255)[None] @ np.abs(W), rtol=1e-5)


def test_truth_values_of_the_input_are_a_mask():
    mask = jnp.array([True, False, True])
    got = flow_of(
        lambda w, x: jnp.where(x[1][:, None], x[0], 0.0), W, (jnp.ones((3, 2)), mask)
    )
    np.testing.assert_array_equal(got, [[1, 1], [0, 0], [1, 1]])


# --- precision ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_module_that_computes_in_half_precision_is_scored_in_single(dtype):
    """To the bit: in half precision its weights would be rounded before the flow."""

    def scores_in(dtype):
        module = nn.Sequential(
            [
                nn.Conv(4, (3, 3), dtype=dtype),
                nn.BatchNorm(use_running_average=True, dtype=dtype),
                nn.relu,
                lambda x: x.reshape(len(x), -1),
                nn.WeightNorm(nn.Dense(3, dtype=dtype)),
            ]
        )
        variables = jax.jit(module.init)(jax.random.key(0), jnp.ones((1, 4, 4, 2)))
        params = jax.tree.map(lambda p: p * 1e-6, variables["params"])  # below half's range
        apply_fn, _ = sj.from_linen(module, variables)
        return scores_of(apply_fn, params, (4, 4, 2))

    got, want = scores_in(dtype), scores_in(jnp.float32)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.long)]
)
def test_parameters_in_half_precision_are_scored_in_single(dtype):
    def network(params, x):
        for w in params:
            x = jax.nn.gelu(x @ w)
        return x

    params = drawn([jax.ShapeDtypeStruct((8, 8), dtype)] * 24)  # beyond the range of both
    scores = scores_of(network, [p * dtype(50) for p in params], (8,))
    assert all(s.dtype == jnp.float32 for s in scores)
    np.testing.assert_allclose([float(s.sum()) for s in scores], 1, rtol=1e-5)


def test_a_loop_whose_length_is_computed_has_a_flow():
    def network(w, x):
        steps = (w["steps"] * 3).astype(jnp.int32)
        return jax.lax.fori_loop(0, steps, lambda i, h: jax.nn.relu(h @ w["w"]), x)

    w = {"w": jnp.array([[1.0, -1.0], [2.0, 0.0]]), "steps": jnp.ones(())}
    got = flow_of(network, w, jnp.ones((1, 2)))
    want = np.ones((1, 2)) @ np.linalg.matrix_power(np.abs(np.asarray(w["w"])), 3)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_number_of_steps_that_depends_on_the_input_is_refused():
    def network(w, x):
        return jax.lax.while_loop(lambda h: h.sum() < 9, lambda h: h @ w, x)

    with pytest.raises(sj.FlowError, match="number of steps"):
        sj.log_flow(network, jnp.ones((2, 2)), (2,))


RAGGED = {
    "ragged product": lambda w, x: jax.lax.ragged_dot(
        x, jnp.stack([w, w[::-1]]), jnp.array([2, 1])
    ),
    "sums of segments": lambda w, x: jax.ops.segment_sum(x @ w, jnp.array([0, 1, 0]), 2),
    "a row written": lambda w, x: x.at[1].set((x @ w)[0]),
    "a slice written": lambda w, x: jax.lax.dynamic_update_slice(x, (x @ w)[:1], (2, 0)),
    "a row added": lambda w, x: x.at[jnp.array([1, 1])].add((x @ w)[:2]),
    "stacked and taken apart": lambda w, x: sum(jnp.stack([x @ w, x])),
    "tiled": lambda w, x: jnp.tile(x @ w, (1, 2)),
    "behind a barrier": lambda w, x: jax.lax.optimization_barrier((x @ w, x))[0],
}


@pytest.mark.parametrize("name", RAGGED)
def test_more_structure_passes_the_flow_on(name):
    """On positive weights a linear network is its own flow."""
    network, w = RAGGED[name], jnp.abs(W[:, :6])
    x = jnp.asarray(np.random.default_rng(0).random((3, 6)), jnp.float32)
    got = flow_of(network, -w, x)
    np.testing.assert_allclose(got, network(w, x), rtol=1e-5)


def test_a_kernel_made_by_the_network_shares_with_its_image():
    """A dynamic convolution: the roots of both."""

    def network(w, x):
        kernel = (x.mean(1) @ w).reshape(1, 6, 8)
        return jax.lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    w = jnp.asarray(np.random.default_rng(0).random((6, 48)), jnp.float32)
    x = jnp.ones((1, 5, 6))
    got = flow_of(network, w, x)
    want = np.ones((1, 5, 6)) @ np.sqrt(np.ones((1, 6)) @ np.asarray(w)).reshape(6, 8)
    np.testing.assert_allclose(got, want, rtol=1e-5)

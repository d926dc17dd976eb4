"""conservation: units, cuts and layers of every kind of network, and what they carry."""

import contextlib
import functools

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import synflow_jax as sj
from synflow_jax.models import CifarResNet, ResNet, build
from synflow_jax.topology.units import units_of
from tests import nets
from tests.transform.test_network_flow import mlp_weights

pytestmark = pytest.mark.usefixtures("standard_promotion")

relu = jax.nn.relu


def conv(x, w, strides=(1, 1), padding="SAME", numbers=("NHWC", "HWIO", "NHWC"), **more):
    return lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=numbers, **more
    )


def check(apply_fn, params, input_shape, masks=None, scores=None):
    masks = sj.all_kept(params) if masks is None else masks
    return sj.conservation(apply_fn, params, masks, input_shape, scores=scores)


# --- networks, the number of their hidden units, the layers of their cuts -----------------


def mlp(p, x):
    return relu(relu(x @ p["a"] + p["bias"]) @ p["b"]) @ p["c"]


def deep(p, x):
    return x @ p["a"] @ p["b"] @ p["c"]


def grouped(p, x):
    x = relu(conv(x, p["a"]))
    x = relu(conv(x, p["b"], feature_group_count=2, strides=(2, 2)))
    x = relu(conv(x, p["depthwise"], feature_group_count=6, padding="VALID"))
    return x.mean((1, 2)) @ p["c"]


def transposed(p, x):
    x = conv(x.transpose(0, 3, 1, 2), p["a"], numbers=("NCHW", "OIHW", "NCHW"))
    x = nn.leaky_relu(x.transpose(0, 2, 3, 1))
    x = lax.conv_transpose(
        x, p["b"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = conv(x, jnp.flip(p["d"], (0, 1)).transpose(0, 1, 3, 2), rhs_dilation=(2, 1))
    return jnp.einsum("bhwc,hwcd->bd", x, p["c"])


def two_images(p, x):
    """Each image through weights of its own, then both through the same."""
    x = jnp.concatenate([conv(x[:1], p["a"]), conv(x[1:], p["a2"])])
    return conv(conv(x, p["b"]), p["c"], batch_group_count=2)


def batch_groups(p, x):
    x = jnp.concatenate([conv(x[:1], p["a"]), conv(x[1:], p["a2"])])
    return conv(conv(x, p["b"], batch_group_count=2), p["c"])


def dense_blocks(p, x):
    x = relu(conv(x, p["a"]))
    for name in ("b", "c"):
        x = jnp.concatenate([x, relu(conv(x, p[name]))], axis=-1)
    x = nn.avg_pool(relu(conv(x, p["d"])), (2, 2), (2, 2))
    return x.reshape(len(x), -1) @ p["e"]


def halves(p, x):
    """A channel split and shuffled, halves padded and joined again, pieces picked."""
    x = conv(x, p["a"])
    a, b = jnp.split(x, 2, axis=-1)
    b = conv(b, p["b"])
    x = jnp.concatenate([a[..., None], b[..., None]], axis=-1).reshape(*a.shape[:3], -1)
    x = jnp.pad(x, ((0, 0), (1, 0), (0, 1), (0, 2)))[:, ::2, :, ::-1]
    x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    x = x[..., jnp.array([2, 3, 5])]
    x = lax.dynamic_slice(x, (0, 0, 0, 1), (1, 2, 2, 2))
    return x.reshape(1, -1) @ p["c"]


def layers_in_a_scan(p, x):
    def block(x, w):
        return relu(x @ w["w"] * w["scale"][None]), None

    layers = {"w": p["w"], "scale": p["s"]}
    x, _ = lax.scan(jax.checkpoint(block), x @ p["a"], layers, reverse=True)
    return x @ p["b"]


def residual_scan(p, x):
    x, _ = lax.scan(lambda x, w: (x + relu(x @ w), x), x @ p["a"], p["w"])
    return x @ p["b"]


def recurrent(p, x):
    def step(h, row):
        h = relu(h @ p["h"] + row @ p["a"])
        return h, h

    _, states = lax.scan(step, jnp.zeros((1, 4)), x.transpose(1, 0, 2))
    return states.sum(0) @ p["b"]


def shared(p, x):
    return relu(relu(x @ p["a"]) @ p["w"]) @ p["w"] @ p["b"]


def transposed_too(p, x):
    return relu(relu(x @ p["a"]) @ p["w"]) @ p["w"].T @ p["b"]


def shared_by_towers(p, x):
    both = jnp.concatenate([x @ p["a"], x @ p["a2"]])
    twice = jnp.broadcast_to(p["w"], (2, *p["w"].shape))
    return jnp.einsum("ti,tij->tj", both, twice) @ p["b"]


def pieces_of_a_leaf(p, x):
    first, second = p["w"][:3].T, p["w"][3:6]
    return (x @ first) @ jnp.where(jnp.eye(3, 4, dtype=bool), 0, 2 * second) @ p["b"]


def gated(p, x):
    return ((x @ p["a"]) * (x @ p["gate"])) @ p["b"]


def branching(p, x):
    x = lax.cond(p["a"][0, 0] > 9, lambda x: x @ p["a"], lambda x: x @ p["a2"], x)
    return x @ p["b"]


def centred(p, x):
    x = x @ p["a"]
    return (x - x.mean(-1, keepdims=True)) / (1 + x.sum()) @ p["b"]


def standardised(p, x):
    x = relu(relu(x @ p["a"]) @ (p["w"] - p["w"].mean(0, keepdims=True)))
    return conv(x[:, None, None], p["k"] / abs(p["k"]).sum())[:, 0, 0] @ p["b"]


def computed_kernels(p, x):
    x = conv(conv(x, p["a"]), p["k"] - p["k"].mean(), feature_group_count=2)
    return conv(x, p["c"])


def computed_and_not(p, x):
    x = relu(x @ p["a"]) @ p["k"][0, 0]
    return conv(x[:, None, None], p["k"] - 1)[:, 0, 0] @ p["b"]


def ones_among_weights(p, x):
    return x @ p["a"] @ jnp.where(jnp.eye(4, dtype=bool), p["w"], 1) @ p["b"]


def scaled_weights(p, x):
    return x @ p["a"] @ (p["scale"] * p["w"]) @ p["b"]


def used_as_factor_too(p, x):
    return x @ p["a"] @ (p["w"] * p["g"]) @ p["g"] @ p["b"]


def used_as_scale_too(p, x):
    x = relu(x @ p["a"]) @ p["w"]
    return (x * jnp.exp(p["w"][:1])) @ p["c"] @ p["b"]


def looped(p, x):
    x = lax.while_loop(
        lambda state: state[0] < 3,
        lambda state: (state[0] + 1, state[1] @ p["w"]),
        (0, x @ p["a"]),
    )[1]
    return x @ p["b"]


def with_side_outputs(p, x):
    hidden = relu(x @ p["a"])
    return hidden, hidden @ p["b"] @ p["c"]


def unweighted_way(p, x):
    return x + relu(x @ p["a"]) @ p["b"]


def stream_from_the_input(p, x):
    return (x + relu(x @ p["a"]) @ p["b"]) @ p["c"]


def idle(p, x):
    unread = x @ p["unread"]
    return relu(x @ p["a"]) @ p["b"], p["other"], unread.shape[0]


SENDERS, RECEIVERS = np.array([0, 1, 2, 3, 0, 2]), np.array([1, 2, 3, 0, 2, 1])


def neighbours(p, x):
    """A graph: sums, and maxima, over the neighbours of each node."""
    x = jax.ops.segment_sum((x @ p["a"])[SENDERS], RECEIVERS, 4)
    return jax.ops.segment_max(relu(x @ p["w"])[SENDERS], RECEIVERS, 4) @ p["b"]


S = functools.partial(dict, a=(3, 4), b=(4, 2))
IMAGE = (6, 6, 2)
IMAGES = jax.ShapeDtypeStruct((2, *IMAGE), jnp.float32)
PAIR = dict(a=(3, 3, 2, 4), a2=(3, 3, 2, 4))
# name: function, shapes of its parameters, input, hidden units, layers of its cuts
CASES = {
    "perceptron": (mlp, S(bias=(1, 4), b=(4, 5), c=(5, 2)), (3,), 9, ["a", "b", "c"]),
    "residual": (
        nets.convnet, nets.CONVNET_SHAPES, nets.CONVNET_INPUT, 3, ["a", "c"]
    ),
    "groups": (
        grouped,
        dict(a=(3, 3, 2, 4), b=(3, 3, 2, 6), depthwise=(2, 2, 1, 6), c=(6, 3)),
        IMAGE, 4 + 6 + 6, ["a", "b", "depthwise", "c"],
    ),
    "transposed": (
        transposed,
        dict(a=(3, 2, 3, 3), b=(3, 3, 3, 4), d=(3, 3, 3, 4), c=(12, 12, 3, 2)),
        IMAGE, 3 + 4 + 3, ["a", "b", "d", "c"],
    ),
    "two images": (
        two_images, PAIR | dict(b=(3, 3, 4, 3), c=(3, 3, 3, 2)), IMAGES,
        4 + 3, ["a a2", "b", "c"],
    ),
    "batch groups": (
        batch_groups, PAIR | dict(b=(3, 3, 4, 6), c=(3, 3, 6, 2)), IMAGES,
        4 + 4 + 6, ["a a2", "b", "c"],
    ),
    "dense blocks": (
        dense_blocks,
        dict(a=(3, 3, 2, 3), b=(3, 3, 3, 2), c=(1, 1, 5, 2), d=(3, 3, 7, 4), e=(36, 2)),
        IMAGE, 3 + 2 + 2 + 4, ["a", "b c d", "c d", "d", "e"],
    ),
    "halves": (
        halves, dict(a=(3, 3, 2, 4), b=(3, 3, 2, 2), c=(8, 2)), IMAGE, None, None
    ),
    "scan over layers": (
        layers_in_a_scan, S(w=(3, 4, 4), s=(3, 4)), (3,), 16, ["a", "w", "w", "w", "b"]
    ),
    "scan with a stream": (residual_scan, S(w=(3, 4, 4)), (3,), 4, ["a", "b"]),
    "recurrence": (recurrent, S(h=(4, 4)), (5, 3), 4, ["a", "b"]),
    "shared weights": (shared, S(w=(4, 4)), (3,), 4, ["a", "b"]),
    "shared with its transpose": (
        transposed_too, S(w=(4, 5)), (3,), 1, ["a", "b"]
    ),
    "shared by towers": (
        shared_by_towers, S(a2=(3, 4), w=(4, 5), b=(5, 2)), (3,), 4 + 5,
        ["a a2", "w", "b"],
    ),
    "pieces of a leaf": (
        pieces_of_a_leaf, dict(w=(7, 4), b=(4, 2)), (4,), 3 + 4, ["w", "w", "b"]
    ),
    "gate": (gated, S(gate=(3, 4)), (3,), 4, ["a gate", "b"]),
    "branch": (branching, S(a2=(3, 4)), (3,), 4, ["a2 a", "b"]),
    "centred": (centred, S(), (3,), 4, ["a", "b"]),
    "computed weights": (
        standardised, S(w=(4, 5), k=(1, 1, 5, 4)), (3,), 1, ["a", "b"]
    ),
    "computed kernels": (
        computed_kernels, dict(a=(1, 1, 2, 6), k=(3, 3, 3, 4), c=(3, 3, 4, 2)), IMAGE,
        2, ["a", "c"],
    ),
    "computed weights and not": (
        computed_and_not, S(k=(1, 1, 4, 4)), (3,), 1, ["a", "b"]
    ),
    "ones among weights": (ones_among_weights, S(w=(4, 4)), (3,), 1, ["a", "b"]),
    "scaled weights": (
        scaled_weights, S(w=(4, 5), scale=(1, 5), b=(5, 2)), (3,), 9, ["a", "w", "b"]
    ),
    "weights that are factors too": (
        used_as_factor_too, S(w=(4, 4), g=(4, 4)), (3,), 4 + 1, ["a", "w", "b"]
    ),
    "weights that scale too": (
        used_as_scale_too, S(w=(4, 4), c=(4, 4)), (3,), 1 + 4, ["a", "c", "b"]
    ),
    "side outputs": (
        with_side_outputs, S(b=(4, 5), c=(5, 2)), (3,), 5, ["a"]
    ),
    "a way without weights": (unweighted_way, S(b=(4, 3)), (3,), 4, []),
    "a stream from the input": (
        stream_from_the_input, S(b=(4, 3), c=(3, 2)), (3,), 4, ["c"]
    ),
    "neighbours": (
        neighbours, S(w=(4, 4)), jax.ShapeDtypeStruct((4, 3), jnp.float32), 4 + 4,
        ["a", "w", "b"],
    ),
    "unread": (idle, S(unread=(3, 2), other=(2, 2)), (3,), 4, ["a", "b"]),
}  # fmt: skip


def warned_of(cuts):
    """A network without cuts is compared unit by unit, and that is said."""
    if cuts == []:
        return pytest.warns(UserWarning, match="was not checked: no cut was found")
    return contextlib.nullcontext()


def test_a_network_with_nothing_to_compare_says_so():
    params = {"a": jnp.ones((2, 2))}
    for network, reason in (
        (lambda p, x: x @ p["a"], "one cut and no hidden unit"),
        (lambda p, x: x * 2, "no leaf of the parameters is a layer"),
    ):
        with pytest.warns(UserWarning, match=reason):
            assert np.isnan(check(network, params, (2,)).gap)


@pytest.mark.parametrize("name", CASES)
def test_the_flow_of_synflow_is_conserved(name):
    network, shapes, input_shape, hidden, cuts = CASES[name]
    with warned_of(cuts):
        found = check(network, nets.draw(shapes), input_shape)
    assert max(found.unit_gap, found.cut_gap) <= 1e-5
    assert np.isnan(found.gap) == (cuts == [])
    assert (found.units.into > 0).any()
    if hidden is not None:
        assert len(found.units.into) == hidden
        assert [" ".join(cut.layers) for cut in found.cuts] == cuts


@pytest.mark.parametrize("name", sorted(set(CASES) - {"computed weights"}))
def test_random_scores_are_not_conserved(name):
    network, shapes, input_shape, _, cuts = CASES[name]
    params = nets.draw(shapes)
    scores = sj.random(jax.random.key(1))(params, sj.all_kept(params))
    with warned_of(cuts):
        found = check(network, params, input_shape, scores=scores)
    assert 0.02 < found.unit_gap < 1
    assert len(found.cuts) < 2 or 0.02 < found.cut_gap < 1


# --- the theory, in values ----------------------------------------------------------------


def of_params(network, shapes, input_shape):
    """Built once: the score of a fresh closure would be compiled for every example."""
    score = jax.jit(sj.synflow(network, input_shape))

    def found(params, masks=None):
        masks = sj.all_kept(params) if masks is None else masks
        scores = score(params, masks)
        return sj.conservation(network, params, masks, input_shape, scores=scores)

    return found


of_paths = of_params(nets.mlp, None, (nets.WIDTHS[0],))
of_blocks = of_params(dense_blocks, CASES["dense blocks"][1], IMAGE)


@hypothesis.given(mlp_weights)
def test_a_units_flow_is_the_sum_over_the_paths_through_it(weights):
    found = of_paths([jnp.asarray(w) for w in weights])
    total, scores = nets.flow_by_paths([w.astype(np.float64) for w in weights])
    want = np.concatenate([s.sum(axis=0) for s in scores[:-1]]) / (total or 1)
    np.testing.assert_allclose(found.units.into, want, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(found.units.out, want, rtol=1e-5, atol=1e-12)
    assert list(found.units.layer) == [0] * nets.WIDTHS[1] + [1] * nets.WIDTHS[2]
    assert [cut.total for cut in found.cuts] == pytest.approx([1.0 if total else 0.0] * 3)


@hypothesis.given(st.integers(0, 10**6), st.floats(0.2, 1.0))
def test_the_flow_is_conserved_whatever_is_pruned(seed, share):
    params = nets.draw(CASES["dense blocks"][1], seed)
    rng = np.random.default_rng(seed)
    masks = jax.tree.map(lambda p: jnp.asarray(rng.random(p.shape) < share), params)
    found = of_blocks(params, masks)
    assert found.gap <= 1e-5
    assert [row.kept for row in found.layers] == [int(m.sum()) for m in masks.values()]
    assert [cut.total for cut in found.cuts] in ([0.0] * 5, pytest.approx([1.0] * 5))


def test_a_unit_is_held_to_its_own_flow_however_little():
    """A relative gap of a unit that carries 1e-18 of the flow is seen, and not rounding."""
    params = {"a": jnp.ones((2, 2)).at[:, 0].set(1e-9), "b": jnp.ones((2, 1))}
    params["b"] = params["b"].at[0].set(1e-9)
    network = lambda p, x: x @ p["a"] @ p["b"]  # noqa: E731
    masks = sj.all_kept(params)
    found = check(network, params, (2,))
    assert 1e-19 < found.units.into[0] < 1e-17 and found.unit_gap <= 1e-5
    scores = sj.synflow(network, (2,))(params, masks)
    scores["b"] = scores["b"].at[0].multiply(1.5)
    assert check(network, params, (2,), scores=scores).unit_gap == pytest.approx(1 / 3)


def test_a_unit_is_listed_under_the_first_layer_that_leads_into_it():
    found = check(nets.convnet, nets.draw(nets.CONVNET_SHAPES), nets.CONVNET_INPUT)
    assert [row.name for row in found.layers] == ["a", "b", "c"]
    assert list(found.units.layer) == [0, 0, 0]


def test_half_precision_is_read_as_flow_reads_it():
    network, shapes, *_ = CASES["groups"]
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), nets.draw(shapes))
    images = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float16)
    assert check(network, params, images).gap <= 1e-5


def test_what_no_float_can_hold_is_negligible():
    scores = {"a": jnp.array([[1.0, 1e-37]]), "b": jnp.array([[1.0], [3e-37]])}
    found = check(lambda p, x: x @ p["a"] @ p["b"], scores, (1,), scores=scores)
    assert found.unit_gap < 1e-10 and found.units.out[1] > 2 * found.units.into[1]


def test_sums_keep_their_signs():
    scores = {"a": jnp.array([[2.0, -3.0], [-1.0, 1.0]]), "b": jnp.array([[1.0], [2.0]])}
    found = check(lambda p, x: x @ p["a"] @ p["b"], scores, (2,), scores=scores)
    np.testing.assert_array_equal(found.units.into, [1, -2])
    np.testing.assert_array_equal(found.units.out, [1, 2])
    np.testing.assert_array_equal(found.units.gap, [0, 2])
    assert [cut.total for cut in found.cuts] == [-1, 3] and found.cut_gap == 4 / 3


def test_scores_that_are_not_numbers_are_reported():
    scores = {"a": jnp.array([[jnp.nan, 1.0]]), "b": jnp.ones((2, 1))}
    found = check(lambda p, x: x @ p["a"] @ p["b"], scores, (1,), scores=scores)
    assert np.isnan(found.gap)
    scores["a"] = scores["a"].at[0, 0].set(1)
    masks = {"a": jnp.array([[False, True]]), "b": jnp.ones((2, 1), bool)}
    found = check(lambda p, x: x @ p["a"] @ p["b"], scores, (1,), masks, scores)
    np.testing.assert_array_equal(found.units.into, [0, 1])


def test_scores_that_do_not_fit_are_refused(no_typecheck):
    params = {"a": jnp.ones((2, 2))}
    network = lambda p, x: x @ p["a"]  # noqa: E731
    with pytest.raises(ValueError, match="`scores` must have the structure"):
        check(network, params, (2,), scores={"b": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="`masks.*has shape"):
        check(network, params, (2,), masks={"a": jnp.ones((2, 3), bool)})


def mamba2(p, x):
    """A state-space block: one projection makes the input, the gate and the recurrence."""
    z, y, b, c, dt = jnp.split(x @ p["in"], [6, 12, 16, 20], axis=-1)
    past = jnp.pad(y, ((0, 0), (2, 0), (0, 0)))
    y = sum(past[:, i : i + 5] * p["conv"][i, None, None] for i in range(1, 3))
    y = jax.nn.silu(y + past[:, :5] * p["conv"][0, None, None]).reshape(*x.shape[:2], 2, 3)
    dt = jax.nn.softplus(dt)

    def step(state, inputs):
        y, b, c, dt = inputs
        decay = jnp.exp(-dt * jnp.exp(p["rate"])[None])
        new = (dt[..., None] * y)[..., None] * b[:, None, None]
        state = state * decay[..., None, None] + new
        return state, (state * c[:, None, None]).sum(-1)

    steps = tuple(a.swapaxes(0, 1) for a in (y, b, c, dt))
    _, y = lax.scan(step, jnp.zeros((1, 2, 3, 4)), steps)
    y = y.swapaxes(0, 1).reshape(1, 5, 6) * jax.nn.silu(z)
    return x + y @ p["out"]


DEGREES = np.arange(4), np.arange(8) % 3


def masked_autoregressive_flow(p, x):
    """One layer: each entry is shifted and scaled by what those before it make."""
    into = jnp.asarray(DEGREES[1][None] >= DEGREES[0][:, None], jnp.float32)
    out = jnp.asarray(DEGREES[0][None] > DEGREES[1][:, None], jnp.float32)
    hidden = jax.nn.relu(x @ (p["into"] * into))
    shift, scale = hidden @ (p["shift"] * out), hidden @ (p["scale"] * out)
    return (x - shift) * jnp.exp(-scale)


@pytest.mark.parametrize(
    ("network", "shapes", "inputs", "units"),
    [
        (
            mamba2,
            dict({"in": (6, 22)}, conv=(3, 6), rate=(2,), out=(6, 6)),
            (1, 5, 6),
            1,
        ),
        (
            masked_autoregressive_flow,
            dict(into=(4, 8), shift=(8, 4), scale=(8, 4)),
            (1, 4),
            8,
        ),
    ],
)
def test_networks_without_a_cut_say_so(network, shapes, inputs, units):
    """Their shortcuts pass every layer, so the law compares units alone, or nothing."""
    params, inputs = nets.draw(shapes), jax.ShapeDtypeStruct(inputs, jnp.float32)
    with pytest.warns(UserWarning, match="was not checked: no cut was found"):
        found = sj.conservation(network, params, sj.all_kept(params), inputs)
    assert np.isnan(found.gap) and not found.cuts
    assert len(found.units.gap) == units


# --- structure that the flow has no values for, or that it drops --------------------------


def hidden_units(network, shapes, inputs):
    """The number of hidden units."""
    shapes = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    structure = units_of(network, shapes, inputs)
    ends = [np.zeros(len(structure.space), bool) for _ in range(2)]
    for layer in structure.layers:
        for mark, ids in zip(ends, (layer.targets, layer.sources)):
            mark[ids[ids >= 0]] = True
    return int((ends[0] & ends[1] & ~structure.starts & ~structure.ends).sum())


def layer_norm(p, x):
    x = x @ p["a"]
    variance = jnp.square(x).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2
    return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(variance) @ p["b"]


def attention(p, x):
    """Queries, keys and values of one head share what they make: one unit a head."""
    q, k, v = (jnp.einsum("bnd,dhe->bnhe", x, p[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bnhe,bmhe->bhnm", q, k))
    return jnp.einsum("bhnm,bmhe->bnhe", weights, v).reshape(1, 5, -1) @ p["o"] @ p["b"]


HEADS = dict(q=(6, 3, 2), k=(6, 3, 2), v=(6, 3, 2), o=(6, 4), b=(4, 2))


@pytest.mark.parametrize(
    ("network", "shapes", "inputs", "units"),
    [
        (layer_norm, S(), (1, 3), 4),
        (attention, HEADS, (1, 5, 6), 3 + 4),
        (lambda p, x: jnp.sort(x @ p["a"]) @ p["b"], S(), (1, 3), 1),
        (lambda p, x: jnp.stack([x @ p["a"]] * 2, 1)[:, 0] @ p["b"], S(), (1, 3), 4),
        (lambda p, x: jnp.tile(x @ p["a"], 2) @ p["b"], S(b=(8, 2)), (1, 3), 4),
        (looped, S(w=(4, 4)), (1, 3), 1),
        (lambda p, x: jnp.fft.fft(x @ p["a"]).real @ p["b"], S(), (1, 3), 1),
    ],
)
def test_units_of_what_synflow_cannot_score(network, shapes, inputs, units):
    inputs = jax.ShapeDtypeStruct(inputs, jnp.float32)
    assert hidden_units(network, shapes, inputs) == units


def test_attention_conserves_the_flow():
    params = nets.draw(HEADS)
    shape = jax.ShapeDtypeStruct((1, 5, 6), jnp.float32)
    found = sj.conservation(attention, params, sj.all_kept(params), shape)
    assert len(found.units.gap) == 3 + 4 and found.gap < 1e-5
    assert [cut.total for cut in found.cuts] == pytest.approx([1, 1, 1], rel=1e-5)


@pytest.mark.parametrize("read", [
    lambda table, tokens: table[tokens],
    lambda table, tokens: jnp.take(table, tokens, axis=0),
    lambda table, tokens: jax.nn.one_hot(tokens, 7) @ table,
])  # fmt: skip
def test_the_flow_of_tokens_starts_at_their_embedding(read):
    def network(p, tokens):
        return (read(p["table"], tokens).mean(0) @ p["a"])[None] @ p["b"]

    params = nets.draw({"table": (7, 4), "a": (4, 3), "b": (3, 2)})
    tokens = jnp.array([0, 3, 3, 6])
    sizes = jax.tree.map(abs, params)
    gradient = jax.grad(lambda p: network(p, tokens).sum())(sizes)
    scores = jax.tree.map(jnp.multiply, sizes, gradient)
    shape = jax.ShapeDtypeStruct(tokens.shape, tokens.dtype)
    found = check(network, params, shape, scores=scores)
    assert found.gap <= 1e-5 and len(found.units.gap) == 4 + 3
    assert [cut.layers for cut in found.cuts] == [("table",), ("a",), ("b",)]


# --- the paper's networks -----------------------------------------------------------------


def drawn(module, input_shape):
    """The network with random kernels; its own initialisation takes long to compile."""
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32)
        return jnp.full(leaf.shape, 1.0 if path[-1].key in ("scale", "var") else 0.0)

    return sj.from_linen(module, jax.tree_util.tree_map_with_path(draw, shapes))


@pytest.mark.long
def test_bottlenecks_conserve_the_flow():
    network, params = drawn(ResNet(50, 10, "imagenet", width=0.05), (32, 32, 3))
    found = check(network, params, (32, 32, 3))
    assert found.gap <= 1e-5
    assert (len(found.layers), len(found.cuts)) == (54, 1 + 4 * 3 + 1)
    kernels = {n for n in sj.leaf_names(params) if n.endswith("kernel")}
    assert {row.name for row in found.layers} == kernels
    assert [cut.total for cut in found.cuts] == pytest.approx([1.0] * 14)


@pytest.fixture(scope="module")
def resnet20():
    with jax.numpy_dtype_promotion("standard"):
        network, params = drawn(CifarResNet(20, 10, width=0.5), (16, 16, 3))
        score = jax.jit(sj.synflow(network, (16, 16, 3)))
        score(params, sj.all_kept(params))  # traced here
    return network, params, score


def test_shortcuts_belong_to_the_cuts(resnet20):
    network, params, score = resnet20
    scores = score(params, sj.all_kept(params))
    found = check(network, params, (16, 16, 3), scores=scores)
    # Streams of 8, 16 and 32 channels, and as many in each of the three blocks beside.
    assert found.gap <= 1e-5 and len(found.units.gap) == 4 * (8 + 16 + 32)
    convs = [(g, c) for g in (2, 3) for c in (1, 2)]
    assert [tuple(sorted(cut.layers)) for cut in found.cuts] == [
        ("conv/kernel",),
        *((f"group{g}_block1/conv{c}/kernel", f"group{g}_block1/shortcut/kernel")
          for g, c in convs),
        ("linear/kernel",),
    ]  # fmt: skip
    assert [cut.total for cut in found.cuts] == pytest.approx([1.0] * 6)


def test_the_flow_is_conserved_at_a_hundredth_of_the_weights(resnet20):
    network, params, score = resnet20
    masks = sj.all_kept(params)
    size = sum(p.size for n, p in zip(sj.leaf_names(params), jax.tree.leaves(params)) if
               n.endswith("kernel"))  # fmt: skip
    for density in sj.exponential(0.01, 10):
        masks = kernels_above(score(params, masks), sj.num_kept(size, density), masks)
    scores = score(params, masks)
    found = check(network, params, (16, 16, 3), masks, scores)
    assert sum(row.kept for row in found.layers) == sj.num_kept(size, 0.01)
    assert found.gap <= 1e-5
    assert [cut.total for cut in found.cuts] == pytest.approx([1.0] * 6)
    assert 0 < np.count_nonzero(found.units.into) < len(found.units.into)


def kernels_above(scores, k, masks):
    names = sj.leaf_names(scores)
    kernels = [s for n, s in zip(names, jax.tree.leaves(scores)) if n.endswith("kernel")]
    threshold = np.sort(np.concatenate([np.ravel(s) for s in kernels]))[-k]
    chosen = [
        s >= threshold if n.endswith("kernel") else m
        for n, s, m in zip(names, jax.tree.leaves(scores), jax.tree.leaves(masks))
    ]
    return jax.tree.unflatten(jax.tree.structure(masks), chosen)


@pytest.mark.long
def test_the_papers_figures_of_vgg16_at_full_size():
    network, params, input_shape = build("vgg16_cifar", jax.random.key(0))
    masks = sj.all_kept(params)
    found = check(network, params, input_shape)
    # Figure 3: what flows in against what flows out.
    assert len(found.units.gap) == 64 * 2 + 128 * 2 + 256 * 3 + 512 * 6
    assert found.gap <= 1e-5
    # Figure 4: a layer's average score against its inverse size.
    assert slope(found.layers) == pytest.approx(1, abs=1e-5)
    sizes = check(network, params, input_shape, scores=sj.magnitude()(params, masks))
    assert sizes.unit_gap > 0.5 and sizes.cut_gap > 0.5
    assert abs(slope(sizes.layers)) < 0.7


def slope(layers):
    sizes = np.array([row.size for row in layers], float)
    totals = np.array([row.total for row in layers])
    return np.polyfit(np.log(1 / sizes), np.log(totals / sizes), 1)[0]

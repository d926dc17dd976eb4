"""Random networks, each written in two ways: the laws of the flow, and equal flows.

A network is a list of blocks on values of one shape. A block has several *writings*, which
are one function. `make test` tries a few networks, `make check-long` many more.
"""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import synflow_jax as sj

LENGTH, WIDTH, TOKENS = 4, 4, 5
D = (WIDTH, WIDTH)
ROW = (1, WIDTH)
SEGMENTS = np.repeat(np.arange(2), LENGTH // 2)
CAUSAL = np.tril(np.ones((LENGTH, LENGTH), bool))


def shifted(x, by):
    """The rows moved down; what comes in is zero."""
    padded = jnp.pad(x, ((max(by, 0), max(-by, 0)), (0, 0)))
    return padded[max(-by, 0) : max(-by, 0) + LENGTH]


def conv(w, x, **options):
    """A convolution over the rows, with a kernel of three."""
    options = {"window_strides": (1,), "padding": ((1, 1),), **options}
    kernel = w["kernel"]
    numbers = ("NWC", "WIO", "NWC")
    return lax.conv_general_dilated(x[None], kernel, dimension_numbers=numbers, **options)[
        0
    ]


def conv_as_sum(w, x, step=1, left=1):
    taps = [shifted(x, left - step * i) @ w["kernel"][i] for i in range(3)]
    return sum(taps[1:], taps[0])


def grouped_as_blocks(w, x):
    """A convolution with two groups: a dense matrix of two blocks for each tap."""
    half = WIDTH // 2
    halves = [
        conv_as_sum({"kernel": w["kernel"][..., half * i : half * (i + 1)]}, part)
        for i, part in enumerate(jnp.split(x, 2, axis=1))
    ]
    return jnp.concatenate(halves, axis=1)


def grouped_as_batch(w, x):
    """The same two groups, laid side by side in the batch."""
    halves = jnp.stack(jnp.split(x, 2, axis=1))
    return lax.conv_general_dilated(
        halves,
        w["kernel"],
        (1,),
        ((1, 1),),
        dimension_numbers=("NWC", "WIO", "NWC"),
        batch_group_count=2,
    )[0]


def upsampled(w, x):
    """A transposed convolution that doubles the rows, of which every second is kept."""
    y = conv(w, x, lhs_dilation=(2,), padding=((1, 2),))
    return y[::2]


def upsampled_as_dense(w, x):
    return x @ w["kernel"][1]


def pooled(x, start, combine, fill):
    window = dict(window_dimensions=(2, 1), window_strides=(1, 1))
    return lax.reduce_window(x, start, combine, padding=((0, 1), (0, 0)), **window)


def shifted_up(x, fill):
    return jnp.concatenate([x[1:], jnp.full_like(x[:1], fill)])


def normalised(w, x, power):
    centred = x - x.mean(1, keepdims=True)
    variance = (centred**2).mean(1, keepdims=True) + 1e-5
    if power:
        return centred * lax.rsqrt(variance) * w["scale"] + w["shift"]
    return centred / jnp.sqrt(variance) * w["scale"] + w["shift"]


def batch_norm(w, x, divide):
    std = jnp.sqrt(w["variance"] + 1e-5)
    y = (x - w["mean"]) / std if divide else (x - w["mean"]) * (1 / std)
    return y * w["scale"] + w["shift"]


def attention(w, x, mask):
    logits = (x @ w["q"]) @ (x @ w["k"]).T / 2.0
    return jax.nn.softmax(mask(logits)) @ (x @ w["v"])


def layers(w, x, how):
    step = lambda x, kernel: (jax.nn.relu(x @ kernel), ())  # noqa: E731
    if how == "scan":
        return lax.scan(step, x, w["kernels"])[0]
    if how == "rematerialised":
        return lax.scan(jax.checkpoint(step), x, w["kernels"], unroll=2)[0]
    return step(step(x, w["kernels"][0])[0], w["kernels"][1])[0]


def rows(w, x):
    """A dense layer, row by row in a scan."""
    return lax.scan(lambda _, row: ((), row @ w["kernel"]), (), x)[1]


def spectral(w, x, whole):
    """A product with complex weights in the Fourier transform over the rows."""
    weights = lax.complex(w["real"], w["imaginary"])
    if not whole:
        return jnp.fft.irfft(jnp.fft.rfft(x, axis=0) * weights, n=LENGTH, axis=0)
    mirrored = jnp.concatenate([weights, jnp.conj(weights[1:2])])
    return jnp.fft.ifft(jnp.fft.fft(x, axis=0) * mirrored, axis=0).real


def mixture(w, x, one_hot):
    """For each row the two of two experts in the order of their gates."""
    gates, chosen = lax.top_k(jax.nn.softmax(x @ w["router"]), 2)
    if one_hot:
        y = jnp.einsum("li,eio->leo", x, w["experts"])
        y = jnp.take_along_axis(y, chosen[..., None], axis=1)
    else:
        y = jnp.einsum("li,leio->leo", x, w["experts"][chosen])
    return (gates[..., None] * y).sum(1)


def dense(w, x):
    return x @ w["kernel"]


def relu(w, x):
    return jax.nn.relu(x @ w["kernel"] + w["shift"])


def act(function):
    return lambda w, x: function(0.5 * (x @ w["kernel"]) + 3 * w["shift"])


def sloped(function):
    return lambda w, x: function(w["slope"], x @ w["kernel"])


def silu_by_tanh(y):
    return 0.5 * y * (1 + jnp.tanh(0.5 * y))


KERNEL = {"kernel": D}
SHIFTED = {"kernel": D, "shift": ROW}
TAPS = {"kernel": (3, *D)}
NORM = {"scale": ROW, "shift": ROW}

# Of each block: its parameters and its writings. In linear ones the flow is the function
# itself, of absolute values and without shifts.
LINEAR = {
    "dense": (
        KERNEL,
        [
            dense,
            lambda w, x: jnp.einsum("ld,dk->lk", x, w["kernel"]),
            lambda w, x: jax.vmap(lambda row: row @ w["kernel"])(x),
            lambda w, x: (w["kernel"].T @ x.T).T,
            lambda w, x: jax.jit(dense)(w, x),
            rows,
        ],
    ),
    "relu": (
        SHIFTED,
        [
            relu,
            lambda w, x: jnp.maximum(0, w["shift"] + x @ w["kernel"]),
            lambda w, x: jnp.where(relu(w, x) > 0, x @ w["kernel"] + w["shift"], 0),
            jax.checkpoint(relu),
            lambda w, x: lax.cond(CAUSAL[0, 0], relu, lambda w, x: x, w, x),
        ],
    ),
    "conv": (TAPS, [conv, conv_as_sum]),
    "causal conv": (
        TAPS,
        [
            functools.partial(conv, padding=((2, 0),)),
            functools.partial(conv_as_sum, left=2),
        ],
    ),
    "dilated conv": (
        TAPS,
        [
            functools.partial(conv, rhs_dilation=(2,), padding=((2, 2),)),
            functools.partial(conv_as_sum, step=2, left=2),
        ],
    ),
    "grouped conv": (
        {"kernel": (3, WIDTH // 2, WIDTH)},
        [
            functools.partial(conv, feature_group_count=2),
            grouped_as_blocks,
            grouped_as_batch,
        ],
    ),
    "transposed conv": (TAPS, [upsampled, upsampled_as_dense]),
    "max pooling": (
        {},
        [
            lambda w, x: pooled(x, -jnp.inf, lax.max, -jnp.inf),
            lambda w, x: jnp.maximum(x, shifted_up(x, -1e30)),
        ],
    ),
    "average pooling": (
        {},
        [
            lambda w, x: pooled(x, 0.0, lax.add, 0.0) / 2,
            lambda w, x: (x + shifted(x, -1)) * 0.5,
        ],
    ),
    "batch norm": (
        {**NORM, "mean": ROW, "variance": ROW},
        [
            lambda w, x: batch_norm(w, x, True),
            lambda w, x: batch_norm(w, x, False),
        ],
    ),
    "residual": (
        {"kernel": D, "out": D},
        [
            lambda w, x: x + jax.nn.relu(x @ w["kernel"]) @ w["out"],
            lambda w, x: jax.checkpoint(
                lambda x: jax.nn.relu(x @ w["kernel"]) @ w["out"] + x
            )(x),
        ],
    ),
    "concatenation": (
        {"kernel": (WIDTH, 1), "out": (WIDTH, WIDTH - 1)},
        [
            lambda w, x: jnp.concatenate([x @ w["kernel"], x @ w["out"]], axis=1),
            lambda w, x: x @ jnp.concatenate([w["kernel"], w["out"]], axis=1),
        ],
    ),
    "layers in a scan": (
        {"kernels": (2, *D)},
        [lambda w, x, how=how: layers(w, x, how) for how in ("scan", "rematerialised", "")],
    ),
    "summed weights": (
        KERNEL,
        [
            lambda w, x: jnp.einsum("li,ij->l", x, w["kernel"])[:, None] + 0 * x,
            lambda w, x: (x @ w["kernel"]).sum(1, keepdims=True) + 0 * x,
        ],
    ),
}
OTHERS = {
    "layer norm": (NORM, [functools.partial(normalised, power=p) for p in (True, False)]),
    "gate": (
        {"kernel": D, "gate": D},
        [
            lambda w, x: (x @ w["kernel"]) * jax.nn.sigmoid(x @ w["gate"]),
            lambda w, x: jax.nn.sigmoid(x @ w["gate"]) * dense(w, x),
            lambda w, x: jax.checkpoint(lambda a, b: a * jax.nn.sigmoid(b))(
                dense(w, x), x @ w["gate"]
            ),
        ],
    ),
    "modulation": (
        {"kernel": D, "gate": D},
        [
            lambda w, x: (1 + x @ w["gate"]) * dense(w, x),
            lambda w, x: dense(w, x) + (x @ w["gate"]) * dense(w, x),
            lambda w, x: dense(w, x) * (2 * (0.5 + (x @ w["gate"]) / 2)),
        ],
    ),
    "attention": (
        {name: D for name in "qkv"},
        [
            lambda w, x: attention(w, x, lambda y: jnp.where(CAUSAL, y, -jnp.inf)),
            lambda w, x: attention(w, x, lambda y: y + jnp.where(CAUSAL, 0.0, -1e4)),
            lambda w, x: attention(w, x, lambda y: (y + (1.0 - CAUSAL) * -1e9) * 1.0),
        ],
    ),
    "scaled silu": (
        SHIFTED,
        [
            act(jax.nn.silu),
            act(lambda y: y * jax.nn.sigmoid(y)),
            act(lambda y: y / (1 + jnp.exp(-y))),
            act(silu_by_tanh),
        ],
    ),
    "scaled gelu": (
        SHIFTED,
        [
            act(functools.partial(jax.nn.gelu, approximate=False)),
            act(lambda y: 0.5 * y * (1 + lax.erf(y * np.float32(np.sqrt(0.5))))),
            act(lambda y: y * (lax.erfc(-y * np.float32(np.sqrt(0.5))) * 0.5)),
        ],
    ),
    "scaled leaky relu": (
        SHIFTED,
        [
            act(jax.nn.leaky_relu),
            act(lambda y: jnp.where(y >= 0, y, 0.01 * y)),
            act(lambda y: jnp.maximum(y, 0.01 * y)),
        ],
    ),
    "order": (
        {},
        [
            lambda w, x: jnp.cumsum(jnp.sort(x, axis=1), axis=1)[:, -1:] + 0 * x,
            lambda w, x: lax.top_k(x, WIDTH)[0].sum(1, keepdims=True) + 0 * x,
            lambda w, x: x.sum(1, keepdims=True) + 0 * x,
        ],
    ),
    "running maximum": (
        {},
        [
            lambda w, x: lax.cummax(x, axis=0),
            lambda w, x: lax.associative_scan(jnp.maximum, x),
            lambda w, x: jnp.stack([x[: i + 1].max(0) for i in range(LENGTH)]),
        ],
    ),
    "running logarithms": (
        {},
        [
            lambda w, x: lax.cumlogsumexp(x, axis=0),
            lambda w, x: jnp.log(jnp.cumsum(jnp.exp(x), axis=0)),
        ],
    ),
    "maxima of segments": (
        {},
        [
            lambda w, x: jax.ops.segment_max(x, SEGMENTS, 2)[SEGMENTS],
            lambda w, x: jnp.concatenate(
                [
                    jnp.broadcast_to(part.max(0, keepdims=True), part.shape)
                    for part in jnp.split(x, 2)
                ]
            ),
        ],
    ),
    "spectral layer": (
        {"real": (3, 1), "imaginary": (3, 1)},
        [functools.partial(spectral, whole=whole) for whole in (False, True)],
    ),
    "mixture": (
        {"router": (WIDTH, 2), "experts": (2, *D)},
        [functools.partial(mixture, one_hot=one_hot) for one_hot in (False, True)],
    ),
    "learned slope": (
        {"kernel": D, "slope": ()},
        [
            sloped(lambda slope, y: slope * jax.nn.silu(y)),
            sloped(lambda slope, y: (slope * y) * jax.nn.sigmoid(y)),
            sloped(lambda slope, y: y * (slope * jax.nn.sigmoid(y))),
        ],
    ),
}
BLOCKS = LINEAR | OTHERS


@st.composite
def networks(draw, blocks):
    """Names of blocks, two writings of each, and whether the input is tokens."""
    names = draw(st.lists(st.sampled_from(sorted(blocks)), min_size=1, max_size=4))
    pairs = []
    for name in names:
        number = len(blocks[name][1])
        first = draw(st.integers(0, number - 1))
        pairs.append((name, first, draw(st.integers(0, number - 1))))
    return pairs, draw(st.booleans())


def shapes(pairs, tokens):
    stem = (TOKENS, WIDTH) if tokens else D
    blocks = [BLOCKS[name][0] for name, *_ in pairs]
    return {"stem": stem, "blocks": blocks, "hidden": D, "head": (WIDTH, 2)}


def initialised(pairs, tokens, seed):
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        drawn = rng.standard_normal(shape) + 0.1
        positive = path[-1] == jax.tree_util.DictKey("variance")
        return jnp.asarray(abs(drawn) if positive else drawn, jnp.float32)

    tree = shapes(pairs, tokens)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree_util.tree_map_with_path(leaf, tree, is_leaf=is_shape)


def network(pairs, tokens, writing):
    """The network, each block in its first or second writing."""

    def apply(params, x):
        if tokens and writing:
            x = jax.nn.one_hot(x, TOKENS) @ params["stem"]
        else:
            x = params["stem"][x] if tokens else x @ params["stem"]
        for w, (name, *writings) in zip(params["blocks"], pairs):
            x = BLOCKS[name][1][writings[writing]](w, x)
        return jax.nn.relu(x @ params["hidden"]) @ params["head"]

    return apply


def inputs(tokens):
    shape = (LENGTH,) if tokens else (LENGTH, WIDTH)
    return jax.ShapeDtypeStruct(shape, jnp.int32 if tokens else jnp.float32)


def flow_and_scores(apply, shape, params):
    masks = sj.all_kept(params)
    return sj.log_flow(apply, params, shape), sj.synflow(apply, shape)(params, masks)


def rescaled(params):
    """The weights into a hidden unit times five, those out of it divided by five."""
    into, out = params["hidden"], params["head"]
    return params | {"hidden": into.at[:, 1].mul(5.0), "head": out.at[1].divide(5.0)}


def laws_hold(case, seed):
    pairs, tokens = case
    params, shape = initialised(pairs, tokens, seed), inputs(tokens)

    @jax.jit
    def results(params):
        first, second = (
            functools.partial(flow_and_scores, network(pairs, tokens, n), shape)
            for n in (0, 1)
        )
        return first(params), second(params), first(rescaled(params))

    (flow, scores), *others = jax.tree.map(np.asarray, results(params))
    assert np.isfinite(flow)
    assert all((score >= 0).all() for score in jax.tree.leaves(scores))
    for cut in ("stem", "hidden", "head"):
        np.testing.assert_allclose(scores[cut].sum(), 1, rtol=2e-4)
    for other, same in others:
        np.testing.assert_allclose(other, flow, rtol=1e-4, atol=1e-3)
        jax.tree_util.tree_map_with_path(agree, same, scores)


def agree(path, one, other):
    # A parameter that divides the flow scores; in a denominator of parameters, not.
    if path[-1] != jax.tree_util.DictKey("variance"):
        np.testing.assert_allclose(one, other, rtol=5e-3, atol=1e-6)


def is_abs_and_grad(case, seed):
    """In double precision: R is the function of absolute values, and so are its scores."""
    pairs, tokens = case
    params = initialised(pairs, tokens, seed)
    with jax.enable_x64(True):

        def positive(path, leaf):
            shift = path[-1] in map(jax.tree_util.DictKey, ("shift", "mean"))
            return 0 * leaf if shift else abs(leaf)

        wide = jax.tree.map(lambda leaf: jnp.asarray(np.float64(leaf)), params)
        sizes = jax.tree_util.tree_map_with_path(positive, wide)
        # A dense stem on ones; for tokens, every row of the table counts.
        x = jnp.ones((LENGTH, TOKENS if tokens else WIDTH))
        apply = network(pairs, False, 0)
        total, gradients = jax.jit(
            jax.value_and_grad(lambda params: apply(params, x).sum())
        )(sizes)
        want = jax.tree.map(lambda w, g: np.asarray(w * g / total), sizes, gradients)
        total = float(total)
    flow, scores = jax.jit(
        functools.partial(flow_and_scores, network(pairs, tokens, 0), inputs(tokens))
    )(params)
    np.testing.assert_allclose(flow, np.log(total), rtol=1e-4, atol=1e-3)
    if any(name == "max pooling" for name, *_ in pairs):
        return  # of entries within 2**-13 the flow takes the first, and not the largest
    for name in ("stem", "hidden", "head"):
        np.testing.assert_allclose(scores[name], want[name], rtol=5e-3, atol=1e-6)
    for got, ref in zip(scores["blocks"], want["blocks"]):
        for name in got.keys() - {"shift", "mean", "variance"}:
            np.testing.assert_allclose(got[name], ref[name], rtol=5e-3, atol=1e-6)


def few(examples):
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    return hypothesis.settings(max_examples=examples, phases=phases)


seeds = st.integers(0, 2**31)


@hypothesis.given(networks(BLOCKS), seeds)
@few(8)
def test_the_laws_hold_and_equal_functions_have_equal_flows(case, seed):
    laws_hold(case, seed)


@hypothesis.given(networks(LINEAR), seeds)
@few(6)
def test_linear_networks_are_their_own_flow_of_absolute_values(case, seed):
    is_abs_and_grad(case, seed)


@pytest.mark.long
@hypothesis.given(networks(BLOCKS), seeds)
@few(300)
def test_the_laws_hold_for_many_networks(case, seed):
    laws_hold(case, seed)


@pytest.mark.long
@hypothesis.given(networks(LINEAR), seeds)
@few(200)
def test_many_linear_networks_are_their_own_flow(case, seed):
    is_abs_and_grad(case, seed)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_every_writing_of_a_block_has_one_flow(name):
    """Each writing against the first, in one program."""
    writings = BLOCKS[name][1]
    pairs = [[(name, i, 0)] for i in range(len(writings))]
    params = initialised(pairs[0], False, 0)

    @jax.jit
    def flows(params):
        return [sj.log_flow(network(p, False, 0), params, inputs(False)) for p in pairs]

    @jax.jit
    def outputs(params, x):
        return [network(p, False, 0)(params, x) for p in pairs]

    got = flows(params)
    np.testing.assert_allclose(got, [got[0]] * len(got), rtol=1e-4, atol=1e-3)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((LENGTH, WIDTH)), jnp.float32)
    same = outputs(params, x)
    for other in same[1:]:
        np.testing.assert_allclose(other, same[0], rtol=2e-2, atol=2e-2)

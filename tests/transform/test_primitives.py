"""Sorting, routing, products, segments, Fourier transforms: the laws of each rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import synflow_jax as sj
from tests import nets

pytestmark = pytest.mark.usefixtures("standard_promotion")

# --- values of one shape, between two layers ----------------------------------------------

N = 6
SEGMENTS = jnp.array([0, 1, 0, 2, 2, 2])
SHAPES = {"stem": (4, N), "hidden": (N, 5), "head": (5, 3)}


def laid(values):
    """As wide as a row of the network."""
    return jnp.broadcast_to(values, (1, N)) if values.shape[1] == 1 else values


BLOCKS = {
    "sort": lambda y: jnp.sort(y, axis=1),
    "argsort": lambda y: jnp.take_along_axis(y, jnp.argsort(y, axis=1), axis=1),
    "sorting two keys": lambda y: lax.sort([jnp.ones((1, N)), y], num_keys=2)[1],
    "sorting along": lambda y: lax.sort_key_val(jnp.arange(1.0, -N + 1, -1)[None], y)[1],
    "median": lambda y: laid(jnp.median(y, axis=1, keepdims=True)),
    "top_k": lambda y: jnp.tile(lax.top_k(y, 2)[0], (1, N // 2)),
    "approx_max_k": lambda y: jnp.tile(lax.approx_max_k(y, 2)[0], (1, N // 2)),
    "argmax": lambda y: y * jax.nn.one_hot(jnp.argmax(y, axis=1), N),
    "argmin": lambda y: laid(y[:, jnp.argmin(y, axis=1)]),
    "cummax": lambda y: lax.cummax(y, axis=1),
    "cummin": lambda y: lax.cummin(y, axis=1, reverse=True),
    "cumlogsumexp": lambda y: lax.cumlogsumexp(y, axis=1),
    "prod": lambda y: laid(jnp.prod(y, axis=1, keepdims=True)),
    "cumprod": lambda y: jnp.cumprod(y, axis=1),
    "cumprod of 1 - y": lambda y: jnp.cumprod(1 - y, axis=1),
    "prod of 2 + y": lambda y: laid(jnp.prod(2 + y, axis=1, keepdims=True)),
    "any": lambda y: y * jnp.any(y > 0, axis=1, keepdims=True),
    "all": lambda y: y * jnp.all(y > 0, axis=1, keepdims=True),
    "segment_max": lambda y: jax.ops.segment_max(y.T, SEGMENTS, N).T,
    "segment_min": lambda y: jax.ops.segment_min(y.T, SEGMENTS, N).T,
    "at max": lambda y: (y / 2).at[:, jnp.array([1, 2])].max(y[:, :2]),
    "at multiply": lambda y: y.at[:, jnp.array([0, 0, 1])].multiply(
        jnp.array([[2.0, 3.0, -4.0]])
    ),
    "at subtract": lambda y: y.at[:, 0].subtract(y[:, 1]),
    "min pooling": lambda y: lax.reduce_window(y, jnp.inf, lax.min, (1, 2), (1, 1), "SAME"),
    "fft": lambda y: jnp.fft.fft(y, axis=1).real,
    "spectral layer": lambda y: jnp.fft.irfft(
        jnp.fft.rfft(y, axis=1) * jnp.array([[1.0, 2j, 1 + 1j, 0.5]]), n=N, axis=1
    ),
    "modulus": lambda y: jnp.abs(lax.complex(y, y[:, ::-1]).conj()),
    "remainder": lambda y: jnp.mod(y, 2.0),
    "arctan2": lambda y: jnp.arctan2(y, y),
    "bessel": lambda y: jax.scipy.special.i0e(y),
}


def network(block):
    def apply(params, x):
        y = block(x @ params["stem"]["kernel"])
        return jax.nn.relu(y @ params["hidden"]["kernel"]) @ params["head"]["kernel"]

    return apply


PARAMS = {name: {"kernel": w} for name, w in nets.draw(SHAPES).items()}


def rescaled(params):
    """The weights into a hidden unit times four, those out of it divided by four."""
    into, out = params["hidden"]["kernel"], params["head"]["kernel"]
    hidden, head = into.at[:, 1].multiply(4.0), out.at[1].divide(4.0)
    return params | {"hidden": {"kernel": hidden}, "head": {"kernel": head}}


@pytest.fixture(scope="module")
def results():
    """R and the scores of every block, in one program: twice, the second time rescaled."""

    def of(params):
        masks = sj.all_kept(params)
        return {
            name: (
                sj.log_flow(network(block), params, (4,)),
                sj.synflow(network(block), (4,))(params, masks),
            )
            for name, block in BLOCKS.items()
        }

    with jax.numpy_dtype_promotion("standard"):
        return jax.device_get(jax.jit(lambda p: (of(p), of(rescaled(p))))(PARAMS))


@pytest.mark.parametrize("name", BLOCKS)
def test_every_cut_carries_the_flow(name, results):
    flow, scores = results[0][name]
    assert np.isfinite(flow)
    for leaf in scores.values():
        assert (leaf["kernel"] >= 0).all()
        assert leaf["kernel"].sum() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_scores_do_not_change_if_a_unit_is_rescaled(name, results):
    (flow, scores), (same, others) = (result[name] for result in results)
    assert same == pytest.approx(flow, rel=1e-5)
    for leaf in SHAPES:
        np.testing.assert_allclose(
            others[leaf]["kernel"], scores[leaf]["kernel"], rtol=1e-4, atol=1e-9
        )


PATHS = ("sort", "median", "top_k", "argmax", "argsort", "cummax", "cumprod", "prod")
PATHS += ("cumprod of 1 - y", "segment_max", "at max", "spectral layer", "any")


@pytest.mark.parametrize("name", PATHS)
def test_what_carries_flow_lies_on_a_path(name, results):
    """And the units are those of the conservation law."""
    _, scores = results[0][name]
    masks, apply = sj.all_kept(PARAMS), network(BLOCKS[name])
    reached = sj.effective_masks(apply, PARAMS, masks, (4,))
    for leaf in SHAPES:
        assert reached[leaf]["kernel"][scores[leaf]["kernel"] > 0].all()
    assert sj.fewest_weights(apply, PARAMS, (4,)) == 3
    scores = jax.tree.map(jnp.asarray, scores)
    found = sj.conservation(apply, PARAMS, masks, (4,), scores=scores)
    assert len(found.cuts) == 3 and found.gap < 1e-5


def test_all_that_is_sorted_lies_on_a_path():
    """Whatever the weights are: the entry that passes depends on them."""

    def largest(params, x):
        return lax.top_k(x @ params["kernel"], 1)[0]

    def chosen(params, x):
        y = x @ params["kernel"]
        return jnp.where(jax.nn.one_hot(jnp.argmax(y, axis=1), 3) > 0, y, 0.0)

    params = {"kernel": jnp.array([[1.0, 2.0, 0.0]])}
    for apply in (largest, chosen):
        reached = sj.effective_masks(apply, params, sj.all_kept(params), (1,))
        np.testing.assert_array_equal(reached["kernel"], [[True, True, False]])
        score = sj.synflow(apply, (1,))(params, sj.all_kept(params))
        np.testing.assert_allclose(score["kernel"], [[0, 1, 0]])


def test_a_product_is_reached_where_all_of_its_factors_are():
    def product(params, x):
        return jnp.prod(x @ params["kernel"], axis=1)

    def opaque(params, x):
        return jnp.prod(1 - x @ params["kernel"], axis=1)

    params = {"kernel": jnp.array([[1.0, 2.0, 0.0, 3.0, 1.0, 1.0]])}
    masks = sj.all_kept(params)
    assert not sj.effective_masks(product, params, masks, (1,))["kernel"].any()
    assert sj.log_flow(product, params, (1,)) == -jnp.inf
    assert sj.effective_masks(opaque, params, masks, (1,))["kernel"].sum() == 5
    alive = {"kernel": jnp.ones((1, 9))}
    masks = sj.all_kept(alive)
    assert sj.effective_masks(product, alive, masks, (1,))["kernel"].all()


def test_certificates_are_given_where_the_rule_keeps_paths():
    certified = {}
    for name in (
        "cummax",
        "cumlogsumexp",
        "segment_max",
        "fft",
        "sort",
        "top_k",
        "cumprod",
    ):
        score = sj.synflow(network(BLOCKS[name]), (4,))
        why = score.why_not_certifiable(PARAMS, [True] * 3)
        certified[name] = why is None
        assert why is None or "keeps no paths" in why
    assert [n for n, yes in certified.items() if yes] == [
        "cummax",
        "cumlogsumexp",
        "segment_max",
        "fft",
    ]


# --- equal functions ----------------------------------------------------------------------

DUPLICATES = jnp.array([[2.0, 3.0, -4.0]])
EQUAL = {
    "a sum of what is sorted": (
        lambda y: jnp.sort(y, axis=1).sum(1),
        lambda y: y.sum(1),
    ),
    "all of the largest": (lambda y: lax.top_k(y, N)[0].sum(1), lambda y: y.sum(1)),
    "the largest": (lambda y: lax.top_k(y, 1)[0][:, 0], lambda y: y.max(1)),
    "at the largest": (
        lambda y: jnp.take_along_axis(y, jnp.argmax(y, axis=1)[:, None], 1)[:, 0],
        lambda y: y.max(1),
    ),
    "at the smallest": (
        lambda y: jnp.take_along_axis(y, jnp.argmin(y, axis=1)[:, None], 1)[:, 0],
        lambda y: y.min(1),
    ),
    "median of three": (
        lambda y: jnp.median(y[:, :3], axis=1),
        lambda y: jnp.sort(y[:, :3], axis=1)[:, 1],
    ),
    "the last of running maxima": (
        lambda y: lax.cummax(y, axis=1)[:, -1],
        lambda y: y.max(1),
    ),
    "the first of running minima": (
        lambda y: lax.cummin(y, axis=1, reverse=True)[:, 0],
        lambda y: y.min(1),
    ),
    "running logarithms": (
        lambda y: lax.cumlogsumexp(y, axis=1, reverse=True),
        lambda y: jnp.log(lax.cumsum(jnp.exp(y), axis=1, reverse=True)),
    ),
    "a product of two": (lambda y: jnp.prod(y[:, :2], axis=1), lambda y: y[:, 0] * y[:, 1]),
    "the last running product": (
        lambda y: jnp.cumprod(y, axis=1)[:, -1],
        lambda y: jnp.prod(y, axis=1),
    ),
    "a product of one": (lambda y: jnp.prod(y[:, None], axis=1), lambda y: y),
    "a product with numbers": (
        lambda y: jnp.prod(1 - y[:, :3], axis=1),
        lambda y: (1 - y[:, 0]) * (1 - y[:, 1]) * (1 - y[:, 2]),
    ),
    "compositing": (
        lambda y: y[:, 2] * jnp.cumprod(1 - y, axis=1)[:, 1],
        lambda y: y[:, 2] * ((1 - y[:, 0]) * (1 - y[:, 1])),
    ),
    "maxima of segments": (
        lambda y: jax.ops.segment_max(y.T, SEGMENTS, 3),
        lambda y: jnp.stack(
            [jnp.maximum(y[:, 0], y[:, 2]), y[:, 1], y[:, 3:].max(1)],
        ),
    ),
    "maxima of two": (
        lambda y: y[:, :3].at[:].max(y[:, 3:]),
        lambda y: jnp.maximum(y[:, :3], y[:, 3:]),
    ),
    "factors at places": (
        lambda y: y.at[:, jnp.array([0, 0, 1])].multiply(DUPLICATES),
        lambda y: y * jnp.array([[6.0, -4.0, 1.0, 1.0, 1.0, 1.0]]),
    ),
    "a factor of zero": (
        lambda y: y.at[:, jnp.array([0, 0, 1])].multiply(jnp.array([[2.0, 0.0, -4.0]])),
        lambda y: y * jnp.array([[0.0, -4.0, 1.0, 1.0, 1.0, 1.0]]),
    ),
    "a difference at a place": (
        lambda y: y.at[:, 0].subtract(y[:, 1]),
        lambda y: jnp.concatenate([y[:, :1] - y[:, 1:2], y[:, 1:]], axis=1),
    ),
    "a real inverse transform": (
        lambda y: jnp.fft.irfft(jnp.fft.rfft(y, axis=1), n=N, axis=1),
        lambda y: jnp.fft.ifft(jnp.fft.fft(y, axis=1), axis=1).real,
    ),
    "an odd real inverse transform": (
        lambda y: jnp.fft.irfft(jnp.fft.rfft(y[:, :5], axis=1), n=5, axis=1),
        lambda y: jnp.fft.ifft(jnp.fft.fft(y[:, :5], axis=1), axis=1).real,
    ),
    "a transform written out": (
        lambda y: jnp.fft.fft(y, axis=1).real,
        lambda y: (
            (y @ jnp.exp(-2j * np.pi * jnp.outer(jnp.arange(N), jnp.arange(N)) / N)).real
        ),
    ),
    "two transforms": (
        lambda y: jnp.fft.fft2(y.reshape(2, 3)).real,
        lambda y: jnp.fft.fft(jnp.fft.fft(y.reshape(2, 3), axis=0), axis=1).real,
    ),
    "an angle": (
        lambda y: jnp.arctan2(y, y[:, ::-1]),
        lambda y: jnp.arctan(y / y[:, ::-1]),
    ),
    "a remainder": (
        lambda y: lax.rem(y, jnp.full_like(y, 2)),
        lambda y: y - jnp.trunc(y / 2),
    ),
    "any": (lambda y: jnp.any(y > 0, axis=1) * y[:, 0], lambda y: (y > 0).max(1) * y[:, 0]),
}


def test_equal_functions_have_equal_flows():
    """And equal scores, all in one program."""

    @jax.jit
    def pairs(w):
        def flow(function):
            def mantissa(w):
                m, e = sj.flow(lambda w, x: function(x @ w))(w, jnp.ones((1, 4)))
                return m.sum(), (m, e)

            gradient, (m, e) = jax.grad(mantissa, has_aux=True)(w)
            unit = jnp.exp2(e.astype(m.dtype))
            return m * unit, gradient * w * unit

        return {name: [*map(flow, pair)] for name, pair in EQUAL.items()}

    for name, (one, other) in jax.device_get(pairs(PARAMS["stem"]["kernel"])).items():
        for got, want in zip(one, other):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6, err_msg=name)


def test_what_is_sorted_along_moves_along():
    def network(w, x):
        y = x @ w
        _, moved, places = lax.sort(
            [y, 10 * y, lax.broadcasted_iota(int, y.shape, 1)], num_keys=1
        )
        return moved, jnp.take_along_axis(y, places, axis=1)

    w = jnp.array([[3.0, -1.0, 2.0]])
    (moved, taken), exponents = sj.flow(network)(w, jnp.ones((1, 1)))
    np.testing.assert_allclose(moved * 2.0 ** exponents[0], [[10, 20, 30]])
    np.testing.assert_allclose(taken * 2.0 ** exponents[1], [[1, 2, 3]])


def test_rounding_decides_no_order():
    """Entries that differ by rounding stay in their order, and the first of them wins."""
    w = jnp.array([[1.0, 1.0 - 1e-6, 1.0 + 1e-6]])

    def places(function):
        flow = sj.flow(lambda w, x: function(x @ w))
        gradient = jax.grad(lambda w: flow(w, jnp.ones((1, 1)))[0][:, 0].sum())(w)
        return np.flatnonzero(gradient).tolist()

    assert places(lambda y: jnp.sort(y)) == [0]
    assert places(lambda y: lax.top_k(y, 1)[0]) == [0]
    assert places(lambda y: y[:, jnp.argmax(y, axis=1)]) == [0]
    assert places(lambda y: lax.cummax(y, axis=1)[:, -1:]) == [0]
    assert places(lambda y: lax.cummin(y, axis=1, reverse=True)) == [2]
    assert places(lambda y: jax.ops.segment_max(y[0], jnp.zeros(3, int), 1)[None]) == [0]


def test_the_parts_of_a_complex_weight_share_its_flow():
    def network(params, x):
        w = lax.complex(params["real"], params["imaginary"])
        return (x.astype(jnp.complex64) @ w).real

    params = {"real": jnp.array([[3.0], [0.0]]), "imaginary": jnp.array([[4.0], [1.0]])}
    assert jnp.exp(sj.log_flow(network, params, (2,))) == pytest.approx(6)
    scores = sj.synflow(network, (2,))(params, sj.all_kept(params))
    np.testing.assert_allclose(scores["real"] * 6, [[9 / 5], [0]], rtol=1e-5)
    np.testing.assert_allclose(scores["imaginary"] * 6, [[16 / 5], [1]], rtol=1e-5)


def test_a_complex_input_carries_flow():
    def network(params, x):
        return (x @ params["stem"]["kernel"].astype(jnp.complex64)).real

    def same(params, x):
        return x @ params["stem"]["kernel"]

    shape = jax.ShapeDtypeStruct((1, 4), jnp.complex64)
    want = sj.log_flow(same, PARAMS, (4,))
    assert float(sj.log_flow(network, PARAMS, shape)) == pytest.approx(float(want))
    params = {"stem": PARAMS["stem"]}
    found = sj.effective_masks(network, params, sj.all_kept(params), shape)
    assert found["stem"]["kernel"].all()
    assert sj.fewest_weights(network, params, shape) == 1


# --- linear solves ------------------------------------------------------------------------

MATRIX = jnp.eye(4) * 3 + nets.draw({"m": (4, 4)})["m"]


def test_a_solve_is_a_layer_with_the_inverse():
    params = PARAMS | {"matrix": MATRIX}

    def solved(params, x):
        y = jnp.linalg.solve(params["matrix"], x.T).T
        return y @ params["stem"]["kernel"]

    def inverted(params, x):
        y = x @ jnp.linalg.inv(params["matrix"]).T
        return y @ params["stem"]["kernel"]

    def of(network):
        def both(params):
            masks = sj.all_kept(params)
            scores = sj.synflow(network, (4,))(params, masks)
            return sj.log_flow(network, params, (4,)), scores

        return jax.jit(both)(params)

    (got, scores), (want, others) = of(solved), of(inverted)
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    for name in ("matrix", "stem"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
            scores[name],
            others[name],
        )
    assert float(scores["stem"]["kernel"].sum()) == pytest.approx(1, rel=1e-5)
    reached = sj.effective_masks(solved, params, sj.all_kept(params), (4,))
    assert reached["stem"]["kernel"].all()


def test_a_matrix_that_depends_on_the_input_is_not_solved():
    def network(params, x):
        y = x.T @ x + jnp.eye(4)
        return jnp.linalg.solve(y, x.T)

    with pytest.raises(sj.FlowError, match=r"test_primitives.py:\d+ "):
        sj.log_flow(network, PARAMS, (4,))


def test_a_solve_that_would_be_too_large_says_what_to_write():
    def network(params, x):
        return jnp.linalg.solve(jnp.eye(4), x.reshape(4, -1))

    large = jax.ShapeDtypeStruct((4, 4096), jnp.float32)
    with pytest.raises(sj.FlowError, match=r"jnp.linalg.inv\(matrix\) @ x"):
        sj.log_flow(network, PARAMS, large)

"""Equal positions are computed once: the same flow and the same scores as whole."""

import functools
import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import synflow_jax as sj
from synflow_jax import models
from synflow_jax.paths.reached import on_paths
from synflow_jax.transform import interpreter, scaled
from synflow_jax.transform.classes import (
    NOTHING,
    Classes,
    Window,
    entries_at,
    one_class,
    read_by,
    refined,
    segments,
)
from synflow_jax.transform.network_flow import ones, total_flow, uniform
from synflow_jax.transform.origins import reshaped_groups
from synflow_jax.xla.jaxprs import jaxprs_in
from synflow_jax.xla.reading import combined_axes, read, read_windows
from tests.transform import test_fuzz as fuzz

# --- classes of an axis -------------------------------------------------------------------

labels = st.lists(st.integers(0, 3), min_size=1, max_size=14).map(np.array)
windows = st.builds(
    Window,
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(-1, 3),
    st.integers(-1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
)


@hypothesis.given(labels)
def test_classes_are_numbered_by_their_first_position(labels):
    classes = Classes(labels)
    assert [*dict.fromkeys(classes.of)] == [*range(classes.number)]
    assert (classes.of[classes.first] == np.arange(classes.number)).all()
    assert (np.diff(classes.first) > 0).all()
    assert (
        classes.counts == [(classes.of == k).sum() for k in range(classes.number)]
    ).all()
    for one, other in np.ndindex(len(labels), len(labels)):
        same = classes.of[one] == classes.of[other]
        assert same == (labels[one] == labels[other])


def test_what_is_stored_may_belong_to_no_position():
    classes = Classes.stored(np.array([1, 1, 4, 2]), 6)
    assert classes.number == 6 and classes.counts.tolist() == [0, 2, 1, 0, 1, 0]
    assert (classes.of[classes.first[classes.of]] == classes.of).all()
    assert classes != Classes(classes.of)
    assert refined([one_class(4), classes, Classes(classes.of)]) is classes


@hypothesis.given(labels, st.data())
def test_a_refinement_is_what_both_tell_apart(labels, data):
    others = data.draw(
        st.lists(st.integers(0, 2), min_size=len(labels), max_size=len(labels))
    )
    both = refined([Classes(labels), Classes(np.array(others))])
    pairs = [*zip(labels, others)]
    assert both == Classes(np.array([pairs.index(pair) for pair in pairs]))


@hypothesis.given(labels, windows)
def test_a_window_reads_what_it_lies_on(labels, window):
    classes = Classes(labels)
    # The axis written out: padded, with holes, -1 where nothing is.
    axis = np.full(max(0, (len(labels) - 1) * window.base_dilation + 1), NOTHING)
    axis[:: window.base_dilation] = classes.of
    for padding, at in ((window.low, 0), (window.high, len(axis))):
        if padding < 0:
            axis = axis[-padding:] if at == 0 else axis[:padding]
    padding = max(0, window.low), max(0, window.high)
    axis = np.pad(axis, padding, constant_values=NOTHING)
    rows = [
        axis[start : start + window.reach : window.dilation]
        for start in range(0, len(axis) - window.reach + 1, window.stride)
    ]
    found, reads = read_by(classes, window)
    assert found.size == window.positions(len(labels)) == len(rows)
    if not rows:
        return
    assert (reads[found.of] == rows).all()
    assert len({tuple(row) for row in rows}) == found.number
    # The short axis holds the same windows.
    entries, at = segments(classes, window, found)
    starts = at[:, None] * window.stride + np.arange(window.size) * window.dilation
    assert (entries[starts] == reads).all()


def test_the_short_axis_is_short():
    """Of 1,000 positions under eight 3x3 convolutions: two edges, one position inside."""
    classes, window = Classes(np.zeros(1000, int)), Window(3, 1, 1, 1, 1, 1)
    for _ in range(8):
        before = classes
        classes, _ = read_by(classes, window)
    assert classes.number == 17
    entries, _ = segments(before, window, classes)
    assert len(entries) == 17 + 2 * 2
    assert entries_at(before, window, np.array([0]))[0] == NOTHING


SIZES = st.integers(1, 5)


@hypothesis.given(
    st.integers(0, 2),
    st.lists(st.integers(-1, 4), min_size=1, max_size=30).map(np.array),
    st.booleans(),
)
def test_reading_is_taking_and_its_transpose_adds(axis, entries, by_slices):
    shape = [2, 3, 2]
    shape[axis] = 5
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    padded = np.concatenate([x, np.zeros_like(np.take(x, [0], axis))], axis)
    with pytest.MonkeyPatch.context() as patch:
        if by_slices:
            patch.setattr("synflow_jax.xla.reading._SMALL", 0)
            patch.setattr("synflow_jax.xla.reading._PIECES", 99)
        got, transpose = jax.vjp(lambda x: read(x, axis, entries), jnp.asarray(x))
        np.testing.assert_array_equal(got, np.take(padded, entries, axis))
        change = np.arange(1.0, 1 + got.size, dtype=np.float32).reshape(got.shape)
        (back,) = transpose(jnp.asarray(change))
    want = np.zeros_like(padded)
    np.add.at(np.moveaxis(want, axis, 0), entries, np.moveaxis(change, axis, 0))
    np.testing.assert_array_equal(back, np.delete(want, 5, axis))


def test_the_derivative_of_runs_is_one_concatenation():
    """Slices would be padded to the whole axis, one array for each run, and added."""
    x, entries = jnp.ones((2, 400, 64)), np.r_[0:150, 140:260, 250:400]

    def backwards(x, change):
        return jax.vjp(lambda x: read(x, 1, entries), x)[1](change)

    jaxpr = jax.make_jaxpr(backwards)(x, jnp.ones((2, len(entries), 64)))
    names = [eqn.primitive.name for eqn in jaxpr.eqns]
    assert "pad" not in names and names[-1] == "concatenate"


@pytest.mark.parametrize("most", [0, 2**24], ids=["axis by axis", "one product"])
def test_windows_along_two_axes(most):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 4, 3)).astype(np.float32)
    windows = {1: rng.integers(-1, 5, (6, 2)), 2: rng.integers(-1, 4, (3, 3))}
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))  # -1 reads the zero at the end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("synflow_jax.xla.reading._JOINT", most)
        got, transpose = jax.vjp(lambda x: read_windows(x, windows), jnp.asarray(x))
        summed = combined_axes(jnp.asarray(x), {1: np.eye(3, 5), 2: np.full((2, 4), 2)})
        (back,) = transpose([jnp.ones_like(each) for each in got])
    pairs = itertools.product(windows[1].T, windows[2].T)
    for one, (rows, columns) in zip(got, pairs, strict=True):
        np.testing.assert_array_equal(one, padded[:, rows][:, :, columns])
    counts = [(windows[k].reshape(-1, 1) == np.arange(x.shape[k])).sum(0) for k in (1, 2)]
    np.testing.assert_array_equal(
        back,
        np.broadcast_to(np.outer(*counts)[None, :, :, None].astype(np.float32), x.shape),
    )
    total = np.repeat(2 * x[:, :3].sum(2, keepdims=True), 2, 2)
    np.testing.assert_allclose(summed, total, 1e-5, 1e-5)


def test_no_gather_and_no_scatter():
    entries = np.random.default_rng(0).integers(-1, 5, 100)
    slides = {1: entries.reshape(50, 2), 2: entries.reshape(20, 5) % 3}
    for function in (
        lambda x: read(x, 1, entries),
        lambda x: read(x, 1, np.sort(entries)),
        lambda x: sum(read_windows(x, slides)),
        lambda x: combined_axes(x, {1: np.ones((2, 5)), 2: np.ones((2, 3))}),
    ):
        total = jax.grad(lambda x, function=function: jnp.sum(jnp.sin(function(x))))
        text = str(jax.make_jaxpr(total)(jnp.ones((2, 5, 3))))
        assert "gather" not in text and "scatter" not in text


def test_reshapes_split_into_groups():
    assert reshaped_groups((2, 3, 4), (6, 4)) == [([0, 1], [0]), ([2], [1])]
    assert reshaped_groups((1, 6), (6, 1, 1)) == [([1], [0])]
    assert reshaped_groups((4, 6), (3, 8)) == [([0, 1], [0, 1])]


# --- the same flow and the same scores ----------------------------------------------------


def scored(apply_fn, params, shape, once):
    """Log of R and the scores."""

    inputs = uniform(ones(shape))

    def log_total(params):
        return scaled.log(total_flow(apply_fn, params, inputs, once=once))

    flow, gradients = jax.value_and_grad(log_total)(params)
    return flow, jax.tree.map(lambda w, g: jnp.abs(w * g), params, gradients)


def agree(apply_fn, params, shape, rtol=1e-5):
    """Compares the flow with equal positions stored once to the whole flow."""

    @jax.jit
    def both(params):
        return [scored(apply_fn, params, shape, once) for once in (True, False)]

    once, whole = both(params)
    np.testing.assert_allclose(once[0], whole[0], rtol=min(rtol, 1e-6))
    for one, other in zip(jax.tree.leaves(once[1]), jax.tree.leaves(whole[1]), strict=True):
        # Relative to the largest score of the leaf too: far smaller ones are differences.
        np.testing.assert_allclose(one, other, rtol, rtol / 100 * float(np.max(other)))


def drawn(shapes, seed=0):
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(
        lambda s: jnp.asarray(rng.standard_normal(s) + 0.1, jnp.float32),
        shapes,
        is_leaf=is_shape,
    )


SPACES = {1: "W", 2: "HW", 3: "DHW"}


def conv(x, w, strides=1, padding="SAME", dilation=1, base=1, groups=1):
    n = x.ndim - 2
    layout = f"N{SPACES[n]}C", f"{SPACES[n]}IO", f"N{SPACES[n]}C"
    return lax.conv_general_dilated(
        x,
        w,
        (strides,) * n,
        padding if isinstance(padding, str) else [padding] * n,
        lhs_dilation=(base,) * n,
        rhs_dilation=(dilation,) * n,
        dimension_numbers=layout,
        feature_group_count=groups,
    )


def max_pool(x, size, stride, padding="VALID"):
    ones = (1,) * (x.ndim - 2)
    window, steps = (1, *size * np.array([*ones]), 1), (1, *stride * np.array([*ones]), 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, steps, padding)


def mean_pool(x, size, stride, padding="SAME"):
    """Without the padding, as Flax's average pooling can."""
    spots = (1,) * (x.ndim - 2)
    window, steps = (1, *size * np.array([*spots]), 1), (1, *stride * np.array([*spots]), 1)
    total = lax.reduce_window(x, 0.0, lax.add, window, steps, padding)
    counts = jnp.ones((1, *x.shape[1:-1], 1))
    return total / lax.reduce_window(counts, 0.0, lax.add, window, steps, padding)


def unet(p, x, levels, up):
    skips = []
    for i in range(levels):
        x = jax.nn.relu(conv(x, p[f"down{i}"]))
        skips.append(x)
        x = max_pool(x, 2, 2)
    x = jax.nn.silu(conv(x, p["middle"]))
    for i in reversed(range(levels)):
        x = jnp.concatenate([up(x, p[f"up{i}"]), skips[i]], -1)
        x = jax.nn.relu(conv(x, p[f"join{i}"]))
    return conv(x, p["last"])


def unet_shapes(levels, space, widths=(3, 4, 5, 6)):
    window, half, one = (3,) * space, (2,) * space, (1,) * space
    shapes, into = {}, 2
    for i in range(levels):
        shapes[f"down{i}"], into = (*window, into, widths[i]), widths[i]
    shapes["middle"], into = (*window, into, widths[levels]), widths[levels]
    for i in reversed(range(levels)):
        shapes[f"up{i}"] = (*half, into, widths[i])
        shapes[f"join{i}"], into = (*window, 2 * widths[i], widths[i]), widths[i]
    return shapes | {"last": (*one, into, 2)}


def transposed(x, w, strides=2, padding="SAME"):
    n = x.ndim - 2
    layout = f"N{SPACES[n]}C", f"{SPACES[n]}IO", f"N{SPACES[n]}C"
    return lax.conv_transpose(x, w, (strides,) * n, padding, dimension_numbers=layout)


def resized(method):
    def up(x, w):
        shape = (x.shape[0], *(2 * n for n in x.shape[1:-1]), x.shape[-1])
        return conv(jax.image.resize(x, shape, method), w)

    return up


def repeated(x, w):
    for axis in range(1, x.ndim - 1):
        x = jnp.repeat(x, 2, axis)
    return conv(x, w)


def batch_norm(p, x):
    return (x - p["mean"]) * (lax.rsqrt(p["var"] ** 2 + 1e-5) * p["scale"]) + p["bias"]


def trained_norm(p, x):
    """Batch norm by the statistics of the image."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes, keepdims=True)
    var = ((x - mean) ** 2).mean(axes, keepdims=True)
    return (x - mean) * lax.rsqrt(var + 1e-5) * p["scale"] + p["bias"]


def squeezed(p, x):
    gate = x.mean((1, 2), keepdims=True)
    gate = jax.nn.relu(jnp.einsum("nhwi,io->nhwo", gate, p["in"]))
    return x * jax.nn.sigmoid(jnp.einsum("nhwi,io->nhwo", gate, p["out"]))


def shuffled_pixels(x, r=2):
    """Channels become pixels."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, r, r, c // r**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, r * h, r * w, c // r**2)


def patches(x, r=2):
    """Pixels become channels."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // r, r, w // r, r, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h // r, w // r, r * r * c)


def taken(x):
    """Positions that are read out of order, twice, or of an axis without classes."""
    x = jnp.take(jnp.take(x, jnp.array([5, 5, 0, 9, 3, 1]), 1), jnp.arange(8) * 2, 2)
    return jnp.tile(x[..., jnp.array([2, 0, 1])], (1, 2, 1, 1))


def branches(p, x):
    """Two branches and an array without flow, stacked and taken apart again; then a part
    that begins at a known place, or as close to the end as it fits."""
    one, other = stem(p, x), conv(stem(p, x), p["next"])
    stacked = jnp.stack([one, other, jnp.ones_like(one)], 2)
    first, second, _ = jnp.unstack(stacked, axis=2)
    part = (1, first.shape[1] - 3, 8, first.shape[3])
    return conv(lax.dynamic_slice(first * 2 + second, (0, 2, 99, 0), part), p["last"])


def rows(p, x):
    """Stacked in another order along an axis that had classes."""
    above, *_, below = jnp.unstack(stem(p, x), axis=1)
    return conv(jnp.stack([below, above, above], 1), p["next"])


def between_results(p, x):
    """What a convolution leaves between its results is in no largest entry and no sum, also
    where its window lies on columns there that are nowhere side by side."""
    columns = jnp.where(jnp.arange(48) % 3 == 0, 10.0, 1.0)
    y = conv(stem(p, x) * columns[None, None, :, None], p["next"])
    z = conv(jnp.concatenate([y[:, ::-1], y[:, 1:-1]], 1), p["next"])
    line = z.reshape(1, -1, 4)
    ends = [z.max((1, 2)), z.mean(1).max(1), line.max(1), jax.nn.softmax(line, 1)[:, 7]]
    return jnp.concatenate([*ends, jnp.cumsum(z, 1)[:, 3].mean(1)], -1)


def rows_and_columns(x):
    y, z = x[:, ::2, 1:-1], x[:, ::-1]
    return jnp.concatenate([y.transpose(0, 2, 1, 3), z[:, :, :11]], axis=2)


def broadcast_history(p, x):
    """Two functions of one mean, each broadcast: two histories, so their product is a gate;
    stored once, all three have one entry along each axis."""
    mean = x.mean((1, 2), keepdims=True)
    one, other = (jnp.broadcast_to(p[k], (1, 5, 1, 1)) for k in ("one", "other"))
    return (mean + one) * (mean * other)


NORM = dict.fromkeys(("mean", "var", "scale", "bias"), (1, 1, 1, 4))
STEM = {"stem": (3, 3, 3, 4)}


def stem(p, x):
    return jax.nn.relu(conv(x, p["stem"]))


RESIZED = {k: (3, 3, *s[2:]) if k[:2] == "up" else s for k, s in unet_shapes(2, 2).items()}
UPS = {
    "bilinear": resized("bilinear"),
    "cubic": resized("cubic"),
    "nearest": resized("nearest"),
    "repeated": repeated,
}

# Of each network: parameters, the shape of an input, the network.
NETWORKS = {
    "a chain": (
        {"a": (3, 3, 3, 4), "b": (3, 3, 4, 4), "c": (3, 3, 4, 4), "d": (64, 2)},
        (16, 16, 3),
        lambda p, x: (
            max_pool(
                jax.nn.relu(conv(max_pool(conv(conv(x, p["a"]), p["b"]), 2, 2), p["c"])),
                2,
                2,
            ).reshape(1, -1)
            @ p["d"]
        ),
    ),
    "strides": (
        {"a": (7, 7, 3, 4), "b": (3, 3, 4, 4), "c": (1, 1, 4, 4)},
        (33, 26, 3),
        lambda p, x: (
            conv(max_pool(conv(x, p["a"], 2), 3, 2, "SAME"), p["b"], 3)
            + conv(max_pool(conv(x, p["a"], 2), 3, 2, "SAME"), p["c"], 3)
        ),
    ),
    "dilations": (
        {"a": (3, 3, 3, 4), "b": (3, 3, 4, 4), "c": (2, 2, 4, 4)},
        (24, 24, 3),
        lambda p, x: conv(
            conv(conv(x, p["a"], dilation=2), p["b"], dilation=3),
            p["c"],
            base=2,
            padding=(-1, 3),
        ),
    ),
    "transposed convolutions": (
        {"a": (3, 3, 3, 4), "b": (4, 4, 4, 4), "c": (3, 3, 4, 4), "d": (3, 3, 4, 4)},
        (12, 15, 3),
        lambda p, x: conv(
            transposed(transposed(conv(x, p["a"]), p["b"], 3), p["c"], 2, "VALID"), p["d"]
        ),
    ),
    "groups": (
        {"a": (3, 3, 3, 4), "b": (3, 3, 1, 4), "c": (1, 1, 4, 6), "d": (3, 3, 3, 6)},
        (16, 16, 3),
        lambda p, x: conv(
            jax.nn.relu(conv(conv(conv(x, p["a"]), p["b"], 2, groups=4), p["c"])),
            p["d"],
            groups=2,
        ),
    ),
    "sound": (
        {"a": (9, 1, 4), "b": (5, 4, 4), "c": (4, 2)},
        (120, 1),
        lambda p, x: mean_pool(conv(conv(x, p["a"], 4), p["b"]), 3, 2).max(1) @ p["c"],
    ),
    "volumes": (
        unet_shapes(1, 3),
        (8, 8, 12, 2),
        lambda p, x: unet(p, x, 1, transposed),
    ),
    "U-Net": (unet_shapes(2, 2), (32, 40, 2), lambda p, x: unet(p, x, 2, transposed)),
    "deep U-Net": (unet_shapes(3, 2), (64, 64, 2), lambda p, x: unet(p, x, 3, transposed)),
    **{
        f"U-Net, {name}": (RESIZED, (32, 32, 2), lambda p, x, up=up: unet(p, x, 2, up))
        for name, up in UPS.items()
    },
    "resized to any size": (
        STEM | {"next": (3, 3, 4, 4)},
        (22, 27, 3),
        lambda p, x: conv(
            jax.image.resize(
                jax.image.resize(stem(p, x), (1, 9, 31, 4), "linear"),
                (1, 25, 14, 4),
                "nearest",
            ),
            p["next"],
        ),
    ),
    "pixel shuffle": (
        STEM | {"wide": (3, 3, 4, 16), "next": (3, 3, 4, 4), "last": (1, 1, 16, 2)},
        (12, 14, 3),
        lambda p, x: conv(
            patches(conv(shuffled_pixels(conv(stem(p, x), p["wide"])), p["next"])),
            p["last"],
        ),
    ),
    "positions that are read": (
        {"stem": (3, 3, 3, 3), "next": (3, 3, 3, 4)},
        (16, 16, 3),
        lambda p, x: conv(taken(stem(p, x)), p["next"]),
    ),
    "branches": (
        STEM | {"next": (3, 3, 4, 4), "last": (3, 3, 4, 4)},
        (16, 18, 3),
        branches,
    ),
    "a stack with parameters": (
        STEM | {"added": (1, 12, 14, 4), "next": (3, 3, 4, 4)},
        (12, 14, 3),
        lambda p, x: conv(
            jnp.stack([stem(p, x), jax.nn.sigmoid(stem(p, x)), p["added"]]).sum(0),
            p["next"],
        ),
    ),
    "rows": (STEM | {"next": (3, 3, 4, 4)}, (12, 14, 3), rows),
    "batch norms": (
        STEM | {"one": NORM, "other": NORM, "next": (3, 3, 4, 4)},
        (16, 16, 3),
        lambda p, x: trained_norm(
            p["other"], conv(batch_norm(p["one"], stem(p, x)), p["next"])
        ),
    ),
    "squeeze and excitation": (
        STEM | {"in": (4, 2), "out": (2, 4), "next": (3, 3, 4, 4)},
        (16, 16, 3),
        lambda p, x: conv(squeezed(p, stem(p, x)), p["next"]),
    ),
    "average pooling": (
        STEM | {"next": (3, 3, 4, 4)},
        (17, 16, 3),
        lambda p, x: conv(mean_pool(stem(p, x), 3, 2), p["next"]),
    ),
    "moves": (
        STEM | {"next": (3, 3, 4, 4)},
        (22, 24, 3),
        lambda p, x: conv(
            jnp.pad(rows_and_columns(stem(p, x)), ((0, 0), (3, 1), (0, 9), (0, 0))),
            p["next"],
        ),
    ),
    "between results": (STEM | {"next": (3, 3, 4, 4)}, (40, 48, 3), between_results),
    "positions": (
        STEM | {"rows": (1, 16, 1, 4), "columns": (1, 1, 16, 1), "next": (3, 3, 4, 4)},
        (16, 16, 3),
        lambda p, x: conv(stem(p, x) * p["rows"] * p["columns"], p["next"]),
    ),
    "coordinates": (
        STEM | {"next": (3, 3, 5, 4)},
        (16, 16, 3),
        lambda p, x: conv(
            jnp.concatenate(
                [
                    stem(p, x) * (jnp.arange(16.0) // 6)[None, :, None, None],
                    jnp.ones((1, 16, 16, 1)),
                ],
                -1,
            ),
            p["next"],
        ),
    ),
    "masks": (
        STEM | {"next": (3, 3, 4, 4)},
        (16, 16, 3),
        lambda p, x: conv(
            jnp.where((jnp.arange(16) > 5)[None, None, :, None], stem(p, x), 0), p["next"]
        ),
    ),
    "softmax over positions": (
        STEM | {"key": (4, 4)},
        (12, 12, 3),
        lambda p, x: jax.nn.softmax(
            (stem(p, x) @ p["key"]).reshape(1, -1, 4)
            + jnp.where(jnp.arange(144) % 12 > 6, 0.0, -1e9)[None, :, None],
            axis=1,
        ),
    ),
    "broadcast histories": (
        {"one": (1, 1, 1, 1), "other": (1, 1, 1, 1)},
        (5, 6, 3),
        broadcast_history,
    ),
    "a scale that is broadcast": (
        {"scale": ()},
        (6, 3),
        lambda p, x: (lambda y, s: (s * y) * jax.nn.sigmoid(y))(
            x, jnp.broadcast_to(p["scale"], x.shape)
        ),
    ),
    "a sum of weights": (
        {"a": (3, 3, 3, 4), "w": (5, 4)},
        (8, 8, 3),
        lambda p, x: conv(x, p["a"]) * jnp.broadcast_to(p["w"].sum(0), (8, 8, 4))[None],
    ),
    "a loop": (
        STEM | {"next": (3, 3, 4, 4)},
        (12, 12, 3),
        lambda p, x: lax.scan(
            lambda y, _: (jax.nn.relu(conv(y, p["next"])), ()), stem(p, x), length=2
        )[0],
    ),
    "rematerialised": (
        STEM | {"next": (3, 3, 4, 4)},
        (12, 12, 3),
        lambda p, x: jax.checkpoint(lambda y: jax.nn.silu(conv(y, p["next"])))(stem(p, x)),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_those_of_the_whole_flow(name):
    shapes, shape, network = NETWORKS[name]
    agree(network, drawn(shapes), shape)


def paths(network, params, shape):
    """Which weights lie on a path, after some of each leaf are dropped, and how many the
    shortest path needs."""
    rng = np.random.default_rng(1)
    some = jax.tree.map(lambda w: jnp.where(rng.random(w.shape) > 0.6, w, 0), params)
    is_any = lambda name, leaf: True  # noqa: E731
    reached = on_paths(network, some, shape)
    return reached, sj.fewest_weights(network, params, shape, prunable=is_any)


def agree_on_paths(network, params, shape):
    found = []
    for once in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(interpreter, "are_worthwhile", lambda *_, once=once: once)
            # Another function for each: a program is compiled once for a function.
            found.append(paths(functools.partial(network), params, shape))
    (one, fewest), (other, same) = found
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert fewest == same


FEW = ("a chain", "strides", "U-Net, nearest", "squeeze and excitation", "positions")


@pytest.mark.parametrize(
    "name",
    [
        name if name in FEW else pytest.param(name, marks=pytest.mark.long)
        for name in NETWORKS
    ],
)
def test_paths_are_those_of_the_whole_flow(name):
    shapes, shape, network = NETWORKS[name]
    agree_on_paths(network, drawn(shapes), shape)


@pytest.mark.long
@hypothesis.given(fuzz.networks(fuzz.BLOCKS), fuzz.seeds)
@fuzz.few(40)
def test_paths_of_many_random_networks_are_those_of_the_whole_flow(case, seed):
    pairs, _ = case
    params = fuzz.initialised(pairs, False, seed)
    agree_on_paths(fuzz.network(pairs, False, 0), params, fuzz.inputs(False))


def agree_on_random(case, seed):
    pairs, _ = case
    params = fuzz.initialised(pairs, False, seed)
    agree(fuzz.network(pairs, False, 0), params, fuzz.inputs(False), 1e-4)


@hypothesis.given(fuzz.networks(fuzz.BLOCKS), fuzz.seeds)
@fuzz.few(4)
def test_scores_of_random_networks_are_those_of_the_whole_flow(case, seed):
    agree_on_random(case, seed)


@pytest.mark.long
@hypothesis.given(fuzz.networks(fuzz.BLOCKS), fuzz.seeds)
@fuzz.few(150)
def test_scores_of_many_random_networks_are_those_of_the_whole_flow(case, seed):
    agree_on_random(case, seed)


@pytest.mark.long
@pytest.mark.parametrize("name", ["conv", "resnet20", "vgg11_cifar"])
@pytest.mark.usefixtures("standard_promotion")
def test_scores_of_the_papers_networks_are_those_of_the_whole_flow(name):
    apply_fn, params, shape = models.build(name, jax.random.key(0))
    agree(apply_fn, params, shape, 2e-5)


# --- what is stored -----------------------------------------------------------------------


def largest_array(function, *args):
    """Entries of the largest array with positions and channels that a function makes. (The
    matrices of a resizing are traced, and dropped by the compiler.)"""
    traced = jax.make_jaxpr(function)(*args)
    shapes = (v.aval.shape for v in all_results(traced.jaxpr))
    return max(math.prod(shape) for shape in shapes if len(shape) > 2)


def all_results(jaxpr):
    for eqn in jaxpr.eqns:
        yield from eqn.outvars
        for inner in jaxprs_in(eqn.params):
            yield from all_results(inner)


@pytest.mark.parametrize(
    "name",
    [
        *("U-Net", "pixel shuffle", "positions that are read", "rematerialised"),
        *(f"U-Net, {up}" for up in UPS),
        "branches",
    ],
)
def test_what_is_stored_does_not_grow_with_the_image(name):
    shapes, (*_, channels), network = NETWORKS[name]
    params = jax.eval_shape(lambda: drawn(shapes))

    def score(params, x):
        return jax.grad(lambda p: total_flow(network, p, uniform(x), once=True).mantissa)(
            params
        )

    images = (jax.ShapeDtypeStruct((1, n, n, channels), jnp.float32) for n in (128, 512))
    small, large = (largest_array(score, params, image) for image in images)
    assert large == small < 60 * 60 * 10


def test_what_a_question_about_paths_stores_does_not_grow_with_the_image():
    shapes, _, network = NETWORKS["U-Net, nearest"]
    params = jax.eval_shape(lambda: drawn(shapes))

    def reached(n):
        return largest_array(lambda p: on_paths(network, p, (n, n, 2)), params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "are_worthwhile", lambda *_: True)
        assert reached(256) == 256 * 256 * 2  # the image itself


def test_places_that_the_input_gives_are_no_known_places():
    def read(p, x):
        image, places = x
        part = lax.dynamic_slice(conv(image, p), (0, places[0, 0], 0, 0), (1, 3, 8, 2))
        return part, jnp.take(conv(image, p), places[0], 1)

    kernel = jnp.ones((3, 3, 1, 2))
    inputs = (
        jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32),
        jax.ShapeDtypeStruct((1, 2), jnp.int32),
    )

    def flow(p, once):
        return scaled.log(total_flow(read, p, uniform(ones(inputs)), once=once))

    once, whole = (jax.jit(functools.partial(flow, once=k))(kernel) for k in (True, False))
    np.testing.assert_allclose(once, whole, rtol=1e-6)


def test_known_arrays_are_computed_where_nothing_is_compiled():
    def flow(p):
        network = lambda p, x: resized("bilinear")(x, p)  # noqa: E731
        return scaled.log(total_flow(network, p, uniform(ones((8, 8, 1))), once=True))

    kernel = jnp.ones((3, 3, 1, 2))
    with jax.disable_jit():
        eager = flow(kernel)
    np.testing.assert_allclose(eager, flow(kernel), rtol=1e-6)


def test_pooling_keeps_no_large_matrix_in_the_program():
    x = jnp.ones((1, 36, 36, 1))
    slides = {axis: np.arange(36)[:, None] + np.arange(-1, 2) for axis in (1, 2)}
    slides = {axis: np.where(at < 36, at, -1) for axis, at in slides.items()}
    consts = jax.make_jaxpr(lambda x: read_windows(x, slides))(x).consts
    assert max((np.size(x) for x in consts), default=0) <= 2**20


def test_small_convolutions_are_computed_at_every_position():
    """Reading classes would take longer."""

    def network(p, x):
        return conv(x, p)

    def program(size, **options):
        inputs = uniform(ones((size, size, 8)))
        score = lambda p: total_flow(network, p, inputs, **options).mantissa  # noqa: E731
        return str(jax.make_jaxpr(score)(jnp.ones((3, 3, 8, 8))))

    assert program(32) == program(32, once=False) != program(32, once=True)
    assert program(512) == program(512, once=True)


def test_a_users_rule_sees_whole_flows():
    seen = []

    def doubled(equation, flow):
        seen.append(flow.mantissa.shape)
        assert equation.out_shapes == [flow.mantissa.shape]
        return [sj.transform.Scaled(flow.mantissa, flow.exponent + 1)]

    def network(p, x):
        return lax.tan(conv(x, p))

    kernel = jnp.ones((3, 3, 1, 2))
    rules = {**sj.flow_rules, "tan": doubled}
    found = [
        scaled.log(
            total_flow(network, kernel, uniform(ones((9, 9, 1))), rules=r, once=True)
        )
        for r in (sj.flow_rules, rules)
    ]
    assert seen == [(1, 9, 9, 2)]
    np.testing.assert_allclose(found[1] - found[0], np.log(2), rtol=1e-5)


def test_a_rule_given_to_another_primitive_sees_whole_flows():
    """The rule of `rev` moves whatever the primitive moves."""

    def network(p, x):
        return lax.sort(conv(x, p), dimension=1)

    kernel, rules = jnp.ones((3, 3, 1, 2)), {**sj.flow_rules, "sort": sj.flow_rules["rev"]}
    found = [
        scaled.log(total_flow(f, kernel, uniform(ones((9, 9, 1))), rules=rules, once=True))
        for f in (network, conv_alone)
    ]
    np.testing.assert_allclose(*found, rtol=1e-6)


def conv_alone(p, x):
    return conv(x, p)

"""Every way to convolve against lax.conv: results, derivatives of both modes, choice."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import synflow_jax as sj
from synflow_jax import models
from synflow_jax.xla import convolutions as windows
from synflow_jax.xla.backends import Backend
from synflow_jax.xla.jaxprs import holds

LAYOUTS = {
    1: [("NWC", "WIO", "NWC"), ("NCW", "OIW", "WNC")],
    2: [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("HNWC", "IHWO", "CNHW")],
    3: [("NDHWC", "DHWIO", "NDHWC"), ("NCDHW", "OIDHW", "NCDHW")],
}
SHAPES = {
    "plain": {},
    "strides": dict(window_strides=(2, 1, 3)),
    "padding": dict(padding=((1, 2), (0, 1), (2, 0))),
    "cropped": dict(padding=((-1, 2), (0, -1), (0, 0))),
    "dilated kernel": dict(rhs_dilation=(2, 1, 1), padding=((1, 1),) * 3),
    "transposed": dict(lhs_dilation=(2, 3, 1), padding=((1, 1), (2, 0), (0, 0))),
    "points": dict(window=(1, 1, 1)),
    "strided points": dict(window=(1, 1, 1), window_strides=(2, 3, 1)),
    "padded points": dict(window=(1, 1, 1), padding=((1, 0),) * 3),
    "several images": dict(batch=3, window_strides=(2, 2, 1)),
}


def _few(name, ndim):
    """All of images, and some of sequences and volumes."""
    return ndim == 2 or name in ("strides", "strided points")


WAYS = {
    windows.native_conv: _few,
    windows.conv_of_patches: _few,
    windows.conv_of_points: lambda name, ndim: (
        _few(name, ndim) and name in ("points", "strided points")
    ),
    windows.conv_of_planes: lambda name, ndim: ndim == 3,
}
CASES = [
    pytest.param(way, name, layout, id=f"{way.__name__}, {name}, {' '.join(layout)}")
    for way, fits in WAYS.items()
    for name in SHAPES
    for ndim, layouts in LAYOUTS.items()
    for layout in layouts
    if fits(name, ndim)
]


def _case(name, layout):
    """An image, a kernel and the settings of a convolution, as its primitive has them."""
    case = SHAPES[name]
    ndim = len(layout[0]) - 2
    sizes = dict(zip("DHW" if ndim == 3 else "HW" if ndim == 2 else "W", (5, 6, 4)))
    windows = dict(zip(sizes, case.get("window", (3, 2, 2))))
    image = [(sizes | {"N": case.get("batch", 1), "C": 3})[c] for c in layout[0]]
    kernel = [(windows | {"I": 3, "O": 4})[c] for c in layout[1]]
    ones, nothing = (1,) * ndim, ((0, 0),) * ndim
    settings = dict(
        window_strides=case.get("window_strides", (1,) * 3)[:ndim],
        padding=case.get("padding", nothing)[:ndim],
        lhs_dilation=case.get("lhs_dilation", (1,) * 3)[:ndim] or ones,
        rhs_dilation=case.get("rhs_dilation", (1,) * 3)[:ndim],
        dimension_numbers=lax.conv_dimension_numbers(image, kernel, layout),
        feature_group_count=1,
        batch_group_count=1,
    )
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random(image), jnp.float32)
    w = jnp.asarray(rng.standard_normal(kernel), jnp.float32)
    return x, w, settings


def _xla(image, kernel, settings):
    return lax.conv_general_dilated(image, kernel, **settings)


@pytest.mark.parametrize(("way", "name", "layout"), CASES)
def test_every_way_is_the_convolution_and_has_its_derivatives(way, name, layout):
    x, w, settings = _case(name, layout)
    rng = np.random.default_rng(1)
    dx, dw = (jnp.asarray(rng.random(a.shape), a.dtype) for a in (x, w))

    @functools.partial(jax.jit, static_argnums=0)
    def everything(conv, x, w):
        run = functools.partial(conv, settings=settings)
        y, change = jax.jvp(run, (x, w), (dx, dw))
        total = lambda x, w: jnp.sum(jnp.sin(run(x, w)))  # noqa: E731
        gradients = jax.grad(total, (0, 1))
        curved = jax.jvp(gradients, (x, w), (dx, dw))[1]
        return y, change, gradients(x, w), curved

    got, want = everything(way, x, w), everything(_xla, x, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-4), got, want)


def _chosen(image, kernel, **settings):
    numbers = lax.conv_dimension_numbers(image, kernel, ("NHWC", "HWIO", "NHWC"))
    plain = dict(lhs_dilation=(1, 1), padding=((1, 1), (1, 1)), dimension_numbers=numbers)
    plain |= dict(feature_group_count=1, batch_group_count=1)
    return windows._way(image, kernel, plain | settings)


def test_the_way_goes_by_the_shape():
    small, large = (1, 4, 4, 64), (1, 32, 32, 64)
    wide = (3, 3, 64, 64)
    assert _chosen(small, wide) is windows.conv_of_patches
    assert _chosen((9, 4, 4, 64), wide) is windows.native_conv
    assert _chosen(large, wide) is windows.native_conv
    assert _chosen(large, wide, lhs_dilation=(2, 2)) is windows.native_conv
    assert _chosen(small, wide, lhs_dilation=(2, 2)) is windows.conv_of_patches
    assert _chosen(large, (1, 1, 64, 16), padding=((0, 0),) * 2) is windows.conv_of_points
    assert _chosen(large, (1, 1, 64, 64)) is windows.native_conv
    assert _chosen(small, wide, feature_group_count=2) is windows.native_conv
    assert _chosen(small, wide, batch_group_count=2) is windows.native_conv


def test_volumes_are_convolved_plane_by_plane():
    image, kernel, settings = _case("plain", LAYOUTS[3][0])
    assert windows._way((1, 9, 9, 9, 3), kernel.shape, settings) is windows.conv_of_planes
    grouped = settings | {"feature_group_count": 3}
    assert windows._way((1, 9, 9, 9, 3), kernel.shape, grouped) is windows.native_conv
    run = functools.partial(windows.conv_of_planes, settings=settings)
    too_large = jnp.ones((9, *kernel.shape[1:]))  # for an axis of five
    assert run(image, too_large).shape == _xla(image, too_large, settings).shape


def test_other_devices_convolve_natively():
    image, kernel, settings = _case("points", LAYOUTS[2][0])
    for cpu, primitive in ((True, "dot_general"), (False, "conv_general_dilated")):
        run = functools.partial(windows.conv, Backend(cpu, True), settings=settings)
        assert holds(jax.make_jaxpr(run)(image, kernel), primitive)


NETWORKS = {
    "small": (models.CifarResNet(8, 10), (16, 16, 3)),
    "resnet20": (models.CifarResNet(20, 10), (32, 32, 3)),
    "vgg11": (models.VGG(11, 10), (32, 32, 3)),
}


@pytest.mark.parametrize(
    "name", ["small", *(pytest.param(n, marks=pytest.mark.long) for n in [*NETWORKS][1:])]
)
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the choice on a CPU")
@pytest.mark.usefixtures("standard_promotion")
def test_the_scores_of_a_network_do_not_depend_on_the_way(name, monkeypatch):
    module, shape = NETWORKS[name]
    apply_fn, params = sj.from_linen(module, models.init(module, jax.random.key(0), shape))
    masks = sj.all_kept(params)
    fast = jax.jit(sj.synflow(apply_fn, shape))(params, masks)
    monkeypatch.setattr(windows, "_way", lambda *shapes: windows.native_conv)
    native = jax.jit(sj.synflow(apply_fn, shape))(params, masks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4), fast, native)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the layout of a CPU")
def test_in_a_loop_every_convolution_has_the_layout_that_xla_does_well():
    """Elsewhere XLA brings convolutions to it by itself; in loops they stay so."""
    settings = dict(window_strides=(1, 1), padding=((1, 1), (1, 1)))
    settings |= dict(lhs_dilation=(1, 1), rhs_dilation=(1, 1))
    settings |= dict(feature_group_count=1, batch_group_count=1)

    def convolutions(conv, layout):
        image = (1, 32, 32, 8) if layout[0] == "NHWC" else (1, 8, 32, 32)
        kernel = (3, 3, 8, 8) if layout[1] == "HWIO" else (8, 8, 3, 3)
        numbers = lax.conv_dimension_numbers(image, kernel, layout)
        full = settings | {"dimension_numbers": numbers}

        def step(arrays, _):
            total = lambda x, w: jnp.sum(jnp.sin(conv(x, w, full)))  # noqa: E731
            return jax.grad(total, (0, 1))(*arrays), None

        run = jax.jit(lambda *arrays: lax.scan(step, arrays, length=3)[0])
        text = run.lower(jnp.ones(image), jnp.ones(kernel)).compile().as_text()
        return re.findall(r" convolution\(.*dim_labels=([^,]*)", text)

    for layout in LAYOUTS[2][:2]:
        ours = convolutions(windows.native_conv, layout)
        assert len(ours) == 3 and set(ours) == {"b01f_01io->b01f"}
    assert set(convolutions(_xla, LAYOUTS[2][0])) != set(ours)  # or this test is idle

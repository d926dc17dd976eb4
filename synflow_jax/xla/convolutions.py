"""Convolutions: four implementations, and the choice of the fastest."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from synflow_jax.xla.backends import Backend
from synflow_jax.xla.placement import is_divided
from synflow_jax.xla.row_products import matrix_product


def conv(backend: Backend, image: Array, kernel: Array, settings: dict[str, Any]) -> Array:
    """Convolves with the fastest implementation.

    On a CPU the shapes decide; elsewhere it is XLA's own.

    Args:
      backend: where it runs.
      image, kernel: in the layout that ``settings["dimension_numbers"]`` describes.
      settings: keyword arguments of `lax.conv_general_dilated`.
    """
    if "out_sharding" in settings or is_divided(image) or is_divided(kernel):
        # Of arrays over Explicit axes only XLA's own gradients are divided as they are.
        return lax.conv_general_dilated(image, kernel, **settings)
    way = _way(image.shape, kernel.shape, settings) if backend.cpu else native_conv
    return way(image, kernel, settings)


def _way(image: tuple[int, ...], kernel: tuple[int, ...], settings: dict[str, Any]):
    numbers = settings["dimension_numbers"]
    grouped = settings["feature_group_count"] * settings["batch_group_count"] > 1
    if grouped:
        return native_conv
    batch, _, *space = (image[i] for i in numbers.lhs_spec)
    channels, _, *window = (kernel[i] for i in numbers.rhs_spec)
    dilated = set(settings["lhs_dilation"]) != {1}
    padded = any(low or high for low, high in settings["padding"])
    if set(window) == {1} and not dilated and not padded:
        return conv_of_points
    # XLA rearranges the kernel before each convolution and before those of its gradients.
    # If the kernel is large and the image small, that takes up to ten times longer than
    # the matrix product.
    if 2 * batch * math.prod(space) <= channels:
        return conv_of_patches
    return conv_of_planes if len(space) == 3 else native_conv


def native_conv(image: Array, kernel: Array, settings: dict[str, Any]) -> Array:
    """XLA's convolution, with derivatives that XLA computes fast in the body of a loop.

    On a CPU, XLA's convolutions are fast for one layout of images and kernels only:
    [batch, *space, channels] and [*window, in, out]. It converts other layouts to this one,
    but not in the body of a loop, where they run ten times slower. So the convolution uses
    this layout, and its tangents are written such that their transposes, the gradients, use
    it too.
    """
    numbers = settings["dimension_numbers"]
    image, kernel = _channels_last(image, kernel, numbers)
    settings = settings | {"dimension_numbers": _channels_last_numbers(image.ndim)}

    @jax.custom_jvp
    def conv(image, kernel):
        return lax.conv_general_dilated(image, kernel, **settings)

    @functools.partial(conv.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        changes = [
            tangent_conv(*operands, settings)
            for tangent_conv, operands, tangent in (
                (_conv_to_transpose_in_image, (tangents[0], primals[1]), tangents[0]),
                (_conv_to_transpose_in_kernel, (primals[0], tangents[1]), tangents[1]),
            )
            if not isinstance(tangent, SymbolicZero)
        ]
        return conv(*primals), functools.reduce(lax.add, changes)

    return _from_channels_last(conv(image, kernel), numbers)


def _channels_last_numbers(ndim: int) -> lax.ConvDimensionNumbers:
    """The dimension numbers of [batch, *space, channels] and [*window, in, out]."""
    space = range(1, ndim - 1)
    image = (0, ndim - 1, *space)
    return lax.ConvDimensionNumbers(image, (ndim - 1, ndim - 2, *range(ndim - 2)), image)


def _conv_to_transpose_in_image(
    image: Array, kernel: Array, settings: dict[str, Any]
) -> Array:
    """A convolution whose transpose with respect to the image has the fast layout."""
    axes = range(kernel.ndim - 2)
    kernel = lax.transpose(kernel, (*axes, kernel.ndim - 1, kernel.ndim - 2))
    numbers = settings["dimension_numbers"]
    numbers = numbers._replace(rhs_spec=(kernel.ndim - 2, kernel.ndim - 1, *axes))
    settings = {**settings, "dimension_numbers": numbers}
    return lax.conv_general_dilated(image, kernel, **settings)


def _conv_to_transpose_in_kernel(
    image: Array, kernel: Array, settings: dict[str, Any]
) -> Array:
    """A convolution whose transpose with respect to the kernel has the fast layout."""
    last, space = image.ndim - 1, range(1, image.ndim - 1)
    image = lax.transpose(image, (last, *space, 0))
    kernel = lax.transpose(kernel, (last - 1, *range(last - 1), last))
    numbers = lax.ConvDimensionNumbers(
        lhs_spec=(last, 0, *space),
        rhs_spec=(last, 0, *space),
        out_spec=(last - 1, last, *range(last - 1)),
    )
    settings = {**settings, "dimension_numbers": numbers}
    out = lax.conv_general_dilated(image, kernel, **settings)
    return lax.transpose(out, (last - 1, *range(last - 1), last))


def conv_of_planes(image: Array, kernel: Array, settings: dict[str, Any]) -> Array:
    """A convolution of volumes as a sum of convolutions of their planes. Allows no groups.

    XLA has no fast convolution of three axes on a CPU. Each entry of the window along the
    first axis is a convolution along the other two, of the planes that it reads, as images
    of one batch: five to fifteen times faster.
    """
    numbers = settings["dimension_numbers"]
    volume, kernels = _channels_last(image, kernel, numbers)
    along = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    stride, (low, high), holes, dilation = (settings[name][0] for name in along)
    flat = {name: settings[name][1:] for name in along}
    flat["dimension_numbers"] = _channels_last_numbers(volume.ndim - 1)
    spread = [(0, 0, 0), (low, high, holes - 1), *[(0, 0, 0)] * (volume.ndim - 2)]
    volume = lax.pad(volume, jnp.zeros((), volume.dtype), spread)
    positions = _positions(volume.shape[1], kernels.shape[0], stride, dilation)
    if not positions:
        return native_conv(image, kernel, settings)
    parts = []
    for place, planar in enumerate(kernels):
        start = place * dilation
        end = start + (positions - 1) * stride + 1
        planes = lax.slice_in_dim(volume, start, end, stride, axis=1)
        planes = planes.reshape(-1, *planes.shape[2:])
        parts.append(native_conv(planes, planar, settings | flat))
    out = functools.reduce(lax.add, parts)
    return _from_channels_last(out.reshape(-1, positions, *out.shape[1:]), numbers)


def conv_of_points(image: Array, kernel: Array, settings: dict[str, Any]) -> Array:
    """A 1x1 convolution as one matrix product. Allows neither groups nor padding."""
    numbers = settings["dimension_numbers"]
    image, kernel = _channels_last(image, kernel, numbers)
    steps = (1, *settings["window_strides"], 1)
    if set(steps) != {1}:
        image = lax.slice(image, [0] * image.ndim, image.shape, steps)
    out = matrix_product(image, kernel.reshape(-1, kernel.shape[-1]))
    return _from_channels_last(out, numbers)


def conv_of_patches(image: Array, kernel: Array, settings: dict[str, Any]) -> Array:
    """A convolution as the matrix product of image patches and kernel. Allows no groups.

    The patches are extracted by another matrix product, of a matrix of zeros and ones with
    the image. For small images this runs as fast as concatenating slices, and it compiles
    several times faster, as its derivatives are matrix products too.
    """
    numbers = settings["dimension_numbers"]
    image, kernel = _channels_last(image, kernel, numbers)
    batch, *space, channels = image.shape
    axes = [
        _entries_read(*axis)
        for axis in zip(
            space,
            kernel.shape,
            settings["window_strides"],
            [tuple(map(int, around)) for around in settings["padding"]],
            settings["lhs_dilation"],
            settings["rhs_dilation"],
        )
    ]
    # For all axes together: [positions of the window, entries of the window, pixels].
    reads = np.ones((1, 1, 1), bool)
    for axis in axes:
        reads = np.einsum("pwe,qvf->pqwvef", reads, axis)
        reads = reads.reshape([a * b for a, b in zip(reads.shape[::2], reads.shape[1::2])])
    patches = lax.dot_general(
        jnp.asarray(reads.reshape(-1, reads.shape[-1]), image.dtype),
        image.reshape(batch, -1, channels),
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
    )
    patches = _transposed(patches, (1, 0, 2))
    patches = patches.reshape(batch, *(len(axis) for axis in axes), -1)
    out = matrix_product(patches, kernel.reshape(-1, kernel.shape[-1]))
    return _from_channels_last(out, numbers)


def _entries_read(
    pixels: int,
    window: int,
    stride: int,
    padding: Sequence[int],
    image_dilation: int,
    kernel_dilation: int,
) -> np.ndarray:
    """Which pixels a sliding window reads along one axis.

    Returns:
      Booleans [positions, window, pixels]: True where, in this position, this entry of the
      window lies on this pixel.
    """
    length = (pixels - 1) * image_dilation + 1 + sum(padding)
    positions = _positions(length, window, stride, kernel_dilation)
    reads = np.arange(positions)[:, None] * stride + np.arange(window) * kernel_dilation
    return (reads - padding[0])[..., None] == np.arange(pixels) * image_dilation


def _positions(length: int, window: int, stride: int, dilation: int) -> int:
    """The number of positions of a sliding window along an axis, padding included."""
    reach = (window - 1) * dilation + 1
    return max(0, (length - reach) // stride + 1)


def _channels_last(image: Array, kernel: Array, numbers: Any) -> tuple[Array, Array]:
    """Transposes to [batch, *space, channels] and [*window, in, out]."""
    batch, channels, *space = numbers.lhs_spec
    out, into, *window = numbers.rhs_spec
    image = _transposed(image, (batch, *space, channels))
    return image, _transposed(kernel, (*window, into, out))


def _from_channels_last(out: Array, numbers: Any) -> Array:
    """Transposes from [batch, *space, channels] to the layout of the output."""
    order = (0, out.ndim - 1, *range(1, out.ndim - 1))
    axes = [order[numbers.out_spec.index(axis)] for axis in range(out.ndim)]
    return _transposed(out, axes)


def _transposed(x: Array, axes: Sequence[int]) -> Array:
    return x if list(axes) == list(range(x.ndim)) else lax.transpose(x, axes)

"""Sliding windows over an array: convolutions, also as matrix products, and pooling."""

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


def conv(image: Array, kernel: Array, settings: dict[str, Any]) -> Array:
    """A convolution in the fastest way: on a CPU by its shape, elsewhere XLA's own.

    Args:
      image, kernel: laid out as ``settings["dimension_numbers"]`` says.
      settings: of `lax.conv_general_dilated`.
    """
    return _way(image.shape, kernel.shape, settings)(image, kernel, settings)


def _way(image: tuple[int, ...], kernel: tuple[int, ...], settings: dict[str, Any]):
    numbers = settings["dimension_numbers"]
    grouped = settings["feature_group_count"] * settings["batch_group_count"] > 1
    if jax.default_backend() != "cpu" or grouped:
        return native_conv
    batch, _, *space = (image[i] for i in numbers.lhs_spec)
    channels, _, *window = (kernel[i] for i in numbers.rhs_spec)
    dilated = set(settings["lhs_dilation"]) != {1}
    padded = any(low or high for low, high in settings["padding"])
    if set(window) == {1} and not dilated and not padded:
        return conv_of_points
    # XLA rearranges the kernel first, in each direction. Where it is large and the image
    # small that takes longer than the product, up to ten times.
    small = 2 * batch * math.prod(space) <= channels
    return conv_of_patches if small else native_conv


def native_conv(image: Array, kernel: Array, settings: dict[str, Any]) -> Array:
    """A convolution as XLA does it, and its derivatives so that XLA does them well.

    XLA's CPU compiler has one layout of images and kernels for which convolutions are fast:
    [batch, *space, channels] and [*window, in, out]. It brings others to that layout, but
    not in the body of a loop, where they run ten times slower. So the results, and also the
    tangents, once they are transposed to gradients, are written in it.
    """
    numbers = settings["dimension_numbers"]
    image, kernel = _channels_last(image, kernel, numbers)
    settings = settings | {"dimension_numbers": _standard(image.ndim)}

    @jax.custom_jvp
    def conv(image, kernel):
        return lax.conv_general_dilated(image, kernel, **settings)

    @functools.partial(conv.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        changes = [
            along(*operands, settings)
            for along, operands, tangent in (
                (_in_image, (tangents[0], primals[1]), tangents[0]),
                (_in_kernel, (primals[0], tangents[1]), tangents[1]),
            )
            if not isinstance(tangent, SymbolicZero)
        ]
        return conv(*primals), functools.reduce(lax.add, changes)

    return _laid_out(conv(image, kernel), numbers)


def _standard(ndim: int) -> lax.ConvDimensionNumbers:
    """[batch, *space, channels] and [*window, in, out]."""
    space = range(1, ndim - 1)
    image = (0, ndim - 1, *space)
    return lax.ConvDimensionNumbers(image, (ndim - 1, ndim - 2, *range(ndim - 2)), image)


def _in_image(image: Array, kernel: Array, settings: dict[str, Any]) -> Array:
    """A convolution whose transpose in the image has XLA's layout."""
    axes = range(kernel.ndim - 2)
    kernel = lax.transpose(kernel, (*axes, kernel.ndim - 1, kernel.ndim - 2))
    standard = settings["dimension_numbers"]
    numbers = standard._replace(rhs_spec=(kernel.ndim - 2, kernel.ndim - 1, *axes))
    return lax.conv_general_dilated(
        image, kernel, **settings | {"dimension_numbers": numbers}
    )


def _in_kernel(image: Array, kernel: Array, settings: dict[str, Any]) -> Array:
    """A convolution whose transpose in the kernel has XLA's layout."""
    last, space = image.ndim - 1, range(1, image.ndim - 1)
    image = lax.transpose(image, (last, *space, 0))
    kernel = lax.transpose(kernel, (last - 1, *range(last - 1), last))
    numbers = lax.ConvDimensionNumbers(
        lhs_spec=(last, 0, *space),
        rhs_spec=(last, 0, *space),
        out_spec=(last - 1, last, *range(last - 1)),
    )
    out = lax.conv_general_dilated(
        image, kernel, **settings | {"dimension_numbers": numbers}
    )
    return lax.transpose(out, (last - 1, *range(last - 1), last))


def conv_of_points(image: Array, kernel: Array, settings: dict[str, Any]) -> Array:
    """A convolution with a kernel of 1x1: one product. No groups, no padding."""
    numbers = settings["dimension_numbers"]
    image, kernel = _channels_last(image, kernel, numbers)
    steps = (1, *settings["window_strides"], 1)
    if set(steps) != {1}:
        image = lax.slice(image, [0] * image.ndim, image.shape, steps)
    return _laid_out(_product(image, kernel), numbers)


def conv_of_patches(image: Array, kernel: Array, settings: dict[str, Any]) -> Array:
    """A convolution as the product of the image's patches with the kernel. No groups.

    The patches are themselves a product, of the image with a matrix of zeros and ones. For
    the small images that this is meant for it runs as fast as slices put side by side, and
    compiles several times faster: its derivatives are products too.
    """
    numbers = settings["dimension_numbers"]
    image, kernel = _channels_last(image, kernel, numbers)
    batch, *extent, channels = image.shape
    places = [
        _places(*axis)
        for axis in zip(
            extent,
            kernel.shape,
            settings["window_strides"],
            settings["padding"],
            settings["lhs_dilation"],
            settings["rhs_dilation"],
        )
    ]
    # All axes at once: [positions, entries of the window, entries of the image].
    chosen = np.ones((1, 1, 1), bool)
    for axis in places:
        chosen = np.einsum("pwe,qvf->pqwvef", chosen, axis)
        chosen = chosen.reshape(
            [a * b for a, b in zip(chosen.shape[::2], chosen.shape[1::2])]
        )
    patches = lax.dot_general(
        jnp.asarray(chosen.reshape(-1, chosen.shape[-1]), image.dtype),
        image.reshape(batch, -1, channels),
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
    )
    patches = _transposed(patches, (1, 0, 2))
    patches = patches.reshape(batch, *(len(axis) for axis in places), -1)
    return _laid_out(_product(patches, kernel), numbers)


def _places(extent, window, stride, padding, image_dilation, kernel_dilation) -> np.ndarray:
    """Along one axis, which entry of the image each position of the window reads where.

    Returns:
      Booleans [positions, window, extent].
    """
    length = (extent - 1) * image_dilation + 1 + sum(padding)
    reach = (window - 1) * kernel_dilation + 1
    positions = max(0, (length - reach) // stride + 1)
    reads = np.arange(positions)[:, None] * stride + np.arange(window) * kernel_dilation
    return (reads - padding[0])[..., None] == np.arange(extent) * image_dilation


def _channels_last(image: Array, kernel: Array, numbers: Any) -> tuple[Array, Array]:
    """The image as [batch, *space, channels], the kernel as [*window, in, out]."""
    batch, channels, *space = numbers.lhs_spec
    out, into, *window = numbers.rhs_spec
    image = _transposed(image, (batch, *space, channels))
    return image, _transposed(kernel, (*window, into, out))


def _product(patches: Array, kernel: Array) -> Array:
    """Patches [batch, *space, window and channels] times kernel."""
    return lax.dot_general(
        patches,
        kernel.reshape(-1, kernel.shape[-1]),
        (((patches.ndim - 1,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,
    )


def _laid_out(out: Array, numbers: Any) -> Array:
    """What is [batch, *space, channels], as wanted."""
    order = (0, out.ndim - 1, *range(1, out.ndim - 1))
    axes = [order[numbers.out_spec.index(axis)] for axis in range(out.ndim)]
    return _transposed(out, axes)


def _transposed(x: Array, axes: Sequence[int]) -> Array:
    return x if list(axes) == list(range(x.ndim)) else lax.transpose(x, axes)

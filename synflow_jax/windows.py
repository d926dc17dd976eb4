"""Sliding windows over an array, by slices of it: patches and pooling."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array


def conv_of_patches(image: Array, kernel: Array, params: dict[str, Any]) -> Array:
    """A convolution as one product of the image's patches with the kernel's matrix.

    For one image of few positions XLA's CPU convolution takes up to ten times as long.

    Args:
      image, kernel: laid out as ``params["dimension_numbers"]`` says.
      params: those of the primitive ``conv_general_dilated``; no groups, no dilated image.
    """
    numbers = params["dimension_numbers"]
    image = image.transpose(numbers.lhs_spec)  # batch, channels, space
    image = jnp.moveaxis(image, 1, -1)
    kernel = kernel.transpose(*numbers.rhs_spec[2:], *numbers.rhs_spec[1::-1])
    window = kernel.shape[:-2]
    patches = jnp.concatenate(
        window_slices(
            image,
            (1, *window, 1),
            (1, *params["window_strides"], 1),
            ((0, 0), *params["padding"], (0, 0)),
            (1, *params["rhs_dilation"], 1),
        ),
        axis=-1,
    )
    matrix = kernel.reshape(-1, kernel.shape[-1])
    product = jnp.matmul(patches, matrix, precision=lax.Precision.HIGHEST)
    product = jnp.moveaxis(product, -1, 1)
    return product.transpose(tuple(map(numbers.out_spec.index, range(product.ndim))))


def window_slices(x: Array, window, strides, padding, dilation, fill=0.0) -> list[Array]:
    """For each place in the window, the entries that stand there, over all windows."""
    x = lax.pad(x, jnp.asarray(fill, x.dtype), [(low, high, 0) for low, high in padding])
    reach = [(w - 1) * d for w, d in zip(window, dilation)]
    slices = []
    for place in np.ndindex(*window):
        start = [p * d for p, d in zip(place, dilation)]
        stop = [s + n - r for s, n, r in zip(start, x.shape, reach)]
        slices.append(lax.slice(x, start, stop, strides))
    return slices

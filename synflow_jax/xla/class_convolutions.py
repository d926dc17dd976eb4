"""Convolutions of images whose equal positions are stored once.

A convolution along several axes reads the image along each axis by itself, so that what a
window reads is given axis by axis (`Line`), in positions of the stored image.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import lax
from jaxtyping import Array

from synflow_jax.xla.backends import Backend
from synflow_jax.xla.convolutions import conv
from synflow_jax.xla.reading import read_axes
from synflow_jax.xla.row_products import matrix_product, times


class Line(NamedTuple):
    """What a window reads along one axis of the stored image; -1 is nothing.

    Attributes:
      reads: [results, window] for each result what the entries of the window read.
      entries: a longer axis, on which the window can slide, and ...
      at: ... the positions [results] of the window on it, without padding, that read the
        same as ``reads``.
    """

    reads: np.ndarray
    entries: np.ndarray
    at: np.ndarray


# The product of patches and kernel is taken up to this number of results for a channel.
# Beyond, XLA's convolution is faster than the patches are made.
_PATCHES = 2.0


def conv_of_lines(
    backend: Backend,
    image: Array,
    kernel: Array,
    settings: dict[str, Any],
    lines: Sequence[Line],
) -> tuple[Array, list[np.ndarray]]:
    """Convolves the stored image at the results of each axis.

    Args:
      backend: where it runs.
      image, kernel: in the layout that ``settings["dimension_numbers"]`` describes.
      settings: parameters of `lax.conv_general_dilated`, of which strides, padding and
        dilations are those that ``lines`` were made with.
      lines: for each spatial axis.

    Returns:
      The results, in the layout of the output, perhaps among others; and for each axis
      where they lie.
    """
    numbers = settings["dimension_numbers"]
    batch, channels = (image.shape[k] for k in numbers.lhs_spec[:2])
    results = batch * math.prod(len(line.reads) for line in lines)
    single = settings["feature_group_count"] == 1
    if single and results <= _PATCHES * channels:
        exact = [np.arange(len(line.at)) for line in lines]
        return _conv_of_patches(backend, image, kernel, numbers, lines), exact
    space = numbers.lhs_spec[2:]
    image = read_axes(image, {k: line.entries for k, line in zip(space, lines)})
    ones = (1,) * len(lines)
    settings = {
        **settings,
        "padding": ((0, 0),) * len(lines),
        "lhs_dilation": ones,
        "precision": lax.Precision.HIGHEST,
        "preferred_element_type": None,
    }
    settings.pop("out_sharding", None)
    return conv(backend, image, kernel, settings), [line.at for line in lines]


def _conv_of_patches(
    backend: Backend, image: Array, kernel: Array, numbers: Any, lines: Sequence[Line]
) -> Array:
    """One matrix product of what the windows read and the kernel."""
    image = lax.transpose(
        image, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])
    )
    kernel = lax.transpose(kernel, (*numbers.rhs_spec[2:], *numbers.rhs_spec[1::-1]))
    patches, space = image, len(lines)
    moves = [line.reads.reshape(-1) for line in lines]
    patches = read_axes(patches, dict(enumerate(moves, 1)))
    # From [batch, result * window, ..., channels] to [batch, results, windows * channels].
    shape = [n for line in lines for n in line.reads.shape]
    patches = patches.reshape(image.shape[0], *shape, image.shape[-1])
    order = [0, *range(1, 2 * space, 2), *range(2, 2 * space + 1, 2), 2 * space + 1]
    patches = lax.transpose(patches, order)
    results = shape[::2]
    patches = patches.reshape(image.shape[0], *results, -1)
    multiply = matrix_product if backend.cpu else times
    out = multiply(patches, kernel.reshape(-1, kernel.shape[-1]))
    order = (0, space + 1, *range(1, space + 1))
    axes = [order[numbers.out_spec.index(axis)] for axis in range(out.ndim)]
    return lax.transpose(out, axes)

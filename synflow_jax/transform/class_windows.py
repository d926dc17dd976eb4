"""Convolutions and pooling of flows of which equal positions are stored once.

A class of positions of the result is what its window reads, class by class: two positions
whose windows read the same classes, in the same order, are the same function of the
weights. The functions are called as those of `transform.class_rules`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from synflow_jax.transform.classes import (
    NOTHING,
    Classes,
    Window,
    every_position,
    read_by,
    segments,
    useful,
    window,
)
from synflow_jax.transform.contractions import factors
from synflow_jax.transform.refinement import Refinement, classed
from synflow_jax.transform.scaled import normalised
from synflow_jax.transform.structural import first_largest
from synflow_jax.transform.values import (
    Classed,
    Equation,
    Value,
    carries_flow,
    plain_or_flow,
)
from synflow_jax.xla.class_convolutions import Line, conv_of_lines
from synflow_jax.xla.jaxprs import jaxprs_in, typed
from synflow_jax.xla.reading import combined_axes, read_axes, read_windows

# Multiply-adds of a convolution, on average over those of a network, from which equal
# positions are computed once: in a hundred scores they save what they cost to compile.
# VGG-16 has 10.8 million at 32 pixels, ResNet-18 9.9, ResNet-50 7.5, at 224 pixels 23.6.
LEAST = 10**7

# A convolution of the same shapes as one before is not compiled where all positions are
# computed. At classes it is, since blocks add classes at the edges: it counts as so many.
_REPEATED = 5

# A convolution that has to be computed at more than this share of the positions is computed
# at all of them.
_MOST = 0.5


def conv_general_dilated(
    refinement: Refinement,
    apply: Callable,
    equation: Equation,
    image: Value,
    kernel: Value,
):
    """Convolves at one position of each class."""
    params = equation.params
    if equation.name != "conv_general_dilated" or params["batch_group_count"] > 1:
        return NotImplemented
    if carries_flow(kernel) or not isinstance(image, Classed):
        return NotImplemented
    numbers = params["dimension_numbers"]
    (_, channels, *space), (_, _, *spots) = numbers.lhs_spec, numbers.rhs_spec
    windows = [
        window(np.shape(kernel)[spot], *each)
        for spot, *each in zip(
            spots,
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
        )
    ]
    lines, along = [], []
    for axis, slides in zip(space, windows):
        classes = image.maps[axis] or every_position(image.shape[axis])
        found, reads = read_by(classes, slides)
        line = Line(reads, *segments(classes, slides, found))
        along.append(found)
        lines.append(line if slides.is_trivial else _rounded(line, slides, found))
    points = all(each.is_trivial for each in windows)
    computed = math.prod(found.number for found in along)
    if not points and computed > _MOST * math.prod(found.size for found in along):
        return NotImplemented
    image = refinement.expanded(image, [channels])
    if not isinstance(image, Classed):
        return NotImplemented
    mantissa, weights, exponent = factors(equation, image.value, kernel)
    out, ats = conv_of_lines(equation.backend, mantissa, weights, params, lines)
    (shape,) = equation.out_shapes
    batch, _, *places = numbers.out_spec
    maps: list[Classes | None] = [None] * len(shape)
    maps[batch] = image.maps[numbers.lhs_spec[0]]
    taken_out = {}
    for place, found, at in zip(places, along, ats):
        number = out.shape[place]
        if number >= min(found.size, _LONG * found.number + _STEP):
            taken_out[place] = at
        elif number > found.number:
            found = Classes.stored(at[found.of], number)
        maps[place] = useful(found)
    out = read_axes(out, taken_out)
    return [classed(normalised(out, exponent), shape, tuple(maps))]


# The results of a convolution lie between others that belong to no position, where its
# window is half in one part of the image and half in another. They stay there, so that
# nothing has to be read, unless the axis is about so many times as long.
_LONG = 1.5

# Results along an axis are made a multiple of so many, so that equal blocks of a network,
# each of which adds classes at the edges, are mostly of equal shapes and compiled once.
_STEP = 4


def _rounded(line: Line, slides: Window, found: Classes) -> Line:
    """More results than classes: the last of them once more."""
    number = _multiple(found.number)
    if found.number == found.size or number > _MOST * found.size:
        return line
    reads = _lengthened(line.reads, number)
    positions = _multiple((len(line.entries) - slides.reach) // slides.stride + 1)
    length = (positions - 1) * slides.stride + slides.reach
    return Line(reads, _lengthened(line.entries, length), line.at)


def _multiple(number: int) -> int:
    return -(-number // _STEP) * _STEP


def _lengthened(rows: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([rows, rows[-1:].repeat(max(0, length - len(rows)), 0)])


def are_worthwhile(jaxpr: core.Jaxpr, least: int) -> bool:
    """Whether the convolutions of a network are large enough for classes: at least as many
    multiply-adds on average, one that occurred before counting as `_REPEATED`."""
    found = [*_convolutions(jaxpr)]
    work = sum(multiply_adds for _, multiply_adds in found)
    different = len({shapes for shapes, _ in found})
    count = different + _REPEATED * (len(found) - different)
    return bool(found) and work >= least * count


def _convolutions(jaxpr: core.Jaxpr) -> Iterator[tuple[tuple, int]]:
    """The shapes and the multiply-adds of each convolution, also of those inside of
    calls."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            shapes = tuple(typed(v).shape for v in (*eqn.invars, *eqn.outvars))
            _, kernel, out = shapes
            outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            yield shapes, math.prod(out) * (math.prod(kernel) // max(1, outputs))
        for inner in jaxprs_in(eqn.params):
            yield from _convolutions(inner)


# --- pooling ------------------------------------------------------------------------------


def _windows(equation: Equation) -> list[Window]:
    """The window along each axis of a pooling."""
    params = equation.params
    return [
        window(*each)
        for each in zip(
            params["window_dimensions"],
            params["window_strides"],
            params["padding"],
            params["base_dilation"],
            params["window_dilation"],
        )
    ]


def _found(flow: Classed, windows: Sequence[Window]) -> list[tuple[Classes, np.ndarray]]:
    return [
        read_by(m or every_position(n), each)
        for m, n, each in zip(flow.maps, flow.shape, windows)
    ]


def largest(refinement: Refinement, apply: Callable, equation: Equation, flow: Classed):
    """Max pooling: of what the window of each class reads, the first of the largest."""
    if equation.name not in ("reduce_window_max", "reduce_window_min"):
        return NotImplemented
    windows = _windows(equation)
    if any(each.base_dilation > 1 for each in windows):
        return NotImplemented
    found = _found(flow, windows)
    mantissa, exponent = plain_or_flow(flow.value)
    slides = {k: reads for k, (_, reads) in enumerate(found) if not windows[k].is_trivial}
    nowhere = _nowhere(slides, mantissa.ndim)
    entries = [
        jnp.where(jnp.asarray(at), -jnp.inf, x) if at.any() else x
        for x, at in zip(read_windows(mantissa, slides), nowhere, strict=True)
    ]
    (shape,) = equation.out_shapes
    out = normalised(first_largest(entries), exponent)
    return [classed(out, shape, tuple(useful(m) for m, _ in found))]


def _nowhere(slides: Mapping[int, np.ndarray], ndim: int) -> Iterator[np.ndarray]:
    """For each entry of the window, in raster order, the classes at which it reads
    nothing."""
    axes = sorted(slides)
    others = [axis for axis in range(ndim) if axis not in slides]
    for columns in itertools.product(*(slides[axis].T for axis in axes)):
        at = np.zeros((), bool)
        for column in columns:
            at = np.logical_or.outer(at, column == NOTHING)
        yield np.expand_dims(at, others)


def summing(refinement: Refinement, apply: Callable, equation: Equation, flow: Classed):
    """Average pooling: each class counts as often as the window reads it."""
    if equation.name != "reduce_window_sum":
        return NotImplemented
    windows = _windows(equation)
    found = _found(flow, windows)
    mantissa, exponent = plain_or_flow(flow.value)
    products = {}
    for axis, (slides, (_, reads)) in enumerate(zip(windows, found)):
        if slides.is_trivial:
            continue
        counts = (reads[..., None] == np.arange(mantissa.shape[axis])).sum(1)
        if counts.size <= _DENSE:
            products[axis] = counts
        else:
            mantissa = functools.reduce(jnp.add, read_windows(mantissa, {axis: reads}))
    mantissa = combined_axes(mantissa, products)
    (shape,) = equation.out_shapes
    out = normalised(mantissa, exponent)
    return [classed(out, shape, tuple(useful(m) for m, _ in found))]


# Entries of a matrix up to which a sum over windows is a product with it.
_DENSE = 2**12

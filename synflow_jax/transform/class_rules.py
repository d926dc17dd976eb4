"""Rules at flows of which equal positions are stored once: calls, entries, sums, products.

Each is called as ``rule(refinement, apply, equation, *operands)``, with ``apply`` the rule
for whole flows. It finds the classes of the result, and mostly applies that rule to what is
stored. NotImplemented says that the operands must be whole; so it is for every primitive
that is not known here, such as one to which a user gave the rule of another.
"""

import math
from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from synflow_jax.transform.class_moves import moved
from synflow_jax.transform.classes import (
    Classes,
    Maps,
    compressed,
    of_rows,
    useful,
)
from synflow_jax.transform.control_flow import call
from synflow_jax.transform.elementwise import nonlinearity
from synflow_jax.transform.refinement import Refinement, classed, maps_of, shape_of
from synflow_jax.transform.scaled import Scaled
from synflow_jax.transform.values import (
    Classed,
    Equation,
    Value,
    carries_flow,
    plain_or_flow,
)


def through(refinement: Refinement, apply: Callable, equation: Equation, *operands: Value):
    """Calls and the like: the operands pass as they are."""
    return apply(equation, *operands)


def rematerialised(
    refinement: Refinement, apply: Callable, equation: Equation, *operands: Value
):
    """A call: few positions are stored, so nothing has to be computed again for memory."""
    flows = [x for x in operands if carries_flow(x)]
    if not all(isinstance(x, Classed) for x in flows):
        return NotImplemented
    stored = sum(math.prod(x.stored) for x in flows)
    whole = sum(math.prod(x.shape) for x in flows)
    return call(equation, *operands) if stored <= _FEW * whole else NotImplemented


# The share of its positions up to which a flow that is stored needs no rematerialisation.
_FEW = 0.25


def entrywise(
    refinement: Refinement, apply: Callable, equation: Equation, *operands: Value
):
    """What acts on each entry by itself does so on each class."""
    if len(equation.out_shapes) != 1:
        return NotImplemented
    (shape,) = equation.out_shapes
    maps = refinement.common(operands, shape)
    if all(m is None for m in maps):
        return NotImplemented
    stored = [
        refinement.to(x, _of_operand(maps, shape_of(x)))
        if carries_flow(x)
        else refinement.plain(x, shape, maps)
        for x in operands
    ]
    outs = apply(equation._replace(out_shapes=[compressed(shape, maps)]), *stored)
    return [classed(out, shape, maps) for out in outs]


def _of_operand(maps: Maps, shape: tuple[int, ...]) -> Maps:
    """The classes to which an operand is brought; none where it is broadcast."""
    return tuple(None if n == 1 else m for n, m in zip(shape, maps))


def activation(
    refinement: Refinement, apply: Callable, equation: Equation, *operands: Value
):
    """A nonlinearity recognised by its name; a function that only shares it is a call."""
    flows = [x for x in operands if carries_flow(x)]
    scalars = [x for x in operands if not carries_flow(x) and np.ndim(x) == 0]
    alone = len(flows) == 1 and len(scalars) == len(operands) - 1
    consts = getattr(equation.params.get("jaxpr"), "consts", ())
    if alone and equation.out_shapes == [shape_of(flows[0])] and not len(consts):
        return entrywise(refinement, nonlinearity, equation, *operands)
    return call(equation, *operands)


# --- sums ---------------------------------------------------------------------------------


def summing(refinement: Refinement, apply: Callable, equation: Equation, flow: Classed):
    """A sum over an axis counts each class as often as there are positions of it."""
    if equation.name != "reduce_sum":
        return NotImplemented
    axes = equation.params["axes"]

    def function(x):
        return lax.reduce_sum(weighted(x, flow.maps, axes), axes)

    maps = tuple(m for axis, m in enumerate(flow.maps) if axis not in axes)
    return moved(apply, equation, flow, [(function, maps)])


def weighted(x: Array, maps: Maps, axes: Iterable) -> Array:
    """Entries times the number of positions that they stand for along some axes."""
    counts = np.ones((1,) * x.ndim)
    for axis in axes:
        if (m := maps[axis]) is not None:
            shape = [1] * x.ndim
            shape[axis] = -1
            counts = counts * m.counts.reshape(shape)
    return (
        x if counts.size == 1 and counts.item() == 1 else x * jnp.asarray(counts, x.dtype)
    )


def largest(refinement: Refinement, apply: Callable, equation: Equation, flow: Classed):
    """The largest over an axis. Classes are in the order of their first positions, so the
    first among equals is the same; what belongs to no position must not be among them."""
    if equation.name not in ("reduce_max", "reduce_min", "reduce_or", "reduce_and"):
        return NotImplemented
    axes = equation.params["axes"]
    inside = refinement.to(
        flow,
        tuple(
            Classes(m.of) if m is not None and axis in axes else m
            for axis, m in enumerate(flow.maps)
        ),
    )
    maps = tuple(m for axis, m in enumerate(flow.maps) if axis not in axes)
    (shape,) = equation.out_shapes
    equation = equation._replace(out_shapes=[compressed(shape, maps)])
    return [classed(out, shape, maps) for out in apply(equation, inside)]


def along_axis(refinement: Refinement, apply: Callable, equation: Equation, flow: Classed):
    """What reads whole lines along one axis; other axes keep their classes."""
    if equation.name not in ("cumsum", "cummax", "cummin", "cumlogsumexp", "cumprod"):
        return NotImplemented
    flow = refinement.expanded(flow, [equation.params["axis"]])
    if not isinstance(flow, Classed):
        return NotImplemented
    equation = equation._replace(out_shapes=[flow.stored])
    return [classed(out, flow.shape, flow.maps) for out in apply(equation, flow.value)]


# --- matrix products ----------------------------------------------------------------------


def dot_general(
    refinement: Refinement, apply: Callable, equation: Equation, left: Value, right: Value
):
    """A matrix product keeps the classes along the axes that it does not sum over."""
    if equation.name != "dot_general":
        return NotImplemented
    outs = _interpolated(refinement, apply, equation, left, right)
    if outs is not None:
        return outs
    (shape,) = equation.out_shapes
    contracted, batched = equation.params["dimension_numbers"]
    sides, free = [], []
    for x, summed, batch in zip((left, right), contracted, batched):
        whole = refinement.expanded(x, (*summed, *batch))
        sides.append(whole.value if isinstance(whole, Classed) else whole)
        own = maps_of(whole) if carries_flow(x) else (None,) * np.ndim(x)
        free += [m for k, m in enumerate(own) if k not in (*summed, *batch)]
    maps = (*[None] * len(batched[0]), *free)
    equation = equation._replace(out_shapes=[compressed(shape, maps)])
    return [classed(out, shape, maps) for out in apply(equation, *sides)]


def _interpolated(
    refinement: Refinement, apply: Callable, equation: Equation, left: Value, right: Value
) -> list[Value] | None:
    """A product with a known matrix along one axis that has classes, as in a linear or
    cubic resizing: results that weigh the classes alike are a class. None if it is another
    product."""
    contracted, batched = equation.params["dimension_numbers"]
    second = carries_flow(right)
    flow, matrix = (right, left) if second else (left, right)
    if carries_flow(matrix) or not isinstance(flow, Classed):
        return None
    if np.ndim(matrix) != 2 or len(contracted[0]) != 1 or len(batched[0]):
        return None
    (axis,), (row,) = contracted[second], contracted[not second]
    classes = flow.maps[axis]
    values = None if classes is None else refinement.value(matrix)
    if classes is None or values is None:
        return None
    weights = np.abs(np.moveaxis(values, row, 1)).astype(float)
    weights = weights @ (classes.of[:, None] == np.arange(classes.number))
    weights = weights.astype(equation.dtype)  # [results, classes], as the flow meets them
    found = of_rows(weights)
    short = np.moveaxis(weights[found.first], 1, row)
    kept = [m for k, m in enumerate(flow.maps) if k != axis]
    maps = (useful(found), *kept) if second else (*kept, useful(found))
    (shape,) = equation.out_shapes
    equation = equation._replace(out_shapes=[compressed(shape, maps)])
    sides = (short, flow.value) if second else (flow.value, short)
    return [classed(out, shape, maps) for out in apply(equation, *sides)]


def counted(flow: Scaled | Classed) -> Scaled:
    """What is stored of a flow, times the number of positions that it stands for."""
    if not isinstance(flow, Classed):
        return flow
    mantissa, exponent = plain_or_flow(flow.value)
    return Scaled(weighted(mantissa, flow.maps, range(mantissa.ndim)), exponent)


def total_of(flow: Scaled | Classed) -> Scaled:
    """The sum of all entries of a flow."""
    mantissa, exponent = counted(flow)
    return Scaled(jnp.sum(mantissa), exponent)

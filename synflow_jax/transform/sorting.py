"""Rules in which the flow itself decides where its entries go: sorting and routing.

The decision is made by the values of the flow and is a constant: it does not change if the
flow is multiplied by a number, and it has no derivative. So the results are entries of the
flow, and Euler's theorem holds as for max pooling. Positions (of the largest entry, of the
k largest) are plain integers.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from synflow_jax.transform.scaled import Scaled, normalised
from synflow_jax.transform.values import (
    Equation,
    Undecided,
    Value,
    carries_flow,
)


def sort(equation: Equation, *operands: Value):
    """Orders by the values of the flow, as the primitive does: the result has the same
    entries in other places. What is sorted along with it moves along."""
    axis, number = equation.params["dimension"], equation.params["num_keys"]
    keys = [_comparable(x) for x in operands[:number]]
    shape = keys[0].shape
    places = lax.broadcasted_iota(jnp.int32, shape, axis)
    # Stable, so that entries that are equal up to rounding keep their order.
    *_, places = lax.sort([*keys, places], dimension=axis, num_keys=number)
    return [_map(lambda x: _taken(x, places, axis), x) for x in operands]


def top_k(equation: Equation, flow: Scaled):
    """The k largest entries of the flow, and their positions."""
    k, axis = equation.params["k"], equation.params.get("axis", -1)
    return _largest(flow, k, axis)


def approx_top_k(equation: Equation, flow: Scaled):
    """As `top_k`, exactly; absolute values have no sign, so the smallest are the
    largest."""
    k, axis = equation.params["k"], equation.params["reduction_dimension"]
    return _largest(flow, k, axis)


def _largest(flow: Scaled, k: int, axis: int):
    keys = jnp.moveaxis(_comparable(flow), axis, -1)
    places = jnp.moveaxis(lax.top_k(keys, k)[1], -1, axis)
    return [normalised(_taken(flow.mantissa, places, axis), flow.exponent), places]


def argmax(equation: Equation, flow: Scaled):
    """The position of the largest entry of the flow. It is also the rule of `argmin`, since
    absolute values have no sign."""
    (axis,) = equation.params["axes"]
    return [lax.argmax(_comparable(flow), axis, equation.params["index_dtype"])]


def _comparable(x: Value) -> Array:
    """What decides the order. Entries of a flow that agree in their first 13 binary digits
    count as equal: they differ by rounding, and so by the platform, on an all-ones
    input."""
    if not carries_flow(x):
        return x
    fixed = lax.stop_gradient(x.mantissa)
    return lax.reduce_precision(fixed, jnp.finfo(fixed.dtype).nexp, 13)


def _map(function, x: Value) -> Value:
    return Scaled(function(x.mantissa), x.exponent) if carries_flow(x) else function(x)


def _taken(x: Array, places: Int[Array, "..."], axis: int) -> Array:
    return jnp.take_along_axis(x, places, axis=axis)


# --- where the values of the flow are not known -------------------------------------------


def any_order(equation: Equation, *operands: Value):
    """Of zeros and ones: every entry may get to every place along the axis."""
    axis, number = equation.params["dimension"], equation.params["num_keys"]
    if not any(map(carries_flow, operands[:number])):
        return sort(equation, *operands)

    def union(mantissa):
        total = jnp.sum(mantissa, axis=axis, keepdims=True)
        return jnp.broadcast_to(total, mantissa.shape)

    return [
        Scaled(union(x.mantissa), x.exponent)
        if carries_flow(x)
        else Undecided(jnp.shape(x), x.dtype)
        for x in operands
    ]


def any_largest(equation: Equation, flow: Scaled):
    """Of zeros and ones: every entry may be among the largest."""
    axis = equation.params.get("axis", equation.params.get("reduction_dimension", -1))
    total = jnp.sum(flow.mantissa, axis=axis, keepdims=True)
    values, places = equation.out_shapes
    values = Scaled(jnp.broadcast_to(total, values), flow.exponent)
    return [values, Undecided(places, jnp.dtype(jnp.int32))]


def any_position(equation: Equation, flow: Scaled):
    """Of zeros and ones: every position may be that of the largest."""
    (shape,) = equation.out_shapes
    return [Undecided(shape, jnp.dtype(equation.params["index_dtype"]))]

"""Integers that the values of the flow decide, in questions about paths.

Whether a weight lies on a path is asked whatever the absolute values of the weights are. So
a position of the largest entry is any position there: what is read at it is the union of
all entries. What else is computed with it has no answer, and is an error.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.extend import core

from synflow_jax.transform.scaled import Scaled, total
from synflow_jax.transform.values import (
    UNDECIDED,
    Equation,
    Undecided,
    Value,
    as_flows,
    carries_flow,
    plain_or_flow,
)
from synflow_jax.xla.jaxprs import typed


def of_undecided(eqn: core.JaxprEqn, equation: Equation, *operands: Value) -> list[Value]:
    """The results of an equation, at least one of whose operands is undecided.

    Raises:
      ValueError: if they depend on which positions were chosen.
    """
    name, out = eqn.primitive.name, typed(eqn.outvars[0])
    floating = jnp.issubdtype(out.dtype, jnp.floating)
    first, *others = operands
    if name in ("gather", "dynamic_slice") and not isinstance(first, Undecided):
        return [_any_row(equation, first, others)]
    if name == "select_n" and isinstance(first, Undecided):
        if any(carries_flow(case) for case in others):
            flows = as_flows([*map(plain_or_flow, others)], equation.dtype)
            return [total(flows)]
        if floating and not any(isinstance(case, Undecided) for case in others):
            return [sum(jnp.abs(jnp.asarray(case)) for case in others)]
    if any(map(carries_flow, operands)):
        raise ValueError(UNDECIDED)
    if name == "convert_element_type" and floating:
        return [jnp.ones(out.shape, out.dtype)]  # of a one-hot vector, any entry
    if any(jnp.issubdtype(typed(v).dtype, jnp.inexact) for v in eqn.outvars):
        raise ValueError(UNDECIDED)
    return [Undecided(typed(v).shape, typed(v).dtype) for v in eqn.outvars]


def _any_row(equation: Equation, table: Value, places: Sequence[Value]) -> Value:
    """The sum over all places at which an array may be read."""
    flow, params = plain_or_flow(table), equation.params
    array = flow.mantissa if carries_flow(table) else jnp.asarray(flow)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return Undecided(equation.out_shapes[0], array.dtype)
    sizes = params["slice_sizes"]
    if equation.name == "gather":
        numbers = params["dimension_numbers"]
        axes = numbers.start_index_map
    else:
        axes = [k for k, place in enumerate(places) if isinstance(place, Undecided)]
    if any(sizes[axis] not in (1, array.shape[axis]) for axis in axes):
        raise ValueError(UNDECIDED)
    rows = jnp.sum(jnp.abs(array), axis=tuple(axes), keepdims=True)
    rows = jnp.broadcast_to(rows, array.shape)
    at = [
        jnp.zeros(x.shape, x.dtype) if isinstance(x, Undecided) else plain_or_flow(x)
        for x in places
    ]
    (read,) = equation.bind(rows, *at)
    return Scaled(read, flow.exponent) if carries_flow(table) else read

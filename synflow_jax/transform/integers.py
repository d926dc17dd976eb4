"""Whole numbers of the input, on their way to where the flow starts.

They are computed as written until they look up rows of a table, become one-hot vectors or
become floats: there the flow starts, with ones. Masks made from them (``ids != 0``) are
parameter values, computed from the whole numbers given: ones, in SynFlow's scores.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

from synflow_jax.transform.scaled import normalised
from synflow_jax.transform.values import (
    Equation,
    Plain,
    Rule,
    Tokens,
    Value,
    plain_or_flow,
    sees_kinds,
)


def starting_rule(eqn: core.JaxprEqn, operands: Sequence[Plain | Tokens]) -> Rule | None:
    """The rule by which the flow starts at this equation, if it does."""
    name = eqn.primitive.name
    floats = jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating)
    if not floats:
        return None
    if name == "convert_element_type":
        return start
    if name in ("gather", "dynamic_slice") and not isinstance(operands[0], Tokens):
        return look_up if name == "gather" else look_up_one
    return None


def of_tokens(
    eqn: core.JaxprEqn,
    operands: Sequence[Plain | Tokens],
    bind: Callable[[core.JaxprEqn, Sequence[Plain]], list[Array]],
) -> list[Value]:
    """Computes with whole numbers; the results are whole numbers of the input again."""
    outs = bind(eqn, [plain_or_flow(operand) for operand in operands])
    # A comparison with an array of numbers makes one-hot vectors, with one number a mask.
    tables = [x for x in operands if not isinstance(x, Tokens) and x.size > 1]
    one_hot = eqn.primitive.name == "eq" and tables
    one_hot = one_hot or any(
        isinstance(x, Tokens) and x.ids.dtype == bool for x in operands
    )
    return [
        Tokens(out)
        if jnp.issubdtype(out.dtype, jnp.integer) or (out.dtype == bool and one_hot)
        else out
        for out in outs
    ]


@sees_kinds
def look_up(equation: Equation, table: Array, places: Tokens):
    """An embedding: a dense layer of one-hot vectors, on ones. Sums the table's rows."""
    sizes = equation.params["slice_sizes"]
    indexed = equation.params["dimension_numbers"].start_index_map
    axes = [axis for axis in indexed if sizes[axis] == 1]
    if any(sizes[axis] != table.shape[axis] for axis in {*indexed} - {*axes}):
        raise ValueError("a look-up by whole numbers of the input must take single rows.")
    total = _sum_of_sizes(equation, table, axes)
    rows = equation.bind(total, jnp.zeros_like(places.ids))
    return [normalised(row) for row in rows]


@sees_kinds
def look_up_one(equation: Equation, table: Array, *places: Value):
    """The same for one whole number."""
    sizes = equation.params["slice_sizes"]
    axes = [i for i, place in enumerate(places) if isinstance(place, Tokens)]
    if any(sizes[axis] != 1 for axis in axes):
        raise ValueError("a look-up by a whole number of the input must take one row.")
    places = [jnp.zeros_like(p.ids) if isinstance(p, Tokens) else p for p in places]
    rows = equation.bind(_sum_of_sizes(equation, table, axes), *places)
    return [normalised(row) for row in rows]


def _sum_of_sizes(equation: Equation, table: Array, axes) -> Array:
    return equation.size(table).sum(axis=tuple(axes), keepdims=True)


@sees_kinds
def start(equation: Equation, tokens: Tokens):
    """Whole numbers turned into floats: the flow starts here, as from floating inputs.

    A one-hot vector (a comparison turned into floats) is a vector of ones.
    """
    ids = tokens.ids
    sizes = jnp.ones_like(ids) if ids.dtype == bool else jnp.abs(ids)
    return [normalised(sizes.astype(equation.dtype))]

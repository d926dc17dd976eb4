"""Integer inputs (tokens), up to the point where the flow starts.

They are computed as written until they look up rows of a table or become one-hot vectors;
there the flow starts, with ones. Where they become floats, it starts only if it starts
nowhere else (8-bit images, boards); otherwise those floats (lengths, timesteps) are the
constant 1. Masks computed from integers (``ids != 0``) are parameter values, computed from
the given ones: 1 in SynFlow.
"""

import dataclasses
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
    known,
    plain_or_flow,
)
from synflow_jax.xla.jaxprs import typed


@dataclasses.dataclass
class Starts:
    """Where the flow starts at integers.

    Attributes:
      numbers_flow: whether it starts where integers become floats.
      found: whether it started at a look-up or a one-hot vector.
      ignored: whether integers became floats without starting the flow.
    """

    numbers_flow: bool
    found: bool = False
    ignored: bool = False

    def rule(self, eqn: core.JaxprEqn, operands: Sequence[Plain | Tokens]) -> Rule | None:
        """The rule that starts the flow at this equation; None if it does not start."""
        name = eqn.primitive.name
        if not jnp.issubdtype(typed(eqn.outvars[0]).dtype, jnp.floating):
            return None
        if name == "convert_element_type":
            (tokens,) = operands
            one_hot = isinstance(tokens, Tokens) and tokens.ids.dtype == bool
            if one_hot or self.numbers_flow:
                self.found = True
                return _START
            self.ignored = True
            return _ONE
        if name == "select_n" and isinstance(operands[0], Tokens):
            self.found = True
            return _CHOOSE
        if name in ("gather", "dynamic_slice") and not isinstance(operands[0], Tokens):
            self.found = True
            return _LOOK_UP if name == "gather" else _LOOK_UP_ONE
        return None


def of_tokens(
    eqn: core.JaxprEqn,
    operands: Sequence[Plain | Tokens],
    bind: Callable[[core.JaxprEqn, Sequence[Plain]], list[Array]],
) -> list[Value]:
    """Computes with integers; integer results are tokens again."""
    outs = bind(eqn, [plain_or_flow(operand) for operand in operands])
    # Comparing with an array of numbers makes one-hot vectors; with one number, a mask.
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


def look_up(equation: Equation, table: Array, places: Tokens):
    """An embedding, as a dense layer on one-hot vectors of ones: the sum of |table| over
    rows."""
    sizes = equation.params["slice_sizes"]
    indexed = equation.params["dimension_numbers"].start_index_map
    axes = [axis for axis in indexed if sizes[axis] == 1]
    if any(sizes[axis] != table.shape[axis] for axis in {*indexed} - {*axes}):
        raise ValueError("a look-up by integers of the input must take single rows.")
    total = _sum_of_rows(equation, table, axes)
    rows = equation.bind(total, jnp.zeros_like(places.ids))
    return [normalised(row) for row in rows]


def look_up_one(equation: Equation, table: Array, *places: Value):
    """The same for a single integer."""
    sizes = equation.params["slice_sizes"]
    axes = [i for i, place in enumerate(places) if isinstance(place, Tokens)]
    if any(sizes[axis] != 1 for axis in axes):
        raise ValueError("a look-up by an integer of the input must take one row.")
    at = [jnp.zeros_like(p.ids) if isinstance(p, Tokens) else p for p in places]
    rows = equation.bind(_sum_of_rows(equation, table, axes), *at)
    return [normalised(row) for row in rows]


def _sum_of_rows(equation: Equation, table: Array, axes) -> Array:
    return equation.absolute(table).sum(axis=tuple(axes), keepdims=True)


def start(equation: Equation, tokens: Tokens):
    """Integers converted to floats: the flow starts here, as from floating inputs.

    A one-hot vector (a comparison converted to floats) becomes a vector of ones.
    """
    ids = tokens.ids
    values = jnp.ones_like(ids) if ids.dtype == bool else jnp.abs(ids)
    return [normalised(values.astype(equation.dtype))]


def choose(equation: Equation, which: Tokens, *cases: Value):
    """A one-hot vector chooses: between numbers it is a vector of ones, between parameters
    it is a layer."""
    weights = [equation.absolute(case) for case in cases if not known(case)]
    ones = jnp.ones(which.ids.shape, equation.dtype)
    return [normalised(sum(weights[1:], weights[0]) * ones if weights else ones)]


def one(equation: Equation, tokens: Tokens):
    """Integers converted to floats beside another input: the constant 1."""
    return [jnp.ones(tokens.ids.shape, equation.dtype)]


_START, _ONE, _CHOOSE, _LOOK_UP, _LOOK_UP_ONE = (
    Rule(apply, keeps_paths=True, sees_kinds=True)
    for apply in (start, one, choose, look_up, look_up_one)
)

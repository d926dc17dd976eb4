"""One equation of the traced network, as a rule sees it, and the kinds of its values.

A value of the network is plain, an array that does not depend on the input (parameters and
all that is computed from them alone), or it carries flow, a `Scaled`. A rule is called for
each equation with at least one operand that carries flow.

Three more kinds remember how a flow came about, for the rules marked `sees_kinds`; to all
others they are the flow that they carry. `Tokens` are whole numbers of the input, before
the flow starts.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from synflow_jax.transform.scaled import Scaled, nothing


class Pointwise(NamedTuple):
    """A flow of which each entry is a function of the same entry of ``origin``.

    So ``x * sigmoid(x)``, the product of two functions of one flow, is known as an
    activation, and ``a * sigmoid(b)`` as a gate.
    """

    flow: Scaled
    origin: Scaled


class Inverse(NamedTuple):
    """``factor`` over a function of ``flow``: it normalises what it is multiplied with."""

    flow: Scaled
    factor: Array


class Stopped(NamedTuple):
    """A flow that the network hides from its own gradient: added to a flow, a shift."""

    flow: Scaled


class Tokens(NamedTuple):
    """Whole numbers that depend on the input: the flow starts where they are looked up."""

    ids: Array


Plain = Array | np.ndarray
Flowing = Scaled | Pointwise | Inverse | Stopped
Value = Plain | Flowing | Tokens


class Equation(NamedTuple):
    """One equation of the traced network, as a rule sees it.

    Attributes:
      name: the primitive's name.
      params: the primitive's parameters.
      out_shapes: shape of each result.
      dtype: the precision of every flow.
      size: ``size(plain) -> array``, the absolute value of a parameter at its point of
        use, in that precision.
      biases: whether added parameters join the flow.
      inside: ``inside(closed_jaxpr, *operands) -> results``, for rules of primitives that
        call another jaxpr.
      bind: ``bind(*arrays) -> results`` evaluates the primitive itself.
    """

    name: str
    params: dict[str, Any]
    out_shapes: list[tuple[int, ...]]
    dtype: np.dtype
    size: Callable[[Plain], Array]
    biases: bool
    inside: Callable[..., list[Value]]
    bind: Callable[..., list[Array]]


# Takes the operands in order, some plain and some carrying flow; returns all results.
Rule = Callable[..., Sequence[Value]]


def sees_kinds(rule: Rule) -> Rule:
    """Marks a rule that is to be shown every kind of value."""
    rule.sees_kinds = True
    return rule


def plain_or_flow(value: Value) -> Plain | Scaled:
    """The value without its history."""
    if isinstance(value, Tokens):
        return value.ids
    return value.flow if isinstance(value, Pointwise | Inverse | Stopped) else value


def carries_flow(value: Value) -> bool:
    return isinstance(value, Scaled | Pointwise | Inverse | Stopped)


def origin_of(value: Flowing) -> Scaled:
    """The flow that the value is a pointwise function of: its own, if of no other."""
    return value.origin if isinstance(value, Pointwise) else plain_or_flow(value)


def as_flows(operands: Sequence[Plain | Scaled], dtype) -> list[Scaled]:
    """Parameter values among flows, as flows of nothing."""
    return [x if isinstance(x, Scaled) else nothing(jnp.shape(x), dtype) for x in operands]


def must_be_plain(operands: Sequence[Value], what: str) -> None:
    if any(carries_flow(operand) for operand in operands):
        raise ValueError(f"{what} must not depend on the input.")

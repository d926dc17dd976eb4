"""One equation of the traced network, as a rule sees it.

A value of the network is either plain, an array that does not depend on the input
(parameters and all that is computed from them alone), or it carries flow, a `Scaled`. A
rule is called for each equation with at least one operand that carries flow.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from synflow_jax.scaled import Scaled, nothing

Value = Array | Scaled


class Equation(NamedTuple):
    """One equation of the traced network, as a rule sees it.

    Attributes:
      name: the primitive's name.
      params: the primitive's parameters.
      out_shapes: shape of each result.
      biases: whether added parameters join the flow.
      inside: ``inside(closed_jaxpr, *operands) -> results``, for rules of primitives that
        call another jaxpr.
      bind: ``bind(*arrays) -> results`` evaluates the primitive itself.
    """

    name: str
    params: dict[str, Any]
    out_shapes: list[tuple[int, ...]]
    biases: bool
    inside: Callable[..., list[Value]]
    bind: Callable[..., list[Array]]


# Takes the operands in order, some plain and some carrying flow; returns all results.
Rule = Callable[..., Sequence[Value]]


def as_flows(operands: Sequence[Value]) -> list[Scaled]:
    """Parameter values among flows, as flows of nothing."""
    (dtype,) = {x.mantissa.dtype for x in operands if isinstance(x, Scaled)}
    return [x if isinstance(x, Scaled) else nothing(jnp.shape(x), dtype) for x in operands]


def must_be_plain(operands: Sequence[Value], what: str) -> None:
    if any(isinstance(operand, Scaled) for operand in operands):
        raise ValueError(f"{what} must not depend on the input.")

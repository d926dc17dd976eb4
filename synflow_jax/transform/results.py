"""Checks what a rule returns: the error names the rule and where it was written."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synflow_jax.transform.scaled import Scaled
from synflow_jax.transform.values import (
    Classed,
    Derived,
    Equation,
    Inverse,
    Rule,
    Stopped,
    Tokens,
    Undecided,
    plain_or_flow,
)

_FLOWS = (Scaled, Derived, Inverse, Stopped)


def check_results(rule: Rule, equation: Equation, outs: Any) -> None:
    """Raises unless a rule returned one value of the right kind and shape for each result.

    Raises:
      ValueError: if it did not.
    """
    if not isinstance(outs, Sequence) or isinstance(outs, _FLOWS):
        kind = "an array" if isinstance(outs, jax.Array) else type(outs).__name__
        raise ValueError(
            f"its rule {named(rule)} must return a list with one value for each result; it "
            f"returned {kind}."
        )
    shapes = [*map(_shape, outs)]
    if shapes != equation.out_shapes:
        raise ValueError(
            f"its rule {named(rule)} must return flows (Scaled) or arrays of the shapes "
            f"{equation.out_shapes}; it returned {shapes}."
        )
    for i, flow in enumerate(map(_flow, outs)):
        if flow is not None and (fault := _fault(flow, equation)):
            raise ValueError(f"its rule {named(rule)} returned {fault} (result {i}).")


def named(rule: Rule) -> str:
    """The name of a rule's function, and its line if Python knows it."""
    name = getattr(rule.apply, "__qualname__", repr(rule.apply))
    code = getattr(rule.apply, "__code__", None)
    if code is None or of_the_package(rule):
        return f"`{name}`"
    return f"`{name}` ({code.co_filename}:{code.co_firstlineno})"


def of_the_package(rule: Rule) -> bool:
    """Whether a rule is one of this package's."""
    function = getattr(rule.apply, "func", rule.apply)
    return getattr(function, "__module__", "").split(".")[0] == __name__.split(".")[0]


def _flow(out: Any) -> Scaled | None:
    out = out.value if isinstance(out, Classed) else out
    return plain_or_flow(out) if isinstance(out, _FLOWS) else None


def _fault(flow: Scaled, equation: Equation) -> str:
    """What is wrong with a flow of the right shape; empty if nothing is."""
    dtype = getattr(flow.mantissa, "dtype", None)
    if dtype != equation.dtype:
        return (
            f"a flow whose mantissa is of the type {dtype}, where {equation.dtype} is "
            "wanted (`equation.dtype`)"
        )
    exponent = flow.exponent
    whole = jnp.issubdtype(jnp.result_type(exponent), jnp.integer)
    if not whole or jnp.shape(exponent) != ():
        return (
            "a flow whose exponent is no single integer: it is of the type "
            f"{jnp.result_type(exponent)} and the shape {jnp.shape(exponent)}"
        )
    return ""


def _shape(out: Any):
    """The shape of a result, or the name of its type, which the message then shows."""
    if isinstance(out, Undecided):
        return out.shape
    if isinstance(out, Classed):
        inside = _shape(out.value)
        return out.shape if inside == out.stored else f"classes stored as {inside}"
    if isinstance(out, (*_FLOWS, Tokens)):
        out = plain_or_flow(out)
        return jnp.shape(out.mantissa if isinstance(out, Scaled) else out)
    if isinstance(out, jax.Array | np.ndarray | np.generic):
        return jnp.shape(out)
    return type(out).__name__

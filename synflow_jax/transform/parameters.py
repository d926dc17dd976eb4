"""Values computed from the parameters alone, before they meet the flow.

They are computed as written, with two departures that the scores need. Denominators are
constants under differentiation: a weight divided by a norm of weights keeps its whole share
of the flow, which the derivative of the norm would otherwise cancel. And nothing is rounded
to a narrower float: a network that computes in half precision is scored in the precision of
its parameters.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jaxtyping import Array

from synflow_jax.transform.values import Plain
from synflow_jax.xla.jaxprs import parameters, typed

Bind = Callable[[core.JaxprEqn, Sequence[Plain]], list[Array]]


def as_written(eqn: core.JaxprEqn, operands: Sequence[Plain], bind: Bind) -> list[Plain]:
    """The results of one equation."""
    name = eqn.primitive.name
    if name == "convert_element_type":
        if _narrows(operands[0], parameters(eqn)["new_dtype"]):
            return [operands[0]]
    pairs = zip(operands, eqn.invars)
    if any(_is_float(x) and x.dtype != typed(v).dtype for x, v in pairs):
        eqn, operands = _wide(eqn, operands)
    if name == "div":
        operands = [operands[0], lax.stop_gradient(operands[1])]
    outs = bind(eqn, operands)
    return [*map(lax.stop_gradient, outs)] if _inverts(eqn, operands) else [*outs]


def _narrows(operand: Plain, dtype) -> bool:
    return (
        _is_float(operand)
        and jnp.issubdtype(dtype, jnp.floating)
        and jnp.finfo(dtype).bits < jnp.finfo(operand.dtype).bits
    )


def _wide(eqn: core.JaxprEqn, operands: Sequence[Plain]):
    """The equation in the widest of its operands' precisions."""
    fixed = eqn.primitive.name == "bitcast_convert_type" or any(
        callable(p) or isinstance(p, core.Jaxpr | core.ClosedJaxpr)
        for p in eqn.params.values()
    )
    if fixed:  # written for its own types
        return eqn, [
            x.astype(typed(v).dtype) if _is_float(x) else x
            for x, v in zip(operands, eqn.invars)
        ]
    widest = max((x.dtype for x in operands if _is_float(x)), key=lambda d: d.itemsize)
    if "preferred_element_type" in eqn.params:
        eqn = eqn.replace(params={**eqn.params, "preferred_element_type": None})
    return eqn, [x.astype(widest) if _is_float(x) else x for x in operands]


def _inverts(eqn: core.JaxprEqn, operands: Sequence[Plain]) -> bool:
    name = eqn.primitive.name
    if name == "pow":
        exponent = operands[1]
        return isinstance(exponent, np.ndarray | np.generic) and bool(np.all(exponent < 0))
    return name == "rsqrt" or (name == "integer_pow" and parameters(eqn)["y"] < 0)


def _is_float(value: Plain) -> bool:
    return jnp.issubdtype(value.dtype, jnp.floating)

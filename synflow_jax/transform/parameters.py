"""Values computed from the parameters alone, before they meet the flow.

They are computed as written, with two departures that the scores need. Denominators are
constants under differentiation: a weight divided by a norm of weights keeps its whole share
of the flow, which the derivative of the norm would otherwise cancel. And nothing is rounded
to a narrower float: a network that computes in half precision is scored in the precision of
its parameters.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jaxtyping import Array

from synflow_jax.transform.values import Plain, as_array, known
from synflow_jax.xla.jaxprs import bind, parameters, typed


def as_written(eqn: core.JaxprEqn, operands: Sequence[Plain]) -> list[Plain]:
    """The results of one equation."""
    name = eqn.primitive.name
    if name == "pvary":  # a number stays one
        return [*operands]
    if all(map(known, operands)) and (result := _number(eqn, operands)) is not None:
        return [result]
    operands = [*map(as_array, operands)]
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


class Sums:
    """Absolute values of parameters that were added up before they meet the flow.

    The flow takes absolute values of the weights and not of their sums: the paths through
    ``x @ w.sum(axis=1, keepdims=True)`` are those through ``w``. That holds for sums of the
    entries of one leaf, moved or multiplied by numbers; every other computation with
    weights makes new weights.
    """

    def __init__(self):
        # By the identity of a value: the value, its absolute value, and if it is a sum.
        self._terms: dict[int, tuple[Any, Callable, bool]] = {}

    def begin(self, leaf: Array) -> None:
        """Notes a parameter, or a part of one."""
        self._terms[id(leaf)] = leaf, lambda absolute: absolute(leaf), False

    def follow(
        self, eqn: core.JaxprEqn, operands: Sequence[Plain], outs: Sequence[Plain]
    ) -> None:
        """Notes the results of an equation without flow."""
        at = [i for i, x in enumerate(operands) if id(x) in self._terms]
        if len(at) != 1 or len(outs) != 1:
            return
        _, term, is_sum = self._terms[id(operands[at[0]])]
        new = _absolute_of(eqn, operands, at[0], term)
        if new is not None:
            is_sum = is_sum or eqn.primitive.name == "reduce_sum"
            self._terms[id(outs[0])] = outs[0], new, is_sum

    def read(self, plain: Plain, result: Plain, function: Callable[[Array], Array]) -> None:
        """Notes that ``result`` is ``function(plain)``, some of its entries."""
        if id(plain) in self._terms and result is not plain:
            _, term, is_sum = self._terms[id(plain)]
            new = lambda absolute: function(term(absolute))  # noqa: E731
            self._terms[id(result)] = result, new, is_sum

    def absolute(self, plain: Plain, absolute: Callable[[Plain], Array]) -> Array:
        """The absolute value of a plain value, or the sum of those that it is made of."""
        _, term, is_sum = self._terms.get(id(plain), (None, None, False))
        return term(absolute) if term is not None and is_sum else absolute(plain)


def _absolute_of(
    eqn: core.JaxprEqn, operands: Sequence[Plain], at: int, term: Callable
) -> Callable | None:
    """The absolute value of a result, from that of the operand ``at``, which is moved,
    added up or multiplied by a number; None if it is computed with otherwise."""
    name, others = eqn.primitive.name, [x for i, x in enumerate(operands) if i != at]
    if name == "neg":
        return term
    if at == 0 and (name == "reduce_sum" or name in _MOVING):
        return lambda absolute: bind(eqn, [term(absolute), *others])[0]
    if not (name in ("mul", "div") and len(others) == 1 and known(others[0])):
        return None
    number = np.asarray(others[0]).flat[0]
    if name == "mul":
        return lambda absolute: term(absolute) * absolute(number)
    return (lambda absolute: term(absolute) / absolute(number)) if at == 0 else None


_MOVING = frozenset(
    "reshape transpose squeeze broadcast_in_dim rev slice dynamic_slice gather "
    "convert_element_type copy copy_p".split()
)


def _number(eqn: core.JaxprEqn, operands: Sequence[Plain]) -> np.ndarray | None:
    """The result of an equation that computes with numbers of the model's code, if it is
    a number again, or an array full of one."""
    name, out = eqn.primitive.name, typed(eqn.outvars[0])
    if name == "broadcast_in_dim" and out.size and np.size(operands[0]) == 1:
        return np.broadcast_to(np.asarray(operands[0]).reshape(()), out.shape)
    if out.size != 1 or any(np.size(x) != 1 for x in operands):
        return None
    with np.errstate(all="ignore"):
        if name in _NUMPY:
            result = _NUMPY[name](*operands)
        elif name == "integer_pow":
            result = np.power(operands[0], parameters(eqn)["y"])
        elif name == "rsqrt":
            result = 1 / np.sqrt(operands[0])
        elif name == "convert_element_type":
            if _narrows(operands[0], parameters(eqn)["new_dtype"]):
                result = operands[0]
            else:
                result = np.asarray(operands[0]).astype(parameters(eqn)["new_dtype"])
        elif name in ("reshape", "squeeze", "copy", "copy_p"):
            result = operands[0]
        else:
            return None
    return np.asarray(result).reshape(out.shape)


_NUMPY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "neg": np.negative,
    "abs": np.abs,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
}


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

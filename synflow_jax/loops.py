"""Any function, so that XLA compiles its convolutions well in the body of a loop."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jaxtyping import PyTree

from synflow_jax.interpreter import bind
from synflow_jax.windows import native_conv

_CALLS = frozenset(("jit", "pjit", "closed_call", "core_call"))


def fit_for_loops(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function; on a CPU its convolutions are those of `native_conv`.

    The gradients of others run ten times slower there in the body of a loop, such as the
    one over batches, or rounds. What stands in loops, branches, custom derivatives or
    rematerialised parts of the function stays as it is.

    Args:
      function: of pytrees of arrays, traceable by JAX.

    Returns:
      A function of the same arguments with the same results, to rounding.

    Example:
      >>> import jax.numpy as jnp
      >>> fit_for_loops(lambda x: {"twice": 2 * x})(jnp.ones(2))
      {'twice': Array([2., 2.], dtype=float32)}
    """

    def fitted(*args: PyTree) -> PyTree:
        if jax.default_backend() != "cpu":
            return function(*args)
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        outs = _evaluated(traced.jaxpr, traced.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outs)

    return fitted


def _evaluated(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values = dict(zip(jaxpr.constvars, consts))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        if isinstance(atom, core.Literal):
            return np.asarray(atom.val, atom.aval.dtype)
        return values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name == "conv_general_dilated":
            settings = dict(eqn.params)
            settings.pop("out_sharding", None)
            outs = [native_conv(*operands, settings)]
        elif eqn.primitive.name in _CALLS:
            inner = eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
            closed = isinstance(inner, core.ClosedJaxpr)
            inner = inner if closed else core.ClosedJaxpr(inner, [])
            outs = _evaluated(inner.jaxpr, inner.consts, operands)
        else:
            outs = bind(eqn, operands)
        values.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]

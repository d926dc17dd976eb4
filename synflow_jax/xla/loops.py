"""What lies in the body of a loop: fast convolutions, and nothing that XLA keeps."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jaxtyping import Array, PyTree

from synflow_jax.xla.backends import Backend
from synflow_jax.xla.convolutions import native_conv
from synflow_jax.xla.jaxprs import JITTED, bind, called, evaluate, opened, parameters
from synflow_jax.xla.placement import is_divided


def fit_for_loops(
    backend: Backend, function: Callable[..., PyTree]
) -> Callable[..., PyTree]:
    """On a CPU, replaces the convolutions of a function by `native_conv`.

    Jitted functions are inlined, so that arrays which they close over are found outside of
    the loop (`xla.constants`).

    The gradients of other convolutions run ten times slower in the body of a loop, such as
    a loop over batches or rounds. Convolutions inside loops, branches, custom derivatives
    or rematerialised parts of the function are not replaced.

    Args:
      backend: where it runs.
      function: takes pytrees of arrays; JAX must be able to trace it.

    Returns:
      A function of the same arguments with the same results up to rounding.

    Example:
      >>> import jax.numpy as jnp
      >>> fit_for_loops(Backend(True, True), lambda x: {"twice": 2 * x})(jnp.ones(2))
      {'twice': Array([2., 2.], dtype=float32)}
    """

    def fitted(*args: PyTree) -> PyTree:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        step = functools.partial(_step, backend)
        outs = evaluate(traced.jaxpr, traced.consts, jax.tree.leaves(args), step)
        return jax.tree.unflatten(jax.tree.structure(shapes), outs)

    return fitted


def _step(backend: Backend, eqn: core.JaxprEqn, operands: list[Any]) -> list[Any]:
    if backend.cpu and eqn.primitive.name == "conv_general_dilated":
        settings = dict(eqn.params)
        if not (settings.pop("out_sharding", None) or any(map(is_divided, operands))):
            image, kernel = operands
            return [native_conv(image, kernel, settings)]
    if eqn.primitive.name in JITTED:
        step = functools.partial(_step, backend)
        return evaluate(*opened(called(parameters(eqn))), operands, step)
    return bind(eqn, operands)


def as_if_from(result: Any, number: Any) -> Array:
    """A number, of which XLA does not know that it does not depend on a result.

    What is the same in each pass of a loop XLA computes once, and keeps. If that is as
    large as the arrays of the loop, such as ``weights != 0``, it is better computed anew:
    ``weights != as_if_from(result, 0.0)``, with any result of the pass.

    Args:
      result: an array, best a single number: it is computed before.
      number: a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> float(as_if_from(jnp.ones(()), jnp.float32(3)))
      3.0
    """
    return lax.optimization_barrier((number, result))[0]

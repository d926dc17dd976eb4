"""Arrays that a function closes over, turned into arguments.

A compiled program would hold them as constants: large programs, compiled anew for other
data of equal shapes, and on several devices copied to each of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jaxtyping import PyTree

from synflow_jax.xla.jaxprs import bind, called, evaluate, opened, parameters

# Bytes up to which a constant inside a jitted function may stay there.
_SMALL = 1024

_JITTED = frozenset(("jit", "pjit", "closed_call", "core_call"))


@dataclasses.dataclass(frozen=True)
class Hoisted:
    """A function without constants; `hoisted` makes it.

    ``hoisted(constants, *args)`` is ``function(*args)``. Two are equal, and share compiled
    programs, if they were made of equal functions for arguments of equal types.

    Attributes:
      function: the function that it was made of.
      types: structure and types of the arguments that it was traced with.
      program: its jaxpr, in which constants are variables.
      results: structure of its results.
    """

    function: Callable[..., PyTree]
    types: tuple[Any, ...]
    program: core.Jaxpr = dataclasses.field(compare=False, repr=False)
    results: Any = dataclasses.field(compare=False, repr=False)

    def __call__(self, constants: list[Any], *args: PyTree) -> PyTree:
        program = core.ClosedJaxpr(self.program, constants)
        outs = core.jaxpr_as_fun(program)(*jax.tree.leaves(args))
        return jax.tree.unflatten(self.results, outs)


def hoisted(function: Callable[..., PyTree], *args: PyTree) -> tuple[Hoisted, list[Any]]:
    """Splits a function into one without constants, and those constants.

    It traces the function, or finds the trace that JAX keeps of it.

    Args:
      function: of pytrees of arrays, traceable by JAX.
      args: its arguments, of which only structure and types are read: arrays or
        `jax.ShapeDtypeStruct`.

    Returns:
      ``(hoisted, constants)``.

    Example:
      >>> import jax.numpy as jnp
      >>> data = jnp.arange(3.0)
      >>> pure, constants = hoisted(lambda x: x * data, jnp.ones(3))
      >>> [constant.tolist() for constant in constants]
      [[0.0, 1.0, 2.0]]
      >>> pure([10 * data], jnp.ones(3))
      Array([ 0., 10., 20.], dtype=float32)
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    leaves, treedef = jax.tree.flatten(args)
    if any(map(_holds_constants, program.jaxpr.eqns)):
        traced = program

        def inlined(*leaves):
            return evaluate(traced.jaxpr, traced.consts, leaves, _inline)

        program = jax.make_jaxpr(inlined)(*leaves)
    types = (treedef, *map(_type, leaves))
    results = jax.tree.structure(shapes)
    return Hoisted(function, types, program.jaxpr, results), list(program.consts)


def _type(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.shape, leaf.dtype
    return jax.typeof(leaf)


def _inline(equation: core.JaxprEqn, operands: list[Any]) -> list[Any]:
    if _holds_constants(equation):
        return evaluate(*opened(called(parameters(equation))), operands, _inline)
    return bind(equation, operands)


def _holds_constants(equation: core.JaxprEqn) -> bool:
    """Whether an equation calls a jitted function that holds a large constant."""
    if equation.primitive.name not in _JITTED:
        return False
    jaxpr, constants = opened(called(parameters(equation)))
    large = any(getattr(constant, "nbytes", 0) > _SMALL for constant in constants)
    return large or any(map(_holds_constants, jaxpr.eqns))

"""Arrays that a function closes over, turned into arguments.

A compiled program would hold them as constants: large programs, compiled anew for other
data of equal shapes, and on several devices copied to each of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jaxtyping import PyTree

from synflow_jax.xla.jaxprs import (
    JITTED,
    bind,
    called,
    evaluate,
    opened,
    parameters,
    switch,
    typed,
)

# Bytes up to which a constant inside a jitted function may stay there.
_SMALL = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Hoisted:
    """A function without constants; `hoisted` makes it.

    ``hoisted(constants, *args)`` is ``function(*args)``. Two are equal, and share compiled
    programs, if they have equal keys and were traced to equal programs for arguments of
    equal types.

    Attributes:
      key: stands for the function; hashable.
      types: structure, shapes and dtypes of the arguments that it was traced with.
      program: its jaxpr, in which constants are variables.
      results: structure of its results.
    """

    key: Any
    types: tuple[Any, ...]
    program: core.Jaxpr = dataclasses.field(repr=False)
    results: Any = dataclasses.field(repr=False)

    def __hash__(self) -> int:
        return hash((self.key, self.types))

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Hoisted):
            return False
        if (self.key, self.types) != (other.key, other.types):
            return False
        # A function may read values that have changed since it was traced.
        return self.program is other.program or str(self.program) == str(other.program)

    def shapes(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the leaves of its results."""
        outs = map(typed, self.program.outvars)
        return [jax.ShapeDtypeStruct(out.shape, out.dtype) for out in outs]

    def __call__(self, constants: list[Any], *args: PyTree) -> PyTree:
        if (types := _types(args)) != self.types:
            raise ValueError(
                f"the criterion was traced for arguments of the types {self.types}, not "
                f"{types}."
            )
        program = core.ClosedJaxpr(self.program, constants)
        outs = core.jaxpr_as_fun(program)(*jax.tree.leaves(args))
        return jax.tree.unflatten(self.results, outs)


def hoisted(
    function: Callable[..., PyTree], *args: PyTree, key: Any = None
) -> tuple[Hoisted, list[Any]]:
    """Splits a function into one without constants, and those constants.

    It traces the function, or finds the trace that JAX keeps of this very function.

    Args:
      function: of pytrees of arrays, traceable by JAX.
      args: its arguments, of which only structure and types are read: arrays or
        `jax.ShapeDtypeStruct`.
      key: stands for the function when two are compared; default, the function.

    Returns:
      ``(hoisted, constants)``.

    Example:
      >>> data = jnp.arange(3.0)
      >>> pure, constants = hoisted(lambda x: x * data, jnp.ones(3))
      >>> [constant.tolist() for constant in constants]
      [[0.0, 1.0, 2.0]]
      >>> pure([10 * data], jnp.ones(3))
      Array([ 0., 10., 20.], dtype=float32)
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    if any(map(_holds_constants, program.jaxpr.eqns)):
        program = jax.make_jaxpr(_inlined(program))(*jax.tree.leaves(args))
    key, results = function if key is None else key, jax.tree.structure(shapes)
    return Hoisted(key, _types(args), program.jaxpr, results), list(program.consts)


def _types(args: PyTree) -> tuple[Any, ...]:
    leaves, treedef = jax.tree.flatten(args)
    return treedef, *((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _inline(equation: core.JaxprEqn, operands: list[Any]) -> list[Any]:
    """Evaluates an equation, so that constants of jitted functions inside it come out."""
    if not _holds_constants(equation):
        return bind(equation, operands)
    params = parameters(equation)
    name = equation.primitive.name
    if name in JITTED:
        return _inlined(called(params))(*operands)
    if name in _REMATERIALISED:
        body = _inlined(called(params))
        keep = {"prevent_cse": params["prevent_cse"], "policy": params["policy"]}
        return jax.checkpoint(body, **keep)(*operands)
    if name == "cond":
        index, *operands = operands
        return switch(params, index, [*map(_inlined, params["branches"])], operands)
    if name == "while":
        of_cond, of_body = params["cond_nconsts"], params["body_nconsts"]
        consts, init = operands[: of_cond + of_body], operands[of_cond + of_body :]
        test, body = _inlined(params["cond_jaxpr"]), _inlined(params["body_jaxpr"])
        return lax.while_loop(
            lambda carry: test(*consts[:of_cond], *carry)[0],
            lambda carry: body(*consts[of_cond:], *carry),
            init,
        )
    if name == "scan":
        start, carried = params["num_consts"], params["num_carry"]
        consts, init = operands[:start], operands[start : start + carried]
        body = _inlined(params["jaxpr"])

        def step(carry, xs):
            outs = body(*consts, *carry, *xs)
            return outs[:carried], outs[carried:]

        keep = {name: params[name] for name in ("length", "reverse", "unroll")}
        carry, stacked = lax.scan(step, init, operands[start + carried :], **keep)
        return [*carry, *stacked]
    return bind(equation, operands)  # a custom derivative would be lost


def _inlined(jaxpr: Any) -> Callable[..., list[Any]]:
    return lambda *args: evaluate(*opened(jaxpr), args, _inline)


def _holds_constants(equation: core.JaxprEqn) -> bool:
    """Whether a jitted function holds a large constant, in the equation or inside of it."""
    for jaxpr, constants in map(opened, _jaxprs(equation)):
        if any(getattr(constant, "nbytes", 0) > _SMALL for constant in constants):
            return True
        if any(map(_holds_constants, jaxpr.eqns)):
            return True
    return False


def _jaxprs(equation: core.JaxprEqn) -> list[Any]:
    name = equation.primitive.name
    if name not in _CALLS:
        return []
    params = parameters(equation)
    if name == "cond":
        return list(params["branches"])
    if name == "while":
        return [params["cond_jaxpr"], params["body_jaxpr"]]
    return [params["jaxpr"] if name == "scan" else called(params)]


_REMATERIALISED = ("checkpoint", "remat2", "remat")
_CALLS = frozenset((*JITTED, *_REMATERIALISED, "cond", "while", "scan"))

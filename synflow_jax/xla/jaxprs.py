"""Reads jaxprs: the one loop over equations, and the parameters and lines of equations.

All names that differ between versions of JAX are read in this file and nowhere else.
"""

import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend import core
from jaxtyping import Array


class FlowError(ValueError):
    """The network has no flow; the message names the primitive and the model's line."""


# Primitives that call a jitted function.
JITTED = frozenset(("jit", "pjit", "closed_call", "core_call"))

# --- the loop over equations --------------------------------------------------------------


def evaluate(
    jaxpr: core.Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    step: Callable[[core.JaxprEqn, list[Any]], Sequence[Any]],
) -> list[Any]:
    """Evaluates a jaxpr equation by equation, with a function that evaluates one equation.

    Args:
      jaxpr: the jaxpr of any function.
      consts: the values of its constants.
      args: the values of its arguments: arrays, or any other objects that ``step`` accepts.
      step: ``step(equation, operands) -> results``, called for each equation in order.
        Literal operands are numpy arrays of the dtype that the jaxpr says.

    Returns:
      The values of the jaxpr's results.

    Example:
      >>> import jax.numpy as jnp
      >>> traced = jax.make_jaxpr(lambda x: 2 * (x + 1))(jnp.ones(2))
      >>> def step(equation, operands):
      ...     print(equation.primitive.name)
      ...     return bind(equation, operands)
      >>> evaluate(traced.jaxpr, traced.consts, [jnp.ones(2)], step)
      add
      mul
      [Array([4., 4.], dtype=float32)]
    """
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        if isinstance(atom, core.Literal):
            aval: Any = atom.aval  # an array's, though the annotation is more general
            return np.asarray(atom.val, aval.dtype)
        return values[atom]

    for equation in jaxpr.eqns:
        outs = step(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def opened(jaxpr: Any) -> tuple[core.Jaxpr, Sequence[Any]]:
    """Splits a jaxpr, closed or not, into the jaxpr itself and its constants' values."""
    closed = isinstance(jaxpr, core.ClosedJaxpr)
    return (jaxpr.jaxpr, jaxpr.consts) if closed else (jaxpr, ())


def bind(equation: core.JaxprEqn, operands: Sequence[Any]) -> list[Array]:
    """Evaluates one equation as it is written, and returns its results.

    What only says along which axes of a mesh values vary is left out: inside of a
    `shard_map` equations are evaluated under `jax.vmap`, which does not know it.
    """
    name, params = equation.primitive.name, equation.params
    if name == "psum_invariant":
        return [lax.psum(x, params["axes"]) for x in operands]
    if name == "all_gather_invariant":
        axis, tiled = params["all_gather_dimension"], params["tiled"]
        return [lax.all_gather(operands[0], params["axis_name"], axis=axis, tiled=tiled)]
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if name == "pvary" and not set(params["axes"]) <= set(manual):
        return [*map(jax.numpy.asarray, operands)]
    bound = equation.primitive.get_bind_params(equation.params)
    # Before JAX 0.9 this is a pair: the parameters that are functions, and the others.
    functions, params = bound if isinstance(bound, tuple) else ([], bound)
    outs = equation.primitive.bind(*functions, *operands, **params)
    return outs if equation.primitive.multiple_results else [outs]


def holds(jaxpr: Any, name: str) -> bool:
    """Whether a jaxpr, or one inside of it, has an equation with the primitive ``name``."""
    return any(
        equation.primitive.name == name
        or any(holds(inner, name) for inner in jaxprs_in(equation.params))
        for equation in opened(jaxpr)[0].eqns
    )


def jaxprs_in(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The jaxprs among the parameters of a primitive: of calls, branches and loops."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.Jaxpr | core.ClosedJaxpr):
                yield opened(one)[0]


def typed(atom: Any) -> Any:
    """The shape and dtype of an equation's operand or result: ``typed(atom).shape``."""
    return atom.aval  # which JAX annotates with a class that has neither


def beneath(x: Any) -> Any:
    """The array that a tracer of `jax.vmap` or of a derivative stands for, or a batch of.

    Where there is none, since a compiled function is traced, the tracer beneath them; and
    anything else as it is.
    """
    while isinstance(x, Tracer):
        inner = getattr(x, "val", getattr(x, "primal", None))
        if not isinstance(inner, jax.Array):
            break
        x = inner
    return x


# --- the parameters of a primitive --------------------------------------------------------


class Parameters(dict):
    """A primitive's parameters. Reading a missing one raises `FlowError`, not KeyError."""

    def __init__(self, equation: core.JaxprEqn, params: dict[str, Any]):
        super().__init__(params)
        self.equation = equation

    def __missing__(self, name: str) -> Any:
        line = user_line(self.equation) or "an unknown line"
        raise FlowError(
            f"the primitive `{self.equation.primitive.name}`, called at {line}, has no "
            f"parameter `{name}` in JAX {jax.__version__}, whose names have changed; its "
            f"parameters are {', '.join(sorted(self)) or '(none)'}."
        )


def parameters(equation: core.JaxprEqn) -> Parameters:
    """The parameters of an equation's primitive, by the same names in every version of JAX.

    ``num_consts`` and ``num_carry`` of a scan say how many of its operands are constants
    and how many are carried. From JAX 0.11 on they are the lengths of two groups.
    """
    params = equation.params
    if equation.primitive.name == "scan" and "num_consts" not in params:
        try:
            consts, carry, _ = params["ft_in"].unpack()
            params = {**params, "num_consts": len(consts), "num_carry": len(carry)}
        except (KeyError, AttributeError, TypeError, ValueError):
            pass  # a form of a later version: reading the numbers raises `FlowError`
    return Parameters(equation, params)


def switch(
    params: dict[str, Any],
    index: Any,
    branches: Sequence[Callable[..., Any]],
    operands: Sequence[Any] = (),
) -> Any:
    """One branch, by its number or by the platform that the program is compiled for. Of the
    latter the others must not be compiled: they may be written for other platforms.

    Args:
      params: of the primitive ``cond``.
      index: the number.
      branches: functions of the operands, in place of its jaxprs.
      operands: their arguments.
    """
    platforms = params.get("branches_platforms")
    if platforms is None:
        return lax.switch(index, branches, *operands)
    cases = {n: run for names, run in zip(platforms, branches) for n in names or ()}
    others = [run for names, run in zip(platforms, branches) if names is None]
    default = others[0] if others else None
    return lax.platform_dependent(*operands, default=default, **cases)


def called(params: dict[str, Any]) -> Any:
    """The jaxpr that a call evaluates.

    Raises:
      ValueError: if none of the parameters is a jaxpr under a name that is known.
    """
    for name in ("jaxpr", "call_jaxpr"):
        if name in params:
            return params[name]
    if "_prim" in params:  # `jnp.searchsorted` and others, since JAX 0.12
        primitive = params["_prim"]
        avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in primitive.in_avals_flat]
        args = jax.tree.unflatten(primitive.in_tree, avals)
        return jax.make_jaxpr(lambda *args: primitive.expand(*args))(*args)
    raise ValueError("its inner function could not be found.")


# --- the user's line ----------------------------------------------------------------------


def user_line(equation: core.JaxprEqn) -> str | None:
    """File, line and function of the innermost frame in the user's own code.

    Frames in JAX, Flax, Python's standard library and this package are skipped. If the
    model is made of Flax's layers alone, the result is the line in Flax's layer.
    """
    traceback = equation.source_info.traceback
    frames = traceback.frames if traceback else []
    frames = list(itertools.takewhile(lambda frame: not _traces(frame.file_name), frames))
    for libraries in ((_JAX, *_FLAX), (_JAX,)):
        for frame in frames:
            name = frame.file_name
            if not name.startswith(libraries) and os.path.dirname(name) != _PYTHON:
                function = frame.function_name.rsplit("<locals>.", 1)[-1]
                return f"{name}:{frame.line_num} ({function})"
    return None


def _folder(file: str) -> str:
    return os.path.dirname(os.path.abspath(file)) + os.sep


# Folders whose frames `user_line` skips. Flax's folder is found without importing Flax.
_JAX, _PYTHON = _folder(jax.__file__), os.path.dirname(os.__file__)
_FLAX = tuple(
    os.path.abspath(folder) + os.sep
    for spec in [importlib.util.find_spec("flax")]
    if spec is not None
    for folder in spec.submodule_search_locations or ()
)
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def _traces(file: str) -> bool:
    """Whether this file traces models, so that frames outside of it are not the model's.

    True of this package, apart from its models, and of JAX's file that traces a jitted
    function: JAX keeps the trace, so the frames outside may be those of an earlier call.
    """
    if file == os.path.join(_JAX, "_src", "linear_util.py"):
        return True
    return file.startswith(_OWN) and not file.startswith(os.path.join(_OWN, "models"))

"""Jaxprs, whatever the version of JAX: the one loop over equations, and what it reads.

Everything that JAX names differently from one version to the next is read here.
"""

import importlib.util
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jaxtyping import Array


class FlowError(ValueError):
    """A network that has no flow: names the primitive and the line of the model."""


# --- the loop over equations --------------------------------------------------------------


def evaluate(
    jaxpr: core.Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    step: Callable[[core.JaxprEqn, list[Any]], Sequence[Any]],
) -> list[Any]:
    """Evaluates a jaxpr equation by equation, with an evaluation of one's own.

    Args:
      jaxpr: of any function.
      consts: the values of its constants.
      args: the values of its arguments: arrays, or whatever ``step`` understands.
      step: ``step(equation, operands) -> results``, called for each equation in order.
        Literals are numpy arrays of the type that the jaxpr gives them.

    Returns:
      The values of its results.

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
            return np.asarray(atom.val, atom.aval.dtype)
        return values[atom]

    for equation in jaxpr.eqns:
        outs = step(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def opened(jaxpr: Any) -> tuple[core.Jaxpr, Sequence[Any]]:
    """A jaxpr among an equation's parameters, and the values of its constants."""
    closed = isinstance(jaxpr, core.ClosedJaxpr)
    return (jaxpr.jaxpr, jaxpr.consts) if closed else (jaxpr, ())


def bind(equation: core.JaxprEqn, operands: Sequence[Any]) -> list[Array]:
    """The results of one equation, computed as it is written."""
    bound = equation.primitive.get_bind_params(equation.params)
    # Before JAX 0.9 the functions among the parameters came apart, in a pair.
    functions, params = bound if isinstance(bound, tuple) else ([], bound)
    outs = equation.primitive.bind(*functions, *operands, **params)
    return outs if equation.primitive.multiple_results else [outs]


# --- the parameters of a primitive --------------------------------------------------------


class Parameters(dict):
    """A primitive's parameters; one that is missing is a `FlowError`, not a KeyError."""

    def __init__(self, equation: core.JaxprEqn, params: dict[str, Any]):
        super().__init__(params)
        self.equation = equation

    def __missing__(self, name: str) -> Any:
        line = user_line(self.equation) or "an unknown line"
        raise FlowError(
            f"the primitive `{self.equation.primitive.name}`, called at {line}, has no "
            f"parameter `{name}` in JAX {jax.__version__}, whose names have changed; it "
            f"has {', '.join(sorted(self)) or 'none'}."
        )


def parameters(equation: core.JaxprEqn) -> Parameters:
    """The parameters of an equation's primitive, under the same names in every JAX.

    ``num_consts`` and ``num_carry`` of a scan say how many of its operands are constants
    and how many are carried; from JAX 0.11 on they are the lengths of two groups.
    """
    params = equation.params
    if equation.primitive.name == "scan" and "num_consts" not in params:
        try:
            consts, carry, _ = params["ft_in"].unpack()
            params = {**params, "num_consts": len(consts), "num_carry": len(carry)}
        except (KeyError, AttributeError, TypeError, ValueError):
            pass  # another form yet: whoever asks for the numbers is told
    return Parameters(equation, params)


def called(params: Parameters) -> Any:
    """The jaxpr that a call evaluates.

    Raises:
      ValueError: if there is none.
    """
    for name in ("jaxpr", "call_jaxpr"):
        if name in params:
            return params[name]
    raise ValueError("its inner function could not be found.")


# --- the user's line ----------------------------------------------------------------------


def user_line(equation: core.JaxprEqn) -> str | None:
    """File, line and function of the innermost frame that is the user's own code.

    That is outside of JAX, Flax, Python's library and this package; of a model made of
    Flax's layers alone, the line of the layer.
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


# Code that stands between the user's model and the primitive. Flax is not imported for it.
_JAX, _PYTHON = _folder(jax.__file__), os.path.dirname(os.__file__)
_FLAX = tuple(
    os.path.abspath(folder) + os.sep
    for spec in [importlib.util.find_spec("flax")]
    if spec is not None
    for folder in spec.submodule_search_locations or ()
)
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def _traces(file: str) -> bool:
    """Whether a frame's file is one that traces models, so that the user's code ends there.

    JAX's tracing of a jitted function is among them: its callers may be of an earlier call.
    """
    if file == os.path.join(_JAX, "_src", "linear_util.py"):
        return True
    return file.startswith(_OWN) and not file.startswith(os.path.join(_OWN, "models"))

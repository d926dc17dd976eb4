"""Compiled programs that are found again while the function that they belong to is alive.

Who ranks thousands of networks makes thousands of functions, and a program for each. It is
dropped with its function.
"""

import functools
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import jax

from synflow_jax.xla.backends import has_convolutions, on_backend

_PROGRAMS: weakref.WeakKeyDictionary[Any, dict[Hashable, Callable[..., Any]]]
_PROGRAMS = weakref.WeakKeyDictionary()


def program(
    body: Callable[..., Any], function: Callable[..., Any], *options: Any
) -> Callable[..., Any]:
    """``body(function, *options, backend, *args)`` as a compiled function of ``args``.

    Args:
      body: a function of the module, traceable by JAX; ``backend`` is where it runs.
      function: the user's function or method. For one that cannot be hashed or referred to
        weakly, such as a module with arrays, each call makes a new program.
      options: static.

    Returns:
      The same compiled function for equal arguments.

    Example:
      >>> add = lambda x: x + 1
      >>> program(map, add) is program(map, add)
      True
    """
    method = isinstance(function, types.MethodType)
    owner: Any = function.__self__ if method else function
    key = (body, function.__func__ if method else None, options)
    try:
        programs = _PROGRAMS.setdefault(owner, {})
    except TypeError:
        return _on_backend(functools.partial(body, function, *options))
    if key not in programs:
        programs[key] = _compiled(body, weakref.ref(owner), key[1], options)
    return programs[key]


def _compiled(
    body: Callable[..., Any],
    owner: Callable[[], Any],
    method: Callable[..., Any] | None,
    options: tuple[Any, ...],
) -> Callable[..., Any]:
    def run(backend, *args):
        alive = owner()  # while it is called
        function = alive if method is None else types.MethodType(method, alive)
        return body(function, *options, backend, *args)

    return _on_backend(run)


def _on_backend(run: Callable[..., Any]) -> Callable[..., Any]:
    compiled = jax.jit(run, static_argnums=0)
    return functools.partial(on_backend, compiled, differs=has_convolutions)

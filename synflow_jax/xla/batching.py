"""Batches: one element after the other on a CPU, and branches that stay branches."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, PyTree

from synflow_jax.xla.backends import Backend, on_backend
from synflow_jax.xla.constants import hoisted


def one_by_one(backend: Backend, function: Callable) -> Callable:
    """Makes `jax.vmap` of a function run one element at a time on a CPU.

    A CPU has no idle cores for a batch, and XLA's convolutions with a different kernel for
    every image are slow there.
    """

    def call(*args):
        traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(args))
        if not backend.cpu or not traced:
            return function(*args)
        # The function may close over arrays that are part of the batch, such as the data of
        # a criterion. `sequential_vmap` batches only arguments, so they become arguments.
        pure, constants = hoisted(function, *args)
        # `sequential_vmap` has no reverse mode. None is needed: masks have no gradient.
        operands = lax.stop_gradient((constants, *args))
        return jax.custom_batching.sequential_vmap(pure)(*operands)

    return call


def each_on_backend(function: Callable) -> Callable:
    """`one_by_one` of ``function(backend, *args)``, as a function of ``args``."""

    def each(backend, *args):
        return one_by_one(backend, functools.partial(function, backend))(*args)

    return functools.partial(on_backend, each)


def when(predicate: Bool[Array, ""], function: Callable, first: PyTree, *rest) -> PyTree:
    """``function(first, *rest)`` if a predicate holds, and otherwise ``first``.

    Under `jax.vmap`, `jax.lax.cond` with a batch of predicates computes both branches for
    every element, always. This one computes the function if the predicate holds for some
    element, and skips it if it holds for none.

    Args:
      predicate: one boolean.
      function: returns a pytree like ``first``.
      first, rest: its arguments.

    Example:
      >>> double = jax.vmap(lambda yes, x: when(yes, lambda x: 2 * x, x))
      >>> double(jnp.array([True, False]), jnp.array([1.0, 1.0]))
      Array([2., 1.], dtype=float32)
    """

    def changed(first, *rest):
        new = function(first, *rest)
        return jax.tree.map(lambda n, o: jnp.where(predicate, n, o), new, first)

    if not isinstance(predicate, Tracer):
        return function(first, *rest) if predicate else first
    return lax.cond(_for_some(predicate), changed, lambda first, *_: first, first, *rest)


@jax.custom_batching.custom_vmap
def _for_some(predicate: Bool[Array, ""]) -> Bool[Array, ""]:
    """The predicate; of a batch, whether one of them holds: one boolean for all."""
    return predicate


@_for_some.def_vmap
def _for_some_of_a_batch(axis_size, is_batched, predicates):
    del axis_size
    (batched,) = is_batched
    return _for_some(jnp.any(predicates, axis=0) if batched else predicates), False

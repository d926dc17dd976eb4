"""Runs the elements of a batch one after the other on a CPU."""

from collections.abc import Callable

import jax
from jax import lax
from jax.core import Tracer

from synflow_jax.xla.constants import hoisted


def one_by_one(function: Callable) -> Callable:
    """Makes `jax.vmap` of a function run one element at a time on a CPU.

    A CPU has no idle cores for a batch, and XLA's convolutions with a different kernel for
    every image are slow there.
    """

    def call(*args):
        traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(args))
        if jax.default_backend() != "cpu" or not traced:
            return function(*args)
        # The function may close over arrays that are part of the batch, such as the data of
        # a criterion. `sequential_vmap` batches only arguments, so they become arguments.
        pure, constants = hoisted(function, *args)
        # `sequential_vmap` has no reverse mode. None is needed: masks have no gradient.
        operands = lax.stop_gradient((constants, *args))
        return jax.custom_batching.sequential_vmap(pure)(*operands)

    return call

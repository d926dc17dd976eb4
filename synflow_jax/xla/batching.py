"""How a batch of prunings runs: on a CPU one element at a time."""

from collections.abc import Callable

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun


def one_by_one(function: Callable) -> Callable:
    """Under `jax.vmap` on a CPU: each element of the batch by itself.

    A CPU has no cores to spare for a batch, and XLA's convolutions with a kernel for each
    image are slow there.
    """

    def call(*args):
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args))
        if jax.default_backend() != "cpu" or not traced:
            return function(*args)
        # What the criterion closes over, such as its data, may be part of the batch, and
        # `sequential_vmap` batches nothing but arguments.
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)

        def flat(consts, leaves):
            return jaxpr_as_fun(ClosedJaxpr(program.jaxpr, consts))(*leaves)

        # Masks have no gradient; said here, since `sequential_vmap` has no reverse mode.
        operands = lax.stop_gradient((program.consts, jax.tree.leaves(args)))
        outs = jax.custom_batching.sequential_vmap(flat)(*operands)
        return jax.tree.unflatten(jax.tree.structure(shapes), outs)

    return call

"""Branches and scans: the flow goes inside."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from synflow_jax.equations import Equation, Value, must_be_plain
from synflow_jax.scaled import Scaled, normalised, nothing, power_of_two


def cond(equation: Equation, index: Value, *operands: Value):
    """Goes inside every branch; one that returns a parameter value returns no flow."""
    must_be_plain([index], "the branch that it takes")
    branches = equation.params["branches"]
    shapes = [
        jax.eval_shape(lambda *x, branch=branch: equation.inside(branch, *x), *operands)
        for branch in branches
    ]
    carries = [any(isinstance(x, Scaled) for x in outs) for outs in zip(*shapes)]

    def taken(branch):
        def run(*operands):
            outs = equation.inside(branch, *operands)
            return _flowing(outs, carries, _dtype_of(operands))

        return run

    return lax.switch(index, [taken(branch) for branch in branches], *operands)


def scan(equation: Equation, *operands: Value):
    """Goes inside at every step; a carried value that meets the flow starts without any."""
    params = equation.params
    start, stop = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, init, xs = operands[:start], operands[start:stop], operands[stop:]
    dtype = _dtype_of(operands)

    def step(carry, xs):
        # Entries of one array share its exponent.
        rows = [Scaled(*x) if isinstance(x, Scaled) else x for x in xs]
        outs = equation.inside(params["jaxpr"], *consts, *carry, *rows)
        return outs[: len(init)], outs[len(init) :]

    def sliced(x):
        if isinstance(x, Scaled):
            exponents = jnp.broadcast_to(x.exponent, (params["length"],))
            return Scaled(x.mantissa, exponents)
        return x

    xs = [sliced(x) for x in xs]
    rows = jax.tree.map(lambda x: x[0], xs)
    carries = [isinstance(x, Scaled) for x in init]
    while True:  # until the kinds of the carried values settle
        init = _flowing(init, carries, dtype)
        outs, _ = jax.eval_shape(step, init, rows)
        settled = [a or isinstance(x, Scaled) for a, x in zip(carries, outs)]
        if settled == carries:
            break
        carries = settled

    def typed_step(carry, xs):
        outs, ys = step(carry, xs)
        return _flowing(outs, carries, dtype), ys

    carry, ys = lax.scan(
        typed_step,
        init,
        xs,
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *map(_on_one_exponent, ys)]


def _flowing(values: Sequence[Value], carries: Sequence[bool], dtype) -> list[Value]:
    """The values with those that are to carry flow made flows of nothing."""
    return [
        nothing(jnp.shape(x), dtype) if carry and not isinstance(x, Scaled) else x
        for x, carry in zip(values, carries)
    ]


def _dtype_of(operands: Sequence[Value]):
    return next(x.mantissa.dtype for x in operands if isinstance(x, Scaled))


def _on_one_exponent(stacked: Value) -> Value:
    """Steps of a scan, each with an exponent, as one array."""
    if not isinstance(stacked, Scaled) or stacked.exponent.ndim == 0:
        return stacked
    if not stacked.exponent.size:
        return normalised(stacked.mantissa)
    top = stacked.exponent.max()
    factors = power_of_two(stacked.exponent - top, stacked.mantissa.dtype)
    shape = (-1,) + (1,) * (stacked.mantissa.ndim - 1)
    return normalised(stacked.mantissa * factors.reshape(shape), top)

"""Rules of products over an axis: opacity along a ray, probabilities of a sequence."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from synflow_jax.transform.contractions import root
from synflow_jax.transform.history import shift_of
from synflow_jax.transform.scaled import normalised
from synflow_jax.transform.values import Derived, Equation, Value, plain_or_flow


def reduce_prod(equation: Equation, flow: Value):
    """The geometric mean of the factors, as for a product of two flows: it has degree one
    and is zero if any factor is. Factors to which a number was added are multiplied out, in
    order, as if the product were written by ``*``."""
    mantissa, exponent = plain_or_flow(flow)
    axes = equation.params["axes"]
    ahead = jnp.moveaxis(mantissa, axes, range(len(axes)))
    rows = ahead.reshape(-1, *ahead.shape[len(axes) :])
    number = shift_of(flow)
    if number and len(rows):
        product = _multiplied_out(equation, rows, number)[-1]
        return [Derived(normalised(product, exponent), shift=number ** len(rows))]
    return [normalised(_mean(rows), exponent)]


def cumprod(equation: Equation, flow: Value):
    """As `reduce_prod`, of the factors so far."""
    mantissa, exponent = plain_or_flow(flow)
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    rows = jnp.moveaxis(mantissa, axis, 0)
    rows = jnp.flip(rows, 0) if reverse else rows
    number = shift_of(flow)
    means = _multiplied_out(equation, rows, number) if number else _running_means(rows)
    means = jnp.flip(means, 0) if reverse else means
    result = normalised(jnp.moveaxis(means, 0, axis), exponent)
    # Powers of another number differ between the entries.
    return [Derived(result, shift=1.0)] if number == 1 else [result]


def _mean(rows: Array) -> Array:
    """The n-th root of the product of n rows; zero, without a derivative, if one is."""
    if not len(rows):
        return jnp.zeros(rows.shape[1:], rows.dtype)
    dead, logs = _logs(rows)
    mean = jnp.exp(jnp.sum(logs, axis=0) / len(rows))
    return jnp.where(jnp.any(dead, axis=0), 0, mean)


def _running_means(rows: Array) -> Array:
    dead, logs = _logs(rows)
    counts = jnp.arange(1, len(rows) + 1, dtype=rows.dtype)
    counts = counts.reshape(-1, *(1,) * (rows.ndim - 1))
    means = jnp.exp(lax.cumsum(logs, axis=0) / counts)
    return jnp.where(lax.cummax(dead.astype(jnp.int32), axis=0) > 0, 0, means)


def _logs(rows: Array) -> tuple[Array, Array]:
    dead = rows == 0
    return dead, jnp.log(jnp.where(dead, 1, jnp.abs(rows)))


def _multiplied_out(equation: Equation, rows: Array, number: float) -> Array:
    """The running products of factors ``number + row``, without the number that each leaves
    out: ``(c + p) * (d + s)`` has the flow ``|c| s + |d| p + sqrt(p s)``."""
    sizes = np.abs(float(number)) ** np.arange(1, len(rows) + 1)
    sizes = [equation.absolute(np.asarray(size, equation.dtype)) for size in sizes]
    one = equation.absolute(np.asarray(abs(number), equation.dtype))

    def step(product, factor):
        row, before = factor
        product = before * row + one * product + root(product) * root(row)
        return product, product

    if not len(rows):
        return rows
    before = jnp.stack(sizes[:-1]) if len(rows) > 1 else jnp.zeros((0,), rows.dtype)
    _, others = lax.scan(step, rows[0], (rows[1:], before))
    return jnp.concatenate([rows[:1], others])


def product_of_reached(equation: Equation, flow: Value):
    """Of zeros and ones: reached where every factor is, or any, if a number was added."""
    mantissa, exponent = plain_or_flow(flow)
    cumulative = equation.name == "cumprod"
    names = ("axis", "reverse") if cumulative else ("axes",)
    settings = {name: equation.params[name] for name in names}
    if shift_of(flow):
        combine = lax.cumsum if cumulative else lax.reduce_sum
    else:
        combine = lax.cumprod if cumulative else lax.reduce_prod
    result = normalised(combine(mantissa, **settings), exponent)
    size = 1 if cumulative else math.prod(mantissa.shape[k] for k in settings["axes"])
    return [Derived(result, shift=shift_of(flow) ** size)]

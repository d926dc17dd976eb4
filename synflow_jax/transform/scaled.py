"""Numbers that cannot overflow: an array times a power of two.

Multiplying by a power of two is exact. So a `Scaled` array has the digits of a float, and
an int32 exponent that no network is deep enough to exhaust.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

# The exponent of an array of zeros: below every exponent that a network can reach.
_ZERO = -(2**24)


class Scaled(NamedTuple):
    """``mantissa * 2.0**exponent``.

    Attributes:
      mantissa: floating, any shape; `normalised` makes its largest entry lie in [1, 2).
      exponent: one int32 for the whole array. Constant under differentiation.
    """

    mantissa: Float[Array, "..."]
    exponent: Int[Array, ""]


def normalised(mantissa: Array, exponent: Int[Array, ""] | int = 0) -> Scaled:
    """Moves the power of two of the mantissa's largest entry into the exponent.

    Entries below 2**-100 of the largest become zero and pass no gradient. That keeps every
    gradient finite: by the conservation law an entry times its gradient is at most the
    total.
    """
    biased, moved = _exponent_of_largest(mantissa, exponent)
    bias, digits, whole = _layout(mantissa.dtype)
    factor = lax.shift_left(whole.type(2 * bias) - biased, whole.type(digits))
    factor = lax.bitcast_convert_type(factor, mantissa.dtype)
    return Scaled(_visible(lax.mul, mantissa, factor), moved)


def normalised_once(mantissa: Array, exponent: Int[Array, ""] | int = 0) -> Scaled:
    """As `normalised`, for a value that many later equations read, such as a residual
    stream.

    XLA recomputes a chain of sums and products in every equation that reads its end. After
    hundreds of residual sums that would be most of the program, and take hours to compile.
    XLA computes a division only once.
    """
    biased, moved = _exponent_of_largest(mantissa, exponent)
    _, digits, whole = _layout(mantissa.dtype)
    divisor = lax.bitcast_convert_type(
        lax.shift_left(biased, whole.type(digits)), mantissa.dtype
    )
    return Scaled(_visible(lax.div, mantissa, divisor), moved)


def _exponent_of_largest(
    x: Array, exponent: Int[Array, ""] | int
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The exponent of the largest entry: biased, as in the bits of a float; and unbiased,
    with another one added.

    Zeros are multiplied by 1: by the largest power of two they would become NaN where XLA
    multiplies it first with a constant of the network. However often they are multiplied,
    their exponent does not leave its place.
    """
    # In lax instead of jax.numpy, which takes longer to trace: every equation of a network
    # comes here.
    bias, digits, whole = _layout(x.dtype)
    integer = whole.type
    if x.size:
        # Absolute values of floats compare like their bits, and XLA finds the largest
        # integer in one pass but the largest float in two.
        bits = lax.bitcast_convert_type(lax.abs(lax.stop_gradient(x)), whole)
        bits = lax.reduce_max(bits, range(x.ndim))
    else:
        bits = jnp.zeros((), whole)
    zero = lax.eq(bits, integer(0))
    biased = lax.shift_right_logical(bits, integer(digits))
    biased = lax.clamp(integer(1), biased, integer(2 * bias - 1))
    biased = lax.select(zero, integer(bias), biased)
    number = lax.convert_element_type(biased - integer(bias), jnp.int32)
    return biased, lax.select(zero, jnp.int32(_ZERO), number + exponent)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _visible(scaled: Callable, x: Array, unit: Array) -> Array:
    """``x`` scaled, without its smallest entries. A NaN stays, to be reported."""
    x = scaled(x, lax.broadcast(unit, x.shape))
    small = lax.lt(lax.abs(x), lax.full_like(x, 2.0**-100))
    return lax.select(small, lax.full_like(x, 0), x)


@_visible.defjvp
def _(scaled, primals, tangents):
    # The derivative is written in terms of the result, which is kept anyway. Written in
    # terms of ``x``, it would keep ``x`` too until the backward pass.
    result = _visible(scaled, *primals)
    change = scaled(tangents[0], lax.broadcast(primals[1], result.shape))
    seen = lax.ne(result, lax.full_like(result, 0))
    return result, lax.select(seen, change, lax.full_like(change, 0))


def nothing(x: Array | np.ndarray, dtype) -> Scaled:
    """A flow of zeros in the place of an array, with an exponent below that of any other
    flow."""
    return normalised(jnp.zeros_like(x, dtype))


def aligned(values: list[Scaled]) -> tuple[list[Array], Int[Array, ""]]:
    """The mantissas for a common exponent, the largest of all."""
    top = values[0].exponent
    for value in values[1:]:
        top = jnp.maximum(top, value.exponent)
    mantissas = [
        value.mantissa * power_of_two(value.exponent - top, value.mantissa.dtype)
        for value in values
    ]
    return mantissas, top


def total(values: list[Scaled]) -> Scaled:
    """The sum of flows that are normalised; of one flow, itself."""
    if len(values) == 1:
        return values[0]
    mantissas, exponent = aligned(values)
    return normalised(sum(mantissas[1:], mantissas[0]), exponent)


def log(value: Scaled) -> Float[Array, "..."]:
    """Natural logarithm of every entry; minus infinity for zero."""
    exponent = value.exponent.astype(value.mantissa.dtype)
    return jnp.log(value.mantissa) + exponent * jnp.log(2.0).astype(exponent.dtype)


def power_of_two(exponent: Int[Array, "..."], dtype) -> Float[Array, "..."]:
    """Two to an integer power that is at most 0; zero if it is too small for the type."""
    bias, digits, whole = _layout(dtype)
    biased = jnp.maximum(exponent + bias, 0).astype(whole)
    return lax.bitcast_convert_type(biased << digits, dtype)


def _layout(dtype) -> tuple[int, int, jnp.dtype]:
    """Layout of a float type: exponent bias, number of mantissa bits, integer type as
    wide."""
    info = jnp.finfo(dtype)
    return 1 - int(info.minexp), info.nmant, jnp.dtype(f"int{info.bits}")

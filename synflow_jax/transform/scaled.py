"""Numbers that cannot overflow: an array times a power of two.

Powers of two round nothing, so a `Scaled` array has the digits of an ordinary float and an
exponent that no network is deep enough to exhaust.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

# The exponent of an array of zeros: below every exponent that a computation can reach.
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
    """Moves the size of the mantissa's largest entry into the exponent.

    Entries more than 100 binary places below the largest become zero and pass no gradient,
    which keeps every gradient finite: by the conservation law an entry times its gradient
    is at most the total.
    """
    biased, moved = _size(mantissa)
    bias, digits, whole = _layout(mantissa.dtype)
    factor = lax.shift_left(whole.type(2 * bias) - biased, whole.type(digits))
    factor = lax.bitcast_convert_type(factor, mantissa.dtype)
    return Scaled(_visible(lax.mul, mantissa, factor), moved + exponent)


def normalised_once(mantissa: Array, exponent: Int[Array, ""] | int = 0) -> Scaled:
    """As `normalised`, for what many later equations read, such as a residual stream.

    XLA computes a chain of sums and products anew in everything that reads its end. After
    hundreds of residual sums that would be most of the program, and hours of compiling. A
    division it computes once.
    """
    biased, moved = _size(mantissa)
    _, digits, whole = _layout(mantissa.dtype)
    divisor = lax.bitcast_convert_type(
        lax.shift_left(biased, whole.type(digits)), mantissa.dtype
    )
    return Scaled(_visible(lax.div, mantissa, divisor), moved + exponent)


def _size(x: Array) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The exponent of the largest entry, as a float's bits have it and as a number."""
    # In lax, not in jax.numpy: every equation of a network comes here, and jax.numpy takes
    # longer to trace.
    bias, digits, whole = _layout(x.dtype)
    integer = whole.type
    if x.size:
        # Sizes of floats compare as their bits do, and XLA looks for the largest integer in
        # one pass, for the largest float in two.
        bits = lax.bitcast_convert_type(lax.abs(lax.stop_gradient(x)), whole)
        bits = lax.reduce_max(bits, range(x.ndim))
    else:
        bits = jnp.zeros((), whole)
    biased = lax.shift_right_logical(bits, integer(digits))
    biased = lax.clamp(integer(1), biased, integer(2 * bias - 1))
    number = lax.convert_element_type(biased - integer(bias), jnp.int32)
    return biased, lax.select(bits == 0, jnp.int32(_ZERO), number)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _visible(scaled: Callable, x: Array, unit: Array) -> Array:
    """``x`` scaled, without its smallest entries. A NaN is not small: it is reported."""
    x = scaled(x, lax.broadcast(unit, x.shape))
    small = lax.lt(lax.abs(x), lax.full_like(x, 2.0**-100))
    return lax.select(small, lax.full_like(x, 0), x)


@_visible.defjvp
def _(scaled, primals, tangents):
    # In terms of the result, which is kept anyway: in terms of ``x``, the compiler would
    # keep that too until the backward pass.
    result = _visible(scaled, *primals)
    change = scaled(tangents[0], lax.broadcast(primals[1], result.shape))
    seen = lax.ne(result, lax.full_like(result, 0))
    return result, lax.select(seen, change, lax.full_like(change, 0))


def nothing(shape: tuple[int, ...], dtype) -> Scaled:
    """Zeros, smaller than any other flow."""
    return normalised(jnp.zeros(shape, dtype))


def aligned(values: list[Scaled]) -> tuple[list[Array], Int[Array, ""]]:
    """The mantissas on a common exponent, the largest of theirs."""
    top = values[0].exponent
    for value in values[1:]:
        top = jnp.maximum(top, value.exponent)
    mantissas = [
        value.mantissa * power_of_two(value.exponent - top, value.mantissa.dtype)
        for value in values
    ]
    return mantissas, top


def log(value: Scaled) -> Float[Array, "..."]:
    """Natural logarithm of every entry; minus infinity for zero."""
    exponent = value.exponent.astype(value.mantissa.dtype)
    return jnp.log(value.mantissa) + exponent * jnp.log(2.0).astype(exponent.dtype)


def power_of_two(exponent: Int[Array, "..."], dtype) -> Float[Array, "..."]:
    """Two to a whole power that is not positive; zero if too small for the type."""
    bias, digits, whole = _layout(dtype)
    biased = jnp.maximum(exponent + bias, 0).astype(whole)
    return lax.bitcast_convert_type(biased << digits, dtype)


def _layout(dtype) -> tuple[int, int, jnp.dtype]:
    """Of a float's bits: the exponent's bias, the digits below it, and integers as wide."""
    info = jnp.finfo(dtype)
    return 1 - int(info.minexp), info.nmant, jnp.dtype(f"int{info.bits}")

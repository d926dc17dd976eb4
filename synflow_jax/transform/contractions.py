"""Where the flow meets weights: products and convolutions."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from synflow_jax.transform.scaled import Scaled, normalised
from synflow_jax.transform.values import Equation, Value
from synflow_jax.xla.convolutions import conv


def factors(
    equation: Equation, left: Value, right: Value
) -> tuple[Array, Array, Int[Array, ""]]:
    """What to multiply for a product that conserves the flow, and its exponent.

    A parameter counts in its size. Two flows are multiplied by their square roots: the
    geometric mean is of degree one, dies with either, and each of the two passes on half.
    """
    if isinstance(left, Scaled) and isinstance(right, Scaled):
        exponent = left.exponent + right.exponent
        odd = jnp.where(exponent % 2 == 1, 2.0**0.5, 1.0).astype(left.mantissa.dtype)
        return _root(left.mantissa) * odd, _root(right.mantissa), exponent // 2
    if isinstance(left, Scaled):
        return left.mantissa, equation.size(right), left.exponent
    return equation.size(left), right.mantissa, right.exponent


def _root(x: Array) -> Array:
    """The square root of the size, with the sign; at zero its derivative is zero."""
    at_zero = x == 0
    root = jnp.sqrt(jnp.abs(jnp.where(at_zero, jnp.ones_like(x), x)))
    return jnp.where(at_zero, jnp.zeros_like(x), lax.stop_gradient(jnp.sign(x)) * root)


def dot_general(equation: Equation, left: Value, right: Value):
    """A product with the sizes of the weights; of two flows (attention), of their roots."""
    left, right, exponent = factors(equation, left, right)
    product = lax.dot_general(
        left,
        right,
        dimension_numbers=equation.params["dimension_numbers"],
        precision=lax.Precision.HIGHEST,
    )
    return [normalised(product, exponent)]


def ragged_dot_general(equation: Equation, left: Value, right: Value, *sizes: Value):
    """As a product; which rows meet which matrix is a parameter value."""
    left, right, exponent = factors(equation, left, right)
    names = ("ragged_dot_dimension_numbers", "group_offset")
    product = lax.ragged_dot_general(
        left,
        right,
        *sizes,
        precision=lax.Precision.HIGHEST,
        **{name: equation.params[name] for name in names},
    )
    return [normalised(product, exponent)]


def conv_general_dilated(equation: Equation, image: Value, kernel: Value):
    """A convolution with the size of its kernel; of two flows, of their roots."""
    image, kernel, exponent = factors(equation, image, kernel)
    settings = equation.params | dict(
        precision=lax.Precision.HIGHEST, preferred_element_type=None
    )
    settings.pop("out_sharding", None)
    return [normalised(conv(image, kernel, settings), exponent)]

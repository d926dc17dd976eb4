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
    """The two factors of a product that conserves the flow, and the product's exponent.

    A parameter enters with its absolute value. Two flows enter with their square roots:
    their geometric mean has degree one, is zero if either is, and each of the two passes on
    half of it.
    """
    if isinstance(left, Scaled) and isinstance(right, Scaled):
        exponent = left.exponent + right.exponent
        odd = jnp.where(exponent % 2 == 1, 2.0**0.5, 1.0).astype(left.mantissa.dtype)
        return _root(left.mantissa) * odd, _root(right.mantissa), exponent // 2
    if isinstance(left, Scaled):
        return left.mantissa, equation.absolute(right), left.exponent
    return equation.absolute(left), right.mantissa, right.exponent


def _root(x: Array) -> Array:
    """``sign(x) * sqrt(|x|)``, whose derivative at zero is set to zero."""
    at_zero = x == 0
    root = jnp.sqrt(jnp.abs(jnp.where(at_zero, jnp.ones_like(x), x)))
    return jnp.where(at_zero, jnp.zeros_like(x), lax.stop_gradient(jnp.sign(x)) * root)


def dot_general(equation: Equation, left: Value, right: Value):
    """Matrix product with |w|. Two flows (attention) are multiplied by their square
    roots."""
    left, right, exponent = factors(equation, left, right)
    product = lax.dot_general(
        left,
        right,
        dimension_numbers=equation.params["dimension_numbers"],
        precision=lax.Precision.HIGHEST,
    )
    return [normalised(product, exponent)]


def ragged_dot_general(equation: Equation, left: Value, right: Value, *sizes: Value):
    """As `dot_general`; which rows meet which matrix is a parameter value."""
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
    """Convolution with |kernel|. Two flows are convolved by their square roots."""
    image, kernel, exponent = factors(equation, image, kernel)
    settings = equation.params | dict(
        precision=lax.Precision.HIGHEST, preferred_element_type=None
    )
    settings.pop("out_sharding", None)
    return [normalised(conv(image, kernel, settings), exponent)]

"""Where the flow meets weights: products and convolutions."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from synflow_jax.transform.history import shift_of
from synflow_jax.transform.scaled import Scaled, normalised, total
from synflow_jax.transform.values import Equation, Value, as_array, plain_or_flow
from synflow_jax.transform.weights import Weight
from synflow_jax.xla.convolutions import conv
from synflow_jax.xla.row_products import in_parts, row_product


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
        return root(left.mantissa) * odd, root(right.mantissa), exponent // 2
    if isinstance(left, Scaled):
        return left.mantissa, equation.absolute(right), left.exponent
    return equation.absolute(left), right.mantissa, right.exponent


def root(x: Array) -> Array:
    """``sign(x) * sqrt(|x|)``, whose derivative at zero is set to zero."""
    at_zero = x == 0
    root = jnp.sqrt(jnp.abs(jnp.where(at_zero, jnp.ones_like(x), x)))
    return jnp.where(at_zero, jnp.zeros_like(x), lax.stop_gradient(jnp.sign(x)) * root)


def dot_general(equation: Equation, left: Value, right: Value):
    """Matrix product with |w|. Two flows (attention) are multiplied by their square roots,
    and a number that was added to one of them by the other."""

    def product(left, right, exponent):
        result = lax.dot_general(
            left,
            right,
            dimension_numbers=equation.params["dimension_numbers"],
            precision=lax.Precision.HIGHEST,
            out_sharding=equation.params.get("out_sharding"),
        )
        return normalised(result, exponent)

    values = [as_array(plain_or_flow(value)) for value in (left, right)]
    weight = equation.weights.behind(right)
    if weight is not None and _in_parts(equation, values[0].mantissa, weight):
        row, exponent = values[0]
        return [normalised(row_product(row, *weight), exponent)]
    terms = [product(*factors(equation, *values))]
    if all(isinstance(value, Scaled) for value in values):
        (a, e), (b, f) = values
        if shift_of(left):
            terms.append(product(_number(equation, shift_of(left), a), b, f))
        if shift_of(right):
            terms.append(product(a, _number(equation, shift_of(right), b), e))
    return [total(terms)]


def _in_parts(equation: Equation, row: Array, weight: Weight) -> bool:
    numbers = equation.params["dimension_numbers"]
    same = row.dtype == weight.stored.dtype and equation.is_absolute
    return same and in_parts(equation.backend, row, weight.stored, numbers)


def _number(equation: Equation, number: float, flow: Array) -> Array:
    """A number in the place of each entry of a flow."""
    absolute = equation.absolute(np.asarray(number, equation.dtype))
    return jnp.broadcast_to(absolute, flow.shape)


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
    if settings.get("out_sharding") is None:  # which not all versions of JAX take
        settings.pop("out_sharding", None)
    return [normalised(conv(equation.backend, image, kernel, settings), exponent)]

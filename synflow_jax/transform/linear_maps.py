"""The rule of linear solves: the inverse of a matrix of parameters is a layer."""

import math

import jax
import jax.numpy as jnp

from synflow_jax.transform.scaled import normalised
from synflow_jax.transform.values import Equation, Value, carries_flow, must_be_plain

# Entries of a matrix that the rule may compute, 256 MB in single precision.
_MOST = 2**26


def solve(equation: Equation, *operands: Value):
    """A product with the absolute values of the inverse matrix, which is computed from
    parameters: each of its entries is a weight that the network makes."""
    number = sum(equation.params["const_lengths"])
    constants, sides = operands[:number], operands[number:]
    must_be_plain(constants, "the matrix that is solved")
    flows = [i for i, side in enumerate(sides) if carries_flow(side)]
    if len(flows) != 1 or len(sides) != 1:
        raise ValueError("it solves for several arrays at once: solve for one at a time.")
    mantissa, exponent = sides[0]
    (shape,) = equation.out_shapes
    size = mantissa.size
    if size * math.prod(shape) > _MOST:
        raise ValueError(
            f"the inverse would be a matrix of {size} by {math.prod(shape)} entries: "
            "write it as a product, `jnp.linalg.inv(matrix) @ x`."
        )
    # Column by column, since only the map is known and not the matrix.
    basis = jnp.eye(size, dtype=mantissa.dtype).reshape(size, *mantissa.shape)
    columns = jax.vmap(lambda side: equation.bind(*constants, side)[0])(basis)
    sizes = equation.absolute(columns.reshape(size, -1))
    total = jnp.matmul(mantissa.reshape(-1), sizes, precision="highest")
    return [normalised(total.reshape(shape), exponent)]

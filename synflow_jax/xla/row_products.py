"""Products of few rows with a matrix, whose time is that of reading and writing the matrix.

So gradients in the matrix are computed where they are used, and the absolute values of a
large masked matrix a part at a time.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from synflow_jax.xla.backends import Backend
from synflow_jax.xla.placement import is_divided

# Entries of a matrix from which on its parts are faster, and of a part: it fits in a cache.
_LARGE = 2**23
_PART = 2**20

# Before version 0.10 JAX cannot transpose the loop over parts.
_TRANSPOSES = jax.__version_info__ >= (0, 10)

# The number of rows up to which the gradient of a product in the matrix is computed where
# it is used. Each costs a multiply-add for each entry of the matrix.
_FEW = 16


def matrix_product(rows: Array, matrix: Array) -> Array:
    """``rows @ matrix``, as a CPU has the gradient in the matrix fastest.

    The gradient of a product of few rows is a sum of few outer products. XLA computes one
    where it is used, but several as a matrix of their own, which it writes and reads again.

    Args:
      rows: of shape [..., n].
      matrix: of shape [n, m].

    Returns:
      Shape [..., m].
    """
    if not 1 < math.prod(rows.shape[:-1]) <= _FEW:
        return times(rows, matrix)
    out = _product_of_few(rows.reshape(-1, rows.shape[-1]), matrix)
    return out.reshape(*rows.shape[:-1], -1)


@jax.custom_jvp
def _product_of_few(rows, matrix):
    return times(rows, matrix)


@functools.partial(_product_of_few.defjvp, symbolic_zeros=True)
def _(primals, tangents):
    (rows, matrix), (of_rows, of_matrix) = primals, tangents
    changes = []
    if not isinstance(of_rows, SymbolicZero):
        changes.append(times(of_rows, matrix))
    if not isinstance(of_matrix, SymbolicZero):
        # The transpose of each sum is an outer product of a row and of what flows back. The
        # product with the unit matrix has that computed before, and not for each entry.
        sums = jnp.stack([(row[:, None] * of_matrix).sum(0) for row in rows])
        changes.append(times(jnp.eye(len(rows), dtype=rows.dtype), sums))
    return times(rows, matrix), functools.reduce(jnp.add, changes)


def in_parts(
    backend: Backend, rows: Array, weight: Array, numbers: lax.DotDimensionNumbers
) -> bool:
    """Whether `row_product` is faster than the product with all absolute values: on a CPU,
    of one row and a large matrix. Half of that product's time is writing and reading them.

    Args:
      backend: where it runs.
      rows, weight: the factors, in this order.
      numbers: as `lax.dot_general` takes them.
    """
    one_row = weight.ndim == 2 and rows.size == weight.shape[0]
    as_written = rows.ndim > 0 and numbers == (((rows.ndim - 1,), (0,)), ((), ()))
    return (
        _TRANSPOSES
        and backend.cpu
        and one_row
        and as_written
        and weight.size >= _LARGE
        and _rows_of_part(weight) * weight.shape[1] >= _PART // 8
        and not (is_divided(rows) or is_divided(weight))
    )


def row_product(row: Array, weight: Array, mask: Array | None) -> Array:
    """``row @ abs(where(mask, weight, 0))``, with no copy of the matrix.

    Neither has the gradient in the row one; the gradient in the matrix is an outer product,
    which XLA computes where it is used.

    Args:
      row: floating, of shape [..., n], where all axes but the last have size 1.
      weight: of shape [n, m] and the same dtype.
      mask: booleans [n, m]; None if all are kept.

    Returns:
      Shape [..., m].
    """
    return _product(row.reshape(-1), weight, mask).reshape(*row.shape[:-1], -1)


@jax.custom_jvp
def _product(row, weight, mask):
    number = _rows_of_part(weight)
    parts = jax.tree.map(lambda x: x.reshape(-1, number, *x.shape[1:]), (row, weight, mask))

    # Without this JAX would keep the absolute values of all parts for the backward pass.
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
    def add(sums, part):
        row, *masked = part
        return sums + times(row[None], _absolute(*masked))[0], None

    return lax.scan(add, jnp.zeros_like(row, shape=weight.shape[1]), parts)[0]


@_product.defjvp
def _(primals, tangents):
    (row, weight, mask), (of_row, of_weight, _) = primals, tangents
    _, signed = jax.jvp(lambda w: _absolute(w, mask), [weight], [of_weight])
    change = _product(of_row, weight, mask) + times(row[None], signed)[0]
    return _product(row, weight, mask), change


def _absolute(weight: Array, mask: Array | None) -> Array:
    kept = weight if mask is None else jnp.where(mask, weight, jnp.zeros_like(weight))
    return jnp.abs(kept)


def times(rows: Array, matrix: Array) -> Array:
    """``rows @ matrix``, with no less precision than its factors have."""
    return jnp.matmul(rows, matrix, precision=lax.Precision.HIGHEST)


def _rows_of_part(weight: Array) -> int:
    """The most rows of a part, such that all parts are equal."""
    most = max(_PART // weight.shape[1], 1)
    return max(n for n in range(1, most + 1) if weight.shape[0] % n == 0)

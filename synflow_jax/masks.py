"""Masks: boolean leaves that mirror the parameters, True = kept."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from synflow_jax.trees import Masks, Params, check_masks
from synflow_jax.xla.backends import Backend, on_backend
from synflow_jax.xla.reductions import count_where


def all_kept(params: Params) -> Masks:
    """Masks that keep every weight.

    Example:
      >>> all_kept({"w": jnp.zeros(2)})
      {'w': Array([ True,  True], dtype=bool)}
    """
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(_all_true(tuple(map(jnp.shape, leaves))))


@functools.partial(jax.jit, static_argnums=0)
def _all_true(shapes: tuple[tuple[int, ...], ...]) -> list[Array]:
    return [jnp.ones(shape, bool) for shape in shapes]


def apply_masks(params: Params, masks: Masks) -> Params:
    """Sets every pruned weight to zero.

    It selects instead of multiplying, so a pruned NaN or infinity becomes zero too, and no
    dtype is promoted. To train under the masks, apply them once and then put
    `static_pruning` around the optimizer.

    Args:
      params: a pytree of arrays of any dtypes.
      masks: boolean leaves shaped like ``params``; True = kept.

    Returns:
      Leaves with the shapes and dtypes of ``params``.

    Raises:
      ValueError: while tracing, if ``masks`` does not mirror ``params``.

    Example:
      >>> apply_masks({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([True, False])})
      {'w': Array([1., 0.], dtype=float32)}
    """
    check_masks(masks, params)
    return _masked(params, masks)


@jax.jit
def _masked(params: Params, masks: Masks) -> Params:
    return jax.tree.map(lambda p, m: jnp.where(m, p, jnp.zeros_like(p)), params, masks)


def count(masks: Masks) -> Integer[Array, ""]:
    """Number of kept entries of the whole tree: int32, or uint32 for 2**31 entries or more.

    Example:
      >>> int(count({"a": jnp.array([True, False]), "b": jnp.array([True])}))
      2
    """
    return on_backend(count_on, jax.tree.leaves(masks))


@functools.partial(jax.jit, static_argnums=0)
def count_on(backend: Backend, leaves: list[Array]) -> Integer[Array, ""]:
    """`count`, of masks that lie on known devices."""
    number = sum((count_where(backend, lambda m: m, m) for m in leaves), jnp.uint32(0))
    large = sum(leaf.size for leaf in leaves) >= 2**31
    return number if large else number.astype(jnp.int32)

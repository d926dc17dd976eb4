"""Masks: boolean leaves that mirror the parameters, True = kept."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Integer

from synflow_jax.trees import Masks, Params, check_masks
from synflow_jax.xla import counts
from synflow_jax.xla.backends import Backend, on_backend
from synflow_jax.xla.placement import all_true_like, placement_of


def all_kept(params: Params) -> Masks:
    """Masks that keep every weight, each divided over devices as its parameter is.

    Example:
      >>> all_kept({"w": jnp.zeros(2)})
      {'w': Array([ True,  True], dtype=bool)}
    """
    leaves, treedef = jax.tree.flatten(params)
    if any(isinstance(x, Tracer) or placement_of(x) is not None for x in leaves):
        return treedef.unflatten(map(all_true_like, leaves))
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


def count(masks: Masks) -> Integer[Array | np.ndarray, ""]:
    """Number of kept entries of the whole tree.

    Args:
      masks: boolean leaves.

    Returns:
      int32; uint32 for a tree with 2**31 entries or more, and numpy's uint64 for one with
      more than 2**32 - 2.

    Raises:
      ValueError: while tracing, if the tree has more than 2**32 - 2 entries: JAX has no
        integers for that.

    Example:
      >>> int(count({"a": jnp.array([True, False]), "b": jnp.array([True])}))
      2
    """
    number = on_backend(count_on, jax.tree.leaves(masks))
    if not isinstance(number, counts.Wide):
        return number
    if isinstance(number.low, Tracer):
        raise ValueError(
            "`masks` have more entries than an integer of 32 bits can count: call `count` "
            "outside of jit and vmap, or of parts of the masks."
        )
    return counts.on_host(number)


@functools.partial(jax.jit, static_argnums=0)
def count_on(backend: Backend, leaves: list[Array]) -> Any:
    """Number of kept entries of all leaves, which lie on known devices: an integer, or a
    count of two words."""
    size = sum(leaf.size for leaf in leaves)
    return as_integer(counts.number_where(backend, lambda m: m, leaves, size), size)


def as_integer(count: Any, size: int) -> Any:
    """A count of the entries of a tree as it is returned: int32 where they fit."""
    wide = isinstance(count, counts.Wide)
    return count if wide or size >= 2**31 else count.astype(jnp.int32)


def kept_in_leaves(masks: Masks) -> list[int]:
    """Number of kept entries of each leaf, on the host: of masks that are not traced.

    Masks that are divided over devices are counted there, also if other processes hold
    some of them.
    """
    leaves = jax.tree.leaves(masks)
    divided = [leaf for leaf in leaves if placement_of(leaf) is not None]
    numbers = iter(on_backend(_each_counted, divided) if divided else ())
    return [
        int(np.count_nonzero(leaf))
        if placement_of(leaf) is None
        else int(counts.on_host(next(numbers)))
        for leaf in leaves
    ]


@functools.partial(jax.jit, static_argnums=0)
def _each_counted(backend: Backend, leaves: list[Array]) -> list[Any]:
    return [count_on(backend, [leaf]) for leaf in leaves]

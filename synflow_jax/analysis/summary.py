"""Tables of masks: how many weights each leaf keeps."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from synflow_jax.masks import kept_in_leaves
from synflow_jax.trees import (
    Masks,
    Params,
    Prunable,
    check_masks,
    is_kernel,
    leaf_names,
    prunable_leaves,
)


class Row(NamedTuple):
    """One leaf of the parameters, as `summarize` reports it."""

    name: str
    shape: tuple[int, ...]
    size: int
    kept: int
    density: float


def summarize(params: Params, masks: Masks) -> list[Row]:
    """Counts the weights that are kept of every leaf.

    Args:
      params: a pytree of arrays.
      masks: boolean leaves shaped like ``params``.

    Returns:
      A `Row` for each leaf, in `jax.tree.leaves` order; the density of an empty leaf is 1.

    Raises:
      ValueError: if ``masks`` does not mirror ``params``.

    Example:
      >>> masks = {"kernel": jnp.array([[True, False, False, False]])}
      >>> summarize({"kernel": jnp.ones((1, 4))}, masks)
      [Row(name='kernel', shape=(1, 4), size=4, kept=1, density=0.25)]
    """
    check_masks(masks, params)
    rows = []
    leaves = jax.tree.leaves(masks)
    for name, mask, kept in zip(leaf_names(params), leaves, kept_in_leaves(masks)):
        shape = jnp.shape(mask)
        size = math.prod(shape)
        rows.append(Row(name, shape, size, kept, kept / size if size else 1.0))
    return rows


def collapsed(params: Params, masks: Masks, *, prunable: Prunable = is_kernel) -> list[str]:
    """Names of the prunable leaves that have lost all their weights.

    This is the paper's layer-collapse. In a network with shortcuts, an empty leaf need not
    disconnect the network: `log_flow` of the masked parameters is finite if a path is left.

    Args:
      params: a pytree of arrays.
      masks: boolean leaves shaped like ``params``.
      prunable: as in `prune`.

    Returns:
      Leaf names, in `jax.tree.leaves` order.

    Raises:
      ValueError: if ``masks`` does not mirror ``params`` or no leaf is prunable.

    Example:
      >>> collapsed({"kernel": jnp.ones((1, 2))}, {"kernel": jnp.zeros((1, 2), bool)})
      ['kernel']
    """
    rows = summarize(params, masks)
    is_prunable = prunable_leaves(params, prunable)
    return [r.name for r, yes in zip(rows, is_prunable) if yes and r.size and not r.kept]

"""Copies of the parameters in updates and optimizer states, and how they are masked.

They are found by their structure and shapes. `optax.tree_utils.tree_map_params` finds the
same ones, but not for optimizers that read shapes as they are initialised, nor for parts of
the parameters (`optax.partition`, `optax.masked`): it raises there.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from synflow_jax.trees import Masks, check_masks


def masked_copies(tree: PyTree, masks: Masks) -> PyTree:
    """Sets pruned weights to zero in every copy of the parameters that a tree contains.

    A copy is a part of the tree that has the structure of the masks; a `None` or an
    `optax.MaskedNode` may stand for a leaf. Of a copy, the floating or complex leaves that
    are shaped like their masks are masked; others, such as the sums of Adafactor over rows,
    stay.

    Example:
      >>> masks = {"w": jnp.array([True, False])}
      >>> masked_copies((jnp.ones(2), {"w": jnp.ones(2)}, {"w": jnp.ones(3)}), masks)[1]
      {'w': Array([1., 0.], dtype=float32)}
    """
    want = _structure(masks)

    def is_copy(node):
        return _structure(node) == want

    def masked(node):
        return jax.tree.map(_cut, node, masks, is_leaf=_is_hole) if is_copy(node) else node

    return jax.tree.map(masked, tree, is_leaf=is_copy)


def masked_updates(updates: PyTree, masks: Masks, params: PyTree = None) -> PyTree:
    """Sets the updates of pruned weights to zero; an update that is None stays None.

    Updates may have more axes at the front, as the gradients of single examples have.

    With parameters, the update of a pruned weight is minus its value instead, and all
    updates have the promoted type of parameter and update: `optax.apply_updates` adds in
    this type, so the weight becomes exactly 0, and a weight that is 0 stays 0.

    Raises:
      ValueError: if the updates do not have the structure of the masks, or a leaf does not
        end with the shape of its mask.
    """
    if _structure(updates) != _structure(masks):
        raise ValueError(
            "`updates` must have the structure of the masks.\n"
            f"  masks: {_structure(masks)}\n  updates: {_structure(updates)}"
        )

    def cut(path, update, mask, param=None):
        if _is_hole(update):
            return update
        axes = jnp.ndim(update) - jnp.ndim(mask)
        if axes < 0 or jnp.shape(update)[axes:] != jnp.shape(mask):
            raise ValueError(
                f"`updates{jax.tree_util.keystr(path)}` has shape {jnp.shape(update)}, but "
                f"its mask has shape {jnp.shape(mask)}."
            )
        mask = jnp.reshape(mask, (1,) * axes + jnp.shape(mask))
        if param is None or not jnp.issubdtype(jnp.result_type(param), jnp.inexact):
            return jnp.where(mask, update, jnp.zeros_like(update))
        dtype = jnp.promote_types(jnp.result_type(param), jnp.result_type(update))
        return jnp.where(mask, jnp.asarray(update, dtype), -jnp.asarray(param, dtype))

    trees = (updates, masks) if params is None else (updates, masks, params)
    return jax.tree_util.tree_map_with_path(cut, *trees, is_leaf=_is_hole)


def masked_updates_of(params: PyTree, updates: PyTree, masks: Masks) -> PyTree:
    """`masked_updates` that bring pruned weights to 0, of each of the pair of lookahead."""
    if not isinstance(updates, optax.LookaheadParams):
        return masked_updates(updates, masks, params)
    pairs = zip(updates, params)
    return optax.LookaheadParams(*(masked_updates(u, masks, p) for u, p in pairs))


def trained(params: PyTree) -> PyTree:
    """The parameters that gradients are taken at: of `optax.lookahead`, the fast ones."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def check_masks_of_params(masks: Masks, params: PyTree) -> None:
    """Raises unless masks mirror the parameters, or each of the pair of `optax.lookahead`.

    Raises:
      ValueError: as `check_masks` does.
    """
    is_pair = isinstance(params, optax.LookaheadParams)
    for copy in params if is_pair else [params]:
        check_masks(masks, copy)


def _cut(leaf: Any, mask: Any) -> Any:
    if _is_hole(leaf) or jnp.shape(leaf) != jnp.shape(mask):
        return leaf
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return leaf
    return jnp.where(mask, leaf, jnp.zeros_like(leaf))


def _structure(tree: PyTree) -> Any:
    return jax.tree.structure(tree, is_leaf=_is_hole)


def _is_hole(node: Any) -> bool:
    """Whether no array stands where a leaf of the parameters is."""
    return node is None or isinstance(node, optax.MaskedNode)

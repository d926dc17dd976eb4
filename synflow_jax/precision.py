"""The precision in which scores are computed, and the leaves that have scores."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from synflow_jax.trees import Leaf, is_floating


def scoring_dtype(*leaves: Leaf) -> jnp.dtype:
    """The precision of scores: float64 if one of the leaves is float64, else float32."""
    double = any(leaf.dtype == jnp.float64 for leaf in leaves)
    return jnp.dtype(jnp.float64 if double else jnp.float32)


def widened(params: PyTree) -> PyTree:
    """Casts every floating leaf to the precision of its scores: float32 or float64."""

    def widen(leaf):
        if not is_floating(leaf):
            return leaf
        leaf = jnp.asarray(leaf)  # numpy's float64 becomes float32 unless JAX enables it
        return leaf.astype(scoring_dtype(leaf))

    return jax.tree.map(widen, params)


def cast_floating(tree: PyTree, dtype) -> PyTree:
    """Casts every floating leaf to ``dtype``: the inputs of the network, for its flow."""
    return jax.tree.map(lambda x: x.astype(dtype) if is_floating(x) else x, tree)


def split_floating(tree: PyTree) -> tuple[list[Array], Callable[..., PyTree]]:
    """Separates the floating leaves, which can be differentiated, from the other leaves.

    Returns:
      ``(leaves, merged)``: the floating leaves, and a function that makes a tree of them
      again. ``merged(others)`` is the tree with ``others`` instead of the floating leaves;
      ``merged(others, rest)`` also replaces every other leaf by ``rest(leaf)``.
    """
    leaves, treedef = jax.tree.flatten(tree)

    def merged(others: Sequence, rest: Callable = lambda leaf: leaf) -> PyTree:
        floating = iter(others)
        mixed = [next(floating) if is_floating(leaf) else rest(leaf) for leaf in leaves]
        return jax.tree.unflatten(treedef, mixed)

    return [leaf for leaf in leaves if is_floating(leaf)], merged


def no_score(leaf: Leaf) -> Array:
    """The scores of a leaf that holds no floating numbers: zeros."""
    return jnp.zeros_like(leaf, jnp.float32)

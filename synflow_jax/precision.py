"""In what precision scores are computed, and which leaves have scores."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from synflow_jax.trees import Leaf, is_floating


def scoring_dtype(*leaves: Leaf) -> jnp.dtype:
    """float64 if a leaf is, else float32: the precision in which scores are computed."""
    double = any(leaf.dtype == jnp.float64 for leaf in leaves)
    return jnp.dtype(jnp.float64 if double else jnp.float32)


def widened(params: PyTree) -> PyTree:
    """The parameters with every floating leaf in float32 or better, for scoring."""

    def widen(leaf):
        if not is_floating(leaf):
            return leaf
        leaf = jnp.asarray(leaf)  # float64 of numpy is float32 unless JAX has it enabled
        return leaf.astype(scoring_dtype(leaf))

    return jax.tree.map(widen, params)


def cast_floating(tree: PyTree, dtype) -> PyTree:
    """The tree with every floating leaf in a precision: inputs, as the flow takes them."""
    return jax.tree.map(lambda x: x.astype(dtype) if is_floating(x) else x, tree)


def split_floating(tree: PyTree) -> tuple[list[Leaf], Callable[..., PyTree]]:
    """The floating leaves, which can be differentiated, and the way back to a tree.

    Returns:
      ``(leaves, merged)``: ``merged(others)`` is the tree with other leaves in the place of
      the floating ones; ``merged(others, rest)`` also has ``rest(leaf)`` in the place of
      every leaf that is not floating.
    """
    leaves, treedef = jax.tree.flatten(tree)

    def merged(others: Sequence, rest: Callable = lambda leaf: leaf) -> PyTree:
        others = iter(others)
        mixed = [next(others) if is_floating(leaf) else rest(leaf) for leaf in leaves]
        return jax.tree.unflatten(treedef, mixed)

    return [leaf for leaf in leaves if is_floating(leaf)], merged


def no_score(leaf: Leaf) -> Array:
    """What a leaf scores that holds no floating numbers."""
    return jnp.zeros(jnp.shape(leaf), jnp.float32)

"""The batches of a criterion: one array a leaf, with a leading axis of batches."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def as_batches(batches: Any, name: str = "batches") -> PyTree:
    """The batches as arrays with a leading axis.

    Args:
      batches: a pytree of arrays with a leading axis of batches in common, or a list of
        batches, each a tuple, list or dict of arrays, which is stacked.
      name: of the argument, for errors.

    Raises:
      ValueError: unless they are; or if they look like one batch without a leading axis.

    Example:
      >>> stacked = as_batches([{"x": jnp.ones((4, 2))}, {"x": jnp.zeros((4, 2))}])
      >>> stacked["x"].shape
      (2, 4, 2)
    """
    if isinstance(batches, list) and batches and all(map(_is_batch, batches)):
        return _stacked(batches, name)
    if isinstance(batches, Iterator):
        raise ValueError(
            f"`{name}` is an iterator, which can be read once; give list({name})."
        )
    try:
        batches = jax.tree.map(_as_array, batches)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be a pytree of arrays with a leading axis of batches, or a "
            f"list of batches, such as list(loader); got {type(batches).__name__}: {error}"
        ) from error
    shapes = [leaf.shape for leaf in jax.tree.leaves(batches)]
    if (
        not shapes
        or any(not shape or not shape[0] for shape in shapes)
        or len({shape[0] for shape in shapes}) > 1
    ):
        raise ValueError(
            f"`{name}` must be a pytree of arrays with a leading axis of batches, of one "
            f"length for all; got the shapes {shapes}."
        )
    _check_not_one(batches, name)
    return batches


def _as_array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)


def _is_batch(item: Any) -> bool:
    return isinstance(item, tuple | list | Mapping)


def _stacked(batches: list, name: str) -> PyTree:
    first = jax.tree.structure(batches[0])
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batches[0])]
    for i, batch in enumerate(batches):
        leaves = jax.tree.leaves(batch)
        if jax.tree.structure(batch) != first or [*map(jnp.shape, leaves)] != shapes:
            raise ValueError(
                f"the batches of the list `{name}` must have one structure and equal "
                f"shapes; the first has {shapes} and number {i + 1} has "
                f"{[jnp.shape(leaf) for leaf in leaves]}. Leave a smaller last batch out "
                "(drop_last=True)."
            )
    return jax.tree.map(lambda *leaves: jnp.stack([*map(jnp.asarray, leaves)]), *batches)


def _check_not_one(batches: PyTree, name: str) -> None:
    """Raises if leaves have no axis of examples in common behind that of the batches.

    It cannot see every such call: of a single leaf it knows nothing.
    """
    leaves = [
        leaf
        for leaf in jax.tree.leaves(batches)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    ]
    sizes = [leaf.shape[1] for leaf in leaves if leaf.ndim > 1]
    if len(leaves) < 2 or len(leaves[0]) == 1 or len(set(sizes)) < len(sizes):
        return
    raise ValueError(
        f"`{name}` looks like one batch, not like {len(leaves[0])} batches: behind the "
        "leading axis, no two of its arrays have the same number of examples; the shapes "
        f"are {[leaf.shape for leaf in leaves]}. Give one batch a leading axis: "
        f"jax.tree.map(lambda x: x[None], {name})."
    )

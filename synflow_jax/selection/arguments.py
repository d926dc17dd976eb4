"""The arguments of a selection, checked: numbers of entries to keep, and scores."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Integer, PyTree

from synflow_jax.trees import is_floating


def as_count(k: Any, size: int) -> Integer[Array, ""]:
    """A number of entries to keep, as uint32, clipped to the size if it is traced.

    Raises:
      ValueError: if it is not one integer, or not traced and out of range.
    """
    k = as_counts(k)
    if jnp.shape(k):
        raise ValueError(
            f"`k` must be one integer; got an array of shape {jnp.shape(k)}. For one count "
            'a leaf there is `keep_top_per_layer`, and scope="layer" of `prune`.'
        )
    if not isinstance(k, Tracer):
        if not 0 <= int(k) <= size:
            raise ValueError(f"`k` must lie between 0 and the {size} scores; got {k}.")
        return jax.device_put(np.uint32(k))
    # Clipped before the conversion to uint32, which changes negative and large numbers.
    largest = jnp.asarray(min(size, jnp.iinfo(k.dtype).max), k.dtype)
    return jnp.clip(k, 0, largest).astype(jnp.uint32)


def as_counts(k: Any) -> Any:
    """An integer or an array of integers, as numpy has it unless it is an array of JAX.

    Raises:
      ValueError: if it is anything else.
    """
    if isinstance(k, jax.Array):
        array = k
    else:
        try:
            array = np.asarray(k)
        except ValueError:  # lists of several lengths
            array = np.asarray(None)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        shown = " ".join(repr(k).split())[:80]
        raise ValueError(f"`k` must be an integer; got {type(k).__name__} {shown}.")
    return array


def size_of_scores(scores: PyTree) -> int:
    """The number of entries of all scores.

    Raises:
      ValueError: naming a leaf that is not floating; or if there are too many to count.
    """
    size = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(scores):
        if not is_floating(leaf):
            raise ValueError(
                f"`scores{jax.tree_util.keystr(path)}` has dtype {jnp.result_type(leaf)}; "
                "scores must be floating."
            )
        size += leaf.size
    if size > 2**32 - 2:
        raise ValueError(f"`scores` has {size} entries; at most 2**32 - 2 can be counted.")
    return size

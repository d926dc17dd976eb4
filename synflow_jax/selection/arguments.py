"""The arguments of a selection, checked: numbers of entries to keep, and scores."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from synflow_jax.trees import is_floating
from synflow_jax.xla import counts


def as_count(k: Any, size: int) -> Any:
    """A number of entries to keep, as a count, clipped to the size if it is traced.

    Raises:
      ValueError: if it is not one integer, or not traced and out of range.
    """
    if isinstance(k, counts.Wide):
        return counts.as_count(k, size)
    k = as_counts(k)
    if jnp.shape(k):
        raise ValueError(
            f"`k` must be one integer; got an array of shape {jnp.shape(k)}. For one count "
            'a leaf there is `keep_top_per_layer`, and scope="layer" of `prune`.'
        )
    if not isinstance(k, Tracer):
        if not 0 <= int(k) <= size:
            raise ValueError(f"`k` must lie between 0 and the {size} scores; got {k}.")
        return jax.device_put(counts.as_count(int(k), size))
    # Clipped before the conversion to uint32, which changes negative and large numbers.
    largest = jnp.asarray(min(size, jnp.iinfo(k.dtype).max), k.dtype)
    return counts.as_count(jnp.clip(k, 0, largest), size)


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
      ValueError: naming a leaf that is not floating, or too large to be counted.
    """
    size = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(scores):
        if not is_floating(leaf):
            raise ValueError(
                f"`scores{jax.tree_util.keystr(path)}` has dtype {jnp.result_type(leaf)}; "
                "scores must be floating."
            )
        counts.check_countable(leaf.shape, f"scores{jax.tree_util.keystr(path)}")
        size += leaf.size
    return size

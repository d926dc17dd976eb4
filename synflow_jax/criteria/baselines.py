"""The baselines that need neither data nor flow: magnitude and random."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from synflow_jax.masks import apply_masks
from synflow_jax.precision import no_score, widened
from synflow_jax.trees import (
    Masks,
    Params,
    ScoreFn,
    Scores,
    check_key,
    check_masks,
    is_floating,
)


def magnitude() -> ScoreFn:
    """The size of each weight.

    Returns:
      ``score(params, masks) -> scores``: ``|w|``, float32 or better; 0 where pruned.

    Example:
      >>> params = {"w": jnp.array([1.0, -2.0])}
      >>> magnitude()(params, {"w": jnp.array([True, True])})["w"]
      Array([1., 2.], dtype=float32)

    References:
      Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
      NeurIPS 2015; at initialisation it is a baseline of Tanaka et al. 2020.
    """
    return _sizes


def _sizes(params: Params, masks: Masks) -> Scores:
    return jax.tree.map(_size, apply_masks(widened(params), masks))


def random(key: Key[Array, ""]) -> ScoreFn:
    """A uniform draw for each weight, the same in every round.

    Because the draw does not change, pruning in many rounds removes the same weights as
    pruning at once, and the result is a uniformly random set.

    Args:
      key: a `jax.random.key`.

    Returns:
      ``score(params, masks) -> scores``: float32 in [0, 1); 0 where pruned.

    Raises:
      ValueError: if ``key`` is not a single typed key.

    Example:
      >>> score = random(jax.random.key(0))
      >>> score({"w": jnp.ones(3)}, {"w": jnp.array([True, True, False])})["w"].shape
      (3,)
    """
    check_key(key)

    def score(params: Params, masks: Masks) -> Scores:
        check_masks(masks, params)
        leaves, treedef = jax.tree.flatten(params)
        # One draw for the whole tree: a generator for each leaf takes long to compile.
        ends = np.cumsum([leaf.size for leaf in leaves])
        draw = jax.random.uniform(key, (int(ends[-1]) if leaves else 0,))
        parts = jnp.split(draw, ends[:-1])
        draws = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves)]
        return apply_masks(jax.tree.unflatten(treedef, draws), masks)

    return score


def _size(leaf: Array) -> Array:
    return jnp.abs(leaf) if is_floating(leaf) else no_score(leaf)

"""The baselines that need neither data nor flow: magnitude and random."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from synflow_jax.masks import apply_masks
from synflow_jax.precision import no_score, widened
from synflow_jax.pruning.criterion import DataCriterion, Formula
from synflow_jax.trees import (
    Masks,
    Params,
    ScoreFn,
    Scores,
    check_key,
    check_masks,
    is_floating,
)
from synflow_jax.xla.backends import Backend
from synflow_jax.xla.placement import is_divided, made_like


def magnitude() -> ScoreFn:
    """The absolute value of each weight.

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
    return _absolute_values


def _absolute_values(params: Params, masks: Masks) -> Scores:
    return jax.tree.map(_absolute_value, apply_masks(widened(params), masks))


def random(key: Key[Array, ""]) -> ScoreFn:
    """A uniform random number for each weight, the same in every round.

    Since the numbers do not change, pruning in many rounds removes the same weights as
    pruning in one round, and the kept weights are a uniformly random subset.

    Args:
      key: a `jax.random.key`.

    Returns:
      ``score(params, masks) -> scores``: float32 in [0, 1); 0 where pruned. The numbers of
      the i-th leaf are those of ``jax.random.uniform(jax.random.fold_in(key, i), shape)``.

    Raises:
      ValueError: if ``key`` is not a single typed key.

    Example:
      >>> score = random(jax.random.key(0))
      >>> score({"w": jnp.ones(3)}, {"w": jnp.array([True, True, False])})["w"].shape
      (3,)
    """
    check_key(key)
    return DataCriterion(Formula(_uniform), key)


def _uniform(
    function: None,
    backend: Backend,
    key: Key[Array, ""],
    params: Params,
    masks: Masks,
) -> Scores:
    check_masks(masks, params)
    leaves, treedef = jax.tree.flatten(params)
    # A generator for each shape: one for each leaf would take long to compile, and numbers
    # of the whole tree in one array could not be sharded as the leaves are.
    places = {}
    scores: list[Any] = [None] * len(leaves)
    for i, leaf in enumerate(leaves):
        if is_divided(leaf):
            draw = functools.partial(jax.random.uniform, shape=jnp.shape(leaf))
            scores[i] = made_like(leaf, draw, jax.random.fold_in(key, np.uint32(i)))
        else:
            places.setdefault(jnp.shape(leaf), []).append(i)
    for shape, at in places.items():
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.asarray(at, np.uint32))
        drawn = jax.vmap(lambda key, shape=shape: jax.random.uniform(key, shape))(keys)
        for i, numbers in zip(at, drawn):
            scores[i] = numbers
    return apply_masks(jax.tree.unflatten(treedef, scores), masks)


def _absolute_value(leaf: Array) -> Array:
    return jnp.abs(leaf) if is_floating(leaf) else no_score(leaf)

"""Finds the weights that lie on a path from input to output, and those that do not."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from synflow_jax.criteria.synaptic_flow import flow_scores
from synflow_jax.masks import all_kept, apply_masks
from synflow_jax.paths.reached import on_paths
from synflow_jax.transform.rules import flow_rules
from synflow_jax.transform.values import Rules
from synflow_jax.trees import (
    Masks,
    Params,
    Prunable,
    is_kernel,
    leaf_names,
    prunable_leaves,
)


def unreached(
    apply_fn: Callable[..., PyTree],
    params: Params,
    input_shape: PyTree,
    *,
    prunable: Prunable = is_kernel,
    rules: Rules = flow_rules,
) -> list[str]:
    """Names of the prunable leaves that carry no flow, even before anything is pruned.

    All their SynFlow scores are 0, so `prune` removes them first, and completely. Either
    the output does not depend on them (a second head whose output is not returned), or
    parameters that are zero block every path (a kernel or a scale that starts at zero).

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      params: a pytree of arrays.
      input_shape: as in `synflow`.
      prunable: as in `prune`. Biases score 0 in every network.
      rules: as in `flow`.

    Returns:
      Leaf names, in `jax.tree.leaves` order, without leaves that have no entries.

    Raises:
      ValueError: if no leaf is prunable, or the network has no flow (`flow`).

    Example:
      >>> kernel = jnp.ones((2, 3))
      >>> params = {"used": {"kernel": kernel}, "not": {"kernel": kernel}}
      >>> unreached(lambda params, x: x @ params["used"]["kernel"], params, (2,))
      ['not/kernel']
    """
    is_prunable = prunable_leaves(params, prunable)
    params = jax.tree.map(jnp.asarray, params)
    scores = flow_scores(apply_fn, params, all_kept(params), input_shape, rules=rules)
    return [
        name
        for name, score, yes in zip(
            leaf_names(params), jax.tree.leaves(scores), is_prunable
        )
        if yes and score.size and not bool(jnp.any(score))
    ]


def effective_masks(
    apply_fn: Callable[..., PyTree],
    params: Params,
    masks: Masks,
    input_shape: PyTree,
    *,
    prunable: Prunable = is_kernel,
    rules: Rules = flow_rules,
) -> Masks:
    """Keeps only the weights on a path of kept weights from input to output.

    If every path through a weight contains a pruned weight, the weight has no influence on
    the output, whether it is kept or not. The result does not depend on the absolute values
    of the weights, on their dtype or on the depth of the network, except that a parameter
    that is 0, such as a normalisation's scale, blocks every path through it. Max pooling
    and the maximum of two values let paths pass through all of their entries, and so do
    sorting and routers (`sort`, `top_k`, `argmax`). The flow is the same under both masks.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``, in evaluation mode.
      params: a pytree of arrays. To make the result depend on the masks alone, replace
        kernels that are zero by ones.
      masks: boolean leaves shaped like ``params``.
      input_shape: as in `synflow`.
      prunable: as in `prune`; masks of leaves that are not prunable are returned as given.
      rules: as in `flow`.

    Returns:
      Masks that keep a subset of the weights that ``masks`` keeps.

    Raises:
      ValueError: if ``masks`` does not mirror ``params``, no leaf is prunable, or the
        network has no flow (`flow`).

    Example:
      >>> params = {"a": {"kernel": jnp.ones((1, 2))}, "b": {"kernel": jnp.ones((2, 1))}}
      >>> def apply_fn(params, x):
      ...     return x @ params["a"]["kernel"] @ params["b"]["kernel"]
      >>> masks = all_kept(params) | {"a": {"kernel": jnp.array([[True, False]])}}
      >>> effective_masks(apply_fn, params, masks, (1,))["b"]["kernel"]
      Array([[ True],
             [False]], dtype=bool)

    References:
      Vysogorets and Kempe, "Connectivity Matters: Neural Network Pruning Through the Lens
      of Effective Sparsity", JMLR 2023.
    """
    is_prunable = prunable_leaves(params, prunable)
    alive = on_paths(apply_fn, apply_masks(params, masks), input_shape, rules=rules)
    leaves, treedef = jax.tree.flatten(masks)
    leaves = [
        reached if yes else mask
        for mask, reached, yes in zip(leaves, jax.tree.leaves(alive), is_prunable)
    ]
    return jax.tree.unflatten(treedef, leaves)

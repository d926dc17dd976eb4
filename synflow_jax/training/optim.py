"""Optax transformations under which pruned weights stay zero."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, PyTree

from synflow_jax.training.copies import (
    check_masks_of_params,
    masked_copies,
    masked_updates,
    trained,
)
from synflow_jax.trees import Leaf, Masks, Params, check_masks


class FreezePrunedState(NamedTuple):
    """State of `freeze_pruned`."""

    masks: Masks  # leaves shaped like the parameters; True = trained


def freeze_pruned(masks: Masks) -> optax.GradientTransformation:
    """Sets the update of every pruned weight to zero.

    Chain it last, so that it also removes the updates of momentum and weight decay; a
    weight that starts at zero (`apply_masks`) then stays exactly zero. (`optax.masked`
    cannot do this: its mask switches whole leaves and must be known while tracing.)

    It can be inside `optax.MultiSteps` and `optax.inject_hyperparams` or after them, but
    must be after `optax.multi_transform`, whose parts see only some of the leaves.
    Transformations that combine weights, such as `optax.clip_by_global_norm` or Adafactor,
    still read the gradients of pruned weights; to prevent that, chain a second
    `freeze_pruned` before them.

    It is the link of a chain, and sees updates only. Optimizers whose state holds copies of
    the parameters (`optax.contrib.schedule_free`, `optax.contrib.sam` with a period of its
    own, `optax.lookahead`) bring pruned weights back from them, or into the parameters for
    evaluation; around those, and wherever nothing speaks for a chain, use `static_pruning`.

    The masks are part of the state, not of a closure. They are therefore an argument of the
    compiled step rather than a constant in it, and they can be vmapped over, checkpointed
    and replaced (`replace_masks`).

    Args:
      masks: boolean leaves shaped like the parameters; True = trained.

    Returns:
      An `optax.GradientTransformation` whose ``init`` raises ValueError if ``masks`` does
      not mirror the parameters.

    Example:
      >>> masks = {"w": jnp.array([True, False])}
      >>> optimizer = optax.chain(optax.sgd(1.0), freeze_pruned(masks))
      >>> params = {"w": jnp.array([1.0, 0.0])}
      >>> updates, _ = optimizer.update({"w": jnp.ones(2)}, optimizer.init(params), params)
      >>> optax.apply_updates(params, updates)
      {'w': Array([0., 0.], dtype=float32)}
    """

    def init(params: Params) -> FreezePrunedState:
        check_masks(masks, params)
        return FreezePrunedState(jax.tree.map(copy_placed_like, masks, params))

    def update(updates, state, params=None):
        del params
        return masked_updates(updates, state.masks), state

    return optax.GradientTransformation(init, update)


class StaticPruningState(NamedTuple):
    """State of `static_pruning`.

    Attributes:
      masks: leaves shaped like the parameters; True = trained.
      inner: the state of the optimizer; every copy of the parameters in it is masked.
    """

    masks: Masks
    inner: optax.OptState


def static_pruning(
    optimizer: optax.GradientTransformation | optax.MultiSteps, masks: Masks
) -> optax.GradientTransformationExtraArgs:
    """Trains under masks with any optimizer: pruned weights stay exactly zero.

    The optimizer sees zero gradients for pruned weights, whatever they are (NaN too), so it
    trains as if these weights did not exist. Its updates of them are set to zero, and so
    are they in every copy of the parameters that its state holds: the averages of
    `optax.contrib.schedule_free`, the cache of `optax.contrib.sam`, the two sets of
    `optax.lookahead`, moments. `freeze_pruned` cannot reach those copies, and some
    optimizers bring pruned weights back from them.

    It must be the outermost transformation; only `optax.apply_if_finite` and
    `optax.MultiSteps` may be around it. The masks are part of the state, not of a closure:
    they are an argument of the compiled step rather than a constant in it, and can be
    vmapped over, checkpointed, read (`masks_of`) and replaced (`replace_masks`).

    Args:
      optimizer: any optax optimizer, or `optax.MultiSteps` of one. Extra arguments of its
        update, such as ``value``, are passed on.
      masks: boolean leaves shaped like the parameters; True = trained. For
        `optax.LookaheadParams`, like one of the pair.

    Returns:
      An `optax.GradientTransformationExtraArgs`. Its ``init`` raises ValueError if
      ``masks`` does not mirror the parameters, and its ``update`` if the updates do not.
      Its parameters must be zero where pruned (`apply_masks`).

    Example:
      >>> masks = {"w": jnp.array([True, False])}
      >>> optimizer = static_pruning(optax.contrib.schedule_free_sgd(1.0), masks)
      >>> params = {"w": jnp.array([1.0, 0.0])}
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update({"w": jnp.ones(2)}, state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> optax.contrib.schedule_free_eval_params(state.inner, params)
      {'w': Array([0., 0.], dtype=float32)}
    """
    inner = as_transformation(optimizer)

    def init(params: PyTree) -> StaticPruningState:
        return StaticPruningState(*start_under(inner, masks, params))

    def update(updates, state, params=None, **extra_args):
        masks = state.masks
        updates, new = step_under(inner, masks, updates, state.inner, params, extra_args)
        if isinstance(updates, optax.LookaheadParams):
            updates = optax.LookaheadParams(*(masked_updates(u, masks) for u in updates))
        else:
            updates = masked_updates(updates, masks)
        return updates, StaticPruningState(masks, masked_copies(new, masks))

    return optax.GradientTransformationExtraArgs(init, update)


def as_transformation(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer as a transformation whose update takes extra arguments."""
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    return optax.with_extra_args_support(optimizer)


def start_under(
    inner: optax.GradientTransformation, masks: Masks, params: PyTree
) -> tuple[Masks, optax.OptState]:
    """Copies of the masks, placed as the parameters are, and the optimizer's first state.

    Raises:
      ValueError: if the masks do not mirror the parameters.
    """
    check_masks_of_params(masks, params)
    state = inner.init(masked_copies(params, masks))
    copies = jax.tree.map(copy_placed_like, masks, trained(params))
    return copies, masked_copies(state, masks)


def needs_params(params: PyTree, name: str) -> None:
    """Raises if the update of a transformation is not given the parameters.

    Raises:
      ValueError: naming the transformation.
    """
    if params is None:
        raise ValueError(
            f"the update of `{name}` needs the parameters: "
            "optimizer.update(gradients, state, params)."
        )


def step_under(
    inner: optax.GradientTransformationExtraArgs,
    masks: Masks,
    updates: PyTree,
    state: optax.OptState,
    params: PyTree,
    extra_args: Mapping[str, Any],
) -> tuple[PyTree, optax.OptState]:
    """A step of an optimizer that sees zero gradients for pruned weights.

    The updates and the state that it returns are not masked yet.
    """
    updates = masked_updates(updates, masks)
    extra_args = masked_copies(extra_args, masks)  # gradients among them
    return inner.update(updates, state, params, **extra_args)


def copy_placed_like(mask: Leaf, other: Leaf) -> Array:
    """Copies a mask, to the devices of another array if that is committed to devices.

    It copies because a training step may donate its state, and places the copy because a
    step is compiled again for an argument on other devices.
    """
    copy = jnp.array(mask)
    if isinstance(other, Tracer) or not isinstance(other, jax.Array):
        return copy
    return jax.device_put(copy, other.sharding) if other.committed else copy

"""Training under masks with optax."""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, PyTree

from synflow_jax.masks import apply_masks
from synflow_jax.trees import Leaf, Masks, Params, check_masks

State = TypeVar("State")


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
        return FreezePrunedState(jax.tree.map(_copy_placed_like, masks, params))

    def update(updates, state, params=None):
        del params
        frozen = jax.tree.map(
            lambda u, m: jnp.where(m, u, jnp.zeros_like(u)), updates, state.masks
        )
        return frozen, state

    return optax.GradientTransformation(init, update)


def replace_masks(opt_state: PyTree, masks: Masks) -> PyTree:
    """Replaces the masks in the state of an optimizer.

    Everything else in the state stays, and a compiled step is not compiled again for the
    new state. The parameters are not changed: set newly pruned weights to zero with
    `apply_masks`, in averages of the parameters too. A weight that the new masks bring back
    starts from zero, with the momentum that it gathered while its updates were set to zero.

    Args:
      opt_state: the state of an optimizer that contains `freeze_pruned` at any depth; if it
        contains several, each gets the new masks. It can also be a batch of states.
      masks: boolean leaves shaped like the masks in the state.

    Returns:
      The new state. Its masks are copies, on the devices of the old masks.

    Raises:
      ValueError: if ``opt_state`` holds no masks, or ``masks`` does not mirror them.

    Example:
      >>> params = {"w": jnp.zeros(2)}
      >>> optimizer = optax.chain(optax.sgd(1.0), freeze_pruned({"w": jnp.ones(2, bool)}))
      >>> state = replace_masks(optimizer.init(params), {"w": jnp.array([True, False])})
      >>> optimizer.update({"w": jnp.ones(2)}, state)[0]
      {'w': Array([-1.,  0.], dtype=float32)}
    """
    if not _has_masks(opt_state):
        raise ValueError(
            "`opt_state` holds no masks: its optimizer has no `freeze_pruned`. Chain one: "
            "optax.chain(optimizer, freeze_pruned(masks))."
        )

    def replaced(node):
        if not _is_frozen(node):
            return node
        check_masks(masks, node.masks)
        return FreezePrunedState(jax.tree.map(_copy_placed_like, masks, node.masks))

    return jax.tree.map(replaced, opt_state, is_leaf=_is_frozen)


def mask_train_state(state: State, masks: Masks) -> State:
    """Masks a Flax train state: pruned weights become zero and stay zero.

    The first call chains `freeze_pruned` after ``state.tx``. Later calls only replace the
    masks and keep ``tx``, so a compiled step is not compiled again. To train with many
    masks and compile once, call it first with `all_kept` and then, on the state that it
    returns, with each of the masks.

    The optimizer's own state is kept, so training continues where it was. The momentum of
    pruned weights is kept too: it acts on parameters only through updates, and those are
    set to zero.

    Args:
      state: a `flax.training.train_state.TrainState` or a subclass, new or already trained;
        anything with ``params``, ``tx``, ``opt_state`` and ``replace``.
      masks: boolean leaves shaped like ``state.params``; True = kept.

    Returns:
      A state of the same type, which shares with ``state`` everything that is not masked.
      Its ``tx.init`` uses the masks of the first call; after calling it, mask the state
      again.

    Raises:
      ValueError: if ``state`` lacks one of the fields, or ``masks`` does not mirror
        ``state.params``.

    Example:
      >>> from flax.training.train_state import TrainState
      >>> state = TrainState.create(
      ...     apply_fn=None, params={"w": jnp.array([3.0, 4.0])}, tx=optax.sgd(1.0)
      ... )
      >>> state = mask_train_state(state, {"w": jnp.array([True, False])})
      >>> state.apply_gradients(grads={"w": jnp.ones(2)}).params
      {'w': Array([2., 0.], dtype=float32)}
    """
    fields = ("params", "tx", "opt_state", "replace")
    missing = [field for field in fields if not hasattr(state, field)]
    if missing:
        raise ValueError(
            "`state` must have the fields of a flax TrainState; "
            f"{type(state).__name__} has no {', '.join(missing)}."
        )
    old: Any = state  # has these fields, whatever its type is
    params = apply_masks(old.params, masks)
    if _has_masks(old.opt_state):
        return old.replace(params=params, opt_state=replace_masks(old.opt_state, masks))
    freeze = freeze_pruned(masks)
    return old.replace(
        params=params,
        tx=optax.chain(old.tx, freeze),
        opt_state=(old.opt_state, freeze.init(params)),  # a pair, as in `optax.chain`
    )


def _is_frozen(node: PyTree) -> bool:
    return isinstance(node, FreezePrunedState)


def _has_masks(opt_state: PyTree) -> bool:
    return any(map(_is_frozen, jax.tree.leaves(opt_state, is_leaf=_is_frozen)))


def _copy_placed_like(mask: Leaf, other: Leaf) -> Array:
    """Copies a mask, to the devices of another array if that is committed to devices.

    It copies because a training step may donate its state, and places the copy because a
    step is compiled again for an argument on other devices.
    """
    copy = jnp.array(mask)
    if isinstance(other, Tracer) or not isinstance(other, jax.Array):
        return copy
    return jax.device_put(copy, other.sharding) if other.committed else copy

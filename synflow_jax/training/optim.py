"""Training under masks with optax."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from synflow_jax.masks import apply_masks
from synflow_jax.trees import Leaf, Masks, Params, check_masks

State = TypeVar("State")


class FreezePrunedState(NamedTuple):
    """State of `freeze_pruned`."""

    masks: Masks  # leaves shaped like the parameters; True = trained


def freeze_pruned(masks: Masks) -> optax.GradientTransformation:
    """Sets the update of every pruned weight to zero.

    Chain it last, so that momentum and weight decay are cut too; a weight that starts at
    zero (`apply_masks`) then stays exactly zero. (`optax.masked` cannot do this: its mask
    switches whole leaves and must be known while tracing.)

    It may stand inside `optax.MultiSteps` and `optax.inject_hyperparams` or after them, but
    only after `optax.multi_transform`, whose parts see only some of the leaves. What mixes
    weights, such as `optax.clip_by_global_norm` or Adafactor, still reads the gradients of
    pruned ones; to keep them out of it, chain a second `freeze_pruned` first.

    The masks ride in the state, not in a closure: they are then an argument of the
    compiled step rather than a constant baked into it, and they can be vmapped over,
    checkpointed and replaced (`replace_masks`).

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
        return FreezePrunedState(jax.tree.map(_copy_beside, masks, params))

    def update(updates, state, params=None):
        del params
        frozen = jax.tree.map(
            lambda u, m: jnp.where(m, u, jnp.zeros_like(u)), updates, state.masks
        )
        return frozen, state

    return optax.GradientTransformation(init, update)


def replace_masks(opt_state: PyTree, masks: Masks) -> PyTree:
    """An optimizer's state with other masks in it.

    Everything else in the state stays, and a compiled step takes the new state as it took
    the old one. The parameters are not touched: `apply_masks` makes newly pruned weights
    zero, in an average of the parameters as well. A weight that the new masks bring back
    starts from zero, with the momentum that gathered while its updates were cut.

    Args:
      opt_state: the state of an optimizer with `freeze_pruned` anywhere in it; if it is
        there several times, each gets the new masks. Also a batch of states.
      masks: boolean leaves shaped like the masks in the state.

    Returns:
      The new state. Its masks are copies, placed on the devices of the old ones.

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
        return FreezePrunedState(jax.tree.map(_copy_beside, masks, node.masks))

    return jax.tree.map(replaced, opt_state, is_leaf=_is_frozen)


def mask_train_state(state: State, masks: Masks) -> State:
    """Puts a Flax train state under masks: pruned weights are zero and stay zero.

    The first call chains `freeze_pruned` behind ``state.tx``. Later ones only replace the
    masks and keep ``tx``, so a compiled step is not compiled again. For one compilation
    under many masks, call it first with `all_kept` and then, on that state, with each of
    them.

    The optimizer's own state is kept, so training goes on where it was. Momentum of pruned
    weights is kept too: it acts on parameters through updates only, and those are cut.

    Args:
      state: a `flax.training.train_state.TrainState` or a subclass, new or already trained;
        anything with ``params``, ``tx``, ``opt_state`` and ``replace``.
      masks: boolean leaves shaped like ``state.params``; True = kept.

    Returns:
      A state of the same type; what is not masked in it is shared with ``state``. Its
      ``tx.init`` starts with the masks of the first call, so mask again after it.

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
    params = apply_masks(state.params, masks)
    if _has_masks(state.opt_state):
        return state.replace(params=params, opt_state=replace_masks(state.opt_state, masks))
    freeze = freeze_pruned(masks)
    return state.replace(
        params=params,
        tx=optax.chain(state.tx, freeze),
        opt_state=(state.opt_state, freeze.init(params)),  # as `optax.chain` pairs them
    )


def _is_frozen(node: PyTree) -> bool:
    return isinstance(node, FreezePrunedState)


def _has_masks(opt_state: PyTree) -> bool:
    return any(map(_is_frozen, jax.tree.leaves(opt_state, is_leaf=_is_frozen)))


def _copy_beside(mask: Leaf, other: Leaf) -> Array:
    """A copy of a mask, on the devices of another array if that was placed on any.

    A copy, because a training step may donate its state. Beside the other array, because a
    compiled step is compiled again for an argument that lies elsewhere.
    """
    mask = jnp.array(mask)
    is_array = isinstance(other, jax.Array) and not isinstance(other, jax.core.Tracer)
    return jax.device_put(mask, other.sharding) if is_array and other.committed else mask

"""Training under masks with optax."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from synflow_jax.trees import Masks, Params, check_masks


class FreezePrunedState(NamedTuple):
    """State of `freeze_pruned`."""

    masks: Masks  # leaves shaped like the parameters; True = trained


def freeze_pruned(masks: Masks) -> optax.GradientTransformation:
    """Sets the update of every pruned weight to zero.

    Chain it last, so that momentum and weight decay are cut too; a weight that starts at
    zero (`apply_masks`) then stays exactly zero. (`optax.masked` cannot do this: its mask
    switches whole leaves and must be known while tracing.)

    The masks ride in the state, not in a closure: they are then an argument of the
    compiled step rather than a constant baked into it, and they can be vmapped over and
    checkpointed.

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
        # Copies: a training step may donate its state.
        return FreezePrunedState(jax.tree.map(jnp.array, masks))

    def update(updates, state, params=None):
        del params
        frozen = jax.tree.map(
            lambda u, m: jnp.where(m, u, jnp.zeros_like(u)), updates, state.masks
        )
        return frozen, state

    return optax.GradientTransformation(init, update)

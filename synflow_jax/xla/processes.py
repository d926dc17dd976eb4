"""Arrays of which other processes hold a part, and what one process does for all."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool

from synflow_jax.xla.placement import on_auto_axes, placement_of


def spans_processes(leaf: Any) -> bool:
    """Whether no single process holds the whole array."""
    if not isinstance(leaf, jax.Array):
        return False
    return not (leaf.is_fully_addressable or leaf.is_fully_replicated)


def on_host(mask: Any) -> Bool[np.ndarray, "..."]:
    """A whole mask, in every process: one bit for each entry is exchanged."""
    if not spans_processes(mask):
        return np.asarray(mask)
    if placement_of(mask) is None:
        raise ValueError(
            "an array of which other processes hold a part must have a "
            f"jax.sharding.NamedSharding; got {mask.sharding}."
        )
    mask = on_auto_axes(mask)
    bits = _packed(mask, NamedSharding(mask.sharding.mesh, PartitionSpec()))
    whole = np.unpackbits(np.asarray(bits), axis=-1)
    length = mask.shape[-1] if mask.ndim else 1
    return whole[..., :length].view(bool).reshape(mask.shape)


@functools.partial(jax.jit, static_argnums=1)
def _packed(mask: Array, everywhere: NamedSharding) -> Array:
    bits = jnp.packbits(jnp.atleast_1d(mask), axis=-1)
    return lax.with_sharding_constraint(bits, everywhere)


def by_first_process(action: Callable[[], None]) -> None:
    """Does something in process 0 alone; all processes wait for its end.

    Raises:
      RuntimeError: in the other processes, if it failed; in process 0 what it raised.
    """
    from jax.experimental import multihost_utils  # slow to import

    failure = None
    if jax.process_index() == 0:
        try:
            action()
        except Exception as error:
            failure = error
    done = multihost_utils.broadcast_one_to_all(np.bool_(failure is None))
    if failure is not None:
        raise failure
    if not done:
        raise RuntimeError("process 0 failed, and its error says why.")

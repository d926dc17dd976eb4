"""All random leaves of a network from one small program, with the values of many.

JAX's random bits of an array depend on a key and on each entry's number, not on the shape.
So a loop draws all leaves in chunks of one size, and a deep network of many shapes compiles
no longer than a small one. The values are those of the initialisers, bit for bit.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend import core
from jax.extend import random as bits
from jaxtyping import Array, Key, PyTree

from synflow_jax.models.layers import DISTRIBUTIONS, Distribution
from synflow_jax.xla.jaxprs import JITTED, evaluate, parameters, typed

# Number of entries of a chunk. Smaller chunks take longer for the loop, larger ones
# waste more of the last chunk of each leaf.
_CHUNK = 4096


class _Folded(NamedTuple):
    """The key of a network with a number folded in."""

    number: int


class _Draw(NamedTuple):
    """A leaf that is to be drawn."""

    number: int  # folded into the key
    shape: tuple[int, ...]
    distribution: Distribution


def initialised(
    function: Callable[[Key[Array, ""]], PyTree], key: Key[Array, ""]
) -> PyTree | None:
    """The result of ``function(key)``, drawn by one program.

    Args:
      function: initialises a network. Its results are leaves that initialisers of
        `synflow_jax.models.layers` draw with a number folded into the key, as Flax does,
        and constants.
      key: a `jax.random.key`.

    Returns:
      The result, or None if ``function`` does anything else, if the key is traced or if
      JAX's random bits depend on shapes.
    """
    if isinstance(key, Tracer) or str(jax.random.key_impl(key)) != "threefry2x32":
        return None
    if not jax.config.values["jax_threefry_partitionable"]:
        return None
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(key)
    of_network = object()

    def step(equation: core.JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        name, first = equation.primitive.name, operands[0] if operands else None
        if name == "random_fold_in" and first is of_network:
            return [_Folded(int(operands[1]))]
        if name in JITTED and isinstance(first, _Folded):
            name = parameters(equation)["name"]
            if name in DISTRIBUTIONS:
                shape = typed(equation.outvars[0]).shape
                distribution = DISTRIBUTIONS[name](shape, *map(float, operands[1:]))
                return [_Draw(first.number, shape, distribution)]
        if name == "broadcast_in_dim" and isinstance(first, np.ndarray) and not first.shape:
            return [np.broadcast_to(first, typed(equation.outvars[0]).shape)]
        return [None] * len(equation.outvars)  # what a network computes, but no leaf

    leaves = evaluate(traced.jaxpr, traced.consts, [of_network], step)
    if not all(isinstance(leaf, _Draw | np.ndarray) for leaf in leaves):
        return None
    values = iter(_drawn(key, [leaf for leaf in leaves if isinstance(leaf, _Draw)]))
    leaves = [next(values) if isinstance(leaf, _Draw) else leaf for leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(shapes), jax.device_put(leaves))


def _drawn(key: Key[Array, ""], draws: Sequence[_Draw]) -> list[np.ndarray]:
    """The values of all leaves, on the host."""
    if not draws:
        return []
    sizes = np.array([np.prod(draw.shape, dtype=np.int64) for draw in draws])
    chunks = -(-sizes // _CHUNK)
    numbers = np.array([draw.number for draw in draws], np.uint32)
    rows = np.array([draw.distribution for draw in draws], np.float32)
    within = np.concatenate([np.arange(n, dtype=np.uint32) for n in chunks]) * _CHUNK
    leaf = np.repeat(np.arange(len(draws), dtype=np.int32), chunks)
    values = np.asarray(_chunks(key, numbers, rows, leaf, within)).reshape(-1)
    starts = np.concatenate([[0], np.cumsum(chunks)[:-1]]) * _CHUNK
    return [
        values[start : start + size].reshape(draw.shape)
        for draw, start, size in zip(draws, starts, sizes)
    ]


@jax.jit
def _chunks(
    key: Key[Array, ""], numbers: Array, rows: Array, leaf: Array, within: Array
) -> Array:
    """One row of values for each chunk.

    Args:
      key: the network's key.
      numbers: what each leaf folds into it.
      rows: the `Distribution` of each leaf.
      leaf: the leaf of each chunk.
      within: the number of the chunk's first entry in its leaf.
    """
    keys = jax.random.key_data(jax.vmap(jax.random.fold_in, (None, 0))(key, numbers))

    def chunk(inputs):
        leaf, start = inputs
        low, high, is_normal, factor = rows[leaf]
        entries = start + jnp.arange(_CHUNK, dtype=jnp.uint32)
        counts = jnp.concatenate([jnp.zeros_like(entries), entries])
        halves = bits.threefry_2x32(keys[leaf], counts).reshape(2, _CHUNK)
        # The upper 23 bits are the mantissa of a number in [1, 2).
        mantissa = (halves[0] ^ halves[1]) >> 9 | jnp.uint32(0x3F800000)
        unit = lax.bitcast_convert_type(mantissa, jnp.float32) - 1
        uniform = jnp.maximum(low, unit * (high - low) + low)
        values = lax.cond(is_normal > 0, lax.erf_inv, lambda x: x, uniform)
        return values * factor

    return lax.map(chunk, (leaf, within))

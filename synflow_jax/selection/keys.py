"""Keys: the bits of scores, read as integers that sort like the scores."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float, Int


def to_key(scores: Float[Array, "..."]) -> Int[Array, "..."]:
    """Maps scores to integers that sort like them.

    NaN becomes the second lowest integer, the lowest marks entries that may not be kept,
    the highest is unused.
    """
    signed = _key_type(scores.dtype)
    lowest = jnp.iinfo(signed).min
    bits = lax.bitcast_convert_type(scores, signed)
    # Floats store a sign and an absolute value, integers are in two's complement. Minus
    # zero becomes zero.
    keys = jnp.where(bits < 0, lowest - bits, bits)
    return jnp.where(jnp.isnan(scores), lowest + 1, keys)


def to_score(keys: Int[Array, "..."]) -> Float[Array, "..."]:
    """The inverse of `to_key`."""
    bits = jnp.where(keys < 0, jnp.iinfo(keys.dtype).min - keys, keys)
    return lax.bitcast_convert_type(bits, f"float{8 * keys.dtype.itemsize}")


def of_eligible(keys: Int[Array, "..."], eligible: Bool[Array, "..."]) -> Int[Array, "..."]:
    """The keys, and where entries are not eligible the lowest integer."""
    return jnp.where(eligible, keys, jnp.iinfo(keys.dtype).min)


def _key_type(dtype: DTypeLike) -> jnp.dtype:
    """The integers that are keys of scores of a type."""
    return jnp.dtype({4: jnp.int32, 8: jnp.int64}[jnp.dtype(dtype).itemsize])

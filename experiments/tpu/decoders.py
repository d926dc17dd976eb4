"""Decoders of text at the sizes of real ones: shapes, and how they are divided over a mesh.

The blocks are stacked and scanned, and each is computed anew for its gradient
(`jax.checkpoint`), as such models are trained. Kernels are divided over the axis "model" as
in Megatron, the products of a block's first layers along their outputs and those of its
last layers along their inputs, and over the axis "data" along the other side.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PyTree


class Decoder(NamedTuple):
    """The sizes of a decoder.

    Attributes:
      layers: blocks of attention and of two dense layers, or three if ``gated``.
      width: of a token's vector.
      hidden: units of a block's dense layers.
      heads: of the attention.
      tokens: in the vocabulary.
      gated: whether one dense layer multiplies another (SwiGLU).
    """

    layers: int
    width: int
    hidden: int
    heads: int
    tokens: int = 32_000
    gated: bool = False

    def __call__(
        self, params: PyTree, x: Int[Array, "batch length"]
    ) -> Float[Array, "batch length tokens"]:
        """The logits of the next token at each place."""
        h = params["embedding"][x]
        block = jax.checkpoint(functools.partial(_block, self))
        h, _ = lax.scan(lambda h, layer: (block(h, layer), None), h, params["layers"])
        return _normed(h, params["norm"]) @ params["head"]["kernel"]


DECODERS = {
    "100M": Decoder(layers=12, width=768, hidden=3072, heads=12),
    "300M": Decoder(layers=24, width=1024, hidden=4096, heads=16),
    "1.3B": Decoder(layers=24, width=2048, hidden=8192, heads=16),
    "7B": Decoder(layers=32, width=4096, hidden=11_008, heads=32, gated=True),
}

# Kernels of a block, each with its sides: of tokens' vectors, or of heads and hidden units.
_INTO = ("query", "key", "value", "up", "gate")
_OUT_OF = ("attended", "down")


def shapes(decoder: Decoder, mesh: Mesh | None = None) -> PyTree:
    """The parameters, in float32, as `jax.ShapeDtypeStruct`.

    Args:
      decoder: its sizes.
      mesh: with the axes "data" and "model", to divide them over; None: not divided.
    """
    n, width, hidden = decoder.layers, decoder.width, decoder.hidden
    sides = {"query": width, "key": width, "value": width, "up": hidden, "gate": hidden}
    sides |= {"attended": width, "down": hidden}
    if not decoder.gated:
        del sides["gate"]

    def leaf(shape: tuple[int, ...], *places: Any) -> jax.ShapeDtypeStruct:
        sharding = None if mesh is None else NamedSharding(mesh, P(*places))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    layers: dict[str, Any] = {
        name: {"kernel": leaf((n, width, side), None, "data", "model")}
        if name in _INTO
        else {"kernel": leaf((n, side, width), None, "model", "data")}
        for name, side in sides.items()
    }
    layers |= {name: leaf((n, width)) for name in ("attention_norm", "dense_norm")}
    return {
        "embedding": leaf((decoder.tokens, width), "model", "data"),
        "layers": layers,
        "norm": leaf((width,)),
        "head": {"kernel": leaf((width, decoder.tokens), "data", "model")},
    }


def initialised(tree: PyTree, seed: int = 0) -> PyTree:
    """Random kernels of a variance of one over their inputs; the norms' scales are ones.

    Args:
      tree: from `shapes`; leaves are put where their shardings say.
      seed: of the numbers.
    """

    def leaf(i, path, shape):
        if "norm" in jax.tree_util.keystr(path):
            return np.ones(shape, np.float32)
        drawn = np.random.default_rng((seed, i)).standard_normal(shape, np.float32)
        return drawn / np.float32(np.sqrt(shape[-2]))

    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    return treedef.unflatten(
        jax.device_put(leaf(i, path, x.shape), x.sharding)
        for i, (path, x) in enumerate(leaves)
    )


def _block(decoder: Decoder, h: Array, layer: PyTree) -> Array:
    heads = (*h.shape[:2], decoder.heads, -1)
    x = _normed(h, layer["attention_norm"])
    query, key, value = (
        (x @ layer[name]["kernel"]).reshape(heads) for name in ("query", "key", "value")
    )
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
    attended = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(h.shape)
    h = h + attended @ layer["attended"]["kernel"]
    x = _normed(h, layer["dense_norm"])
    hidden = x @ layer["up"]["kernel"]
    if decoder.gated:
        hidden = hidden * jax.nn.silu(x @ layer["gate"]["kernel"])
    else:
        hidden = jax.nn.gelu(hidden)
    return h + hidden @ layer["down"]["kernel"]


def _normed(x: Array, scale: Array) -> Array:
    """Divided by its root mean square."""
    x = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    return x * jnp.broadcast_to(scale, x.shape)

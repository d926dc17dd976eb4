"""Random networks put together from blocks, each from (length, features) to the same."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LENGTH, FEATURES = 6, 4


def _conv(w, x):
    return lax.conv_general_dilated(
        x,
        w["a"].reshape(1, FEATURES, FEATURES),
        (1,),
        "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
    )


def _pool(x, start, operation):
    shape = (1, 2, 1), (1, 1, 1), "SAME"
    return lax.reduce_window(x, start, operation, *shape)


def _attention(w, x):
    query, key, value = x @ w["a"], x @ w["b"], x @ w["c"]
    logits = jnp.einsum("nqd,nkd->nqk", query, key) / FEATURES**0.5
    causal = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))[None]
    weights = jax.nn.softmax(jnp.where(causal, logits, -1e30))
    return jnp.einsum("nqk,nkd->nqd", weights, value)


def _layer_norm(w, x):
    centred = x - x.mean(-1, keepdims=True)
    scale = lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return centred * scale * (1 + w["a"][:1, None]) + w["b"][:1, None]


BLOCKS = {
    "dense": lambda w, x: jax.nn.relu(x @ w["a"] + w["b"][:1, None]),
    "conv": lambda w, x: jax.nn.gelu(_conv(w, x)),
    "residual": lambda w, x: x + jax.nn.silu(x @ w["a"]) @ w["b"],
    "max pooling": lambda w, x: _pool(x, -jnp.inf, lax.max),
    "mean pooling": lambda w, x: _pool(x, 0.0, lax.add) / 2,
    "batch norm": lambda w, x: (x - w["a"][:1, None]) * (1 + w["b"][:1, None]),
    "layer norm": _layer_norm,
    "attention": lambda w, x: x + _attention(w, x) @ w["d"],
    "gate": lambda w, x: (x @ w["a"]) * jax.nn.sigmoid(x @ w["b"]),
    "tied": lambda w, x: jax.nn.tanh(x @ w["a"]) @ w["a"].T,
}
architectures = st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=4)
INPUT = (LENGTH, 3)

# Every example is a network to compile: a few, and none of them made smaller.
each_compiles = hypothesis.settings(
    max_examples=6, phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate]
)


def network(architecture):
    def apply_fn(params, x):
        x = x @ params["first"]
        for name, weights in zip(architecture, params["blocks"], strict=True):
            x = BLOCKS[name](weights, x)
        return x.mean(1) @ params["last"]

    return apply_fn


def parameters(architecture, seed, dtype=np.float32):
    """The same numbers in every precision."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape).astype(np.float32).astype(dtype))

    return {
        "first": draw(3, FEATURES),
        "blocks": [{n: draw(FEATURES, FEATURES) for n in "abcd"} for _ in architecture],
        "last": draw(FEATURES, 2),
    }

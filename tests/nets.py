"""Small networks whose flow can be computed by enumerating paths."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

WIDTHS = (2, 3, 4, 2)


def mlp(params, x):
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]


def flow_by_paths(weights):
    """The definition: R, and for each weight the sum over the paths through it, a path's
    value being the product of its weights' sizes."""
    widths = [len(weights[0])] + [w.shape[1] for w in weights]
    total, scores = 0.0, [np.zeros(w.shape) for w in weights]
    for path in itertools.product(*map(range, widths)):
        edges = list(zip(path, path[1:]))
        value = np.prod([abs(w[e]) for w, e in zip(weights, edges)])
        total += value
        for s, e in zip(scores, edges):
            s[e] += value
    return total, scores


def trigamma(x):
    """A function without a rule."""
    return lax.polygamma(jnp.ones_like(x), x)


def convnet(params, x):
    """Convolutions with strides and padding, max and average pooling, a residual sum."""
    numbers = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, params["a"], (1, 1), "SAME", dimension_numbers=numbers)
    y = jax.nn.relu(y)
    y = lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    z = lax.conv_general_dilated(y, params["b"], (1, 1), "SAME", dimension_numbers=numbers)
    y = jax.nn.relu(y + z)
    y = lax.reduce_window(y, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    return y.reshape(len(x), -1) @ params["c"]


CONVNET_SHAPES = {"a": (3, 3, 2, 3), "b": (3, 3, 3, 3), "c": (12, 4)}
CONVNET_INPUT = (8, 8, 2)


def draw(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in shapes.items()}


def element(batch, i):
    """The i-th tree of a batch of trees."""
    return jax.tree.map(lambda x: x[i], batch)


assert_equal = chex.assert_trees_all_equal


def assert_close(got, want, rtol=1e-5):
    chex.assert_trees_all_close(got, want, rtol=rtol)

"""A small network and some digits, for tests of training and of what trains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data, train
from experiments.networks import SmallConvNet

SETTINGS = train.Settings(
    epochs=1, batch=32, decay="cosine", weight_decay=5e-4, augment=False
)
MODULE = SmallConvNet(num_classes=10, channels=(8, 8))


@functools.cache
def digits():
    """128 digits, 40 more to test."""
    whole = data.load("digits")
    return whole._replace(
        train_images=whole.train_images[:128],
        train_labels=whole.train_labels[:128],
        test_images=whole.test_images[:40],
        test_labels=whole.test_labels[:40],
    )


@functools.cache
def variables(module=MODULE, seed=0, shape=(8, 8, 1)):
    return _init(module)(jax.random.key(seed), jnp.ones((1, *shape)))


@functools.cache
def _init(module):
    return jax.jit(module.init)


def masked(variables, density, seed=0):
    """Random masks of the kernels that keep roughly the density."""
    draw = np.random.default_rng(seed)

    def mask(leaf):
        return jnp.asarray((draw.random(leaf.shape) < density) | (leaf.ndim < 2))

    return jax.tree.map(mask, variables["params"])

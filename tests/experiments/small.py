"""A small network and some digits, for tests of training and of what trains."""

import contextlib
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from experiments.datasets.load import load
from experiments.training.networks import SmallConvNet
from experiments.training.settings import Settings
from synflow_jax import models

SETTINGS = Settings(epochs=1, batch=32, decay="cosine", weight_decay=5e-4, augment=False)
MODULE = SmallConvNet(num_classes=10, channels=(8, 8))
LONG = dataclasses.replace(SETTINGS, epochs=4)  # one for many tests: one compilation


class Normed(nn.Module):
    """With batch norm, and without convolutions, which take long to compile."""

    units: int = 16

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(self.units)(x.reshape(len(x), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x)


NORMED = Normed()


@contextlib.contextmanager
def narrow(**settings):
    """Under the name mlp, the paper's MLP with 30 units in the place of 100, or others."""
    with pytest.MonkeyPatch.context() as patch:
        make = functools.partial(models.MLP, **(settings or {"width": 0.3}))
        network = models.NETWORKS["mlp"]._replace(make=make)
        patch.setitem(models.NETWORKS, "mlp", network)
        yield


@functools.cache
def digits():
    """128 digits, 40 more to test."""
    whole = load("digits")
    return whole._replace(
        train_images=whole.train_images[:128],
        train_labels=whole.train_labels[:128],
        test_images=whole.test_images[:40],
        test_labels=whole.test_labels[:40],
    )


@functools.cache
def variables(module=MODULE, seed=0, shape=(8, 8, 1)):
    return models.init(module, jax.random.key(seed), shape)


def masked(variables, density, seed=0):
    """Random masks of the kernels that keep roughly the density."""
    draw = np.random.default_rng(seed)

    def mask(leaf):
        return jnp.asarray((draw.random(leaf.shape) < density) | (leaf.ndim < 2))

    return jax.tree.map(mask, variables["params"])


def everything(module=MODULE):
    return sj.all_kept(variables(module)["params"])


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def assert_close(one, two, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, two)

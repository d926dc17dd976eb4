"""Layers and initialisers that the paper's networks share."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def compiled(init, name="init"):
    """Compiles an initialiser by itself, so that its values do not depend on its caller.

    Inside a larger program XLA merges constant factors, which changes their rounding.
    """

    def named(key, shape, dtype=jnp.float32):
        return init(key, shape, dtype)

    named.__name__ = name
    return jax.jit(named, static_argnums=(1, 2))


# PyTorch's kaiming_normal_ for ReLU, and the initialisation that PyTorch's layers have by
# default: uniform in +-1/sqrt(fan_in).
he_fan_in = compiled(nn.initializers.variance_scaling(2.0, "fan_in", "normal"), "he_fan_in")
he_fan_out = compiled(
    nn.initializers.variance_scaling(2.0, "fan_out", "normal"), "he_fan_out"
)
torch_kernel = compiled(
    nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform"), "torch_kernel"
)
# Dense layers of VGG for ImageNet and Tiny ImageNet.
small_normal = compiled(nn.initializers.normal(0.01), "small_normal")


@functools.partial(jax.jit, static_argnums=(2, 3))
def torch_uniform(key, bound, shape, dtype):
    """Uniform in +-bound."""
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def torch_bias(fan_in: int):
    """Initialiser with PyTorch's default for biases: uniform in +-1/sqrt(fan_in)."""
    return lambda key, shape, dtype=jnp.float32: torch_uniform(
        key, fan_in**-0.5, shape, dtype
    )


class Distribution(NamedTuple):
    """Entries are uniform between ``low`` and ``high``; or their image under the inverse
    error function, which is normal; times a factor."""

    low: float
    high: float
    is_normal: bool
    factor: float


def _normal(std: float) -> Distribution:
    # Of the two factors XLA makes one.
    factor = np.float32(np.sqrt(2)) * np.float32(std)
    least = np.nextafter(np.float32(-1), np.float32(0))
    return Distribution(float(least), 1.0, True, float(factor))


def _root(variance: float) -> float:
    return float(np.sqrt(np.float32(variance)))


# By the name of an initialiser, what it draws for a shape (and its other operands).
DISTRIBUTIONS: dict[str, Callable[..., Distribution]] = {
    "he_fan_in": lambda shape: _normal(_root(2 / math.prod(shape[:-1]))),
    "he_fan_out": lambda shape: _normal(_root(2 / (math.prod(shape[:-2]) * shape[-1]))),
    "small_normal": lambda shape: _normal(0.01),
    "torch_kernel": lambda shape: Distribution(
        -1.0, 1.0, False, _root(3 * float(np.float32(1 / 3 / math.prod(shape[:-1]))))
    ),
    "torch_uniform": lambda shape, bound: Distribution(-bound, bound, False, 1.0),
}


def dense_as_torch(features: int, x: Array, name: str) -> Array:
    """A dense layer with PyTorch's default initialisation, whose biases are not zero."""
    return nn.Dense(
        features,
        kernel_init=torch_kernel,
        bias_init=torch_bias(x.shape[-1]),
        name=name,
    )(x)


def batch_norm(x: Array, train: bool, name: str) -> Array:
    """Batch normalisation with PyTorch's defaults; running averages unless ``train``."""
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name
    )(x)


def scaled_width(channels: int, width: float) -> int:
    """The number of channels times the width factor, rounded, and at least one."""
    return max(1, round(channels * width))

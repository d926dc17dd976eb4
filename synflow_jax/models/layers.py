"""Layers and initialisers that the paper's networks share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array


def compiled(init):
    """Compiles an initialiser by itself, so that its values do not depend on its caller.

    Inside a larger program XLA merges constant factors, which changes their rounding.
    """
    return jax.jit(init, static_argnums=(1, 2))


# PyTorch's kaiming_normal_ for ReLU, and the initialisation that PyTorch's layers have by
# default: uniform in +-1/sqrt(fan_in).
he_fan_in = compiled(nn.initializers.variance_scaling(2.0, "fan_in", "normal"))
he_fan_out = compiled(nn.initializers.variance_scaling(2.0, "fan_out", "normal"))
torch_kernel = compiled(nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform"))
small_normal = compiled(
    nn.initializers.normal(0.01)
)  # dense layers of VGG for ImageNet and Tiny ImageNet


def torch_bias(fan_in: int):
    """Initialiser with PyTorch's default for biases: uniform in +-1/sqrt(fan_in)."""

    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


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

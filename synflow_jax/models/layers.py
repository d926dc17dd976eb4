"""Layers and initialisers that the paper's networks share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array


def compiled(init):
    """The same values in a program of any size, where XLA merges factors, and by itself."""
    return jax.jit(init, static_argnums=(1, 2))


# PyTorch's kaiming_normal_ for ReLU, and its default for layers that nobody initialises:
# uniform in +-1/sqrt(fan_in).
he_fan_in = compiled(nn.initializers.variance_scaling(2.0, "fan_in", "normal"))
he_fan_out = compiled(nn.initializers.variance_scaling(2.0, "fan_out", "normal"))
torch_kernel = compiled(nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform"))
small_normal = compiled(nn.initializers.normal(0.01))  # of networks for ImageNet


def torch_bias(fan_in: int):
    """PyTorch's default for biases: uniform in +-1/sqrt(fan_in)."""

    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def dense_as_torch(features: int, x: Array, name: str) -> Array:
    """A dense layer with PyTorch's default initialisation, its non-zero bias included."""
    return nn.Dense(
        features,
        kernel_init=torch_kernel,
        bias_init=torch_bias(x.shape[-1]),
        name=name,
    )(x)


def batch_norm(x: Array, train: bool, name: str) -> Array:
    """Batch normalisation with PyTorch's defaults; running statistics unless training."""
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name
    )(x)


def scaled_width(channels: int, width: float) -> int:
    """Channels times the width factor, at least one."""
    return max(1, round(channels * width))

"""The networks that are trained, by name: those of synflow_jax.models and small ones.

The small ones are for two processor cores.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from synflow_jax import models
from synflow_jax.models.layers import compiled

_HE_NORMAL = compiled(nn.initializers.he_normal())
_LECUN_NORMAL = compiled(nn.initializers.lecun_normal())


class NormalisedMLP(nn.Module):
    """`synflow_jax.models.MLP` with batch norm before each ReLU.

    Attributes:
      num_classes: outputs.
      hidden: units of each hidden layer.
    """

    num_classes: int
    hidden: Sequence[int] = (100,) * 5

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        x = x.reshape(x.shape[0], -1)
        for i, units in enumerate(self.hidden, 1):
            # Batch norm would take a bias off again.
            x = nn.Dense(units, use_bias=False, kernel_init=_HE_NORMAL, name=f"linear{i}")(
                x
            )
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"bn{i}")(x)
            x = nn.relu(x)
        last = len(self.hidden) + 1
        return nn.Dense(self.num_classes, kernel_init=_LECUN_NORMAL, name=f"linear{last}")(
            x
        )


class SmallConvNet(nn.Module):
    """3x3 convolutions of stride 2 with batch norm and ReLU, averaged over the image, and
    a dense layer: 0.85 million multiply-adds for an image of 32x32x3.

    Attributes:
      num_classes: outputs.
      channels: outputs of each convolution.
    """

    num_classes: int
    channels: Sequence[int] = (16, 32, 64, 64)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        for i, channels in enumerate(self.channels, 1):
            x = nn.Conv(
                channels,
                (3, 3),
                strides=2,
                padding=1,
                use_bias=False,  # batch norm would take it off again
                kernel_init=_HE_NORMAL,
                name=f"conv{i}",
            )(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"bn{i}")(x)
            x = nn.relu(x)
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=_LECUN_NORMAL, name="linear")(x)


class LeNet(nn.Module):
    """Two 5x5 convolutions, each followed by 2x2 max pooling, and two dense layers.

    20, 50 and 500 channels as in the classical Caffe form; for 28x28x1 images 430,500
    weights and 2.3 million multiply-adds.

    Attributes:
      num_classes: outputs.

    References:
      LeCun et al., "Gradient-based learning applied to document recognition", 1998; the
      sizes are those of Han et al., "Learning both Weights and Connections", NeurIPS 2015.
    """

    num_classes: int = 10

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        for i, channels in enumerate((20, 50), 1):
            x = nn.Conv(
                channels, (5, 5), padding="VALID", kernel_init=_HE_NORMAL, name=f"conv{i}"
            )(x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(500, kernel_init=_HE_NORMAL, name="linear1")(x))
        return nn.Dense(self.num_classes, kernel_init=_HE_NORMAL, name="linear2")(x)


# The networks that are trained besides those of synflow_jax.models.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp_bn": NormalisedMLP,
    "convnet_bn": SmallConvNet,
    "lenet": LeNet,
    "vgg16_eighth": functools.partial(models.NETWORKS["vgg16_cifar"].make, width=1 / 8),
}


def module_of(network: str, num_classes: int) -> nn.Module:
    """A network by its name, not yet initialised.

    Raises:
      ValueError: if there is none of this name.
    """
    if network in NETWORKS:
        return NETWORKS[network](num_classes=num_classes)
    if network not in models.NETWORKS:
        known = ", ".join([*NETWORKS, *sorted(models.NETWORKS)])
        raise ValueError(f"there is no network {network!r}; there are {known}.")
    return models.NETWORKS[network].make(num_classes=num_classes)

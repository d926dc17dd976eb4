"""The two small networks of the authors' code: a deep MLP and a convolutional network."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from synflow_jax.models.layers import dense_as_torch, scaled_width, torch_bias, torch_kernel


class MLP(nn.Module):
    """Dense layers with ReLU between them; 784-100-100-100-100-100-10 by default.

    Attributes:
      num_classes: number of outputs.
      hidden: number of units of each hidden layer.
      width: multiplies the numbers in ``hidden``.
    """

    num_classes: int = 10
    hidden: Sequence[int] = (100,) * 5
    width: float = 1.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *image"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        x = x.reshape(x.shape[0], -1)
        for i, units in enumerate(self.hidden, 1):
            x = dense_as_torch(scaled_width(units, self.width), x, name=f"linear{i}")
            x = nn.relu(x)
        last = len(self.hidden) + 1
        return dense_as_torch(self.num_classes, x, name=f"linear{last}")


class ConvNet(nn.Module):
    """Two 3x3 convolutions of 32 channels and a dense layer; no pooling, no batch norm.

    Attributes:
      num_classes: number of outputs.
      width: multiplies the number of channels.
    """

    num_classes: int = 10
    width: float = 1.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        channels = scaled_width(32, self.width)
        for i in (1, 2):
            x = nn.Conv(
                channels,
                (3, 3),
                padding=1,
                kernel_init=torch_kernel,
                bias_init=torch_bias(9 * x.shape[-1]),
                name=f"conv{i}",
            )(x)
            x = nn.relu(x)
        return dense_as_torch(self.num_classes, x.reshape(x.shape[0], -1), name="linear")

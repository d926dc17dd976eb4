"""The small network that the demonstration trains (synflow_jax.models has the paper's)."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float


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
                kernel_init=nn.initializers.he_normal(),
                name=f"conv{i}",
            )(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"bn{i}")(x)
            x = nn.relu(x)
        return nn.Dense(self.num_classes, name="linear")(x.mean(axis=(1, 2)))

"""VGG networks in the three forms of the paper: CIFAR, Tiny ImageNet, ImageNet."""

from typing import Literal

import flax.linen as nn
from jaxtyping import Array, Float

from synflow_jax.models.layers import (
    batch_norm,
    he_fan_in,
    he_fan_out,
    scaled_width,
    small_normal,
)

# For each depth: the number of convolutions in each of the five groups. A 2x2 max pooling
# follows each group.
_DEPTHS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_CHANNELS = (64, 128, 256, 512, 512)
_HIDDEN = {"cifar": (), "tiny_imagenet": (1024, 1024), "imagenet": (4096, 4096)}


class VGG(nn.Module):
    """VGG-11, 13, 16 or 19.

    3x3 convolutions with a bias, each followed by batch normalisation (unless ``norm`` is
    False) and ReLU. The form says how the network ends and how it is initialised:

    - ``cifar``, for 32x32 inputs: the last group ends with 2x2 average pooling instead of
      max pooling, and one dense layer follows. He initialisation by fan-in.
    - ``tiny_imagenet``, for 64x64 inputs: two hidden dense layers of 1024 units with
      dropout, and a dense layer for the outputs. He initialisation by fan-out for
      convolutions; dense weights are normal with standard deviation 0.01.
    - ``imagenet``: the same with 4096 units. This is torchvision's network, whose adaptive
      pooling is the identity at 224x224.

    Attributes:
      depth: 11, 13, 16 or 19.
      num_classes: number of outputs.
      form: ``"cifar"``, ``"tiny_imagenet"`` or ``"imagenet"``.
      norm: whether there is batch normalisation.
      width: multiplies all numbers of channels and of hidden units.
    """

    depth: int
    num_classes: int
    form: Literal["cifar", "tiny_imagenet", "imagenet"] = "cifar"
    norm: bool = True
    width: float = 1.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        cifar = self.form == "cifar"
        number = 0
        for group, (repeats, channels) in enumerate(zip(_DEPTHS[self.depth], _CHANNELS)):
            for _ in range(repeats):
                number += 1
                x = nn.Conv(
                    scaled_width(channels, self.width),
                    (3, 3),
                    padding=1,
                    kernel_init=he_fan_in if cifar else he_fan_out,
                    name=f"conv{number:02d}",
                )(x)
                if self.norm:
                    x = batch_norm(x, train, name=f"bn{number:02d}")
                x = nn.relu(x)
            pool = nn.avg_pool if cifar and group == 4 else nn.max_pool
            x = pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        kernel_init = he_fan_in if cifar else small_normal
        for i, units in enumerate(_HIDDEN[self.form], 1):
            units = scaled_width(units, self.width)
            x = nn.relu(nn.Dense(units, kernel_init=kernel_init, name=f"linear{i}")(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
        last = "linear" if cifar else f"linear{len(_HIDDEN[self.form]) + 1}"
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name=last)(x)

"""Residual networks: the CIFAR family (20 to 1202) and the ImageNet family (18 to 152)."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
from jaxtyping import Array, Float

from synflow_jax.models.layers import (
    batch_norm,
    dense_as_torch,
    he_fan_in,
    he_fan_out,
    scaled_width,
)

_Initializer = nn.initializers.Initializer
_Images = Float[Array, "batch _height _width _channels"]

# For each depth: the number of blocks in each of the four groups, and whether the blocks
# are bottlenecks.
_IMAGENET_BLOCKS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


class _Block(nn.Module):
    """Adds a branch of convolutions with batch norm to a shortcut.

    A basic block has two 3x3 convolutions. A bottleneck has a 1x1 convolution, a 3x3
    convolution with the stride, and a 1x1 convolution to four times as many channels. The
    shortcut is the identity, or a 1x1 convolution with batch norm if the shape changes.
    """

    channels: int
    out_channels: int
    stride: int
    bottleneck: bool
    kernel_init: _Initializer

    @nn.compact
    def __call__(self, x: _Images, train: bool) -> _Images:
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=self.kernel_init)
        if self.bottleneck:
            layers = [(1, 1, self.channels), (3, self.stride, self.channels)]
            layers += [(1, 1, self.out_channels)]
        else:
            layers = [(3, self.stride, self.channels), (3, 1, self.out_channels)]
        y = x
        for i, (size, stride, channels) in enumerate(layers, 1):
            y = conv(channels, (size, size), stride, padding=size // 2, name=f"conv{i}")(y)
            y = batch_norm(y, train, name=f"bn{i}")
            y = nn.relu(y) if i < len(layers) else y
        if self.stride != 1 or x.shape[-1] != self.out_channels:
            x = conv(self.out_channels, (1, 1), self.stride, padding=0, name="shortcut")(x)
            x = batch_norm(x, train, name="shortcut_bn")
        return nn.relu(x + y)


def _groups(
    x: _Images,
    train: bool,
    blocks: Sequence[int],
    inner: Sequence[int],
    outer: Sequence[int],
    bottleneck: bool,
    kernel_init: _Initializer,
) -> _Images:
    for g, (repeats, channels, out_channels) in enumerate(zip(blocks, inner, outer), 1):
        digits = len(str(repeats))
        for b in range(1, repeats + 1):
            x = _Block(
                channels,
                out_channels,
                stride=2 if g > 1 and b == 1 else 1,
                bottleneck=bottleneck,
                kernel_init=kernel_init,
                name=f"group{g}_block{b:0{digits}d}",
            )(x, train)
    return x


class CifarResNet(nn.Module):
    """ResNet-20, 32, 44, 56, 110 and 1202: a 3x3 stem and three groups of basic blocks.

    Attributes:
      depth: 6 n + 2 for n blocks in each group.
      num_classes: number of outputs.
      width: multiplies the numbers of channels, 16, 32 and 64; 2 makes the wide form.
    """

    depth: int
    num_classes: int
    width: float = 1.0

    @nn.compact
    def __call__(self, x: _Images, train: bool = False) -> Float[Array, "batch classes"]:
        if self.depth < 8 or self.depth % 6 != 2:
            raise ValueError(f"`depth` is 6 n + 2, with n at least 1; got {self.depth}.")
        channels = [scaled_width(c, self.width) for c in (16, 32, 64)]
        x = nn.Conv(
            channels[0],
            (3, 3),
            padding=1,
            use_bias=False,
            kernel_init=he_fan_in,
            name="conv",
        )(x)
        x = nn.relu(batch_norm(x, train, name="bn"))
        blocks = [(self.depth - 2) // 6] * 3
        x = _groups(x, train, blocks, channels, channels, False, he_fan_in)
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=he_fan_in, name="linear")(x)


class ResNet(nn.Module):
    """ResNet-18, 34, 50, 101 and 152.

    Attributes:
      depth: 18, 34, 50, 101 or 152.
      num_classes: number of outputs.
      stem: ``"small"`` is a 3x3 convolution, for CIFAR and Tiny ImageNet; ``"imagenet"`` is
        a 7x7 convolution of stride 2 followed by max pooling.
      width: multiplies all numbers of channels. 2 with depth 18 is WideResNet-18.
      inner_width: also multiplies the inner channels of bottlenecks; 2 with depth 50 is
        torchvision's wide_resnet50_2.
    """

    depth: int
    num_classes: int
    stem: Literal["small", "imagenet"] = "small"
    width: float = 1.0
    inner_width: float = 1.0

    @nn.compact
    def __call__(self, x: _Images, train: bool = False) -> Float[Array, "batch classes"]:
        blocks, bottleneck = _IMAGENET_BLOCKS[self.depth]
        channels = [scaled_width(c, self.width) for c in (64, 128, 256, 512)]
        size = 7 if self.stem == "imagenet" else 3
        x = nn.Conv(
            channels[0],
            (size, size),
            strides=size // 3,
            padding=size // 2,
            use_bias=False,
            kernel_init=he_fan_out,
            name="conv",
        )(x)
        x = nn.relu(batch_norm(x, train, name="bn"))
        if self.stem == "imagenet":
            # `max_pool` takes pairs, as its documentation says, but is annotated with str.
            padding: Any = ((1, 1), (1, 1))
            x = nn.max_pool(x, (3, 3), (2, 2), padding)
        inner, outer = channels, channels
        if bottleneck:
            inner = [scaled_width(c, self.inner_width) for c in channels]
            outer = [4 * c for c in channels]
        x = _groups(x, train, blocks, inner, outer, bottleneck, he_fan_out)
        x = x.mean(axis=(1, 2))
        return dense_as_torch(self.num_classes, x, name="linear")

"""The paper's networks in Flax (NHWC), by the names that the command line accepts.

A name is that of the architecture, followed by that of the data set: ``vgg16_cifar``,
``vgg16_tiny``, ``vgg16_imagenet``. Residual networks without a data set are for CIFAR.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from synflow_jax.interop.linen import from_linen
from synflow_jax.models.initial import initialised
from synflow_jax.models.mlp import MLP, ConvNet
from synflow_jax.models.resnet import CifarResNet, ResNet
from synflow_jax.models.vgg import VGG
from synflow_jax.trees import Params


class Network(NamedTuple):
    """An entry of ``NETWORKS``.

    Attributes:
      make: ``make(num_classes=..., width=...) -> module``.
      input_shape: height, width and channels of one image.
      num_classes: number of classes of the data set that the network is for.
    """

    make: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]
    num_classes: int


def _partial(module: type[nn.Module], **settings) -> Callable[..., nn.Module]:
    return lambda **more: module(**{**settings, **more})


_CIFAR, _TINY, _IMAGENET = (32, 32, 3), (64, 64, 3), (224, 224, 3)

NETWORKS: dict[str, Network] = {
    "mlp": Network(_partial(MLP), (28, 28, 1), 10),
    "conv": Network(_partial(ConvNet), _CIFAR, 10),
}
for _depth in (11, 13, 16, 19):
    NETWORKS |= {
        f"vgg{_depth}_cifar": Network(_partial(VGG, depth=_depth), _CIFAR, 10),
        f"vgg{_depth}_tiny": Network(
            _partial(VGG, depth=_depth, form="tiny_imagenet"), _TINY, 200
        ),
        f"vgg{_depth}_imagenet": Network(
            _partial(VGG, depth=_depth, form="imagenet", norm=False), _IMAGENET, 1000
        ),
        f"vgg{_depth}_bn_imagenet": Network(
            _partial(VGG, depth=_depth, form="imagenet"), _IMAGENET, 1000
        ),
    }
for _depth in (20, 32, 44, 56, 110, 1202):
    NETWORKS[f"resnet{_depth}"] = Network(_partial(CifarResNet, depth=_depth), _CIFAR, 10)
    NETWORKS[f"wide_resnet{_depth}"] = Network(
        _partial(CifarResNet, depth=_depth, width=2.0), _CIFAR, 10
    )
for _depth in (18, 34, 50, 101, 152):
    NETWORKS |= {
        f"resnet{_depth}": Network(_partial(ResNet, depth=_depth), _CIFAR, 10),
        f"resnet{_depth}_tiny": Network(_partial(ResNet, depth=_depth), _TINY, 200),
        f"resnet{_depth}_imagenet": Network(
            _partial(ResNet, depth=_depth, stem="imagenet"), _IMAGENET, 1000
        ),
    }
    # The authors' code ignores the width of basic blocks, so its "WideResNet-18" is
    # ResNet-18. Here basic blocks have twice the channels. Bottlenecks have twice the inner
    # channels, as in torchvision.
    _wide = {"width": 2.0} if _depth < 50 else {"inner_width": 2.0}
    NETWORKS |= {
        f"wide_resnet{_depth}": Network(
            _partial(ResNet, depth=_depth, **_wide), _CIFAR, 10
        ),
        f"wide_resnet{_depth}_tiny": Network(
            _partial(ResNet, depth=_depth, **_wide), _TINY, 200
        ),
        f"wide_resnet{_depth}_imagenet": Network(
            _partial(ResNet, depth=_depth, stem="imagenet", **_wide), _IMAGENET, 1000
        ),
    }


def build(
    name: str, key: Key[Array, ""], *, num_classes: int | None = None
) -> tuple[Callable[..., PyTree], Params, tuple[int, int, int]]:
    """Initialises a network of ``NETWORKS``, ready to prune.

    Args:
      name: a key of ``NETWORKS``.
      key: a `jax.random.key` for the initial parameters.
      num_classes: number of outputs; by default, that of the network's entry in
        ``NETWORKS``.

    Returns:
      ``(apply_fn, params, input_shape)``, in evaluation mode.

    Raises:
      ValueError: if there is no such network.

    Example:
      >>> apply_fn, params, input_shape = build("mlp", jax.random.key(0))
      >>> params["linear1"]["kernel"].shape, input_shape
      ((784, 100), (28, 28, 1))
    """
    if name not in NETWORKS:
        raise ValueError(
            f"there is no network {name!r}; there are {', '.join(sorted(NETWORKS))}."
        )
    network = NETWORKS[name]
    module = network.make(num_classes=num_classes or network.num_classes)
    variables = init(module, key, network.input_shape)
    return (*from_linen(module, variables), network.input_shape)


def init(module: nn.Module, key: Key[Array, ""], input_shape: tuple[int, ...]) -> PyTree:
    """Initialises the variables of a module without a forward pass.

    One small program draws all leaves of the networks here. In other modules each leaf is
    initialised by a program of its own, which takes seconds where one program under
    `jax.jit` may compile for minutes. The values are those of ``module.init``, bit for bit
    for the networks here, and up to rounding for modules whose initialisers are not
    compiled by themselves.

    Args:
      module: is called as ``module(images)``, with float32 images.
      key: a `jax.random.key` for the initial parameters.
      input_shape: the shape of one image, without the batch axis.

    Returns:
      Variables as ``module.init`` returns them.

    Example:
      >>> variables = init(MLP(num_classes=10), jax.random.key(0), (28, 28, 1))
      >>> variables["params"]["linear1"]["kernel"].shape
      (784, 100)
    """
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)

    def by_leaf(key):
        return module.lazy_init(key, images)

    variables = initialised(by_leaf, key)
    return by_leaf(key) if variables is None else variables

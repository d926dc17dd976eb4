"""Flax networks of the paper, NHWC, under the names that the command line knows.

A name is the architecture, then the form it has for a data set where there are several:
``vgg16_cifar``, ``vgg16_tiny``, ``vgg16_imagenet``.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from synflow_jax.interop.linen import from_linen
from synflow_jax.models.mlp import MLP, ConvNet
from synflow_jax.models.resnet import CifarResNet, ResNet
from synflow_jax.models.vgg import VGG
from synflow_jax.trees import Params


class Network(NamedTuple):
    """An entry of the table.

    Attributes:
      make: ``make(num_classes=..., width=...) -> module``.
      input_shape: height, width and channels of one image.
      num_classes: classes of the data set it is for.
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
    # The released code ignores the width of basic blocks, so its "WideResNet-18" is
    # ResNet-18. Here it is wide: all channels doubled; bottlenecks as in torchvision.
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
    """A network of the table at initialisation, ready to prune.

    Args:
      name: a key of ``NETWORKS``.
      key: draws the parameters.
      num_classes: outputs; default, the classes of the data set in the network's name.

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
    """The variables of a module at initialisation, drawn without a forward pass.

    Leaf by leaf: as one program under `jax.jit` the draws of ResNet-1202 compile for
    minutes, here they take seconds. The values are the same, to the bit for the networks
    here; for initialisers that are not compiled by themselves but for rounding.

    Args:
      module: called as ``module(images)``, with float32 images.
      key: draws the parameters.
      input_shape: of one image.

    Returns:
      What ``module.init`` returns.

    Example:
      >>> variables = init(MLP(num_classes=10), jax.random.key(0), (28, 28, 1))
      >>> variables["params"]["linear1"]["kernel"].shape
      (784, 100)
    """
    return module.lazy_init(key, jax.ShapeDtypeStruct((1, *input_shape), jnp.float32))

"""How a network is trained: the paper's settings, the learning rate, the optimiser."""

import dataclasses
from typing import Literal

import optax
from jaxtyping import PyTree

import synflow_jax as sj


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a network is trained; as in the paper's code, but for Adam."""

    epochs: int = 160
    """Passes over the training images."""
    batch: int = 128
    """Images in a step, over all devices together."""
    learning_rate: float = 0.1
    """The highest."""
    decay: Literal["drops", "cosine"] = "drops"
    """drops: times --factor after each of --drops. cosine: down to zero over the whole
    training, after a warm-up over the first tenth of the steps."""
    drops: tuple[int, ...] = (60, 120)
    """Epochs after which the learning rate drops."""
    factor: float = 0.1
    """What a drop multiplies it by."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd: with Nesterov's momentum. adam: with optax's other settings."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 1e-4
    """On all parameters: added to their gradients."""
    augment: bool = True
    """Whether training images are moved and mirrored, where their data set has that."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of activations and gradients; the weights and their updates are float32."""


def paper_settings(network: str, dataset: str) -> Settings:
    """The settings of Fig. 6 of the paper, from the published commands.

    Args:
      network: a name in synflow_jax.models.
      dataset: a name that `experiments.datasets.load.load` takes.

    Raises:
      ValueError: if the paper has no such pair.

    References:
      Tanaka et al. 2020, appendix; the authors' published commands for Fig. 6.
    """
    base = network.removesuffix("_cifar").removesuffix("_tiny")
    family = {
        "vgg11": "vgg",
        "vgg16": "vgg",
        "resnet18": "resnet",
        "wide_resnet18": "resnet",
    }.get(base)
    settings = {
        ("vgg", "cifar"): Settings(),
        ("resnet", "cifar"): Settings(learning_rate=0.01, factor=0.2, weight_decay=5e-4),
        ("vgg", "tiny"): Settings(epochs=100, learning_rate=0.01, drops=(30, 60, 80)),
        ("resnet", "tiny"): Settings(epochs=100, learning_rate=0.01, drops=(30, 60, 80)),
    }
    kind = next((kind for kind in ("cifar", "tiny") if dataset.startswith(kind)), dataset)
    if (family, kind) not in settings:
        raise ValueError(f"the paper does not train {network} on {dataset}.")
    return settings[family, kind]


# Of what two processor cores train in minutes.
SHORT = Settings(
    epochs=5, learning_rate=0.1, decay="cosine", weight_decay=5e-4, augment=False
)


def cpu_settings(network: str) -> Settings:
    """The settings under which the experiments compare methods at scale cpu.

    Args:
      network: mlp_bn or convnet_bn.
    """
    if network == "mlp_bn":
        return dataclasses.replace(SHORT, epochs=20, batch=256)
    if network == "convnet_bn":
        return dataclasses.replace(SHORT, epochs=20, augment=True)
    raise ValueError(f"there are no settings at scale cpu for {network!r}.")


def learning_rates(settings: Settings, steps: int) -> optax.Schedule:
    """The learning rate at every step; ``steps`` is the number of steps in an epoch."""
    if settings.decay == "drops":
        falls = {epoch * steps: settings.factor for epoch in settings.drops}
        return optax.piecewise_constant_schedule(settings.learning_rate, falls)
    whole = settings.epochs * steps
    warmup = 1 + whole // 10
    # Neither end is at zero: the first step moves, and so does the last.
    return optax.warmup_cosine_decay_schedule(
        settings.learning_rate / (warmup + 1), settings.learning_rate, warmup, whole + 1
    )


def optimizer(
    settings: Settings, steps: int, masks: PyTree = None
) -> optax.GradientTransformation:
    """An optimiser whose pruned weights never move; ``init`` alone reads the masks."""
    rate = learning_rates(settings, steps)
    sgd = optax.sgd(rate, settings.momentum, nesterov=True)
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.adam(rate) if settings.optimizer == "adam" else sgd,
        sj.freeze_pruned(masks),
    )

"""Training of a masked network: pure steps, and the loop that runs them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree, UInt8

import synflow_jax as sj
from experiments.data import Data


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a network is trained: SGD with Nesterov momentum, cosine schedule."""

    images: int = 40_000
    """Training images a network sees, rounded to whole epochs of the data set."""
    batch: int = 128
    """Images in a step."""
    learning_rate: float = 0.1
    """The highest, after a warm-up over the first tenth of the steps."""
    momentum: float = 0.9
    """Of Nesterov's kind."""
    weight_decay: float = 5e-4
    """On all parameters."""


class Split(NamedTuple):
    """Labelled images on the device.

    Attributes:
      images: 0 to 255.
      labels: one an image.
      mean, scale: of the training images, for each channel.
    """

    images: UInt8[Array, "n height width channels"]
    labels: Int[Array, " n"]
    mean: Float[Array, "1 1 1 channels"]
    scale: Float[Array, "1 1 1 channels"]


class State(NamedTuple):
    """What one step hands to the next."""

    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree


class Epoch(NamedTuple):
    """What is measured after an epoch."""

    epoch: int  # from 1
    loss: float  # mean over the epoch's steps
    accuracy: float  # on the held-out images, a fraction


def on_device(data: Data) -> tuple[Split, Split]:
    """The training and the held-out images, both scaled by the training images' numbers."""
    axes = (0, 1, 2)
    mean = data.train_images.mean(axis=axes, keepdims=True, dtype=np.float64)
    scale = data.train_images.std(axis=axes, keepdims=True, dtype=np.float64)
    numbers = jnp.asarray(mean, jnp.float32), jnp.asarray(scale, jnp.float32)
    return (
        Split(jnp.asarray(data.train_images), jnp.asarray(data.train_labels), *numbers),
        Split(jnp.asarray(data.test_images), jnp.asarray(data.test_labels), *numbers),
    )


def length(settings: Settings, images: int) -> tuple[int, int]:
    """Epochs, and steps in each, for a data set of so many training images.

    What does not fill the last batch of an epoch is left out; the order being another one
    in every epoch, so are other images.

    Raises:
      ValueError: if one batch is more than the data set.
    """
    if settings.batch > images:
        raise ValueError(
            f"`batch` is {settings.batch}, more than the {images} training images."
        )
    return max(1, round(settings.images / images)), images // settings.batch


def optimizer(
    settings: Settings, steps: int, masks: PyTree
) -> optax.GradientTransformation:
    """SGD whose pruned weights never move."""
    warmup = 1 + steps // 10
    # Neither end is at zero: the first step moves, and so does the last.
    schedule = optax.warmup_cosine_decay_schedule(
        settings.learning_rate / (warmup + 1), settings.learning_rate, warmup, steps + 1
    )
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(schedule, settings.momentum, nesterov=True),
        sj.freeze_pruned(masks),
    )


def start(settings: Settings, steps: int, variables: PyTree, masks: PyTree) -> State:
    """The state before the first step: the masked parameters.

    Args:
      settings: how to train.
      steps: of the whole training.
      variables: what ``module.init`` returned.
      masks: boolean leaves shaped like the parameters; True = kept.
    """
    params = sj.apply_masks(variables["params"], masks)
    opt_state = optimizer(settings, steps, masks).init(params)
    return State(params, variables.get("batch_stats", {}), opt_state)


# The masks are arguments, so one compilation serves every method, every density and the
# dense network. One call a step, and not a scan over steps: XLA runs the convolutions
# inside a loop on one core and without its fast kernels, here ten times slower on a CPU.
@functools.partial(jax.jit, static_argnames=("module", "settings", "steps"))
def train_step(
    module: nn.Module,
    settings: Settings,
    steps: int,
    state: State,
    masks: PyTree,
    split: Split,
    index: Int[Array, " batch"],
) -> tuple[State, Float[Array, ""]]:
    """One step on the images that ``index`` names.

    Returns:
      The next state, and the mean cross-entropy before the step.
    """

    def loss_of(params):
        logits, updated = module.apply(
            {"params": params, "batch_stats": state.batch_stats},
            _scaled(split, index),
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, split.labels[index]
        )
        return losses.mean(), updated.get("batch_stats", {})

    (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer(settings, steps, masks).update(
        gradients, state.opt_state, state.params
    )
    return State(optax.apply_updates(state.params, updates), stats, opt_state), loss


@functools.partial(jax.jit, static_argnames="module")
def eval_step(
    module: nn.Module, state: State, split: Split, index: Int[Array, " batch"]
) -> Int[Array, ""]:
    """How many of the images that ``index`` names are labelled rightly."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = module.apply(variables, _scaled(split, index))
    return jnp.sum(jnp.argmax(logits, axis=-1) == split.labels[index])


def order(seed: int, epoch: int, images: int) -> Int[Array, " images"]:
    """The order of the training images, a function of the seed and the epoch alone."""
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    return jax.random.permutation(key, images)


def train(
    module: nn.Module,
    settings: Settings,
    variables: PyTree,
    masks: PyTree,
    splits: tuple[Split, Split],
    seed: int,
    *,
    on_steps: Callable[[int], Any] = lambda n: None,
    on_epoch: Callable[[Epoch], Any] = lambda epoch: None,
) -> State:
    """Trains a network under masks.

    Args:
      module: called as ``module(images, train=...)``.
      settings: how to train.
      variables: what ``module.init`` returned.
      masks: boolean leaves shaped like the parameters; True = kept.
      splits: the training and the held-out images.
      seed: decides the order of the images.
      on_steps: called when so many more steps are done.
      on_epoch: called after each epoch.

    Returns:
      The state after the last step. Its pruned weights are exactly zero.
    """
    train_split, test_split = splits
    images = len(train_split.labels)
    epochs, steps = length(settings, images)
    state = start(settings, epochs * steps, variables, masks)
    for epoch in range(1, epochs + 1):
        shuffled = order(seed, epoch, images)[: steps * settings.batch]
        losses = []
        for i, index in enumerate(shuffled.reshape(steps, settings.batch), 1):
            state, loss = train_step(
                module, settings, epochs * steps, state, masks, train_split, index
            )
            losses.append(loss)
            # Calls return before their work is done; without waits the bar would run ahead.
            if i % 10 == 0 or i == steps:
                loss.block_until_ready()
                on_steps(10 if i % 10 == 0 else steps % 10)
        mean_loss = float(np.mean(jax.device_get(losses), dtype=np.float64))
        on_epoch(Epoch(epoch, mean_loss, accuracy(module, state, test_split)))
    return state


def accuracy(module: nn.Module, state: State, split: Split) -> float:
    """The fraction of the images that the network labels rightly."""
    images = len(split.labels)
    batches = np.array_split(np.arange(images), -(-images // 500))
    right = [eval_step(module, state, split, jnp.asarray(index)) for index in batches]
    return sum(map(int, right)) / images


def num_nonzero(params: PyTree, masks: PyTree) -> tuple[int, int]:
    """How many prunable weights differ from zero: of those kept, and of those pruned."""
    kept, pruned = 0, 0
    triples = zip(sj.leaf_names(params), jax.tree.leaves(params), jax.tree.leaves(masks))
    for name, leaf, mask in triples:
        if sj.is_kernel(name, leaf):
            nonzero = np.asarray(leaf) != 0
            kept += int(np.count_nonzero(nonzero & np.asarray(mask)))
            pruned += int(np.count_nonzero(nonzero & ~np.asarray(mask)))
    return kept, pruned


def _scaled(split: Split, index: Int[Array, " batch"]) -> Float[Array, "batch ..."]:
    return (split.images[index].astype(jnp.float32) - split.mean) / split.scale

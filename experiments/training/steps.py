"""Steps and epochs of a masked network, and what they leave.

One epoch is one compiled program (`epoch`), which `jax.vmap` maps over seeds; batches are
divided over all devices of all hosts. On a CPU a network with convolutions is trained step
by step (`epoch_by_steps`): XLA runs them inside a loop on one core and without its fast
kernels, some ten times slower.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

import synflow_jax as sj
from experiments.datasets.load import Data
from experiments.training import images
from experiments.training.settings import Settings, optimizer
from synflow_jax.trees import prunable_leaves


class Split(NamedTuple):
    """Labelled images on the device.

    Attributes:
      images: 0 to 255.
      labels: one an image.
    """

    images: UInt8[Array, "n height width channels"]
    labels: Int[Array, " n"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training is compiled for; everything else is an argument.

    Attributes:
      module: called as ``module(images, train=...)``.
      settings: how to train.
      recipe: how the images are moved and scaled.
      steps: in an epoch.
      devices: those over which a batch is divided; none for the default device.
      optimizer: ``optimizer(settings, steps, masks)``, of which a step calls only
        ``update`` and `start` only ``init``.
    """

    module: nn.Module
    settings: Settings
    recipe: images.Recipe
    steps: int
    devices: NamedSharding | None = None
    optimizer: Callable[..., optax.GradientTransformation] = optimizer


class State(NamedTuple):
    """What one step hands to the next. The masks are in ``opt_state``."""

    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree


def plan(module: nn.Module, settings: Settings, data: Data) -> Plan:
    """A training on the images of a data set, over all devices.

    Raises:
      ValueError: as `plan_for`.
    """
    return plan_for(module, settings, data.name, len(data.train_labels))


def plan_for(module: nn.Module, settings: Settings, dataset: str, count: int) -> Plan:
    """A training on ``count`` images of a data set, over all devices.

    Args:
      module: called as ``module(images, train=...)``.
      settings: how to train.
      dataset: a name with a recipe in `experiments.training.images`.
      count: training images.

    Raises:
      ValueError: if a batch is more than the training images, or cannot be divided evenly
        over the devices.
    """
    devices = jax.device_count()
    if settings.batch > count:
        raise ValueError(f"`batch` is {settings.batch}, more than the {count} images.")
    if settings.batch % devices:
        raise ValueError(
            f"`batch` is {settings.batch}, which {devices} devices cannot share evenly."
        )
    recipe = images.recipe(dataset)
    if not settings.augment:
        recipe = recipe._replace(padding=0, flips=False)
    sharding = None
    if devices > 1:
        mesh = Mesh(np.array(jax.devices()), ("batch",))
        sharding = NamedSharding(mesh, PartitionSpec("batch"))
    return Plan(module, settings, recipe, count // settings.batch, sharding)


def on_device(plan: Plan, data: Data) -> tuple[Split, Split]:
    """The training and the held-out images, on every device."""
    train = Split(jnp.asarray(data.train_images), jnp.asarray(data.train_labels))
    test = Split(jnp.asarray(data.test_images), jnp.asarray(data.test_labels))
    return everywhere(plan, (train, test))


def everywhere(plan: Plan, tree: PyTree) -> PyTree:
    """The same arrays on every device of the plan."""
    if plan.devices is None:
        return tree
    return jax.device_put(tree, NamedSharding(plan.devices.mesh, PartitionSpec()))


def start(plan: Plan, variables: PyTree, masks: PyTree) -> State:
    """The state before the first step: the masked parameters.

    Args:
      plan: the training.
      variables: what ``module.init`` returned.
      masks: boolean leaves shaped like the parameters; True = kept.
    """
    params = sj.apply_masks(variables["params"], masks)
    opt_state = plan.optimizer(plan.settings, plan.steps, masks).init(params)
    # A copy, as steps use the memory of the state that they are given.
    stats = jax.tree.map(jnp.copy, variables.get("batch_stats", {}))
    return everywhere(plan, State(params, stats, opt_state))


def step(
    plan: Plan,
    state: State,
    x: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    key: Key[Array, ""],
) -> tuple[State, Float[Array, ""]]:
    """One step on scaled images.

    Args:
      plan: the training.
      state: before the step.
      x, labels: the batch.
      key: of dropout.

    Returns:
      The next state, and the mean cross-entropy before the step.
    """
    if plan.devices is not None:
        x, labels = jax.lax.with_sharding_constraint((x, labels), plan.devices)
    dtype = jnp.dtype(plan.settings.precision)

    def loss_of(params):
        logits, updated = plan.module.apply(
            {"params": _cast(params, dtype), "batch_stats": state.batch_stats},
            x.astype(dtype),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), labels
        )
        return losses.mean(), updated.get("batch_stats", {})

    (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = plan.optimizer(plan.settings, plan.steps, None).update(
        gradients, state.opt_state, state.params
    )
    return State(optax.apply_updates(state.params, updates), stats, opt_state), loss


# A child of the epoch's key that neither the order nor the moves of the images draw from.
_DROPOUT = 3


def _step_on(plan, state, split, seed, epoch, index):
    """One step on the training images that ``index`` names."""
    x = images.batch(plan.recipe, split.images, seed, epoch, index)
    own = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), epoch), _DROPOUT)
    key = jax.random.fold_in(own, index[0])
    return step(plan, state, x, split.labels[index], key)


def batches(
    plan: Plan, split: Split, seed: int | Int[Array, ""], epoch: int | Int[Array, ""]
) -> Int[Array, "steps batch"]:
    """The images of each step of an epoch. What does not fill the last batch is left out;
    the order being another one in every epoch, so are other images."""
    size = plan.settings.batch
    order = images.order(seed, epoch, len(split.labels))
    return order[: plan.steps * size].reshape(plan.steps, size)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def epoch(
    plan: Plan,
    state: State,
    split: Split,
    seed: int | Int[Array, ""],
    number: int | Int[Array, ""],
) -> tuple[State, Float[Array, ""]]:
    """One pass over the training images, in one program.

    Args:
      plan: the training.
      state: before it; its memory is used for the state after it.
      split: the training images.
      seed: with ``number`` it decides the order of the images and how they are moved.
      number: of the epoch, from 1.

    Returns:
      The state after it, and the mean of the steps' losses.
    """

    def one(state, index):
        return _step_on(plan, state, split, seed, number, index)

    state, losses = jax.lax.scan(one, state, batches(plan, split, seed, number))
    return state, losses.mean()


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="states")
def epoch_of_many(
    plan: Plan,
    states: State,
    split: Split,
    seeds: Int[Array, " seeds"],
    number: int | Int[Array, ""],
) -> tuple[State, Float[Array, " seeds"]]:
    """`epoch` for a batch of states, each with its seed, in one program."""
    one = functools.partial(epoch, plan)
    return jax.vmap(one, in_axes=(0, None, 0, None))(states, split, seeds, number)


_jitted_step = jax.jit(_step_on, static_argnames="plan", donate_argnames="state")


def epoch_by_steps(
    plan: Plan,
    state: State,
    split: Split,
    seed: int,
    number: int,
    on_step: Callable[[int], Any] = lambda done: None,
) -> tuple[State, Float[Array, ""]]:
    """As `epoch`, with one call for each step.

    Args:
      plan, state, split, seed, number: as for `epoch`.
      on_step: called now and then with the number of steps done so far.
    """

    def one(state, done, index):
        return _jitted_step(plan, state, split, seed, number, index)

    return step_by_step(one, state, batches(plan, split, seed, number), on_step)


def step_by_step(
    one: Callable[[State, int, Any], tuple[State, Float[Array, ""]]],
    state: State,
    batches: Iterable[Any],
    on_step: Callable[[int], Any],
) -> tuple[State, Float[Array, ""]]:
    """The state after ``one(state, number, batch)`` for each batch, from 1; the mean loss.

    Args:
      one: a step; it returns the next state and its loss.
      state: before the first.
      batches: what each step gets.
      on_step: as for `epoch_by_steps`.
    """
    losses = []
    for done, batch in enumerate(batches, 1):
        state, loss = one(state, done, batch)
        losses.append(loss)
        # Calls return before their work is done; without waits a bar would run ahead.
        if done % 10 == 0:
            loss.block_until_ready()
            on_step(done)
    return state, jnp.stack(losses).mean()


def one_epoch(
    plan: Plan,
    state: State,
    split: Split,
    seed: int,
    number: int,
    on_step: Callable[[int], Any] = lambda done: None,
) -> tuple[State, Float[Array, ""]]:
    """`epoch`, or `epoch_by_steps` where that is the faster: convolutions on a CPU."""
    convolves = any(jnp.ndim(leaf) > 2 for leaf in jax.tree.leaves(state.params))
    if convolves and jax.default_backend() == "cpu":
        return epoch_by_steps(plan, state, split, seed, number, on_step)
    return epoch(plan, state, split, seed, number)


def predicted(
    plan: Plan, state: State, x: Float[Array, "batch height width channels"]
) -> Int[Array, " batch"]:
    """The class of each scaled image, in evaluation mode."""
    if plan.devices is not None:
        x = jax.lax.with_sharding_constraint(x, plan.devices)
    dtype = jnp.dtype(plan.settings.precision)
    variables = {"params": _cast(state.params, dtype), "batch_stats": state.batch_stats}
    return jnp.argmax(plan.module.apply(variables, x.astype(dtype)), axis=-1)


@functools.partial(jax.jit, static_argnames="plan")
def _num_right(plan, state, split, index, valid):
    x = images.normalise(plan.recipe, split.images[index])
    return jnp.sum((predicted(plan, state, x) == split.labels[index]) & valid)


_num_right_of_many = jax.jit(
    lambda plan, states, split, index, valid: jax.vmap(
        lambda state: _num_right(plan, state, split, index, valid)
    )(states),
    static_argnums=0,
)


def accuracy(
    plan: Plan, state: State, split: Split, *, many: bool = False
) -> float | list[float]:
    """The fraction of the images that the network labels rightly; in evaluation mode.

    Args:
      plan: what was trained.
      state: the network; with ``many``, a batch of them.
      split: the images.
      many: whether ``state`` is a batch.
    """
    count, devices = len(split.labels), jax.device_count()
    size = -(-min(1000, count) // devices) * devices
    right = _num_right_of_many if many else _num_right
    totals = []
    for first in range(0, count, size):
        # The last batch is as long as the others, for one compilation.
        place = first + np.arange(size)
        index, valid = np.minimum(place, count - 1), place < count
        totals.append(right(plan, state, split, jnp.asarray(index), jnp.asarray(valid)))
    fractions = np.sum(jax.device_get(totals), axis=0) / count
    return fractions.tolist()


def num_nonzero(params: PyTree, masks: PyTree) -> tuple[int, int]:
    """How many prunable weights differ from zero: of those kept, and of those pruned."""
    kept, pruned = 0, 0
    for leaf, mask in zip(kernels(params, params), kernels(params, masks)):
        nonzero = np.asarray(leaf) != 0
        kept += int(np.count_nonzero(nonzero & np.asarray(mask)))
        pruned += int(np.count_nonzero(nonzero & ~np.asarray(mask)))
    return kept, pruned


def kernels(params: PyTree, tree: PyTree) -> list[Array]:
    """The leaves of a tree like the parameters that belong to prunable weights."""
    pairs = zip(jax.tree.leaves(tree), prunable_leaves(params, sj.is_kernel))
    return [leaf for leaf, is_prunable in pairs if is_prunable]


def _cast(tree: PyTree, dtype: jnp.dtype) -> PyTree:
    if dtype == jnp.float32:
        return tree
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

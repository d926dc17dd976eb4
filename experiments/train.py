"""Training of a masked network: the paper's settings, pure steps, and the loop over epochs.

One epoch is one compiled program (`epoch`), which `jax.vmap` maps over seeds; batches are
divided over all devices of all hosts. On a CPU a network with convolutions is trained step
by step (`epoch_by_steps`): XLA runs them inside a loop on one core and without its fast
kernels, some ten times slower.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

import synflow_jax as sj
from experiments import images
from experiments.data import Data


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a network is trained: SGD with Nesterov momentum, as in the paper's code."""

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
    momentum: float = 0.9
    """Of Nesterov's kind."""
    weight_decay: float = 1e-4
    """On all parameters."""
    augment: bool = True
    """Whether training images are moved and mirrored, where their data set has that."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of activations and gradients; the weights and their updates are float32."""


def paper(network: str, dataset: str) -> Settings:
    """The settings of Fig. 6 of the paper, from the published commands.

    Args:
      network: a name in synflow_jax.models.
      dataset: a name of `experiments.data`.

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
    """

    module: nn.Module
    settings: Settings
    recipe: images.Recipe
    steps: int
    devices: NamedSharding | None = None


class State(NamedTuple):
    """What one step hands to the next. The masks are in ``opt_state``."""

    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree


class Epoch(NamedTuple):
    """What is measured after an epoch; for several seeds, one number each."""

    epoch: int  # from 1
    loss: float | list[float]  # mean over the epoch's steps
    accuracy: float | list[float]  # on the held-out images, a fraction


def plan(module: nn.Module, settings: Settings, data: Data) -> Plan:
    """A training on the images of a data set, over all devices.

    Raises:
      ValueError: as `plan_for`.
    """
    return plan_for(module, settings, data.name, len(data.train_labels))


def plan_for(module: nn.Module, settings: Settings, dataset: str, count: int) -> Plan:
    """A training on so many images of a data set, over all devices.

    Args:
      module: called as ``module(images, train=...)``.
      settings: how to train.
      dataset: a name with a recipe in `experiments.images`.
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


def learning_rates(settings: Settings, steps: int) -> optax.Schedule:
    """The learning rate at every step of a training with so many steps in an epoch."""
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
    """SGD whose pruned weights never move; the masks are read by its ``init`` only."""
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(learning_rates(settings, steps), settings.momentum, nesterov=True),
        sj.freeze_pruned(masks),
    )


def start(plan: Plan, variables: PyTree, masks: PyTree) -> State:
    """The state before the first step: the masked parameters.

    Args:
      plan: what is trained.
      variables: what ``module.init`` returned.
      masks: boolean leaves shaped like the parameters; True = kept.
    """
    params = sj.apply_masks(variables["params"], masks)
    opt_state = optimizer(plan.settings, plan.steps, masks).init(params)
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
      plan: what is trained.
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
    updates, opt_state = optimizer(plan.settings, plan.steps).update(
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


def _batches(plan, split, seed, epoch):
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
      plan: what is trained.
      state: before it; its memory is used for the state after it.
      split: the training images.
      seed: with ``number`` it decides the order of the images and how they are moved.
      number: of the epoch, from 1.

    Returns:
      The state after it, and the mean of the steps' losses.
    """

    def one(state, index):
        return _step_on(plan, state, split, seed, number, index)

    state, losses = jax.lax.scan(one, state, _batches(plan, split, seed, number))
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
    losses = []
    for done, index in enumerate(_batches(plan, split, seed, number), 1):
        state, loss = _jitted_step(plan, state, split, seed, number, index)
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


@functools.partial(jax.jit, static_argnames="plan")
def _num_right(plan, state, split, index, valid):
    x = images.normalise(plan.recipe, split.images[index])
    return jnp.sum((_predicted(plan, state, x) == split.labels[index]) & valid)


def _predicted(plan, state, x):
    """The class of each scaled image, in evaluation mode."""
    if plan.devices is not None:
        x = jax.lax.with_sharding_constraint(x, plan.devices)
    dtype = jnp.dtype(plan.settings.precision)
    variables = {"params": _cast(state.params, dtype), "batch_stats": state.batch_stats}
    return jnp.argmax(plan.module.apply(variables, x.astype(dtype)), axis=-1)


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


def train(
    plan: Plan,
    state: State,
    splits: tuple[Split, Split],
    seed: int,
    *,
    folder: pathlib.Path | None = None,
    every: int = 1,
    on_epoch: Callable[[Epoch], Any] = lambda epoch: None,
    advance: Callable[[float], Any] = lambda fraction: None,
) -> tuple[State, list[Epoch]]:
    """Trains a network under its masks.

    Args:
      plan: what is trained.
      state: from `start`; it is used up.
      splits: the training and the held-out images, from `on_device`.
      seed: decides the order of the images and how they are moved.
      folder: for checkpoints; needs orbax. If one is there, training goes on from it and
        ends as it would have without the interruption, bit for bit.
      every: epochs between checkpoints.
      on_epoch: called after each epoch.
      advance: called with the fraction of the training that is done.

    Returns:
      The state after the last step, in which pruned weights are exactly zero, and what was
      measured after every epoch, those before an interruption included.
    """
    whole = plan.settings.epochs

    def one(state, number):
        def on_step(done):
            advance((number - 1 + done / plan.steps) / whole)

        return one_epoch(plan, state, splits[0], seed, number, on_step)

    def measure(state):
        return accuracy(plan, state, splits[1])

    return _epochs(whole, state, one, measure, folder, every, on_epoch, advance)


def train_many(
    plan: Plan,
    states: State,
    splits: tuple[Split, Split],
    seeds: Int[Array, " seeds"],
    *,
    folder: pathlib.Path | None = None,
    every: int = 1,
    on_epoch: Callable[[Epoch], Any] = lambda epoch: None,
    advance: Callable[[float], Any] = lambda fraction: None,
) -> tuple[State, list[Epoch]]:
    """`train` for a batch of states, each with its seed: one program for all of them.

    The arguments are those of `train`; the leaves of ``states`` have a leading axis, as
    `jax.vmap` of `start` makes them. It gives what separate trainings give, to rounding.
    """

    def one(states, number):
        return epoch_of_many(plan, states, splits[0], seeds, number)

    def measure(states):
        return accuracy(plan, states, splits[1], many=True)

    whole = plan.settings.epochs
    return _epochs(whole, states, one, measure, folder, every, on_epoch, advance)


# --- images that are too many for memory --------------------------------------------------

# (images, labels): uint8 and int32, this process's share of a batch. In held-out batches
# the label -1 fills up the last one.
Batch = tuple[np.ndarray, np.ndarray]


def train_streamed(
    plan: Plan,
    state: State,
    batches: Callable[[int], Iterable[Batch]],
    held_out: Callable[[], Iterable[Batch]],
    seed: int,
    *,
    folder: pathlib.Path | None = None,
    on_epoch: Callable[[Epoch], Any] = lambda epoch: None,
    advance: Callable[[float], Any] = lambda fraction: None,
) -> tuple[State, list[Epoch]]:
    """`train` on images that are decoded while the network is trained.

    Args:
      plan: from `plan_for`.
      state: from `start`; it is used up.
      batches: ``batches(number)``: the batches of an epoch, counted from 1. Every process
        gives its share, in the order of `jax.process_index`.
      held_out: the held-out images, in the same way; every process as many batches.
      seed: of dropout.
      folder, on_epoch, advance: as for `train`; there is a checkpoint after every epoch.

    Returns:
      As `train`.
    """
    whole = plan.settings.epochs

    def one(state, number):
        losses = []
        for done, batch in enumerate(batches(number), 1):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), done)
            state, loss = _streamed_step(plan, state, *_shared(plan, batch), key)
            losses.append(loss)
            # As in `epoch_by_steps`.
            if done % 10 == 0:
                loss.block_until_ready()
                advance((number - 1 + done / plan.steps) / whole)
        return state, jnp.stack(losses).mean()

    def measure(state):
        right = total = 0
        for batch in held_out():
            found, count = _streamed_right(plan, state, *_shared(plan, batch))
            right, total = right + int(found), total + int(count)
        return right / total

    return _epochs(whole, state, one, measure, folder, 1, on_epoch, advance)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def _streamed_step(plan, state, x, labels, key):
    return step(plan, state, images.normalise(plan.recipe, x), labels, key)


@functools.partial(jax.jit, static_argnames="plan")
def _streamed_right(plan, state, x, labels):
    right = _predicted(plan, state, images.normalise(plan.recipe, x)) == labels
    return jnp.sum(right), jnp.sum(labels >= 0)


def _shared(plan: Plan, batch: Batch) -> tuple[Array, Array]:
    """A batch of which every process has a part, on all devices."""
    if plan.devices is None:
        return jnp.asarray(batch[0]), jnp.asarray(batch[1])
    return tuple(
        jax.make_array_from_process_local_data(plan.devices, np.asarray(part))
        for part in batch
    )


# --- what all trainings share -------------------------------------------------------------


def _epochs(whole, state, one, measure, folder, every, on_epoch, advance):
    """The loop over epochs, from the newest checkpoint if there is one."""
    checkpoints = Checkpoints(folder) if folder is not None else None
    history: list[Epoch] = []
    try:
        if checkpoints is not None:
            state, history = checkpoints.newest(state)
        for number in range(len(history) + 1, whole + 1):
            state, loss = one(state, number)
            loss = np.asarray(loss, np.float64).tolist()
            measured = Epoch(number, loss, measure(state))
            history.append(measured)
            on_epoch(measured)
            advance(number / whole)
            if checkpoints is not None and (number % every == 0 or number == whole):
                checkpoints.save(state, history)
    finally:
        # Also when interrupted: what is being saved is then whole.
        if checkpoints is not None:
            checkpoints.close()
    return state, history


class Checkpoints:
    """The newest state of a training and what was measured so far, in a folder."""

    def __init__(self, folder: pathlib.Path):
        import orbax.checkpoint as ocp  # here, as only trainings that are kept need it

        self._ocp = ocp
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        path = pathlib.Path(os.path.abspath(folder)) / "checkpoints"
        self._manager = ocp.CheckpointManager(path, options=options)

    def newest(self, state: State) -> tuple[State, list[Epoch]]:
        """What was saved last, or ``state`` and nothing measured."""
        number = self._manager.latest_step()
        if number is None:
            return state, []
        args = self._ocp.args
        saved = self._manager.restore(
            number,
            args=args.Composite(
                state=args.StandardRestore(state), history=args.JsonRestore()
            ),
        )
        return State(*saved["state"]), [Epoch(**row) for row in saved["history"]]

    def save(self, state: State, history: list[Epoch]) -> None:
        """Saves both under the number of the last epoch."""
        args = self._ocp.args
        rows = [row._asdict() for row in history]
        self._manager.save(
            len(history),
            args=args.Composite(
                state=args.StandardSave(state), history=args.JsonSave(rows)
            ),
        )

    def close(self) -> None:
        """Waits until everything is on the disk."""
        self._manager.wait_until_finished()
        self._manager.close()


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


def _cast(tree: PyTree, dtype: jnp.dtype) -> PyTree:
    if dtype == jnp.float32:
        return tree
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

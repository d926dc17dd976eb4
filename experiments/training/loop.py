"""The loop over epochs: one network, several seeds at once, or images from a stream.

A training with a folder keeps its newest state there and goes on from it.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from experiments.training import images, steps
from experiments.training.steps import Plan, Split, State


class Epoch(NamedTuple):
    """What is measured after an epoch; for several seeds, one number each."""

    epoch: int  # from 1
    loss: float | list[float]  # mean over the epoch's steps
    accuracy: float | list[float]  # on the held-out images, a fraction


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
      plan: the training.
      state: from `steps.start`; it is used up.
      splits: the training and the held-out images, from `steps.on_device`.
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

        return steps.one_epoch(plan, state, splits[0], seed, number, on_step)

    def measure(state):
        return steps.accuracy(plan, state, splits[1])

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
    `jax.vmap` of `steps.start` makes them. It gives what separate trainings give, to
    rounding.
    """

    def one(states, number):
        return steps.epoch_of_many(plan, states, splits[0], seeds, number)

    def measure(states):
        return steps.accuracy(plan, states, splits[1], many=True)

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
      plan: from `steps.plan_for`.
      state: from `steps.start`; it is used up.
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
        def step(state, done, batch):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), done)
            return _streamed_step(plan, state, *_shared(plan, batch), key)

        def on_step(done):
            advance((number - 1 + done / plan.steps) / whole)

        return steps.step_by_step(step, state, batches(number), on_step)

    def measure(state):
        right = total = 0
        for batch in held_out():
            found, count = _streamed_right(plan, state, *_shared(plan, batch))
            right, total = right + int(found), total + int(count)
        return right / total

    return _epochs(whole, state, one, measure, folder, 1, on_epoch, advance)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def _streamed_step(plan, state, x, labels, key):
    return steps.step(plan, state, images.normalise(plan.recipe, x), labels, key)


@functools.partial(jax.jit, static_argnames="plan")
def _streamed_right(plan, state, x, labels):
    right = steps.predicted(plan, state, images.normalise(plan.recipe, x)) == labels
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
        # Also when interrupted: the checkpoint being saved is then complete.
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

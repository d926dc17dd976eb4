"""Steps by hand, epochs in one program, what a network leaves, and over devices."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.datasets.load import Data
from experiments.training import steps
from experiments.training.settings import Settings
from tests.experiments.small import (
    LONG,
    MODULE,
    NORMED,
    SETTINGS,
    assert_close,
    digits,
    everything,
    masked,
    variables,
)

STEP = jax.jit(steps.step, static_argnums=0)


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize("batch", [129, 1000])
def test_a_batch_larger_than_the_data_is_refused(batch):
    settings = dataclasses.replace(SETTINGS, batch=batch)
    with pytest.raises(ValueError, match=f"`batch` is {batch}, more than the 128 images"):
        steps.plan(MODULE, settings, digits())


def test_a_batch_that_devices_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    with pytest.raises(ValueError, match="`batch` is 32, which 3 devices cannot share"):
        steps.plan(MODULE, SETTINGS, digits())


# --- steps --------------------------------------------------------------------------------


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        kernel = self.param("kernel", nn.initializers.normal(), (4, 3))
        return x.reshape(len(x), -1) @ kernel


def test_steps_are_those_of_pytorch_by_hand():
    """Softmax regression, whose gradient is known; two steps, for the momentum."""
    settings = Settings(batch=6, learning_rate=0.5, weight_decay=0.1, momentum=0.9)
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 255, (6, 2, 2, 1), np.uint8)
    part = Data("mnist", 3, pixels, np.arange(6) % 3, pixels, np.arange(6) % 3)
    plan = steps.plan(Linear(), settings, part)
    mask = draw.random((4, 3)) < 0.7
    assert 0 < mask.sum() < mask.size
    weights = draw.standard_normal((4, 3)).astype(np.float32)
    params, masks = {"kernel": jnp.asarray(weights)}, {"kernel": jnp.asarray(mask)}
    state = steps.start(plan, {"params": params}, masks)
    x = draw.standard_normal((6, 4)).astype(np.float32)
    labels = np.arange(6) % 3

    weights, buffer = np.float64(weights * mask), 0.0
    for _ in range(2):
        z = np.exp(x @ weights)
        likely = z / z.sum(1, keepdims=True)
        loss = -np.log(likely[np.arange(6), labels]).mean()
        gradient = x.T @ (likely - np.eye(3)[labels]) / 6 + 0.1 * weights
        buffer = 0.9 * buffer + gradient
        weights = weights - 0.5 * mask * (gradient + 0.9 * buffer)
        inputs = jnp.asarray(x.reshape(6, 2, 2, 1))
        key = jax.random.key(0)
        state, got = STEP(plan, state, inputs, jnp.asarray(labels), key)
        np.testing.assert_allclose(got, loss, rtol=1e-5)
    np.testing.assert_allclose(state.params["kernel"], weights, rtol=1e-5, atol=1e-6)


def noise():
    """Images of a data set whose images are moved and mirrored."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 255, (70, 8, 8, 3), np.uint8)
    labels = draw.integers(0, 10, 70).astype(np.int32)
    return Data("cifar10", 10, pixels, labels, pixels, labels)


def test_an_epoch_in_one_program_is_an_epoch_step_by_step():
    settings = dataclasses.replace(SETTINGS, batch=16, augment=True)
    plan = steps.plan(NORMED, settings, noise())
    assert plan.steps == 4 and plan.recipe.padding == 4 and plan.recipe.flips
    start = variables(NORMED, shape=(8, 8, 3))
    split = steps.on_device(plan, noise())[0]
    ends = []
    for one in (steps.epoch, steps.epoch_by_steps):
        state = steps.start(plan, start, masked(start, 0.5))
        ends.append(one(plan, state, split, 3, 2))
    assert_close(*ends, rtol=1e-3, atol=1e-5)


class Dropping(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(32)(x.reshape(len(x), -1))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))


def test_dropout_is_drawn_anew_in_every_step_and_not_in_evaluation():
    module = Dropping()
    plan = steps.plan(module, SETTINGS, digits())
    split = steps.on_device(plan, digits())[0]
    x, labels = jnp.ones((32, 8, 8, 1)), split.labels[:32]
    losses = []
    for seed in (0, 0, 1):
        state = steps.start(plan, variables(module), everything(module))
        _, loss = STEP(plan, state, x, labels, jax.random.key(seed))
        losses.append(float(loss))
    assert losses[0] == losses[1] != losses[2]
    state = steps.start(plan, variables(module), everything(module))
    assert len({steps.accuracy(plan, state, split) for _ in range(2)}) == 1


# --- what a network leaves ----------------------------------------------------------------


def test_num_nonzero_tells_kept_from_pruned_and_passes_over_the_rest():
    params = {"a": {"kernel": jnp.array([[1.0, 2.0, 0.0]]), "bias": jnp.ones(3)}}
    masks = {"a": {"kernel": jnp.array([[True, False, True]]), "bias": jnp.ones(3) > 0}}
    assert steps.num_nonzero(params, masks) == (1, 1)


class Constant(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        self.param("kernel", nn.initializers.ones, (1, 1))
        return jnp.zeros((len(x), 3)).at[:, 1].set(1.0)


def test_accuracy_counts_every_image_once():
    labels = np.arange(1101) % 3  # no multiple of the batch
    pictures = np.zeros((1101, 2, 2, 1), np.uint8)
    data_ = Data("digits", 3, pictures, labels, pictures, labels)
    plan = steps.plan(Constant(), SETTINGS, data_)
    state = steps.State({"kernel": jnp.ones((1, 1))}, {}, None)
    split = steps.on_device(plan, data_)[1]
    assert steps.accuracy(plan, state, split) == 367 / 1101
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    assert steps.accuracy(plan, twice, split, many=True) == [367 / 1101] * 2


# --- several devices ----------------------------------------------------------------------


def train_on_all_devices(path, *kinds):
    """Trains a network on all devices, by functions of `steps`; saves what comes out."""
    plan = steps.plan(NORMED, LONG, digits())
    splits = steps.on_device(plan, digits())
    start = variables(NORMED)
    ends = {}
    for kind in kinds:
        state = steps.start(plan, start, masked(start, 0.5))
        for number in (1, 2):
            state, loss = getattr(steps, kind)(plan, state, splits[0], 5, number)
        for leaf in jax.tree.leaves(state):
            assert leaf.is_fully_replicated and len(leaf.devices()) == jax.device_count()
        leaves = [loss, steps.accuracy(plan, state, splits[1])]
        leaves += jax.tree.leaves((state.params, state.batch_stats))
        ends |= {f"{kind} {i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    np.savez(path, **ends)


_PROCESS = """
import sys, jax
path, address, processes, number, *kinds = sys.argv[1:]
if int(processes) > 1:
    jax.distributed.initialize(address, int(processes), int(number))
assert jax.device_count() == 2
jax.config.update("jax_numpy_dtype_promotion", "standard")
from tests.experiments.training import test_steps
test_steps.train_on_all_devices(path, *kinds)
"""


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "alone.npz"
    with jax.numpy_dtype_promotion("standard"):
        train_on_all_devices(path, "epoch", "epoch_by_steps")
    return np.load(path)


@pytest.mark.parametrize(
    "processes, devices, kinds",
    [
        pytest.param(1, 2, ["epoch", "epoch_by_steps"], id="two devices"),
        pytest.param(2, 1, ["epoch"], id="two processes", marks=pytest.mark.long),
    ],
)
def test_devices_that_share_batches_train_the_same(
    processes, devices, kinds, tmp_path, on_one_device
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "PYTHONPATH": ".",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={devices}",
    }
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(tmp_path / f"{number}.npz"), address]
            + [str(processes), str(number), *kinds],
            cwd=pathlib.Path(__file__).parents[3],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    errors = [process.communicate(timeout=120)[1] for process in begun]
    assert all(process.returncode == 0 for process in begun), "\n".join(errors)
    for number in range(processes):
        shared = np.load(tmp_path / f"{number}.npz")
        assert {name.split()[0] for name in shared} == set(kinds)
        for name in shared:
            want = on_one_device[name]
            np.testing.assert_allclose(shared[name], want, rtol=1e-3, atol=1e-5)

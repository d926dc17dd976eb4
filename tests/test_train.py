"""Training: its settings, steps by hand, epochs in one program, over seeds and devices."""

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

import synflow_jax as sj
from experiments import data, train
from synflow_jax import models
from tests.training import MODULE, SETTINGS, digits, masked, variables

MLP = models.MLP(hidden=(16,))
LONG = dataclasses.replace(SETTINGS, epochs=4)  # one for many tests: one compilation
STEP = jax.jit(train.step, static_argnums=0)


class Normed(nn.Module):
    """With batch norm, and without convolutions, which take long to compile."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(16)(x.reshape(len(x), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x)


NORMED = Normed()


pytestmark = pytest.mark.usefixtures("standard_promotion")


def fit(masks, seed=0, settings=SETTINGS, module=MODULE, **more):
    plan = train.plan(module, settings, digits())
    state = train.start(plan, variables(module), masks)
    splits = train.on_device(plan, digits())
    return train.train(plan, state, splits, seed, **more)


def everything(module=MODULE):
    return sj.all_kept(variables(module)["params"])


def kernels(masks):
    return sum(int(m.sum()) for m in jax.tree.leaves(masks) if m.ndim > 1)


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def assert_close(one, two, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, two)


# --- settings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network, dataset, epochs, learning_rate, drops, factor, weight_decay",
    [
        ("vgg11_cifar", "cifar10", 160, 0.1, (60, 120), 0.1, 1e-4),
        ("vgg16_cifar", "cifar100", 160, 0.1, (60, 120), 0.1, 1e-4),
        ("resnet18", "cifar10", 160, 0.01, (60, 120), 0.2, 5e-4),
        ("wide_resnet18", "cifar100", 160, 0.01, (60, 120), 0.2, 5e-4),
        ("vgg11_tiny", "tiny_imagenet", 100, 0.01, (30, 60, 80), 0.1, 1e-4),
        ("vgg16_tiny", "tiny_imagenet", 100, 0.01, (30, 60, 80), 0.1, 1e-4),
        ("resnet18_tiny", "tiny_imagenet", 100, 0.01, (30, 60, 80), 0.1, 1e-4),
        ("wide_resnet18_tiny", "tiny_imagenet", 100, 0.01, (30, 60, 80), 0.1, 1e-4),
    ],
)
def test_the_settings_of_the_paper(
    network, dataset, epochs, learning_rate, drops, factor, weight_decay
):
    assert network in models.NETWORKS
    assert train.paper(network, dataset) == train.Settings(
        epochs=epochs,
        batch=128,
        learning_rate=learning_rate,
        decay="drops",
        drops=drops,
        factor=factor,
        momentum=0.9,
        weight_decay=weight_decay,
        augment=True,
        precision="float32",
    )


@pytest.mark.parametrize(
    "network, dataset",
    [
        ("vgg16_cifar", "mnist"),
        ("vgg16_imagenet", "imagenet2012"),
        ("mlp", "cifar10"),
        ("resnet20", "cifar10"),
        ("vgg19_cifar", "cifar100"),
    ],
)
def test_a_pair_that_the_paper_lacks_is_refused(network, dataset):
    with pytest.raises(ValueError, match=f"the paper does not train {network} on"):
        train.paper(network, dataset)


def test_the_learning_rate_drops_after_its_epochs():
    settings = train.Settings(learning_rate=0.5, drops=(2, 3), factor=0.1)
    rates = train.learning_rates(settings, 5)
    got = [float(rates(step)) for step in range(20)]
    np.testing.assert_allclose(got, [0.5] * 10 + [0.05] * 5 + [0.005] * 5, rtol=1e-6)


@pytest.mark.parametrize("epochs, steps", [(1, 1), (1, 7), (5, 20)])
def test_the_cosine_warms_up_and_neither_end_is_zero(epochs, steps):
    settings = train.Settings(epochs=epochs, learning_rate=0.5, decay="cosine")
    rates = train.learning_rates(settings, steps)
    got = np.array([float(rates(step)) for step in range(epochs * steps)])
    warmup = 1 + epochs * steps // 10
    assert np.all(got > 0) and np.all(got <= 0.5)
    assert np.all(np.diff(got[: warmup + 1]) > 0) and np.all(np.diff(got[warmup:]) < 0)
    if len(got) > warmup:
        np.testing.assert_allclose(got[warmup], 0.5)
        assert got[-1] < 0.5 / 2


@pytest.mark.parametrize("batch", [129, 1000])
def test_a_batch_larger_than_the_data_is_refused(batch):
    settings = dataclasses.replace(SETTINGS, batch=batch)
    with pytest.raises(ValueError, match=f"`batch` is {batch}, more than the 128 images"):
        train.plan(MODULE, settings, digits())


def test_a_batch_that_devices_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    with pytest.raises(ValueError, match="`batch` is 32, which 3 devices cannot share"):
        train.plan(MODULE, SETTINGS, digits())


# --- steps --------------------------------------------------------------------------------


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        kernel = self.param("kernel", nn.initializers.normal(), (4, 3))
        return x.reshape(len(x), -1) @ kernel


def test_steps_are_those_of_pytorch_by_hand():
    """Softmax regression, whose gradient is known; two steps, for the momentum."""
    settings = train.Settings(batch=6, learning_rate=0.5, weight_decay=0.1, momentum=0.9)
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 255, (6, 2, 2, 1), np.uint8)
    part = data.Data("mnist", 3, pixels, np.arange(6) % 3, pixels, np.arange(6) % 3)
    plan = train.plan(Linear(), settings, part)
    mask = draw.random((4, 3)) < 0.7
    assert 0 < mask.sum() < mask.size
    weights = draw.standard_normal((4, 3)).astype(np.float32)
    params, masks = {"kernel": jnp.asarray(weights)}, {"kernel": jnp.asarray(mask)}
    state = train.start(plan, {"params": params}, masks)
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
    return data.Data("cifar10", 10, pixels, labels, pixels, labels)


def test_an_epoch_in_one_program_is_an_epoch_step_by_step():
    settings = dataclasses.replace(SETTINGS, batch=16, augment=True)
    plan = train.plan(NORMED, settings, noise())
    assert plan.steps == 4 and plan.recipe.padding == 4 and plan.recipe.flips
    start = variables(NORMED, shape=(8, 8, 3))
    split = train.on_device(plan, noise())[0]
    ends = []
    for one in (train.epoch, train.epoch_by_steps):
        state = train.start(plan, start, masked(start, 0.5))
        ends.append(one(plan, state, split, 3, 2))
    assert_close(*ends, rtol=1e-3, atol=1e-5)


class Dropping(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(32)(x.reshape(len(x), -1))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))


def test_dropout_is_drawn_anew_in_every_step_and_not_in_evaluation():
    module = Dropping()
    plan = train.plan(module, SETTINGS, digits())
    split = train.on_device(plan, digits())[0]
    x, labels = jnp.ones((32, 8, 8, 1)), split.labels[:32]
    losses = []
    for seed in (0, 0, 1):
        state = train.start(plan, variables(module), everything(module))
        _, loss = STEP(plan, state, x, labels, jax.random.key(seed))
        losses.append(float(loss))
    assert losses[0] == losses[1] != losses[2]
    state = train.start(plan, variables(module), everything(module))
    assert len({train.accuracy(plan, state, split) for _ in range(2)}) == 1


def test_in_bfloat16_the_weights_stay_float32_and_the_loss_is_nearly_the_same():
    masks = masked(variables(NORMED), 0.5)
    half = dataclasses.replace(LONG, precision="bfloat16")
    _, exact = fit(masks, module=NORMED, settings=LONG)
    state, rounded = fit(masks, module=NORMED, settings=half)
    for part in (state.params, state.batch_stats):
        assert {leaf.dtype for leaf in jax.tree.leaves(part)} == {jnp.dtype("float32")}
    for half, full in zip(rounded, exact):
        np.testing.assert_allclose(half.loss, full.loss, rtol=0.02)
        assert half.loss != full.loss
    assert train.num_nonzero(state.params, masks) == (kernels(masks), 0)


# --- a training ---------------------------------------------------------------------------


def test_training_leaves_pruned_weights_exactly_zero():
    masks = masked(variables(), 0.3)
    state, _ = fit(masks)
    assert 0 < kernels(masks) < 0.5 * 728
    assert train.num_nonzero(state.params, masks) == (kernels(masks), 0)
    for before, after, mask in zip(
        *map(jax.tree.leaves, (variables()["params"], state.params, masks))
    ):
        assert not np.any(np.asarray(after)[~np.asarray(mask)])
        assert np.any(np.asarray(before != after)[np.asarray(mask)])


def test_num_nonzero_tells_kept_from_pruned_and_passes_over_the_rest():
    params = {"a": {"kernel": jnp.array([[1.0, 2.0, 0.0]]), "bias": jnp.ones(3)}}
    masks = {"a": {"kernel": jnp.array([[True, False, True]]), "bias": jnp.ones(3) > 0}}
    assert train.num_nonzero(params, masks) == (1, 1)


def test_training_is_a_function_of_the_seed():
    (one, epochs), (two, again) = fit(everything()), fit(everything())
    assert epochs == again
    assert_same(one.params, two.params)
    _, others = fit(everything(), seed=1)
    assert others[0].loss != epochs[0].loss


def test_one_compilation_serves_every_mask():
    fit(everything())
    before = train._jitted_step._cache_size(), train._num_right._cache_size()
    for density in (0.5, 0.1):
        fit(masked(variables(), density))
    assert (train._jitted_step._cache_size(), train._num_right._cache_size()) == before


def test_training_learns_and_moves_the_batch_statistics():
    settings = dataclasses.replace(SETTINGS, epochs=15)
    seen, parts = [], []
    state, epochs = fit(
        everything(), settings=settings, on_epoch=seen.append, advance=parts.append
    )
    assert [epoch.epoch for epoch in epochs] == list(range(1, 16)) and seen == epochs
    assert parts == sorted(parts) and parts[-1] == 1
    assert epochs[-1].loss < 0.5 * epochs[0].loss
    assert epochs[-1].accuracy > 0.5
    for before, after in zip(
        jax.tree.leaves(variables()["batch_stats"]), jax.tree.leaves(state.batch_stats)
    ):
        assert np.all(np.asarray(before) != np.asarray(after))


class Constant(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        self.param("kernel", nn.initializers.ones, (1, 1))
        return jnp.zeros((len(x), 3)).at[:, 1].set(1.0)


def test_accuracy_counts_every_image_once():
    labels = np.arange(1101) % 3  # no multiple of the batch
    pictures = np.zeros((1101, 2, 2, 1), np.uint8)
    data_ = data.Data("digits", 3, pictures, labels, pictures, labels)
    plan = train.plan(Constant(), SETTINGS, data_)
    state = train.State({"kernel": jnp.ones((1, 1))}, {}, None)
    split = train.on_device(plan, data_)[1]
    assert train.accuracy(plan, state, split) == 367 / 1101
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    assert train.accuracy(plan, twice, split, many=True) == [367 / 1101] * 2


# --- several seeds ------------------------------------------------------------------------


def started(plan, seeds, module=MLP):
    """States of several seeds, each with masks of its own."""
    starts = [variables(module, seed) for seed in seeds]
    masks = [masked(v, 0.4, seed) for v, seed in zip(starts, seeds)]
    return [train.start(plan, v, m) for v, m in zip(starts, masks)], masks


def test_many_trainings_in_one_program_are_separate_trainings():
    plan = train.plan(MLP, LONG, digits())
    splits = train.on_device(plan, digits())
    seeds = (4, 0)
    states, masks = started(plan, seeds)
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    programs = train.epoch_of_many, train._num_right_of_many
    before = [program._cache_size() for program in programs]
    many, history = train.train_many(plan, many, splits, jnp.array(seeds))
    for program, size in zip(programs, before):
        assert program._cache_size() <= size + 1  # for all epochs together
    for i, (state, seed, own) in enumerate(zip(states, seeds, masks)):
        alone, epochs = train.train(plan, state, splits, seed)
        params = jax.tree.map(lambda leaf, i=i: leaf[i], many.params)
        assert_close(params, alone.params, rtol=1e-4, atol=1e-6)
        losses = [epoch.loss[i] for epoch in history]
        np.testing.assert_allclose(losses, [e.loss for e in epochs], rtol=1e-4)
        assert train.num_nonzero(params, own) == (kernels(own), 0)
        assert [e.accuracy[i] for e in history] == [e.accuracy for e in epochs]


# --- checkpoints --------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupt(epoch):
    if epoch.epoch == 3:
        raise Interrupted


def test_an_interrupted_training_ends_as_if_it_had_not_been(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    masks = masked(variables(NORMED), 0.5)
    whole, history = fit(masks, module=NORMED, settings=LONG)
    options = {"module": NORMED, "settings": LONG, "folder": tmp_path, "every": 2}
    with pytest.raises(Interrupted):
        fit(masks, on_epoch=interrupt, **options)
    seen = []
    state, resumed = fit(masks, on_epoch=seen.append, **options)
    assert [epoch.epoch for epoch in seen] == [3, 4]  # from the checkpoint of epoch 2
    assert resumed == history
    assert_same(state, whole)
    # What is finished is read and not repeated.
    state, again = fit(masks, on_epoch=interrupt, **options)
    assert again == history
    assert_same(state, whole)


def test_interrupted_trainings_of_several_seeds_go_on(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    plan = train.plan(MLP, LONG, digits())
    splits, seeds = train.on_device(plan, digits()), (0, 1)

    def run(**more):
        states, _ = started(plan, seeds)
        many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return train.train_many(plan, many, splits, jnp.array(seeds), **more)

    whole, history = run()
    with pytest.raises(Interrupted):
        run(folder=tmp_path, on_epoch=interrupt)
    state, resumed = run(folder=tmp_path)
    assert resumed == history
    assert_same(state, whole)


# --- several devices ----------------------------------------------------------------------


def train_on_all_devices(path, *kinds):
    """Trains a network on all devices, by functions of `train`; saves what comes out."""
    plan = train.plan(NORMED, LONG, digits())
    splits = train.on_device(plan, digits())
    start = variables(NORMED)
    ends = {}
    for kind in kinds:
        state = train.start(plan, start, masked(start, 0.5))
        for number in (1, 2):
            state, loss = getattr(train, kind)(plan, state, splits[0], 5, number)
        for leaf in jax.tree.leaves(state):
            assert leaf.is_fully_replicated and len(leaf.devices()) == jax.device_count()
        leaves = [loss, train.accuracy(plan, state, splits[1])]
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
from tests import test_train
test_train.train_on_all_devices(path, *kinds)
"""


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "alone.npz"
    with jax.numpy_dtype_promotion("standard"):
        train_on_all_devices(path, "epoch", "epoch_by_steps")
    return np.load(path)


@pytest.mark.parametrize(
    "processes, devices, kinds",
    [(1, 2, ["epoch", "epoch_by_steps"]), (2, 1, ["epoch"])],
    ids=["two devices", "two processes"],
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
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(tmp_path / f"{number}.npz"), address]
            + [str(processes), str(number), *kinds],
            cwd=pathlib.Path(__file__).parents[1],
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


# --- parts of data sets -------------------------------------------------------------------


def test_a_part_of_a_data_set_is_always_the_same():
    whole = data.load("digits")
    small, again = data.first(whole, 50, 20), data.first(whole, 50, 20)
    assert_same(small[2:], again[2:])
    assert small.name == "digits" and small.num_classes == 10
    assert (len(small.train_images), len(small.test_images)) == (50, 20)
    larger = data.first(whole, 60, 20)
    np.testing.assert_array_equal(larger.train_images[:50], small.train_images)
    # Each image with its own label.
    places = {image.tobytes(): i for i, image in enumerate(whole.train_images)}
    for image, label in zip(small.train_images, small.train_labels):
        assert whole.train_labels[places[image.tobytes()]] == label


def test_a_part_may_be_one_image_or_all_of_them():
    whole = data.load("digits")
    one = data.first(whole, 1, 1)
    assert len(one.train_labels) == len(one.test_labels) == 1
    count = len(whole.train_labels)
    shuffled = data.first(whole, count, None)
    assert shuffled.test_images is whole.test_images
    np.testing.assert_array_equal(
        np.sort(shuffled.train_labels), np.sort(whole.train_labels)
    )
    assert data.first(whole, None, None) == whole


@pytest.mark.parametrize("count", [0, -1, 361])
def test_a_part_that_there_is_not_is_refused(count):
    message = f"`test_images` is {count}; digits has 360"
    with pytest.raises(ValueError, match=message):
        data.first(data.load("digits"), 10, count)
    with pytest.raises(ValueError, match="`train_images` is 0"):
        data.first(data.load("digits"), 0, 10)

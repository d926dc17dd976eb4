"""The loop over epochs: what a training leaves, several seeds at once, checkpoints."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training import loop, steps
from synflow_jax import models
from tests.experiments.small import (
    LONG,
    MODULE,
    NORMED,
    SETTINGS,
    assert_close,
    assert_same,
    digits,
    everything,
    masked,
    variables,
)

MLP = models.MLP(hidden=(16,))


pytestmark = pytest.mark.usefixtures("standard_promotion")


def fit(masks, seed=0, settings=SETTINGS, module=MODULE, **more):
    plan = steps.plan(module, settings, digits())
    state = steps.start(plan, variables(module), masks)
    splits = steps.on_device(plan, digits())
    return loop.train(plan, state, splits, seed, **more)


def kernels(masks):
    return sum(int(m.sum()) for m in jax.tree.leaves(masks) if m.ndim > 1)


# --- a training ---------------------------------------------------------------------------


def test_training_leaves_pruned_weights_exactly_zero():
    masks = masked(variables(), 0.3)
    state, _ = fit(masks)
    assert 0 < kernels(masks) < 0.5 * 728
    assert steps.num_nonzero(state.params, masks) == (kernels(masks), 0)
    for before, after, mask in zip(
        *map(jax.tree.leaves, (variables()["params"], state.params, masks))
    ):
        assert not np.any(np.asarray(after)[~np.asarray(mask)])
        assert np.any(np.asarray(before != after)[np.asarray(mask)])


def test_training_is_a_function_of_the_seed():
    (one, epochs), (two, again) = fit(everything()), fit(everything())
    assert epochs == again
    assert_same(one.params, two.params)
    _, others = fit(everything(), seed=1)
    assert others[0].loss != epochs[0].loss


def test_one_compilation_serves_every_mask():
    fit(everything())
    before = steps._jitted_step._cache_size(), steps._num_right._cache_size()
    for density in (0.5, 0.1):
        fit(masked(variables(), density))
    assert (steps._jitted_step._cache_size(), steps._num_right._cache_size()) == before


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
    assert steps.num_nonzero(state.params, masks) == (kernels(masks), 0)


# --- several seeds ------------------------------------------------------------------------


def started(plan, seeds, module=MLP):
    """States of several seeds, each with masks of its own."""
    starts = [variables(module, seed) for seed in seeds]
    masks = [masked(v, 0.4, seed) for v, seed in zip(starts, seeds)]
    return [steps.start(plan, v, m) for v, m in zip(starts, masks)], masks


def test_many_trainings_in_one_program_are_separate_trainings():
    plan = steps.plan(MLP, LONG, digits())
    splits = steps.on_device(plan, digits())
    seeds = (4, 0)
    states, masks = started(plan, seeds)
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    programs = steps.epoch_of_many, steps._num_right_of_many
    before = [program._cache_size() for program in programs]
    many, history = loop.train_many(plan, many, splits, jnp.array(seeds))
    for program, size in zip(programs, before):
        assert program._cache_size() <= size + 1  # for all epochs together
    for i, (state, seed, own) in enumerate(zip(states, seeds, masks)):
        alone, epochs = loop.train(plan, state, splits, seed)
        params = jax.tree.map(lambda leaf, i=i: leaf[i], many.params)
        assert_close(params, alone.params, rtol=1e-4, atol=1e-6)
        losses = [epoch.loss[i] for epoch in history]
        np.testing.assert_allclose(losses, [e.loss for e in epochs], rtol=1e-4)
        assert steps.num_nonzero(params, own) == (kernels(own), 0)
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
    plan = steps.plan(MLP, LONG, digits())
    splits, seeds = steps.on_device(plan, digits()), (0, 1)

    def run(**more):
        states, _ = started(plan, seeds)
        many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return loop.train_many(plan, many, splits, jnp.array(seeds), **more)

    whole, history = run()
    with pytest.raises(Interrupted):
        run(folder=tmp_path, on_epoch=interrupt)
    state, resumed = run(folder=tmp_path)
    assert resumed == history
    assert_same(state, whole)

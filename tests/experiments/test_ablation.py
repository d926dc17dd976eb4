"""Seeds, densities and criteria in one program, compiled once: as in separate runs."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

import synflow_jax as sj
from experiments import ablation
from experiments.figures import ablation as figures
from experiments.harness import sweeps
from experiments.training import loop, networks, steps
from synflow_jax import models
from tests.experiments.small import SETTINGS, digits, variables

SEEDS, DENSITIES, ROUNDS = (0, 3), (0.5, 0.1, 0.02), 5
CRITERIA = ("synflow", "random")
TRACED = []


class MLP(models.MLP):
    """Remembers for which images it was traced."""

    def __call__(self, x, train=False):
        TRACED.append(x.shape)
        return super().__call__(x, train)


MODULE = MLP(hidden=(16, 16))
TRAINING = dataclasses.replace(SETTINGS, epochs=2)


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def done():
    with jax.numpy_dtype_promotion("standard"):
        plan = steps.plan(MODULE, TRAINING, digits())
        splits = steps.on_device(plan, digits())
        found = ablation.ablation(plan, splits, SEEDS, DENSITIES, ROUNDS, CRITERIA)
    return plan, splits, *found


def test_every_network_is_that_of_a_separate_run(done):
    """Pruned by `sj.prune` and trained by `loop.train`, with no `vmap` anywhere."""
    plan, splits, accuracies, together = done
    synflow = sj.synflow(lambda p, x: MODULE.apply({"params": p}, x), (8, 8, 1))
    size = 64 * 16 + 16 * 16 + 16 * 10
    axes = map(enumerate, (CRITERIA, SEEDS, DENSITIES))
    for (c, name), (i, seed), (j, density) in itertools.product(*axes):
        start = variables(MODULE, seed)
        key = jax.random.fold_in(jax.random.key(seed), ablation._CRITERION)
        score = synflow if name == "synflow" else sj.random(key)
        masks, _ = sj.prune(score, start["params"], density, rounds=ROUNDS)
        got = jax.tree.map(lambda x, place=(c, i, j): x[place], together)
        jax.tree.map(np.testing.assert_array_equal, got.masks, masks)
        state = steps.start(plan, start, masks)
        state, history = loop.train(plan, state, splits, seed)
        for own, want in zip(*map(jax.tree.leaves, (got.state.params, state.params))):
            np.testing.assert_allclose(own, want, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got.losses, [e.loss for e in history], rtol=1e-4)
        assert accuracies[c, i, j] == history[-1].accuracy
        kept = sj.num_kept(size, density)
        assert steps.num_nonzero(got.state.params, masks) == (kept, 0)


def test_one_compilation_serves_all_seeds_and_densities(done):
    plan, splits, accuracies, together = done
    assert accuracies.shape == (2, 2, 3) and together.losses.shape == (2, 2, 3, 2)
    before = ablation.together._cache_size()
    ablation.ablation(plan, splits, (7, 8), (0.7, 0.3, 0.05), ROUNDS, CRITERIA)
    assert ablation.together._cache_size() == before
    TRACED.clear()
    ablation.ablation(plan, splits, (9, 10), (0.6, 0.2, 0.01), ROUNDS, CRITERIA)
    assert {shape[0] for shape in TRACED} <= {1}  # for the sizes of its leaves only


def test_the_run_measures_every_network_and_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "load", lambda name, data_dir: digits())
    monkeypatch.setattr(networks, "module_of", lambda network, classes: MODULE)
    run = dataclasses.replace(
        ablation.runs("smoke")[0],
        seeds=(0, 1),
        compressions=(0.0, 0.5, 1.0),
        # As above: the one program is compiled already.
        training=TRAINING,
        timed_epochs=TRAINING.epochs,
        criteria=CRITERIA,
        rounds=ROUNDS,
        timed=2,
    )
    (rows,) = sweeps.perform(
        [run], ablation.execute, tmp_path, experiment="ablation", command=""
    )
    json.dumps(rows, allow_nan=False)
    trained = [row for row in rows if row["kind"] == "trained"]
    names = ("criterion", "seed", "compression")
    every = [*itertools.product(CRITERIA, (0, 1), run.compressions)]
    assert [tuple(row[name] for name in names) for row in trained] == every
    size = trained[0]["kept"]  # at density 1
    for row in trained:
        kept = sj.num_kept(size, 10.0 ** -row["compression"])
        assert (row["kept"], row["revived"]) == (kept, 0)
    (separate,) = (row for row in rows if row["kind"] == "separate")
    assert separate["networks"] == 12 and separate["masks_differ"] == 0
    assert len(separate["seconds_together"]) == len(separate["seconds_alone"]) == 2
    assert separate["accuracies_differ"] <= 1 / 40
    figures.draw(rows, tmp_path / "ablation.png")
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
    (table,) = figures.tables(rows)
    ((network, count, *_, differ, _),) = table.rows
    assert (network, count, differ) == ("mlp on digits", "12", "0")


def row_of(compression, accuracy, seed=0):
    return {
        "run": "r",
        "kind": "trained",
        "seed": seed,
        "compression": compression,
        "accuracy": accuracy,
    }


def test_the_time_is_a_median():
    config = {
        "network": "mlp",
        "dataset": "digits",
        "seeds": [0, 1],
        "compressions": [0.0, 1.0],
    }
    rows = [
        {"run": "r", "kind": "run", "config": config},
        *(row_of(c, 0.5, s) for s in (0, 1) for c in (0.0, 1.0)),
        {
            "run": "r",
            "kind": "separate",
            "networks": 4,
            "seconds_together": [1.0, 2.0, 9.0],
            "seconds_alone": [8.0, 7.0, 0.0],
            "masks_differ": 3,
            "accuracies_differ": 0.0125,
        },
    ]
    (table,) = figures.tables(rows)
    assert table.rows == [["mlp on digits", "4", "2.0", "7.0", "3", "1.25"]]

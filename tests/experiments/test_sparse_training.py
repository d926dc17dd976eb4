"""Sparse training: runs of the smoke form, multiply-adds, and what is made of rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

import synflow_jax as sj
from experiments import accuracy, sparse_training
from experiments.figures import sparse_training as figures
from experiments.harness.sweeps import Context
from experiments.training import networks
from synflow_jax import models
from tests.experiments.small import MODULE

pytestmark = pytest.mark.usefixtures("standard_promotion")

SHORT = ("gradual", "rigl_synflow", "imp")
LONG = [pytest.param(m, marks=pytest.mark.long) for m in figures.LABELS if m not in SHORT]


@pytest.fixture
def small(monkeypatch):
    """Makes the MLP one of 12 hidden units."""
    module = functools.partial(networks.NormalisedMLP, hidden=(12,))
    monkeypatch.setitem(networks.NETWORKS, "mlp_bn", module)


@pytest.mark.parametrize("method", [*SHORT, *LONG])
def test_a_run_trains_and_ends_at_its_density(method, small, tmp_path):
    (run,) = [r for r in sparse_training.runs("smoke") if r.method == method]
    run = dataclasses.replace(run, compression=0.5)
    *epochs, row = sparse_training.execute(run, Context(tmp_path))
    trainings = 4 if method == "imp" else 1
    assert [r["epoch"] for r in epochs] == [1, 2] * trainings
    assert row["kind"] == "trained" and row["size"] == 64 * 12 + 12 * 10
    assert row["kept"] <= sj.num_kept(row["size"], 10**-0.5)
    assert 0.1 < row["last"] <= row["best"] <= 1
    # A dense training is 1; gradual pruning begins as one, and these masks never change
    # how much they keep.
    low, high = {"gradual": (0.4, 0.99), "imp": (1.5, 3.2)}.get(method, (0.2, 0.45))
    assert low < row["multiply_adds"] < high
    assert epochs[0]["used"] >= epochs[-1]["used"] - 1e-6


def test_a_training_that_diverges_is_a_result(small, tmp_path):
    (run,) = [r for r in sparse_training.runs("smoke") if r.method == "rigl_synflow"]
    training = dataclasses.replace(run.training, learning_rate=1e30)
    run = dataclasses.replace(run, compression=0.5, training=training)
    *epochs, row = sparse_training.execute(run, Context(tmp_path))
    assert row["diverged"] and epochs[-1]["loss"] is None
    (table,) = figures.tables([row, row | {"diverged": False, "last": 0.5}])
    assert table.rows[-1][1].startswith("50.0; 1 of 2 diverged; ")


def test_multiply_adds_are_positions_times_weights():
    """Of 3x3 convolutions of stride 2, from 8x8 to 4x4 and 2x2, and of a dense layer."""
    variables = models.init(MODULE, jax.random.key(0), (8, 8, 1))
    found = sparse_training.multiply_adds(MODULE, variables, (8, 8, 1))
    params = variables["params"]
    assert found == {
        "conv1/kernel": 4 * 4 * 3 * 3 * 1 * 8,
        "conv2/kernel": 2 * 2 * 3 * 3 * 8 * 8,
        "linear/kernel": 8 * 10,
    }
    masks = jax.tree.map(lambda p: jnp.zeros(p.shape, bool), params)
    assert sparse_training.used(found, sj.all_kept(params)) == 1
    assert sparse_training.used(found, masks) == 0


def test_the_recipe_is_that_of_the_accuracies():
    runs = sparse_training.runs("cpu")
    assert len(runs) == 2 * 4 * 3 * len(figures.LABELS)
    for network in ("mlp_bn", "convnet_bn"):
        own = {r.training for r in runs if r.network == network}
        theirs = {r.training for r in accuracy.runs("cpu") if r.network == network}
        assert own == theirs and len(own) == 1
        shared = {r.method for r in accuracy.runs("cpu") if r.network == network}
        assert set(figures.SHARED) <= shared


def test_rows_of_the_accuracies_stand_beside_those_of_here(tmp_path, monkeypatch):
    common = {"kind": "trained", "network": "mlp_bn", "dataset": "fashion_mnist"}
    cells = [(c, s) for c in (0.5, 1.0) for s in (0, 1)]

    def row(method, compression, seed, **more):
        measured = {"compression": compression, "seed": seed, "last": 0.5 + 0.1 * seed}
        return common | {"method": method} | measured | more

    rows = [row(m, *at, multiply_adds=0.25) for m in figures.LABELS for at in cells]
    how = {"optimizer": "sgd", "rescaled": False}
    others = [
        row(m, *at, **how) for m in ("synflow", "snip", "erk", "grasp") for at in cells
    ]
    others += [row("dense", 0.0, 0, **how), row("synflow", 0.5, 2, optimizer="adam")]
    monkeypatch.setattr(figures.command, "results", lambda folder: others)
    (table,) = figures.tables(rows)
    found = {name: texts for name, *texts in table.rows}
    assert found["RigL, from ERK"] == ["55.0 (50.0 to 60.0); 0.25"] * 2
    assert found["dense"] == ["50.0"] * 2
    for name in ("SynFlow", "SNIP", "Random, ERK"):
        assert found[name] == ["55.0 (50.0 to 60.0)"] * 2
    assert len(found) == 4 + len(figures.LABELS)
    figures.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")

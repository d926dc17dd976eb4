"""Magnitude pruning after training: some of the smoke form's runs, and the growth law."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from experiments import magnitude_training
from experiments.datasets.load import load
from experiments.figures import magnitude_training as figures
from experiments.harness import command
from experiments.harness.sweeps import Context
from experiments.training import loop, steps
from experiments.training.settings import Settings
from synflow_jax import models

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_the_smoke_form_prunes_exactly_and_watches_the_norms(tmp_path):
    few = "2-rounds-1-|growth"
    out = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--only", few]
    command.main(magnitude_training.EXPERIMENT, out)
    rows = command.results(tmp_path)
    (ticket,) = (row for row in rows if row["kind"] == "ticket")
    sizes, kept = (sum(layer[i] for layer in ticket["layers"]) for i in (2, 1))
    assert kept == sj.num_kept(sizes, 0.1) and ticket["rounds"] == 2
    norms = [row for row in rows if row["kind"] == "norms"]
    assert [row["epoch"] for row in norms] == [0, 1, 2, 3]
    assert (tmp_path / "magnitude_training.png").read_bytes().startswith(b"\x89PNG")


def test_squared_weights_of_all_layers_grow_alike_under_gradient_flow():
    digits = load("digits")
    module = models.MLP(10, hidden=(40, 20, 30))
    settings = Settings(
        epochs=40, batch=256, learning_rate=0.01, drops=(), weight_decay=0.0, augment=False
    )
    plan = steps.plan(module, settings, digits)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    state = steps.start(plan, variables, sj.all_kept(variables["params"]))
    split, _ = steps.on_device(plan, digits)
    rows = [magnitude_training._norms(0, state.params)]
    for number in range(1, settings.epochs + 1):
        state, _ = steps.one_epoch(plan, state, split, 0, number)
        rows.append(magnitude_training._norms(number, state.params))
    grown = figures.conserved(rows)
    last = np.array([values[-1] for values in grown.values()])
    assert len(last) == 4 and last.min() > 0.3
    np.testing.assert_allclose(last, last.mean(), rtol=0.03)
    # Without the biases' share they are not.
    bare = [
        rows[-1]["leaves"][i][2] - rows[0]["leaves"][i][2]
        for i, (name, _, _) in enumerate(rows[0]["leaves"])
        if name.endswith("kernel")
    ]
    assert max(bare) / min(bare) > 1.03


def norms(epoch, *layers):
    leaves = []
    for i, (size, squares, bias) in enumerate(layers, 1):
        leaves += [[f"l{i}/bias", 1, bias], [f"l{i}/kernel", size, squares]]
    return {"kind": "norms", "epoch": epoch, "leaves": leaves}


def test_the_growth_of_earlier_biases_is_taken_off():
    rows = [
        norms(0, (4, 1.0, 0.0), (2, 3.0, 0.0), (8, 2.0, 0.0)),
        norms(1, (4, 1.5, 0.2), (2, 3.7, 0.1), (8, 2.8, 9.0)),
    ]
    grown = figures.conserved(rows)
    assert list(grown) == ["l1", "l2", "l3"]
    np.testing.assert_allclose([v[-1] for v in grown.values()], [0.5, 0.5, 0.5])


def test_the_slope_is_one_where_all_layers_have_one_norm():
    equal = norms(0, (4, 2.0, 0.0), (100, 2.0, 0.0), (9, 2.0, 0.0))
    assert figures.slope(equal) == pytest.approx(1.0)
    same = norms(0, (4, 4.0, 0.0), (100, 100.0, 0.0), (9, 9.0, 0.0))
    assert figures.slope(same) == pytest.approx(0.0, abs=1e-9)


def ticket(rounds, compression, kept, best=0.5, seed=0):
    layers = [["a", kept[0], 10], ["b", kept[1], 10]]
    return {
        "kind": "ticket",
        "network": "mlp",
        "dataset": "digits",
        "rounds": rounds,
        "compression": compression,
        "seed": seed,
        "layers": layers,
        "best": best,
    }


def test_an_empty_layer_in_one_seed_ends_what_survives():
    rows = [
        ticket(1, 1.0, (1, 1)),
        ticket(1, 2.0, (1, 0)),
        ticket(1, 3.0, (1, 1)),
        ticket(2, 1.0, (2, 2)),
        ticket(2, 2.0, (2, 2)),
        ticket(2, 2.0, (0, 2), seed=1),
        ticket(3, 1.0, (0, 2)),
    ]
    assert figures.survived(rows) == {1: 1.0, 2: 1.0, 3: None}
    (table,) = figures.tables(rows)
    assert [row[-1] for row in table.rows] == ["10^1", "10^1", "nowhere"]


def test_the_table_has_medians_and_ranges():
    rows = [ticket(n, c, (1, 1), best=0.5) for n in (1, 2) for c in (1.0, 2.0)]
    rows += [ticket(2, 2.0, (1, 1), best=0.9, seed=1), ticket(1, 3.0, (1, 1), best=0.0)]
    (table,) = figures.tables(rows)
    assert table.headings == ["rounds", "10^1", "10^2", "10^3", "no layer empty up to"]
    assert table.rows[0] == ["1", "50.0", "50.0", "0.0", "10^3"]
    assert table.rows[1] == ["2", "50.0", "70.0 (50.0 to 90.0)", "", "10^2"]


def test_the_table_of_growth_has_a_line_a_seed():
    configs = {name: {"network": "deep"} for name in ("g0", "g1")}
    heads = [{"run": n, "kind": "run", "config": c} for n, c in configs.items()]
    layers = (4, 1.0, 0.0), (2, 3.0, 0.0)
    grown = (4, 1.5, 0.2), (2, 3.7, 0.1)
    rows = [
        {"run": name, **norms(epoch, *(grown if epoch else layers))}
        for name in configs
        for epoch in range(11)
    ]
    (table,) = figures.tables([*heads, *rows])
    assert len(table.rows) == 2
    assert table.rows[0][:4] == ["deep", "10", "0.5", "0.5"]


def test_the_paper_form_has_its_rounds_and_trains_without_decay():
    runs = magnitude_training.runs("paper")
    tickets = [run for run in runs if isinstance(run, magnitude_training.Ticket)]
    assert {run.rounds for run in tickets} == {1, 2, 3}
    assert {dataclasses.replace(run.training, epochs=50) for run in tickets} == {
        tickets[0].training
    }
    (growth,) = (run for run in runs if run not in tickets)
    assert growth.network == "vgg19_cifar" and growth.training.weight_decay == 0


def test_a_moved_zero_ends_the_run(monkeypatch, tmp_path):
    run = magnitude_training.runs("smoke")[0]
    whole = loop.train

    def forgetful(plan, state, *args, **more):
        state, history = whole(plan, state, *args, **more)
        if state.params["linear1"]["kernel"].sum() and forgetful.calls:
            ones = jax.tree.map(jnp.ones_like, state.params)
            state = state._replace(params=ones)
        forgetful.calls += 1
        return state, history

    forgetful.calls = 0
    monkeypatch.setattr(magnitude_training.loop, "train", forgetful)
    with pytest.raises(RuntimeError, match="pruned weights moved"):
        list(magnitude_training.execute(run, Context(tmp_path)))

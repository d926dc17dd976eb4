"""Accuracy against compression: some of the smoke form's runs, and what is made of rows."""

import math

import jax
import pytest

import synflow_jax as sj
from experiments import accuracy, methods, published
from experiments.figures import accuracy as figures
from experiments.figures.resampling import difference
from experiments.harness import command
from experiments.training import networks

PNG = b"\x89PNG\r\n"

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    chosen = "dense|-(synflow|synflow_densities)-1-"
    with jax.numpy_dtype_promotion("standard"):
        command.main(
            accuracy.EXPERIMENT,
            ["--runs", str(folder / "runs"), "--out", str(folder), "--only", chosen],
        )
    return folder


def test_every_trained_network_keeps_its_count_and_its_zeros(smoke):
    trained = [row for row in command.results(smoke) if row["kind"] == "trained"]
    compared = ["dense", "synflow", "synflow_densities"]
    assert [(row["method"], row["seed"]) for row in trained] == [
        (method, seed) for method in compared for seed in (0, 1)
    ]
    for row in trained:
        assert row["kept"] == sj.num_kept(row["size"], 10.0 ** -row["compression"])
        assert 0 <= row["last"] <= row["best"] <= 1
        assert 0 < row["reached"] <= row["kept"]
        assert row["first_loss"] < 3 * math.log(10)
    assert len({row["size"] for row in trained}) == 1
    assert (smoke / "accuracy.png").read_bytes().startswith(PNG)


def test_each_epoch_of_each_seed_is_logged(smoke):
    rows = command.results(smoke)
    configs = command.configs(rows)
    for name, config in configs.items():
        epochs = [row for row in rows if row["run"] == name and row["kind"] == "epoch"]
        seen = [(row["seed"], row["epoch"]) for row in epochs]
        wanted = range(1, config["training"]["epochs"] + 1)
        assert seen == [(seed, epoch) for seed in config["seeds"] for epoch in wanted]


def test_the_sweeps_have_enough_compressions_and_seeds():
    runs = accuracy.runs("cpu")
    for network, seeds, compressions in (("mlp_bn", 5, 8), ("convnet_bn", 3, 5)):
        own = [run for run in runs if run.network == network]
        for method in set(methods.PAPER) | {"erk", "synflow_densities", "shuffled_synflow"}:
            cells = {(r.compression, s) for r in own for s in r.seeds if r.method == method}
            assert len({c for c, _ in cells}) == compressions
            assert len(cells) == seeds * compressions
    assert {r.method for r in runs if r.network == "mlp_bn"} == {"dense", *methods.LABELS}
    trainings = {(r.training.optimizer, r.rescaled) for r in runs if r.network == "mlp"}
    assert trainings == {("sgd", False), ("sgd", True), ("adam", False)}
    paper = accuracy.runs("paper")
    assert len({(run.network, run.dataset) for run in paper}) == 12
    assert {run.seeds for run in paper} == {(0,), (1,), (2,)}
    assert len({run.compression for run in paper}) == 13


def test_the_networks_of_the_papers_sweep_are_those_of_its_published_numbers():
    pairs = {f"{run.network}-{run.dataset}" for run in accuracy.runs("paper")}
    assert pairs == set(published.load("accuracy")["accuracy"])


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="there is no network 'vgg17'"):
        networks.module_of("vgg17", 10)


# --- rows by hand -------------------------------------------------------------------------


def trained(method, compression, best, seed=0, flow=1.0, last=None, loss=1.0, **more):
    return {
        "kind": "trained",
        "network": "mlp_bn",
        "dataset": "digits",
        "method": method,
        "compression": compression,
        "optimizer": "sgd",
        "rescaled": False,
        "seed": seed,
        "size": 1000,
        "kept": 100,
        "reached": 0 if flow is None else 80,
        "best": best,
        "last": best if last is None else last,
        "log10_flow": flow,
        "first_loss": loss,
        **more,
    }


def by_hand():
    """SynFlow learns at both compressions, everything else at the first one only."""
    rows = [trained("dense", 0.0, 0.9)]
    for method in methods.LABELS:
        for seed, better in ((0, 0.0), (1, 0.02)):
            own = 0.01 * seed if method == "magnitude" else 0.0
            rows.append(trained(method, 1.0, 0.8 + better + own, seed, last=0.75))
            high, flow, loss = (0.5, 1.0, 2.0) if method == "synflow" else (0.1, None, 2.31)
            rows.append(trained(method, 2.0, high, seed, flow=flow, loss=loss))
    return rows


NETWORK = figures.Network("mlp_bn", "digits", "sgd")


def test_a_point_is_a_seed_with_what_became_of_it():
    found = figures.points(by_hand())[NETWORK]
    one, two = found["snip"][1.0]
    assert (one.seed, one.best, one.last) == (0, 80.0, 75.0) and two.best == 82.0
    assert one.started and not one.diverged
    assert one.reached == pytest.approx(math.log10(1000 / 80))
    assert [(t.started, t.reached) for t in found["snip"][2.0]] == [(False, None)] * 2


@pytest.mark.parametrize(
    "loss, started, diverged",
    [(2.30, True, False), (2.31, False, False), (7.0, False, True), (None, False, True)],
)
def test_a_training_starts_below_guessing_and_diverges_far_above(loss, started, diverged):
    rows = [trained("snip", 1.0, 0.1, loss=loss), trained("synflow", 1.0, 0.5)]
    (point,) = figures.points(rows)[NETWORK]["snip"][1.0]
    assert (point.started, point.diverged) == (started, diverged)
    listed = [table for table in figures.tables(rows) if "first epoch has" in table.title]
    assert [table.rows for table in listed] == (
        [[["mlp_bn on digits", "SNIP", "10^1", "0"]]] if diverged else []
    )


def test_there_is_no_mean_of_seeds_that_started_and_others():
    rows = [
        trained("snip", 1.0, 0.8, 0),
        trained("snip", 1.0, 0.7, 1),
        trained("snip", 1.0, 0.1, 2, flow=None, loss=2.31),
    ]
    cell = figures.tables(rows)[0].rows[0][1]
    assert cell == "2 of 3 start, 10.0 to 80.0; 1 cut"


def test_the_tables_have_accuracies_and_paired_differences():
    accuracies, differences = figures.tables(by_hand())
    assert accuracies.headings == ["method", "10^0", "10^1", "10^2"]
    cells = {method: numbers for method, *numbers in accuracies.rows}
    assert cells["Not pruned"] == ["90.0 (90.0)", "", ""]
    assert cells["SNIP"] == ["", "81.0 (75.0)", "0 of 2 start, 10.0; 2 cut"]
    assert cells["SynFlow"] == ["", "81.0 (75.0)", "50.0 (50.0)"]
    assert len(cells) == 1 + len(methods.LABELS)
    beside = {method: numbers for method, *numbers in differences.rows}
    assert "SynFlow" not in beside
    assert beside["SNIP"] == ["+0.0 (+0.0 to +0.0)", "-40.0* (-40.0 to -40.0)"]
    assert beside["Magnitude"][0] == "+0.5 (+0.0 to +1.0)"


def test_a_difference_is_of_equal_seeds_and_its_interval_counts_every_resample():
    one, other = {0: 50.0, 1: 60.0, 2: 90.0}, {1: 50.0, 0: 50.0, 3: 0.0}
    found = difference(one, other)
    # Of seeds 0 and 1: 0 and 10 points, so resamples have means 0, 5, 5 and 10.
    assert found == (5.0, 0.0, 10.0) and not found.sure
    assert difference({0: 50.0}, other) is None
    assert difference({0: 50.0, 1: 60.0}, {0: 40.0, 1: 40.0}).sure
    three = {seed: 0.0 for seed in range(3)}
    assert difference({0: 1.0, 1: 2.0, 2: 3.0}, three) == (2.0, 1.0, 3.0)


def test_a_network_that_is_trained_dense_only_is_left_out():
    dense = trained("dense", 0.0, 0.9) | {"network": "lenet"}
    assert list(figures.points([dense, *by_hand()])) == [NETWORK]


def test_trainings_of_one_network_are_told_apart():
    rows = [
        trained("snip", 1.0, 0.5),
        trained("snip", 1.0, 0.6, rescaled=True),
        trained("snip", 1.0, 0.7, optimizer="adam"),
    ]
    assert [n.training for n in figures.points(rows)] == ["sgd", "rescaled", "adam"]


def test_the_figures_are_drawn(tmp_path):
    scale = [row | {"network": "mlp"} for row in by_hand()]
    for name, draw in accuracy.EXPERIMENT.figures.items():
        draw(by_hand() + scale, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(PNG)

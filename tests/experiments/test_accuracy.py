"""Accuracy against compression: some of the smoke form's runs, and what is made of rows."""

import jax
import pytest

import synflow_jax as sj
from experiments import accuracy, methods, published
from experiments.figures import accuracy as figures
from experiments.harness import command
from experiments.training import networks
from tests.experiments.small import narrow

PNG = b"\x89PNG\r\n"

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    chosen = "dense|-(synflow|synflow_densities)-1-"
    with jax.numpy_dtype_promotion("standard"), narrow():
        accuracy.main(
            ["--runs", str(folder / "runs"), "--out", str(folder), "--only", chosen]
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
    assert len({row["size"] for row in trained}) == 1
    assert (smoke / "accuracy.png").read_bytes().startswith(PNG)


def test_the_caption_has_the_settings(smoke):
    text = figures.caption(command.results(smoke))
    assert "mlp on digits: all training images, " in text
    assert ", 2 seeds, 5 rounds of SynFlow, 3 of" in text


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
    for network, seeds in (("mlp", 5), ("lenet", 3), ("resnet8_half", 2)):
        own = [run for run in runs if run.network == network]
        for method in methods.LABELS:
            cells = {(r.compression, s) for r in own for s in r.seeds if r.method == method}
            assert len({c for c, _ in cells}) >= 6
            assert len(cells) == seeds * len({c for c, _ in cells})
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


def trained(method, compression, best, seed=0, flow=1.0, last=None):
    return {
        "kind": "trained",
        "network": "mlp",
        "dataset": "digits",
        "method": method,
        "compression": compression,
        "seed": seed,
        "best": best,
        "last": best if last is None else last,
        "log10_flow": flow,
    }


def by_hand():
    """SynFlow learns at both compressions, everything else at the first one only."""
    rows = [trained("dense", 0.0, 0.9)]
    for method in methods.LABELS:
        for seed, better in ((0, 0.0), (1, 0.02)):
            rows.append(trained(method, 1.0, 0.8 + better, seed, last=0.75))
            high = 0.5 if method == "synflow" else 0.1
            rows.append(trained(method, 2.0, high, seed, flow=1.0 if high > 0.1 else None))
    return rows


def test_a_point_is_mean_range_and_whether_a_path_is_left():
    found = figures.points(by_hand())["mlp-digits"]
    low, high = found["snip"][1.0], found["snip"][2.0]
    assert (low.low, low.high, low.seeds, low.connected) == (80.0, 82.0, 2, 2)
    assert low.mean == pytest.approx(81.0) and low.last == pytest.approx(75.0)
    assert (high.mean, high.connected) == (10.0, 0)


def test_the_table_has_mean_and_range_and_says_what_is_cut():
    (table,) = figures.tables(by_hand())
    assert table.headings == ["method", "10^0", "10^1", "10^2"]
    cells = {method: numbers for method, *numbers in table.rows}
    assert cells["Not pruned"] == ["90.0", "", ""]
    assert cells["SNIP"] == ["", "81.0 (80.0 to 82.0)", "10.0, cut"]
    assert cells["SynFlow"] == ["", "81.0 (80.0 to 82.0)", "50.0"]
    assert len(cells) == 1 + len(methods.LABELS)


def test_a_network_that_is_trained_dense_only_is_left_out():
    dense = trained("dense", 0.0, 0.9) | {"network": "lenet"}
    assert list(figures.points([dense, *by_hand()])) == ["mlp-digits"]


def test_the_sentences_say_who_is_best_and_who_still_learns():
    best, learns, *controls = figures.sentences(by_hand())
    assert "10^1 Random 81.0 % (+0.0 over Magnitude, ranges overlap)" in best
    assert "10^2 SynFlow 50.0 % (+40.0 over Random)" in best
    assert "Random 10^1" in learns and "SynFlow 10^2" in learns
    assert len(controls) == len(methods.CONTROLS)
    assert "SynFlow, shuffled minus SynFlow, in points: +0.0 at 10^1, -40.0" in controls[2]


def test_a_method_that_learns_nowhere_is_said_to():
    rows = [trained("random", 1.0, 0.1), trained("synflow", 1.0, 0.5)]
    text = figures.sentences(rows)[1]
    assert "Random nowhere" in text and "SynFlow 10^1" in text


def test_where_nothing_learns_no_method_is_best():
    rows = [trained(method, 1.0, 0.1) for method in methods.PAPER]
    assert "10^1 none is above 1.5 times chance." in figures.sentences(rows)[0]


def test_a_learning_seed_does_not_hide_one_that_does_not():
    rows = [trained("synflow", 1.0, 0.9), trained("synflow", 1.0, 0.1, seed=1)]
    assert "SynFlow nowhere" in figures.sentences(rows)[1]


def test_the_first_losses_are_those_of_the_lowest_compression():
    rows = [trained("snip", 1.0, 0.9)]
    snip, late, grasp = ("snip", 1.0, (1, 3)), ("snip", 2.0, (9,)), ("grasp", 1.0, (50,))
    for method, c, losses in (late, snip, grasp):
        name = f"{method}{c}"
        config = {"network": "mlp", "dataset": "digits", "method": method, "compression": c}
        rows.append({"run": name, "kind": "run", "config": config})
        for seed, loss in enumerate(losses):
            epoch = {"run": name, "kind": "epoch", "seed": seed, "loss": float(loss)}
            rows += [epoch | {"epoch": 1}, epoch | {"epoch": 2, "loss": 0.1}]
    text = figures.sentences(rows)[-1]
    assert text == "mlp: mean loss of the first epoch at 10^1: SNIP 2.00, GraSP 50.00."


def test_the_figure_is_drawn_from_a_part_of_the_rows(tmp_path):
    figures.draw(by_hand()[:3], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)

"""How far SynFlow prunes each network, in its smoke form."""

import dataclasses
import json
import math
import pathlib

import jax
import numpy as np
import pytest

import synflow_jax as sj
from experiments import published, theory
from experiments.figures import theory as figures
from experiments.harness import command, tables
from synflow_jax import models
from tests.experiments.small import narrow

PNG = b"\x89PNG\r\n"
ROUNDS = 12

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theory")
    arguments = ["--out", str(folder / "out"), "--runs", str(folder / "runs")]
    with jax.numpy_dtype_promotion("standard"):
        command.main(theory.EXPERIMENT, ["--scale", "smoke", *arguments])
    return folder / "out"


@pytest.fixture(scope="module")
def passed(tmp_path_factory):
    """The rows of the narrow MLP, in so few rounds that one of them cuts it."""
    folder = tmp_path_factory.mktemp("narrow")
    arguments = ["--out", str(folder / "out"), "--runs", str(folder / "runs")]
    few = theory.EXPERIMENT._replace(runs=lambda scale: [theory.Run("mlp", ROUNDS)])
    with (
        jax.numpy_dtype_promotion("standard"),
        narrow(),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(theory, "EXPERIMENT", few)
        command.main(theory.EXPERIMENT, ["--scale", "smoke", *arguments])
    return command.results(folder / "out")


@pytest.mark.long
def test_the_smoke_run_writes_rows_figures_and_a_table(smoke):
    about = json.loads((smoke / "config.json").read_text())
    assert about["done"] == about["runs"] == 2
    for figure in ("theory.png", "flow.png"):
        assert (smoke / figure).read_bytes().startswith(PNG)
    rows = command.results(smoke)
    text = (smoke / command.TABLES).read_text()
    assert text == tables.document(figures.tables(rows)) + "\n"
    assert "| mlp | 119,400 | 6 | 4.299 | 6 | 4.299 |" in text
    assert "| resnet20 | 270,896 | 22 | 4.090 | 4 | 4.831 |" in text


def ends_at_one_path(row):
    assert list(row["flows"]) == sorted(row["flows"], reverse=True)
    assert list(row["flows"].values()) == sorted(row["flows"].values(), reverse=True)
    assert row["lefts"][row["weights"]] == row["layers"]
    assert row["lefts"][row["reached"]] == row["reached"]  # a weight in each layer


def test_a_pass_ends_at_one_path(passed):
    (mlp,) = figures.networks(passed)
    # Those rounds are too few: one of them cuts the network, and smaller ones go on.
    assert mlp["before_cut"] > mlp["reached"] == mlp["layers"] == mlp["fewest"] == 6
    ends_at_one_path(mlp)


@pytest.mark.long
def test_a_pass_ends_at_one_path_where_there_are_shortcuts(smoke):
    mlp, resnet = figures.networks(command.results(smoke))
    assert mlp["before_cut"] > mlp["reached"] == mlp["layers"] == mlp["fewest"] == 6
    assert resnet["before_cut"] > resnet["reached"] >= resnet["fewest"] == 4
    for row in (mlp, resnet):
        ends_at_one_path(row)


def test_a_pass_is_a_pruning_at_the_rate_of_its_rounds(passed):
    """Before a first cut it is what `prune` does, and reports what `prune` reports."""
    (own,) = (row for row in passed if row["kind"] == "pass")
    cut = own["cuts"][0]
    alive = own["kept"].index(cut["before"])
    with narrow():
        apply_fn, params, shape = models.build("mlp", jax.random.key(0))
    score = sj.synflow(apply_fn, shape)

    def pruned(rounds):
        return sj.prune(
            score,
            params,
            density=(6 / 27_420) ** (rounds / ROUNDS),
            rounds=rounds,
            keep_connected=False,
        )

    masks, info = pruned(alive)
    assert own["kept"][1 : alive + 1] == np.asarray(info.kept).tolist()
    np.testing.assert_allclose(own["removed"][1 : alive + 1], info.removed, rtol=1e-3)
    log_flow = jax.jit(lambda p, m: sj.log_flow(apply_fn, sj.apply_masks(p, m), shape))
    flow = log_flow(params, masks) / math.log(10)
    np.testing.assert_allclose(own["log10_flow"][alive], flow, rtol=1e-5)
    left = [row.kept for row in sj.summarize(params, masks) if row.name.endswith("kernel")]
    assert own["layers_left"][alive] == np.count_nonzero(left)
    masks, info = pruned(alive + 1)
    assert info.kept[-1] == cut["after"] and info.removed[-1] > 1
    assert not np.isfinite(log_flow(params, masks))


def test_the_flow_at_initialisation_is_that_of_the_network(passed):
    (mlp,) = figures.networks(passed)
    with narrow():
        _, params, _ = models.build("mlp", jax.random.key(0))
    flow = np.ones((1, 784))
    for name in sorted(params):
        flow = flow @ np.abs(np.asarray(params[name]["kernel"], np.float64))
    np.testing.assert_allclose(mlp["flows"][27_420], math.log10(flow.sum()), rtol=1e-5)


# --- counts -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", published.load("theory")["networks"])
def test_the_networks_have_the_counts_of_the_authors(name):
    theirs, network = published.load("theory")["networks"][name], models.NETWORKS[name]
    module = network.make(num_classes=network.num_classes)
    got = theory.counts(module, network.input_shape)
    assert got == (theirs["weights"], theirs["layers"])


@pytest.mark.parametrize(
    "module, shape, weights, layers, compression",
    [
        (models.VGG(depth=16, num_classes=100), (32, 32, 3), 14_761_664, 14, 6.0230),
        (models.VGG(depth=11, num_classes=100), (32, 32, 3), 9_268_928, 9, 6.013),
        (models.ResNet(depth=18, num_classes=100), (32, 32, 3), 11_210_432, 21, 5.727),
        (models.CifarResNet(depth=20, num_classes=100), (32, 32, 3), 276_656, 22, 4.100),
        (models.MLP(hidden=(300, 100)), (28, 28, 1), 266_200, 3, 4.948),
    ],
)
def test_counts_for_other_data_sets(module, shape, weights, layers, compression):
    assert theory.counts(module, shape) == (weights, layers)
    assert math.log10(weights / layers) == pytest.approx(compression, abs=6e-4)


# --- the rounds of a pass -----------------------------------------------------------------


@pytest.mark.parametrize(
    "size, layers, least, rounds",
    [
        (119_400, 6, 6, 100),
        (270_896, 22, 4, 100),
        (19_334_192, 1204, 4, 100),
        (60, 6, 5, 3),
    ],
)
def test_a_pass_goes_to_one_weight_a_layer_and_on(size, layers, least, rounds):
    after = theory.counts_of_pass(size, layers, least, rounds)
    assert after == sorted(set(after), reverse=True)
    assert layers in after and after[-1] == least
    to_layers = {sj.num_kept(size, d) for d in sj.exponential(layers / size, rounds)}
    assert set(after[: after.index(layers) + 1]) == to_layers
    # Beyond, the rate is the same, but for whole numbers.
    rate = (layers / size) ** (1 / rounds)
    beyond = after[after.index(layers) :]
    for r, count in enumerate(beyond[:-1]):
        assert count <= math.ceil(layers * rate**r)
    assert all(b >= rate * a - 1 for a, b in zip(beyond, beyond[1:]))


def descended(size, counts, leaves_a_path):
    """What `descend` asks for, each with whether it left a path, and where it ends."""
    asked, k = [], size

    def leaves(goal):
        nonlocal k
        left = leaves_a_path(k, goal)
        asked.append((goal, left))
        k = goal if left else k
        return left

    end = theory.descend(size, counts, leaves)
    assert end == k
    return asked, end


def test_without_a_cut_the_rounds_are_those_planned():
    asked, end = descended(1000, [100, 50, 9, 4], lambda k, goal: True)
    assert asked == [(100, True), (50, True), (9, True), (4, True)] and end == 4


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_the_whole_zoo_is_pruned(scale):
    runs = theory.scaled_runs(scale)
    assert [run.network for run in runs if not run.seed] == list(models.NETWORKS)
    again = [(run.network, run.seed) for run in runs if run.seed]
    assert again == [(name, seed) for name in theory.AGAIN for seed in (1, 2)]


def test_a_step_that_cuts_is_halved_and_doubles_again():
    # Cut by more than eight weights at once, below 100.
    asked, end = descended(1000, [100, 50, 9, 4], lambda k, goal: k > 100 or k - goal <= 8)
    goals = [goal for goal, left in asked if left]
    assert asked[:5] == [(100, True), (50, False), (75, False), (88, False), (94, True)]
    assert asked[5:7] == [(82, False), (88, True)]  # twice six is too many again
    assert {50, 9} < set(goals) and end == 4
    assert all(a - b <= 8 for a, b in zip(goals[1:], goals[2:]))


@pytest.mark.parametrize("path", [1, 5, 40])
def test_a_pass_ends_where_one_weight_more_cuts(path):
    asked, end = descended(1000, [100, 50, 9, 4], lambda k, goal: goal >= path)
    assert end == max(path, 4)
    assert path <= 4 or (path - 1, False) in asked


# --- words --------------------------------------------------------------------------------


def by_hand(network, weights, layers, fewest, flows, lefts=None, removed=None, cuts=()):
    """The rows of a run that measured this; ``flows`` is by number of weights."""
    run = theory.Run(network)
    after = {
        "kept": list(flows),
        "log10_flow": list(flows.values()),
        "removed": removed or [0.0] + [0.5] * (len(flows) - 1),
        "layers_left": lefts or [layers] * len(flows),
        "cuts": [dict(zip(("before", "after", "removed"), cut)) for cut in cuts],
    }
    rows = [
        {"kind": "run", "config": dataclasses.asdict(run)},
        {"kind": "network", "weights": weights, "layers": layers, "fewest": fewest},
        {"kind": "pass", **after},
    ]
    return [{"run": run.name, **row} for row in rows]


def test_counts_that_differ_are_named_and_cuts_are_in_the_table():
    conv = {3000: 2.0, 8: -1.0, 5: -2.0, 3: -4.0}
    resnet = {270_000: 90.0, 22: -1.0, 11: -2.0}
    rows = [
        *by_hand("mlp", 119_400, 6, 6, {119_400: 5.0, 6: -7.0}),
        # What was removed after the cut is not of the rounds as planned.
        *by_hand("conv", 3000, 3, 3, conv, removed=[0, 0.5, 9, 9], cuts=[(8, 4, 1.5)]),
        # What cut it came beyond N / L.
        *by_hand("resnet20", 270_000, 22, 4, resnet, [22, 11, 11], cuts=[(11, 9, 3.0)]),
    ]
    assert figures.compare(rows) == ["resnet20 has weights 270,000, theirs 270,896"]
    (table,) = figures.tables(rows)
    cells = {network: numbers for network, *numbers in table.rows}
    assert cells["conv"][:5] == ["3,000", "3", "3.000", "3", "3.000"]
    assert cells["conv"][5:] == ["8", "1.5", "3", "3.000", "2.00", "-4.00", "-4.00", "3"]
    assert cells["mlp"][5:8] == ["6", "0.5", "6"]
    assert cells["resnet20"][5:8] == ["11", "0.5", "11"] and cells["resnet20"][-1] == "11"


def test_networks_are_in_families_by_depth_and_data_set():
    names = [
        *("mlp", "vgg11_cifar", "vgg11_tiny", "vgg19_cifar", "resnet20", "wide_resnet20"),
        *("resnet1202", "resnet18", "resnet18_imagenet", "resnet152", "wide_resnet18"),
    ]
    rows = [r for name in reversed(names) for r in by_hand(name, 100, 3, 3, {100: 1.0})]
    assert [row["network"] for row in figures.networks(rows)] == names


def test_figures_are_drawn_of_very_deep_networks(tmp_path):
    flows = {19_334_192: 1522.9, 1204: -4.0, 400: -9.0}
    rows = by_hand("resnet1202", 19_334_192, 1204, 4, flows)
    for name, draw in theory.EXPERIMENT.figures.items():
        draw(rows, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(PNG)


def test_the_page_links_the_table_of_the_results():
    root = pathlib.Path(__file__).parents[2]
    rows = command.results(root / "results/theory/cpu")
    networks = {row["network"] for row in figures.networks(rows)}
    assert networks == {run.network for run in theory.scaled_runs("cpu")}
    assert figures.compare(rows) == []
    (table,) = figures.tables(rows)
    page, place = "docs/theory.md", "results/theory/cpu/tables.md"
    assert tables.markdown(table) in (root / place).read_text()
    assert f"](../{place})" in (root / page).read_text()

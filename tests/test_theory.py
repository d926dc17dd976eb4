"""The largest compression of each network and what SynFlow reaches, in its smoke form."""

import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import command, published, theory
from synflow_jax import models

PNG = b"\x89PNG\r\n"

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theory")
    arguments = ["--out", str(folder / "out"), "--runs", str(folder / "runs")]
    with jax.numpy_dtype_promotion("standard"):
        theory.main(["--scale", "smoke", *arguments])
    return folder / "out"


def test_the_smoke_run_writes_rows_a_figure_and_tables(smoke):
    about = json.loads((smoke / "config.json").read_text())
    assert about["done"] == about["runs"] == 3
    assert (smoke / "theory.png").read_bytes().startswith(PNG)
    rows = command.results(smoke)
    text = (smoke / theory.TABLE).read_text()
    assert text == theory.table(rows) + "\n"
    assert "| mlp | 119,400 | 6 | 4.299 | 6 | 4.299 |" in text
    assert "| not pruned | N | L | log10 N/L | log10 R |" in text
    assert "| resnet20 | 270,896 | 22 | 4.090 | " in text


def test_what_was_reached_leaves_a_path_and_one_weight_less_does_not(smoke):
    mlp, *dense = theory.networks(command.results(smoke))
    flows, reached = mlp["flows"], mlp["reached"]
    assert reached > mlp["layers"] == mlp["fewest"] == 6  # in as few as 20 rounds
    assert flows[6] is None and flows[reached] is not None and flows[reached - 1] is None
    assert max(flows.values(), key=lambda flow: flow or -math.inf) == flows[119_400]
    assert sorted(mlp["whole"]) == [0, 1, 2, 3, 4]
    assert mlp["whole"][3] == flows[120]
    for row in dense:
        assert not row["reached"] and row["fewest"] is None
        assert list(row["flows"]) == [row["weights"]] and list(row["whole"]) == [0]


def test_the_flow_at_initialisation_is_that_of_the_network(smoke):
    row, conv, _ = theory.networks(command.results(smoke))
    _, params, _ = models.build("mlp", jax.random.key(0))
    flow = np.ones((1, 784))
    for name in sorted(params):
        flow = flow @ np.abs(np.asarray(params[name]["kernel"], np.float64))
    np.testing.assert_allclose(row["whole"][0], math.log10(flow.sum()), rtol=1e-5)
    apply_fn, params, shape = models.build("conv", jax.random.key(0))
    sizes = jax.tree.map(lambda w: jnp.abs(w) * (w.ndim > 1), params)  # no path from a bias
    flow = apply_fn(sizes, jnp.ones((1, *shape))).sum()
    np.testing.assert_allclose(conv["whole"][0], math.log10(flow), rtol=1e-5)


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


# --- the search ---------------------------------------------------------------------------


@pytest.mark.parametrize("true", [4, 5, 13, 21, 22, 23, 100, 1000])
def test_the_fewest_weights_with_a_path_are_found(true):
    asked = []

    def connected(k):
        asked.append(k)
        return k >= true

    assert theory.fewest_connected(connected, layers=22, lower=4, size=1000) == true
    assert asked[0] == 22 and len(asked) == len(set(asked))
    assert min(asked) >= 4 and len(asked) <= 18


# --- words --------------------------------------------------------------------------------


def by_hand(run, weights, layers, fewest, flows, reached):
    """The rows of a run that measured this; ``flows`` is by number of weights."""
    about = {"kind": "network", "weights": weights, "layers": layers, "fewest": fewest}
    pruned = [
        {"kind": "pruned", "k": k, "log10_flow": flow}
        | ({"whole": round(math.log10(weights / k))} if k > 100 else {})
        for k, flow in flows.items()
    ]
    rows = [
        {"kind": "run", "config": dataclasses.asdict(run)},
        about,
        *pruned,
        {"kind": "reached", "k": reached},
    ]
    return [{"run": run.name, **row} for row in rows]


def test_exceptions_are_named():
    rows = [
        *by_hand(theory.Run("mlp"), 119_400, 6, 6, {119_400: 5.0, 6: -7.0}, 6),
        *by_hand(theory.Run("conv"), 3000, 3, 3, {3000: 2.0, 3: None, 4: -3.0}, 4),
        *by_hand(
            theory.Run("resnet20"), 270_000, 22, 4, {270_000: 9.0, 22: -1.0, 12: -2.0}, 12
        ),
    ]
    assert theory.compare(rows) == ["resnet20 has weights 270,000, theirs 270,896"]
    said = theory.sentences(rows)
    assert "differ: resnet20 has weights 270,000, theirs 270,896." in said[0]
    assert "in 1 of 2 networks; conv needs 4 weights for 3 layers." in said[1]
    assert "4 weights can make a path, so 10^4.83 is its limit" in said[2]
    assert "22 layers SynFlow left a path; it got as far as 10^4.35, 12 weights" in said[2]
    assert "R of mlp falls from 10^5.00 at initialisation to 10^-7.00" in said[3]
    text = theory.table(rows)
    assert "| conv | 3,000 | 3 | 3.000 | 3 | 3.000 | 2.875, 4 weights |" in text
    assert "| conv | 2.00 | no path | -3.00 |" in text


def test_the_page_has_the_tables_of_the_results():
    root = pathlib.Path(__file__).parent.parent
    rows = command.results(root / "results/theory/cpu")
    assert theory.table(rows) in (root / "docs/theory.md").read_text()

"""What data add to a criterion: a run, and how masks are compared."""

import functools

import jax
import jax.numpy as jnp
import pytest

import synflow_jax as sj
from experiments import data_ablation
from experiments.datasets.load import load
from experiments.figures import data_ablation as figures
from experiments.harness.sweeps import Context
from experiments.training import networks

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_masks_share_what_both_keep():
    params = {"a": {"kernel": jnp.ones((2, 4))}, "b": {"kernel": jnp.ones((2, 2))}}
    one = {
        "a": {"kernel": jnp.array([[1, 1, 1, 0], [0, 0, 0, 0]], bool)},
        "b": {"kernel": jnp.array([[1, 0], [0, 0]], bool)},
    }
    other = {
        "a": {"kernel": jnp.array([[1, 0, 0, 1], [0, 0, 0, 0]], bool)},
        "b": {"kernel": jnp.array([[1, 1], [0, 0]], bool)},
    }
    found = data_ablation.compared(params, one, other)
    chance = (3 * 2 / 8 + 1 * 2 / 4) / 4
    assert found == {"shared": 0.5, "chance": round(chance, 4), "moved": 0.25}
    same = data_ablation.compared(params, one, one)
    assert same["shared"] == 1.0 and same["moved"] == 0.0


@pytest.mark.parametrize("criterion", ["synflow", "snip"])
def test_a_run_compares_each_variant_at_each_compression(criterion, tmp_path, monkeypatch):
    small = functools.partial(networks.NormalisedMLP, hidden=(12,))
    monkeypatch.setitem(networks.NETWORKS, "mlp_bn", small)
    grid = (0.5, 1.0)
    run = data_ablation.Run("mlp_bn", "digits", criterion, 0, grid, rounds=3, each=2)
    rows = list(data_ablation.execute(run, Context(tmp_path)))
    pairs = [(v, c) for v in data_ablation.PAIRS[criterion] for c in grid]
    assert [(row["variant"], row["compression"]) for row in rows] == pairs
    assert all(0 < row["shared"] < 1 and 0 < row["chance"] < 1 for row in rows)
    configured = [{"run": "r", **row} for row in rows]
    (table,) = figures.tables(configured)
    assert table.headings == ["changed to", "10^0.5", "10^1"] and all(map(all, table.rows))
    figures.draw(configured, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_other_images_leave_the_weights_as_they_are():
    run = data_ablation.Run("mlp_bn", "digits", "snip", 0, (1.0,), each=2)
    loaded = load("digits")
    one, other = (data_ablation._problem(run, loaded, seed) for seed in (0, 1000))
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params)):
        assert (a == b).all()
    assert (one.batches["images"] != other.batches["images"]).any()
    assert sj.leaf_names(one.params)[0].startswith("bn1")

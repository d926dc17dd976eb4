"""Masks of weights that were changed a little: the runs, and what is made of rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import chaos
from experiments.figures import chaos as figures
from experiments.harness.sweeps import Context
from experiments.training import networks

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_a_change_of_0_moves_every_number_by_one_unit_in_the_last_place():
    params = {"a": jnp.linspace(-2, 3, 1000), "b": jnp.array([0.0, 1e-30])}
    moved = chaos.moved(params, 0.0, 0)
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(moved)):
        old, new = np.asarray(old), np.asarray(new)
        ups, downs = (np.nextafter(old, np.float32(end)) for end in (np.inf, -np.inf))
        assert ((new == ups) | (new == downs)).all() and new.dtype == old.dtype
    assert (np.asarray(moved["a"]) > params["a"]).mean() == pytest.approx(0.5, abs=0.1)


def test_other_changes_are_relative_to_each_number():
    params = {"a": jnp.logspace(-9, 9, 4000)}
    moved = chaos.moved(params, 1e-3, 0)["a"]
    relative = np.asarray(moved / params["a"] - 1, float)
    assert moved.dtype == jnp.float32
    assert relative.std() == pytest.approx(1e-3, rel=0.1) and abs(relative.mean()) < 1e-4


def test_shared_weights_are_counted_over_the_prunable_leaves():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(2)}
    one = {"kernel": jnp.array([[1, 1, 0], [1, 1, 0]], bool), "bias": jnp.ones(2, bool)}
    other = one | {"kernel": jnp.array([[1, 0, 1], [1, 1, 0]], bool)}
    assert chaos.shared(params, one, other) == 0.75


@pytest.fixture
def small(monkeypatch):
    module = functools.partial(networks.NormalisedMLP, hidden=(12,))
    monkeypatch.setitem(networks.NETWORKS, "mlp_bn", module)


def test_masks_share_less_the_more_weights_change(small, tmp_path):
    run, _ = chaos.runs("smoke")
    rows = list(chaos.execute(run, Context(tmp_path)))
    assert [row["change"] for row in rows] == [0.0, 0.1]
    assert 0 < rows[1]["shared"] < rows[0]["shared"] <= 1


def test_a_pair_trains_both_masks_and_another_order(small, tmp_path):
    _, run = chaos.runs("smoke")
    rows = list(chaos.execute(run, Context(tmp_path)))
    assert [row["kind"] for row in rows] == ["pair", *["trained"] * 3]
    assert [row["what"] for row in rows[1:]] == ["first", "other masks", "other order"]
    assert rows[0]["shared"] < 1


def test_the_tables_have_what_is_shared_and_what_accuracies_differ_by(tmp_path):
    def head(run, **config):
        return {"run": run, "kind": "run", "config": config}

    rows = [head("a", network="net")]
    for change, shared in ((0.0, 1.0), (1e-6, 0.5)):
        row = {"compression": 2.0, "change": change, "shared": shared}
        rows.append({"run": "a", "kind": "masks", **row})
    for run, accuracies in (("b", (0.8, 0.81, 0.78)), ("c", (0.7, 0.67, 0.7))):
        rows += [head(run, compression=2.0), {"run": run, "kind": "pair", "shared": 0.9}]
        for what, best in zip(("first", "other masks", "other order"), accuracies):
            rows.append({"run": run, "kind": "trained", "what": what, "best": best})
    masks, trained = figures.tables(rows)
    assert masks.rows == [["net", "10^2", "100", "50"]]
    want = ["10^2", "90 90", "75.0", "+1.0 -3.0", "-2.0 +0.0", "2.00", "1.00"]
    assert trained.rows == [want]
    figures.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")

"""Pairs of weights that differ in their last bits: a run, and what is made of rows."""

import dataclasses
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


def test_every_number_moves_by_one_unit_in_the_last_place():
    params = {"a": jnp.linspace(-2, 3, 1000), "b": jnp.array([0.0, 1e-30])}
    moved = chaos.last_bits_changed(params, 0)
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(moved)):
        old, new = np.asarray(old), np.asarray(new)
        ups, downs = (np.nextafter(old, np.float32(end)) for end in (np.inf, -np.inf))
        assert ((new == ups) | (new == downs)).all() and new.dtype == old.dtype
    assert (np.asarray(moved["a"]) > params["a"]).mean() == pytest.approx(0.5, abs=0.1)


def test_shared_weights_are_counted_over_the_prunable_leaves():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(2)}
    one = {"kernel": jnp.array([[1, 1, 0], [1, 1, 0]], bool), "bias": jnp.ones(2, bool)}
    other = one | {"kernel": jnp.array([[1, 0, 1], [1, 1, 0]], bool)}
    assert chaos.shared(params, one, other) == 0.75


def test_a_run_trains_both_masks_and_another_order(tmp_path, monkeypatch):
    small = functools.partial(networks.NormalisedMLP, hidden=(12,))
    monkeypatch.setitem(networks.NETWORKS, "mlp_bn", small)
    (run,) = chaos.runs("smoke")
    rows = list(chaos.execute(run, Context(tmp_path)))
    assert [row["kind"] for row in rows] == ["masks", *["trained"] * 3]
    assert [row["what"] for row in rows[1:]] == ["first", "other masks", "other order"]
    alone = chaos.execute(dataclasses.replace(run, training=None), Context(tmp_path))
    assert list(alone) == rows[:1]


def test_the_tables_have_what_is_shared_and_what_accuracies_differ_by(tmp_path):
    config = {"network": "net", "compression": 2.0}
    rows = []
    for name, shared, accuracies in (("a", 0.5, (0.8, 0.81, 0.78)), ("b", 1.0, ())):
        rows.append({"run": name, "kind": "run", "config": config})
        rows.append({"run": name, "kind": "masks", "shared": shared})
        for what, best in zip(("first", "other masks", "other order"), accuracies):
            rows.append({"run": name, "kind": "trained", "what": what, "best": best})
    masks, trained = figures.tables(rows)
    assert masks.rows == [["net", "50 100"]]
    assert trained.rows == [["1", "80.0", "+1.0", "-2.0"], ["mean size", "", "1.0", "2.0"]]
    figures.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")

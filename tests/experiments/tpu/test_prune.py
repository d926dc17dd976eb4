"""The program that prunes on all devices: what it says, and what it writes."""

import json

import jax
import pytest

import synflow_jax as sj
from experiments.tpu import prune
from synflow_jax import models
from tests import nets


def test_it_writes_the_masks_of_prune(tmp_path, capsys):
    prune.main(f"mlp --density 0.1 --rounds 3 --seed 2 --out {tmp_path}".split())
    line = json.loads((tmp_path / "mlp.json").read_text())
    assert json.loads(capsys.readouterr().out) == line
    apply_fn, params, shape = models.build("mlp", jax.random.key(2))
    masks, info = sj.prune(sj.synflow(apply_fn, shape), params, 0.1, rounds=3)
    nets.assert_equal(sj.load_masks(tmp_path / "mlp.masks", like=params), masks)
    assert line["kept"] == int(info.kept[-1]) and line["empty"] == []
    assert line["devices"] == jax.device_count() and line["processes"] == 1


def test_a_dry_run_says_how_the_network_is_divided(capsys, monkeypatch):
    monkeypatch.setattr(sj, "prune", lambda *args, **kwargs: pytest.fail("it prunes"))
    prune.main(["mlp", "--density", "0.01", "--dry-run"])
    *leaves, last = capsys.readouterr().out.splitlines()
    assert any(leaf.startswith("linear1/kernel [784, 100] ") for leaf in leaves)
    devices, left = jax.device_count(), sj.num_kept(119_400, 0.01)
    assert last == f"100 rounds over {devices} devices leave {left} weights"


def test_leaves_are_divided_along_the_longest_axis_that_is_even():
    mesh = jax.sharding.AbstractMesh((4,), ("devices",))
    shapes = {"a": (3, 3, 64, 128), "b": (6, 12), "c": (7,), "d": ()}
    shapes = {
        name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()
    }
    got = {name: tuple(s.spec) for name, s in prune.divided(shapes, mesh).items()}
    none = None
    assert got == {
        "a": (none, none, none, "devices"),
        "b": (none, "devices"),
        "c": (none,),
        "d": (),
    }

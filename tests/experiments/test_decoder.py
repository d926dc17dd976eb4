"""The decoder of text: some steps of it, and what is made of rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from experiments import decoder
from experiments.figures import decoder as figures
from experiments.harness.sweeps import Context

pytestmark = pytest.mark.usefixtures("standard_promotion")

SMALL = dataclasses.replace(decoder.runs("smoke")[1], steps=3, width=8)


def test_the_text_is_split_and_its_characters_are_numbered():
    data = decoder.text()
    assert len(data.train) == 9 * (len(data.train) + len(data.test)) // 10 > 300_000
    assert set(np.concatenate(data[:2])) == set(range(data.characters))
    assert len(data.sha256) == 64


def test_a_run_keeps_its_count_and_measures_bits(tmp_path):
    rows = list(decoder.execute(SMALL, Context(tmp_path)))
    assert [row["seed"] for row in rows] == [0, 1]
    data = decoder.text()
    module = decoder.Decoder(data.characters, 8, 1, length=SMALL.length)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16), jnp.int32))
    leaves = zip(sj.leaf_names(shapes["params"]), jax.tree.leaves(shapes["params"]))
    size = sum(leaf.size for name, leaf in leaves if sj.is_kernel(name, leaf))
    for row in rows:
        assert row["kept"] == sj.num_kept(size, 0.1)
        # Before anything is learned, about that of equal chances.
        assert abs(row["first_bits"] - np.log2(data.characters)) < 1
        assert 0 < row["bits"] < row["first_bits"] + 1


@pytest.mark.parametrize("method", ["erk", "snip"])
def test_pruned_weights_stay_zero_in_training(method):
    run, data = dataclasses.replace(SMALL, method=method), decoder.text()
    module = decoder.Decoder(data.characters, 8, 1, length=run.length)
    params, masks = decoder._pruned(run, module, data, jax.random.key(0), 0)
    trained, losses = decoder._trained(run, module, data.train, params, masks, 0)
    assert losses.shape == (3,)
    for mask, before, after in zip(*map(jax.tree.leaves, (masks, params, trained))):
        assert (np.asarray(after)[~np.asarray(mask)] == 0).all()
        assert (after != jnp.where(mask, before, 0)).any()


def test_the_decoder_does_not_see_what_comes_later():
    module = decoder.Decoder(10, 8, 1, length=6)
    x = jnp.arange(6)[None]
    variables = module.init(jax.random.key(0), x)
    one, other = (module.apply(variables, x.at[0, 4].set(c)) for c in (4, 9))
    np.testing.assert_array_equal(one[:, :4], other[:, :4])
    assert (one[:, 4:] != other[:, 4:]).any()


def test_the_tables_set_methods_beside_synflow(tmp_path):
    rows = [
        {
            "kind": "trained",
            "method": m,
            "compression": c,
            "seed": s,
            "bits": bits + s / 100,
        }
        for m, c, bits in (("dense", 0.0, 2.0), ("synflow", 1.0, 3.0), ("snip", 1.0, 3.5))
        for s in (0, 1)
    ]
    bits, beside = figures.tables(rows)
    assert bits.rows[0] == ["Not pruned", "2.005 (2.000 to 2.010)", ""]
    assert beside.rows == [["SNIP", "+0.500* (+0.500 to +0.500)"]]
    figures.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")

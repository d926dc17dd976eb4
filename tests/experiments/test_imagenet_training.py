"""Training on a stream of images: the smoke form, and the loop behind it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from experiments import imagenet_training
from experiments.figures import imagenet_training as figures
from experiments.harness import command
from experiments.training import loop, networks, steps
from experiments.training.networks import SmallConvNet
from experiments.training.settings import Settings

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_the_smoke_form_trains_from_encoded_images(tmp_path, monkeypatch):
    pytest.importorskip("grain")
    (run,) = few = imagenet_training.runs("smoke")[1:2]
    assert (run.method, run.density, run.size) == ("magnitude", 0.1, 16)
    experiment = imagenet_training.EXPERIMENT._replace(runs=lambda scale: few)
    monkeypatch.setattr(imagenet_training, "EXPERIMENT", experiment)
    command.main(
        imagenet_training.EXPERIMENT,
        ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)],
    )
    rows = command.results(tmp_path)
    (trained,) = (row for row in rows if row["kind"] == "trained")
    module, image = networks.module_of(run.network, 10), jnp.ones((1, 16, 16, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes) if leaf.ndim > 1)
    assert trained["revived"] == 0 and trained["kept"] == sj.num_kept(size, 0.1)
    assert 0 <= trained["best"] <= 1
    assert (tmp_path / "imagenet_training.png").read_bytes().startswith(b"\x89PNG")


def test_the_paper_form_compares_all_criteria_at_both_densities():
    runs = imagenet_training.runs("paper")
    assert len(runs) == 11
    assert {run.dataset for run in runs} == {"imagenet2012"}
    assert {round(1 - run.density, 4) for run in runs[1:]} == {0.8926, 0.956}


def test_a_stream_trains_as_the_same_images_on_the_device_do():
    module = SmallConvNet(10, channels=(4,))
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    labels = draw.integers(0, 10, 64, dtype=np.int32)
    settings = Settings(epochs=2, batch=16, learning_rate=0.05, drops=(1,))
    plan = steps.plan_for(module, settings, "digits", 64)
    variables = module.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    kept = sj.all_kept(variables["params"])
    splits = steps.Split(jnp.asarray(pictures), jnp.asarray(labels))
    one, measured = loop.train(plan, steps.start(plan, variables, kept), [splits] * 2, 3)

    def batches(number):
        for index in steps.batches(plan, splits, 3, number):
            yield pictures[np.asarray(index)], labels[np.asarray(index)]

    def held_out():
        yield pictures[:40], labels[:40]
        # The last one is filled up with images of no label.
        yield (
            np.concatenate([pictures[40:], pictures[:16]]),
            np.append(labels[40:], np.full(16, -1, np.int32)),
        )

    state = steps.start(plan, variables, kept)
    two, again = loop.train_streamed(plan, state, batches, held_out, 3)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert [epoch.accuracy for epoch in measured] == [epoch.accuracy for epoch in again]
    for a, b in zip(measured, again):
        assert a.loss == pytest.approx(b.loss, rel=1e-4)


def test_the_published_numbers_stand_beside_ours_on_imagenet_only():
    trained = {"kind": "trained", "method": "synflow", "density": 0.8**10, "best": 0.5}
    (table,) = figures.tables([trained | {"dataset": "imagenet2012"}])
    assert table.headings == ["method", "density 0.1074"]
    assert table.rows == [["SynFlow", "50.0 (66.8)"]]
    (table,) = figures.tables([trained | {"dataset": "digits"}])
    assert table.rows == [["SynFlow", "50.0"]]

"""Sums of scores into and out of units, by hand and through the command."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import synflow_jax as sj
from experiments import conservation, methods
from experiments.conservation import Layer, agreement, layers_of, unit_flows
from experiments.figures import conservation as figures
from experiments.harness import command
from synflow_jax import models

PNG = b"\x89PNG\r\n"

pytestmark = pytest.mark.usefixtures("standard_promotion")


# --- the sums -----------------------------------------------------------------------------


def test_the_sums_of_a_small_network_by_hand():
    # A 1x2 convolution of 1 to 2 channels, one of 1x1 and 2 to 2 channels, whose map of 1x2
    # positions is flattened to 4 inputs of a dense layer with 3 outputs.
    first = np.array([[[[1.0, 2.0]], [[10.0, 20.0]]]])
    second = np.array([[[[3.0, 4.0], [30.0, 40.0]]]])
    dense = np.arange(12.0).reshape(4, 3)
    layers = [
        Layer("a", first, np.array([100.0, 200.0])),
        Layer("b", second),
        Layer("c", dense, np.ones(3)),
    ]
    one, two = unit_flows(layers)
    np.testing.assert_array_equal(one.into, [1 + 10 + 100, 2 + 20 + 200])
    np.testing.assert_array_equal(one.out, [3 + 4, 30 + 40])
    assert (one.weights_in, one.weights_out, one.between) == (3, 2, True)
    np.testing.assert_array_equal(two.into, [3 + 30, 4 + 40])
    # Channel 0 feeds inputs 0 and 2, channel 1 inputs 1 and 3.
    np.testing.assert_array_equal(two.out, [0 + 1 + 2 + 6 + 7 + 8, 3 + 4 + 5 + 9 + 10 + 11])
    assert (two.weights_in, two.weights_out, two.between) == (2, 6, False)


@pytest.mark.parametrize("inputs, dims", [(3, 4), (4, 4), (5, 2)])
def test_a_layer_that_does_not_fit_is_refused(inputs, dims):
    kernel = np.ones((1, 1, inputs, 2)) if dims == 4 else np.ones((inputs, 2))
    layers = [Layer("a", np.ones((3, 2))), Layer("b", kernel)]
    with pytest.raises(ValueError, match=f"b has {inputs} inputs .* 2 outputs of a"):
        unit_flows(layers)


def test_layers_are_in_the_order_of_their_names():
    scores = {
        "conv10": {"kernel": jnp.ones((2, 1))},
        "conv02": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
    }
    layers = layers_of(scores)
    assert [layer.name for layer in layers] == ["conv02", "conv10"]
    assert layers[1].bias is None
    np.testing.assert_array_equal(layers[0].bias, [1, 1])


def test_how_well_sums_agree():
    def flow(into, out):
        into, out = np.array(into, float), np.array(out, float)
        return conservation.UnitFlow(into, out, 1, 1, True)

    found = agreement([flow([1.0, -2.0], [1.0, -1.0]), flow([0.0, 4.0], [0.0, 5.0])])
    assert found["units"] == 4
    np.testing.assert_allclose(found["median_gap"], (0 + 0.2) / 2)
    assert found["largest_gap"] == 0.5
    into, out = [1, -2, 0, 4], [1, -1, 0, 5]
    np.testing.assert_allclose(found["correlation"], np.corrcoef(into, out)[0, 1])


def test_the_line_through_layers():
    def rows(power, sign=1):
        sizes = [10, 100, 5000]
        return [{"size": n, "total": sign * 3.0 * n ** (1 - power)} for n in sizes]

    for sign in (1, -1):
        line = figures.fit(rows(1.0, sign))
        np.testing.assert_allclose([line.slope, line.correlation, line.spread], 1)
    line = figures.fit(rows(0.5))
    np.testing.assert_allclose([line.slope, line.spread], [0.5, math.sqrt(500)])
    flat = [{"size": 1, "total": 1.0}, {"size": 2, "total": 2.0}]
    assert figures.fit(flat) == (0.0, 0.0, 2.0)


# --- the law ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net():
    """Two convolutions and a dense layer with biases, and a batch with labels."""
    with jax.numpy_dtype_promotion("standard"):
        module = models.NETWORKS["conv"].make(num_classes=3, width=0.2)
        apply_fn, params = sj.from_linen(
            module, jax.jit(module.init)(jax.random.key(0), jnp.ones((1, 5, 4, 2)))
        )
    batch = {
        "images": jax.random.normal(jax.random.key(1), (1, 6, 5, 4, 2)),
        "labels": jnp.array([[0, 1, 2, 0, 1, 2]]),
    }

    def loss_fn(params, batch):
        logits = apply_fn(params, batch["images"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return losses.mean()

    return apply_fn, params, loss_fn, batch


def test_without_biases_the_sums_are_those_of_the_package(net):
    apply_fn, params, _, _ = net
    masks = sj.all_kept(params)
    scores = jax.jit(sj.synflow(apply_fn, (5, 4, 2)))(params, masks)
    flows = unit_flows(layers_of(scores))
    units = sj.conservation(apply_fn, params, masks, (5, 4, 2), scores=scores).units
    np.testing.assert_allclose(np.concatenate([f.into for f in flows]), units.into)
    np.testing.assert_allclose(np.concatenate([f.out for f in flows]), units.out)
    assert agreement(flows)["largest_gap"] < 1e-5


def test_saliency_is_conserved_with_its_biases_and_grasp_but_for_squared_gradients(net):
    apply_fn, params, loss_fn, batch = net
    first = jax.tree.map(lambda x: x[0], batch)
    gradient = jax.jit(jax.grad(lambda p: loss_fn(p, first)))(params)
    saliency = jax.tree.map(jnp.multiply, params, gradient)
    largest = max(float(abs(s).max()) for s in jax.tree.leaves(saliency))
    for flow in unit_flows(layers_of(saliency)):
        np.testing.assert_allclose(flow.into, flow.out, atol=1e-5 * largest)
        assert abs(flow.out).max() > 0.1 * largest

    scores = jax.jit(sj.grasp(loss_fn, batch))(params, sj.all_kept(params))
    # Its direction is the gradient in the kernels alone.
    squares = jax.tree.map(lambda g: g * g * (g.ndim > 1), gradient)
    for s, g in zip(unit_flows(layers_of(scores)), unit_flows(layers_of(squares))):
        size = max(abs(s.into).max(), abs(g.into).max(), abs(g.out).max())
        np.testing.assert_allclose(s.into + g.into, s.out + g.out, atol=1e-4 * size)
        assert abs(g.into - g.out).max() > 0.01 * size


# --- the command --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    with jax.numpy_dtype_promotion("standard"):
        command.main(
            conservation.EXPERIMENT,
            ["--out", str(folder / "out"), "--runs", str(folder / "runs")],
        )
    return folder / "out"


def test_the_smoke_form_writes_rows_and_figures(smoke):
    names = {"config.json", "metrics.jsonl", "tables.md", "units.png", "layers.png"}
    assert {path.name for path in smoke.iterdir()} == names
    for name in ("units.png", "layers.png"):
        assert (smoke / name).read_bytes().startswith(PNG)


def test_of_the_criteria_only_synflow_obeys_the_law(smoke):
    rows = command.results(smoke)
    gaps = {
        method: {row["of"]: row["median_gap"] for row in own}
        for method, own in figures.of_method(rows, "agreement").items()
    }
    assert list(gaps) == list(methods.PAPER)
    for method, gap in gaps.items():
        assert (gap["units"] < 1e-5) == (gap["channels"] < 1e-5) == (method == "synflow")
    lines = {m: figures.fit(own) for m, own in figures.of_method(rows, "layer").items()}
    np.testing.assert_allclose(lines["synflow"], 1, rtol=1e-5)
    assert abs(lines["random"].slope) < 0.1
    assert all(lines[m].spread > 1.5 for m in methods.PAPER if m != "synflow")


def test_the_rows_are_what_the_figures_need(smoke):
    rows = command.results(smoke)
    for own in figures.of_method(rows, "layer").values():
        assert [row["layer"] for row in own] == ["conv1", "conv2", "linear"]
        assert [row["size"] for row in own] == [288, 9216, 20480]
        for row in own[:-1]:
            assert row["units"] == len(row["into"]) == len(row["out"]) == 32
        assert "into" not in own[-1]
        between = [row["between"] for row in own[:-1]]
        assert between == [True, False]


def test_the_table_stands_beside_the_published_numbers_of_that_network(smoke):
    rows = command.results(smoke)
    (table,) = figures.tables(rows)
    assert "paper" not in table.title and "(" not in "".join(table.rows[-1])
    for row in rows:
        if row["kind"] == "run":
            row["config"]["network"] = "vgg19_imagenet"
    (table,) = figures.tables(rows)
    synflow = table.rows[-1]
    assert synflow[0] == "SynFlow" and synflow[3] == "1.000000 (1.000000)"
    assert synflow[4:6] == ["1.0000 (1)", "1"] and table.rows[2][4].endswith(" (0.556)")
    assert float(synflow[6]) < 1e-5 and synflow[7] == "1.000000"


def test_a_part_of_the_sweep_is_drawn(smoke, tmp_path):
    rows = [row for row in command.results(smoke) if "grasp" in row["run"]]
    for name, draw in conservation.EXPERIMENT.figures.items():
        draw(rows, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(PNG)
    assert len(figures.tables(rows)[0].rows) == 1


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_the_network_of_the_paper_is_scored_at_the_other_scales(scale):
    todo = conservation.the_runs(scale)
    assert [run.method for run in todo] == list(methods.PAPER)
    for run in todo:
        assert (run.network, run.input_shape) == ("vgg19_imagenet", (224, 224, 3))
        assert (run.data is not None) == (run.method in ("snip", "grasp"))
        json.dumps(run.__dict__)


def test_of_wide_layers_some_units_are_kept_and_all_count(monkeypatch, tmp_path):
    monkeypatch.setattr(conservation, "DRAWN", 10)
    run = conservation.Run("conv", 10, (8, 8, 1), "magnitude")
    rows = list(conservation.execute(run, conservation.Context(tmp_path)))
    layer, total = rows[0], rows[3]
    assert (layer["every"], layer["units"], len(layer["into"])) == (4, 32, 8)
    assert total["units"] == 64

"""The demonstration, run in its smoke form through its real entry point, and its parts."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from experiments import criteria, demo, demo_page, masking
from experiments.figures import demo as figures
from experiments.harness import runs
from experiments.training import loop, steps
from tests.experiments import small

METHODS = ["synflow", "magnitude", "random"]
PNG = b"\x89PNG\r\n"

pytestmark = pytest.mark.usefixtures("standard_promotion")


# --- the whole run ------------------------------------------------------------------------


def run_smoke(folder):
    with jax.numpy_dtype_promotion("standard"):
        demo.main(["--smoke", "--seed", "3", "--out", str(folder)])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    (folder / "notes.txt").write_text("mine")
    run_smoke(folder)
    return folder


def rows_of(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    # Infinity and NaN are not JSON, though Python reads them.
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    return [row for row in rows if row["kind"] == kind]


def test_the_smoke_run_writes_its_files_and_leaves_others_alone(smoke):
    assert {path.name for path in smoke.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "layers.png",
        "accuracy.png",
        "report.html",
        "notes.txt",
    }
    for name in ("layers.png", "accuracy.png"):
        assert (smoke / name).read_bytes().startswith(PNG)


def test_the_record_says_how_to_repeat_the_run(smoke):
    record = json.loads((smoke / "config.json").read_text())
    assert record["command"].startswith("python -m experiments.demo --smoke --seed 3")
    assert record["config"]["seed"] == 3
    assert record["config"]["training"]["batch"] == 64
    assert record["versions"]["jax"] == jax.__version__
    assert {"device", "cores", "commit", "started"} <= set(record)


def test_every_mask_of_the_smoke_run_keeps_exactly_its_count(smoke):
    rows = rows_of(smoke, "mask")
    for row in rows:
        kept = [kept for _, kept, _ in row["layers"]]
        assert row["kept"] == row["k"] == sum(kept)
        assert row["k"] == sj.num_kept(row["size"], 10 ** -row["compression"])
        assert row["size"] == sum(size for _, _, size in row["layers"])
        assert row["collapsed"] == [name for name, kept, _ in row["layers"] if not kept]
        if row["collapsed"]:
            assert row["log10_flow"] is None
    first = [row for row in rows if row["part"] == "initialisation"]
    assert [(row["label"], row["method"]) for row in first] == [
        *[(label, method) for label in ("10^1", "10^3") for method in METHODS],
        ("N/L", "synflow"),
    ]
    assert first[-1]["k"] == len(first[-1]["layers"]) == 6
    assert first[0]["log10_flow"] < first[0]["log10_flow_before"]


def test_every_network_of_the_smoke_run_is_trained_and_keeps_its_zeros(smoke):
    trained = rows_of(smoke, "trained")
    labels = [("10^0", "dense")]
    labels += [(label, method) for label in ("10^1", "10^2") for method in METHODS]
    assert [(row["label"], row["method"]) for row in trained] == labels
    for row in trained:
        assert (row["nonzero_kept"], row["nonzero_pruned"]) == (row["k"], 0)
        assert 0 <= row["accuracy"] <= 1
    masks = [row for row in rows_of(smoke, "mask") if row["part"] == "training"]
    assert [row["k"] for row in trained[1:]] == [row["k"] for row in masks]
    assert trained[0]["accuracy"] > 0.2  # ten classes: it has learned something
    assert len(rows_of(smoke, "epoch")) == len(trained)  # one epoch each
    (about,) = rows_of(smoke, "data")
    assert about["data"] == "digits"


def test_the_report_stands_alone_and_names_everything(smoke):
    text = (smoke / "report.html").read_text()
    for word in ("SynFlow", "Magnitude", "Random", "digits", "smoke form", "N/L", "mlp"):
        assert word in text
    assert "<script" not in text and "http" not in text
    assert text.count("data:image/png;base64,") == 2
    dense = rows_of(smoke, "trained")[0]
    assert f"{100 * dense['accuracy']:.1f}&nbsp;%" in text


def test_the_report_and_the_figures_need_only_the_folder(smoke, tmp_path):
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(smoke / name, tmp_path)
    _, rows = runs.read(tmp_path)
    for name, figure in demo.FIGURES.items():
        figure(rows, tmp_path / name)
    assert demo_page.write(tmp_path).read_text() == (smoke / "report.html").read_text()


def test_the_same_seed_measures_the_same(smoke, tmp_path):
    run_smoke(tmp_path)
    _, one = runs.read(smoke)
    _, two = runs.read(tmp_path)
    for row in one + two:
        row.pop("seconds", None)
    assert one == two


def test_smoke_goes_to_its_own_folder_unless_told():
    assert str(demo.smoke(demo.Config()).out) == "results/smoke"
    assert demo.smoke(demo.Config(out="elsewhere")).out == "elsewhere"


def test_missing_images_end_the_run_with_one_line_and_no_folder(tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        demo.main(["--data-dir", str(tmp_path), "--out", str(out)])
    message = str(end.value)
    assert message.startswith("error:") and "cifar10" in message and "\n" not in message
    assert not out.exists() and capsys.readouterr().out == ""


# --- runs ---------------------------------------------------------------------------------


def test_a_rerun_replaces_what_it_wrote_and_nothing_else(tmp_path):
    for text in ("old", "new"):
        runs.start(tmp_path, "demo", demo.Config(), text, ["report.html"])
        (tmp_path / "report.html").write_text(text)
        (tmp_path / f"{text}.txt").write_text(text)
        runs.log(tmp_path, {"kind": text})
    record, rows = runs.read(tmp_path)
    assert record["command"] == "new" and rows == [{"kind": "new"}]
    assert (tmp_path / "old.txt").exists()


@pytest.mark.parametrize("config", ['{"experiment": "other"}', "[]", "text", None])
def test_files_from_elsewhere_are_never_replaced(tmp_path, config):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    (tmp_path / "report.html").write_text("precious")
    with pytest.raises(FileExistsError, match="not from an earlier demo"):
        runs.start(tmp_path, "demo", demo.Config(), "", ["report.html"])
    assert (tmp_path / "report.html").read_text() == "precious"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_lacks_is_refused(tmp_path, number):
    with pytest.raises(ValueError):
        runs.log(tmp_path, {"number": number})


# --- training -----------------------------------------------------------------------------


def test_a_network_whose_zeros_moved_ends_the_run(tmp_path, monkeypatch):
    variables, digits = small.variables(), small.digits()
    plan = steps.plan(small.MODULE, small.SETTINGS, digits)
    splits = steps.on_device(plan, digits)
    masks = small.masked(variables, 0.5)
    whole = steps.start(plan, variables, sj.all_kept(variables["params"]))

    def forgetful(*args, **kwargs):
        return whole, [loop.Epoch(1, 0.0, 0.0)]

    monkeypatch.setattr(loop, "train", forgetful)
    kept = sum(int(m.sum()) for m in jax.tree.leaves(masks) if m.ndim > 1)
    row = {"method": "random", "label": "10^0.3", "compression": 0.3, "k": kept}
    config = demo.Config(out=tmp_path, training=small.SETTINGS)
    with pytest.raises(RuntimeError, match=f"{kept} kept and {728 - kept} pruned weights"):
        demo._train(config, plan, variables, masks, splits, row)
    assert rows_of(tmp_path, "trained")[0]["nonzero_pruned"] == 728 - kept


# --- masking ------------------------------------------------------------------------------


def linear(params, x):
    return x @ params["one"]["kernel"] @ params["two"]["kernel"]


def test_a_sweep_reports_the_flow_and_the_layers():
    params = {
        "one": {"kernel": jnp.array([[2.0, 3.0], [5.0, 7.0]])},
        "two": {"kernel": jnp.array([[0.1], [0.2]])},
    }
    targets = [masking.Target("magnitude", 0.5, "a"), masking.one_weight_a_layer(params)]
    swept = masking.sweep("net", linear, params, (2,), targets, 4, jax.random.key(0))
    (magnitude, masks), (synflow, _) = swept
    np.testing.assert_allclose(10 ** magnitude["log10_flow_before"], 2.7, rtol=1e-5)
    assert magnitude["layers"] == [["one", 3, 4], ["two", 0, 2]]
    assert magnitude["collapsed"] == ["two"] and magnitude["log10_flow"] is None
    assert magnitude["rounds"] == 1 and magnitude["k"] == 3
    np.testing.assert_array_equal(masks["one"]["kernel"], [[False, True], [True, True]])
    # One weight a layer: the strongest path, 7 times 0.2.
    assert synflow["label"] == "N/L" and synflow["kept"] == 2 and synflow["rounds"] == 4
    np.testing.assert_allclose(10 ** synflow["log10_flow"], 1.4, rtol=1e-5)


# --- figures and sentences ----------------------------------------------------------------


def mask_row(method, compression, kept, flow):
    return {
        "part": "initialisation",
        "method": method,
        "label": f"10^{compression:g}",
        "compression": compression,
        "kept": sum(kept),
        "layers": [[f"conv{i}", k, 100] for i, k in enumerate(kept, 1)],
        "collapsed": [f"conv{i}" for i, k in enumerate(kept, 1) if not k],
        "log10_flow": flow,
    }


def test_a_figure_of_one_panel_and_of_three_is_drawn(tmp_path):
    rows = [mask_row("synflow", c, (3, 2, 0), None) for c in (1.0, 2.0, 5.0)]
    figures.layers(rows[:1], tmp_path / "one.png")
    figures.layers(rows, tmp_path / "three.png")
    for name in ("one.png", "three.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    "rows, sentence",
    [
        (
            [mask_row("random", 1.0, (5, 5), 1.0), mask_row("random", 2.0, (1, 1), -1.0)],
            "left a path from input to output at every compression tried, up to "
            "10<sup>2</sup> (2 weights), and emptied no layer.",
        ),
        (
            [mask_row("random", 1.0, (5, 5), 1.0), mask_row("random", 2.0, (2, 0), None)],
            "still left a path at 10<sup>1</sup> but cut the network at 10<sup>2</sup> "
            "(2 weights kept): 1 of 2 layers lost all weights.",
        ),
        (
            [mask_row("random", 1.0, (1, 1), None)],
            "cut the network at 10<sup>1</sup> (2 weights kept): every layer has weights "
            "left, but they do not join into a path.",
        ),
    ],
)
def test_the_report_says_how_far_a_method_went(rows, sentence):
    assert demo_page._how_far(rows, "random") == f"<b>Random</b> {sentence}"


def test_the_report_names_stretches_of_emptied_layers():
    row = mask_row("random", 1.0, (0, 0, 1, 0, 1, 0, 0, 0), None)
    assert demo_page._emptied(row)[0] == "6: conv1\u2013conv2, conv4, conv6\u2013conv8"
    assert demo_page._emptied(mask_row("random", 1.0, (1, 1), 0.0))[0] == "none"


def test_what_each_criterion_keeps_is_tabulated(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    criteria.main(["--network", "mlp", "--data", "noise", "--out", str(out)])
    rows = {row["criterion"]: row for row in map(json.loads, out.read_text().splitlines())}
    # With one batch, fisher is the square of snip and keeps the same.
    of_package = {
        name
        for name in dir(sj)
        if getattr(getattr(sj, name), "__module__", "")
        in {f"synflow_jax.criteria.{m}" for m in ("synaptic_flow", "baselines", "saliency")}
    }
    assert set(rows) == of_package - {"fisher"}
    for row in rows.values():
        assert sum(row["kept"].values()) == sj.num_kept(119_400, 0.01)
    assert rows["synflow"]["connected"] and not rows["magnitude"]["connected"]
    assert "| linear6 | 1,000 |" in capsys.readouterr().out


def test_images_of_another_size_than_the_network_takes_are_refused():
    with pytest.raises(ValueError, match="digits has 10 classes of images of .8, 8, 1."):
        criteria.sample("digits", (32, 32, 3), 10)

"""The demonstration, run in its smoke form through its real entry point."""

import json
import shutil

import jax
import pytest

import synflow_jax as sj
from experiments.demo import page, run
from experiments.demo.__main__ import main
from experiments.harness import runs
from experiments.training import loop, steps
from tests.experiments import small

METHODS = ["synflow", "magnitude", "random"]
PNG = b"\x89PNG\r\n"

pytestmark = pytest.mark.usefixtures("standard_promotion")


def run_smoke(folder):
    with jax.numpy_dtype_promotion("standard"), small.narrow():
        main(["--smoke", "--seed", "3", "--out", str(folder)])


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
    assert record["command"].startswith("python -m experiments demo --smoke --seed 3")
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
    for name, figure in run.FIGURES.items():
        figure(rows, tmp_path / name)
    assert page.write(tmp_path).read_text() == (smoke / "report.html").read_text()


def test_the_same_seed_measures_the_same(smoke, tmp_path):
    run_smoke(tmp_path)
    _, one = runs.read(smoke)
    _, two = runs.read(tmp_path)
    for row in one + two:
        row.pop("seconds", None)
    assert one == two


def test_smoke_goes_to_its_own_folder_unless_told():
    assert str(run.smoke(run.Config()).out) == "results/smoke"
    assert run.smoke(run.Config(out="elsewhere")).out == "elsewhere"


def test_missing_images_end_the_run_with_one_line_and_no_folder(tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        main(["--data-dir", str(tmp_path), "--out", str(out)])
    message = str(end.value)
    assert message.startswith("error:") and "cifar10" in message and "\n" not in message
    assert not out.exists() and capsys.readouterr().out == ""


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
    config = run.Config(out=tmp_path, training=small.SETTINGS)
    with pytest.raises(RuntimeError, match=f"{kept} kept and {728 - kept} pruned weights"):
        run._train(config, plan, variables, masks, splits, row)
    assert rows_of(tmp_path, "trained")[0]["nonzero_pruned"] == 728 - kept

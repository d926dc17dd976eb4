"""ResNet-50 pruned at its full size: the command in its smoke form, and its settings."""

import jax
import pytest

import synflow_jax as sj
from experiments import imagenet, published
from experiments.figures import imagenet as figures
from experiments.harness import command, tables
from synflow_jax import models

PNG = b"\x89PNG\r\n"
LAYERS = [
    ("conv", 216),
    ("group1_block1_conv1", 576),
    ("group1_block1_conv2", 1152),
    ("group1_block1_shortcut", 128),
    ("linear", 160),
]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    with jax.numpy_dtype_promotion("standard"):
        command.main(
            imagenet.EXPERIMENT,
            ["--out", str(folder / "out"), "--runs", str(folder / "runs")],
        )
    return folder / "out"


def test_every_criterion_keeps_exactly_its_number(smoke):
    rows = [row for row in command.results(smoke) if row["kind"] == "layers"]
    assert [row["method"] for row in rows] == list(figures.COMPARED)
    for row in rows:
        assert [(name, size) for name, _, size in row["layers"]] == LAYERS
        assert row["size"] == 2232 and row["density"] == 0.1
        assert row["kept"] == sum(n for _, n, _ in row["layers"])
        assert row["kept"] == sj.num_kept(2232, 0.1)
        assert 0 < row["on_paths"] <= row["kept"]
    for method, one in figures.of_density(rows)[0.1].items():
        # At the network's start both criteria that look at weights keep more of its flow.
        assert (one["log10_flow"] > 1) == (method != "random")
    assert (smoke / "layers.png").read_bytes().startswith(PNG)


def test_the_table_has_a_line_for_each_layer(smoke):
    rows = command.results(smoke)
    (table,) = figures.tables(rows)
    lines = tables.markdown(table).splitlines()
    assert lines[0] == "| layer | weights | Random | Magnitude | SynFlow |"
    assert lines[1] == "|---|---:|---:|---:|---:|"
    assert len(lines) == 2 + len(LAYERS) + 3
    kept = dict(
        map(lambda layer: layer[:2], figures.of_density(rows)[0.1]["random"]["layers"])
    )
    share = f"{kept['linear']:,} ({100 * kept['linear'] / 160:.3g} %)"
    assert lines[6].startswith(f"| linear | 160 | {share} |")
    assert lines[7].startswith("| all | 2,232 | 224 (10 %) | 224 (10 %) |")


def row(method, density, kept, on_paths, flow):
    layers = [["conv", kept[0], 10], ["group1_block1_shortcut", kept[1], 10]]
    return {
        "run": f"{method}-{density}",
        "kind": "layers",
        "method": method,
        "density": density,
        "seed": 0,
        "size": 20,
        "kept": sum(kept),
        "on_paths": on_paths,
        "log10_flow": flow,
        "round_seconds": 1.5,
        "layers": layers,
    }


def test_the_tables_say_what_is_on_a_path_and_which_flow_is_left():
    rows = [
        row("magnitude", 0.8**14, (4, 0), 0, None),
        row("synflow", 0.8**14, (3, 1), 3, 2.04),
    ]
    (table,) = figures.tables(rows)
    assert table.headings == ["layer", "weights", "Magnitude", "SynFlow"]
    assert table.rows[-2] == ["on a path", "", "0", "3"]
    assert table.rows[-1] == ["log10 R", "", "", "2.0"]


@pytest.mark.parametrize("count", [1, 3])
def test_a_part_of_the_sweep_is_drawn(count, tmp_path):
    rows = [
        row("magnitude", 0.1, (4, 0), 0, None),
        row("synflow", 0.1, (1, 3), 4, 2.0),
        row("synflow", 0.05, (1, 1), 2, 1.0),
    ]
    figures.draw(rows[:count], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("scale, seeds", [("cpu", 1), ("paper", 3)])
def test_the_other_scales_prune_resnet50_in_a_hundred_rounds(scale, seeds):
    todo = imagenet.the_runs(scale)
    assert len({run.name for run in todo}) == len(todo) == 3 * 4 * seeds
    network = models.NETWORKS["resnet50_imagenet"]
    for run in todo:
        assert (run.network, run.num_classes) == ("resnet50_imagenet", network.num_classes)
        assert run.input_shape == network.input_shape
        assert run.rounds == (100 if run.method == "synflow" else 1)
    densities = {f"{run.density:.6g}" for run in todo}
    assert set(published.load("imagenet")["accuracy"]) < densities
    assert len(densities) == 4

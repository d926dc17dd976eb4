"""The benchmark of exactness at depth: it runs, and its rows say what they should."""

import json

import pytest

import synflow_jax as sj
from benchmarks import depth
from tests.experiments.small import narrow

# Flax's layers mix the default float64 of the ones with float32 parameters.
pytestmark = pytest.mark.usefixtures("standard_promotion")


def _rows(tmp_path, *arguments):
    out = tmp_path / "rows.jsonl"
    with narrow(hidden=(30,)):
        depth.main([*arguments, "--out", str(out)])
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_network_is_pruned_and_compared_with_float64(tmp_path, capsys):
    (row,) = _rows(tmp_path, "mlp")
    assert row["finite"] and row["connected"] and row["emptied"] == 0
    assert row["kept"] == sj.num_kept(row["weights"], 0.01) and row["cut_gap"] < 1e-5
    assert row["furthest_from_threshold"] <= 1e-5
    assert row["log10_R_pruned"] < row["log10_R"]
    assert "mlp" in capsys.readouterr().out


@pytest.mark.long  # of its own are only the fractions: test_parity compares precisions
def test_overlaps_are_fractions_of_what_float64_keeps(tmp_path):
    rows = _rows(tmp_path, "--overlap", "mlp")
    assert [row["compression"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        common = [x for key, x in row.items() if key.startswith("overlap")]
        assert len(common) == 2 and all(0.5 < x <= 1 for x in common)


def test_an_unknown_network_is_refused(capsys):
    with pytest.raises(SystemExit):
        depth.main(["resnet21"])
    assert "there is no network resnet21" in capsys.readouterr().err

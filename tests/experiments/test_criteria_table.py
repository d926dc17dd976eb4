"""The table of what each criterion keeps."""

import json

import pytest

import synflow_jax as sj
from experiments import criteria_table
from tests.experiments.small import narrow

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_what_each_criterion_keeps_is_tabulated(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    with narrow():
        criteria_table.main(["--network", "mlp", "--data", "noise", "--out", str(out)])
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
        assert sum(row["kept"].values()) == sj.num_kept(27_420, 0.01)
    assert rows["synflow"]["connected"] and not rows["magnitude"]["connected"]
    assert "| linear6 | 300 |" in capsys.readouterr().out


def test_images_of_another_size_than_the_network_takes_are_refused():
    with pytest.raises(ValueError, match="digits has 10 classes of images of .8, 8, 1."):
        criteria_table.sample("digits", (32, 32, 3), 10)

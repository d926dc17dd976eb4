"""The folder of a run: what it replaces, and what it refuses."""

import pytest

from experiments.demo import run
from experiments.harness import runs


def test_a_rerun_replaces_what_it_wrote_and_nothing_else(tmp_path):
    for text in ("old", "new"):
        runs.start(tmp_path, "demo", run.Config(), text, ["report.html"])
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
        runs.start(tmp_path, "demo", run.Config(), "", ["report.html"])
    assert (tmp_path / "report.html").read_text() == "precious"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_lacks_is_refused(tmp_path, number):
    with pytest.raises(ValueError):
        runs.log(tmp_path, {"number": number})

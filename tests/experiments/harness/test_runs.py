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


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "rows"
    runs.replace(path, "one")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        runs.replace(path, "two")
    assert path.read_text() == "one\n" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text, line", [('{"kind": "a"}\n{"kind": "b', 2), ("[1]", 1), ('{"kind": 3}', 1)]
)
def test_a_line_that_is_no_row_is_named(tmp_path, text, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(runs.Damaged, match=rf"metrics\.jsonl' is damaged: line {line} is"):
        runs.lines(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_record_that_is_no_object_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(runs.Damaged, match=r"config\.json' is damaged.*Delete its folder"):
        runs.read_record(tmp_path)

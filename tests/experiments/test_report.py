"""The page of all experiments, written from hand-made results."""

import importlib
import json
import pathlib

import pytest

from experiments import report
from experiments.harness import command, tables
from experiments.harness.command import Experiment
from experiments.harness.tables import Table


def rows_of(config, *rows):
    head = {
        "run": "a",
        "kind": "run",
        "config": config,
        "seconds": 90.0,
        "ended": "2026-01-01T00:00:00+00:00",
        "command": "c",
        "device": "cpu",
        "devices": 1,
        "jax": "0.10.2",
        "commit": "abc1234",
    }
    return [head, *({"run": "a", **row} for row in rows)]


@pytest.fixture
def two(monkeypatch):
    """Two experiments in place of those of the paper."""

    def experiment(name):
        return Experiment(
            name=name,
            about=f"What {name} <is>.",
            runs=lambda scale: ["a", "b"],
            execute=lambda run, context: (),
            figures={f"{name}.png": lambda rows, path: None},
            sentences=lambda rows: [f"{name}: {rows[-1]['number']} & more"],
            caption=lambda rows: f"{len(rows)} rows at 10^2.5.",
            tables=lambda rows: [Table("Numbers", ["a"], [[str(rows[-1]["number"])]])],
        )

    class Module:
        def __init__(self, name):
            self.EXPERIMENT = experiment(name)

    monkeypatch.setattr(report, "NAMES", ("one", "two"))
    monkeypatch.setattr(
        report.importlib, "import_module", lambda name: Module(name.split(".")[1])
    )


def put(results, name, scale, number):
    folder = results / name / scale
    folder.mkdir(parents=True)
    config = {"seed": 1, "training": {"epochs": 3}}
    rows = rows_of(config, {"kind": "x", "number": number})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / f"{name}.png").write_bytes(b"png")


def test_a_section_shows_the_figure_the_sentences_and_how_it_was_made(two, tmp_path):
    put(tmp_path, "one", "cpu", 5)
    text = report.write(tmp_path).read_text()
    for part in (
        'src="one/cpu/one.png"',
        "What one &lt;is&gt;.",
        "one: 5 &amp; more",
        "Scale cpu, 1 of 2 runs so far. 2 rows at 10<sup>2.5</sup>.",
        "python -m experiments.one --scale cpu",
        "1.5 minutes",
        "abc1234",
        "training.epochs = 3",
        "<summary>Numbers</summary>",
        '<td class="left">5</td>',
    ):
        assert part in text
    assert "Not run at a scale that is shown here: two." in text


def test_the_largest_scale_is_shown_and_smoke_only_if_asked(two, tmp_path):
    put(tmp_path, "one", "cpu", 5)
    put(tmp_path, "one", "paper", 7)
    put(tmp_path, "two", "smoke", 9)
    text = report.write(tmp_path).read_text()
    assert "one: 7" in text and "one: 5" not in text and "two: 9" not in text
    assert "two: 9" in report.write(tmp_path, smoke=True).read_text()


def test_no_results_are_an_error_that_names_the_folder(two, tmp_path):
    with pytest.raises(SystemExit, match="no results of an experiment in '.*nothing'"):
        report.main(["--results", str(tmp_path / "nothing")])


def test_every_name_is_an_experiment_whose_runs_have_names_of_their_own():
    for name in report.NAMES:
        experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
        assert experiment.name == name
        for scale in ("smoke", "cpu", "paper"):
            names = [run.name for run in experiment.runs(scale)]
            assert names and len(set(names)) == len(names)
            assert not any("/" in run for run in names)
    assert command.RESULTS.name == "results"


@pytest.mark.parametrize("name", report.NAMES)
def test_the_committed_tables_are_those_of_the_committed_rows(name):
    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    folder = pathlib.Path(__file__).parents[2] / command.RESULTS / name / "cpu"
    made = experiment.tables(command.results(folder)) if folder.exists() else []
    committed = folder / command.TABLES
    assert committed.exists() == bool(made)
    if made:
        assert committed.read_text() == tables.document(made) + "\n"

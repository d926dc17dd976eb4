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


def write_page(pages, name, folder, text):
    pages.mkdir(exist_ok=True)
    (pages / f"{name}.md").write_text(f"<!-- rows {report.hash_of(folder)} -->\n{text}")
    (pages / report.OPENING).write_text(
        "# What came out\n\n| claim | verdict |\n|---|---|\n"
    )


def test_a_section_shows_the_figure_the_numbers_and_how_it_was_made(two, tmp_path):
    put(tmp_path, "one", "cpu", 5)
    text = report.write(tmp_path, tmp_path / "nowhere").read_text()
    for part in (
        '<img src="one/cpu/one.png"',
        "What one &lt;is&gt;.",
        '<td class="left">1 of 2 runs</td>',
        "python -m experiments one --scale cpu",
        "1.5 minutes",
        "abc1234",
        "training.epochs = 3",
        "<summary>Numbers</summary>",
        '<td class="left">5</td>',
    ):
        assert part in text
    assert "Not run: two." in text and "What came out" not in text


def test_words_are_shown_beside_the_rows_that_they_speak_of(two, tmp_path):
    put(tmp_path, "one", "cpu", 5)
    words = "\n# One finds **five**\n\nAt 10^2.5.\n\n![f](../../results/one/cpu/one.png)\n"
    write_page(tmp_path / "pages", "one", tmp_path / "one" / "cpu", words)
    text = report.write(tmp_path, tmp_path / "pages").read_text()
    assert "<h2>One finds <strong>five</strong></h2>" in text
    assert "10<sup>2.5</sup>" in text and '<img src="one/cpu/one.png"' in text
    assert text.index("What came out") < text.index("One finds")
    assert "What one" not in text
    # Other rows: the words may not hold of them.
    put(tmp_path / "other", "one", "cpu", 6)
    text = report.write(tmp_path / "other", tmp_path / "pages").read_text()
    assert "One finds" not in text and "What one" in text


def test_the_largest_scale_is_shown_and_smoke_only_if_asked(two, tmp_path):
    put(tmp_path, "one", "cpu", 5)
    put(tmp_path, "one", "paper", 7)
    put(tmp_path, "two", "smoke", 9)
    nowhere = tmp_path / "nowhere"
    text = report.write(tmp_path, nowhere).read_text()
    cell = '<td class="left">{}</td>'
    assert cell.format(7) in text and cell.format(5) not in text
    assert cell.format(9) not in text
    assert cell.format(9) in report.write(tmp_path, nowhere, smoke=True).read_text()


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


ROOT = pathlib.Path(__file__).parents[2]
PAGES = [name for name in report.NAMES if (ROOT / report.PAGES / f"{name}.md").exists()]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_words_speaks_of_the_committed_rows(name):
    folder = ROOT / command.RESULTS / name / "cpu"
    assert report.words_on(folder, ROOT / report.PAGES / f"{name}.md") is not None, (
        f"read docs/evidence/{name}.md again, beside its tables; then let it begin with "
        f"<!-- rows {report.hash_of(folder)} -->"
    )


def test_the_committed_page_is_of_the_committed_rows():
    text = (ROOT / command.RESULTS / report.NAME).read_text()
    for name in report.NAMES:
        folder = ROOT / command.RESULTS / name / "cpu"
        if (folder / "metrics.jsonl").exists():
            assert f'id="{name}" data-rows="{report.hash_of(folder)}"' in text

"""The command line that all experiments share."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import types

import pytest

from experiments.harness import command, lock, runs
from experiments.harness.tables import Table
from tests.experiments.harness.counting import TODO, Counter, Counting

pytestmark = pytest.mark.usefixtures("standard_promotion")


def experiment(execute, todo=TODO, drawn=None):
    def draw(rows, path):
        if drawn is not None:
            drawn.append(list(dict.fromkeys(row["run"] for row in rows)))
        path.write_bytes(b"figure")

    return command.Experiment(
        "count",
        "Counts.",
        lambda scale: todo,
        execute,
        {"figure.png": draw},
        lambda rows: [Table("Rows", ["all", "n"], [["[as they are]", str(len(rows))]])],
        cost=lambda run: run.upto,
    )


@pytest.fixture
def places(tmp_path):
    return ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]


def names(out):
    return list(dict.fromkeys(row["run"] for row in command.results(out)))


def test_a_sweep_from_the_command_line(tmp_path, places, capsys):
    counter, drawn = Counter(), []
    out = command.main(experiment(counter, drawn=drawn), places)
    assert out == tmp_path / "out"
    assert names(out) == ["one", "two", "three"] and drawn == [names(out)]
    assert (out / "figure.png").exists()
    about = json.loads((out / "config.json").read_text())
    assert about == {"experiment": "count", "scale": "smoke", "runs": 3, "done": 3}
    assert set(command.configs(command.results(out))) == {"one", "two", "three"}
    said = capsys.readouterr().out
    assert "[3/3] three: 0 s\n" in said and "| [as they are] | 9 |" in said
    assert f"results: {out}" in said
    head = command.results(out)[0]
    assert head["command"].startswith("python -m experiments count --out")

    # Neither from the results nor from the folders of the runs is anything repeated.
    before = (out / "metrics.jsonl").read_text()
    (out / "metrics.jsonl").unlink()
    command.main(experiment(counter), places)
    assert (out / "metrics.jsonl").read_text() == before
    command.main(experiment(counter), [*places[:3], str(tmp_path / "elsewhere")])
    assert (out / "metrics.jsonl").read_text() == before
    assert counter.done == ["one", "two", "three"]


def test_results_go_to_the_folder_of_the_experiment_and_scale(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = command.main(experiment(Counter(), TODO[:1]), ["--scale", "cpu"])
    assert str(out) == "results/count/cpu" and names(out) == ["one"]
    assert (tmp_path / "runs/count/cpu/one/config.json").exists()


def test_rows_are_in_the_order_of_the_sweep(tmp_path, places):
    counter = Counter()
    out = command.main(experiment(counter), [*places, "--only", "^t"])
    assert names(out) == counter.done == ["two", "three"]
    command.main(experiment(counter), [*places, "--only", "one"])
    assert counter.done == ["two", "three", "one"]
    assert names(out) == ["one", "two", "three"]
    # What is no longer in the sweep is no longer in its results.
    command.main(experiment(counter, TODO[::-1][:2]), places)
    assert names(out) == ["three", "two"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_was_finished_survives_an_interruption(tmp_path, places, error, capsys):
    kind = SystemExit if error is KeyboardInterrupt else error
    with pytest.raises(kind) as end:
        command.main(experiment(Counter(("two", 1), error)), places)
    if error is KeyboardInterrupt:
        assert "goes on from here" in str(end.value)
    out = tmp_path / "out"
    assert names(out) == ["one"] and (out / "figure.png").exists()
    assert "1 of 3 runs done" in capsys.readouterr().out
    counter = Counter()
    command.main(experiment(counter), places)
    assert counter.done == ["two", "three"] and names(out) == ["one", "two", "three"]
    assert [r["whole"] for r in command.results(out) if r["run"] == "two" if "whole" in r]
    assert len(command.results(out)) == 3 + 6


def test_drawing_does_no_run_but_gathers_what_is_finished(tmp_path, places):
    with pytest.raises(RuntimeError):
        command.main(experiment(Counter(("two", 1))), places)
    out, counter, drawn = tmp_path / "out", Counter(), []
    (out / "metrics.jsonl").unlink()  # as if the process had been ended by force
    command.main(experiment(counter, drawn=drawn), [*places, "--draw"])
    assert counter.done == [] and drawn == [["one"]] and names(out) == ["one"]


def test_nothing_finished_draws_nothing(tmp_path, places):
    command.main(experiment(Counter()), [*places, "--draw"])
    assert not (tmp_path / "out").exists()


def test_results_with_other_settings_are_named(tmp_path, places, capsys):
    command.main(experiment(Counter()), places)
    (tmp_path / "runs").rename(tmp_path / "gone")
    changed = [TODO[0], Counting("two", 1), TODO[2]]
    command.main(experiment(Counter(), changed), [*places, "--draw"])
    assert "made with other settings, and not yet again: two" in capsys.readouterr().out
    counter = Counter()
    out = command.main(experiment(counter, changed), places)
    assert counter.done == ["two"] and len(command.results(out)) == 3 + 4


def test_errors_that_a_user_can_mend_are_one_line(tmp_path, places):
    command.main(experiment(Counter(), TODO[:1]), places)
    (tmp_path / "out" / "metrics.jsonl").unlink()
    with pytest.raises(SystemExit, match="^error: .*one' holds a run with other"):
        command.main(experiment(Counter(), [Counting("one", 9)]), places)


def test_tensorboard_is_asked_for_by_its_name(monkeypatch, places):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    counter = Counter()
    with pytest.raises(SystemExit, match="pip install tensorboardX"):
        command.main(experiment(counter), [*places, "--tensorboard"])
    assert counter.done == []


def test_tensorboard_gets_the_numbers_of_each_epoch(tmp_path, monkeypatch, places):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            self.folder = pathlib.Path(folder).relative_to(tmp_path)

        def add_scalar(self, name, value, step):
            written.append((str(self.folder), name, value, step))

        def flush(self):
            pass

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    command.main(experiment(Counter(), TODO[1:]), [*places, "--tensorboard"])
    # Whole numbers say which row it is; what was measured is a float.
    assert written == [
        *[("runs/count/smoke/two", "half", n / 2, n) for n in range(3)],
        ("runs/count/smoke/three", "half", 0.0, 0),
    ]


# --- nothing is lost ----------------------------------------------------------------------


def test_results_of_another_scale_are_not_replaced(tmp_path, places):
    out = command.main(experiment(Counter()), places)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(SystemExit, match="has the results of count at scale smoke, and"):
        command.main(experiment(Counter()), [*places, "--scale", "cpu"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_rows_of_settings_that_are_gone_are_moved_and_said(tmp_path, places, capsys):
    out = command.main(experiment(Counter()), places)
    before = command.results(out)
    shorter = [TODO[0], dataclasses.replace(TODO[1], upto=1)]
    places = [*places[:2], "--runs", str(tmp_path / "others")]
    command.main(experiment(Counter(), shorter), places)
    assert "moved to retired.jsonl: two, three" in capsys.readouterr().out
    retired = runs.lines(out / "retired.jsonl")
    assert retired == [row for row in before if row["run"] in ("two", "three")]
    assert names(out) == ["one", "two"]


def test_damaged_results_are_named_and_nothing_is_written(tmp_path, places):
    out = command.main(experiment(Counter()), places)
    path = out / "metrics.jsonl"
    text = path.read_text().replace('"whole": 1', '"whole": 7', 1)
    path.write_text(text)
    with pytest.raises(SystemExit, match=r"damaged: the 2 rows of run 'one' are not"):
        command.main(experiment(Counter()), places)
    assert path.read_text() == text


def test_of_two_processes_one_says_who_holds_the_sweep(tmp_path, places):
    for name in ("out", "runs/count/smoke"):
        with lock.held(tmp_path / name, "python -m experiments count"):
            with pytest.raises(SystemExit, match=r"in use by process \d+ on .*ments count"):
                command.main(experiment(Counter()), places)
    command.main(experiment(Counter()), places)


def test_a_process_that_is_killed_leaves_no_lock(tmp_path, places):
    holds = (
        "import pathlib, sys, time; from experiments.harness import lock\n"
        "with lock.held(pathlib.Path(sys.argv[1]), 'it'): print('held', flush=True); "
        "time.sleep(600)"
    )
    arguments = [sys.executable, "-c", holds, str(tmp_path / "out")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(SystemExit, match="in use by process"):
            command.main(experiment(Counter()), places)
        process.kill()
    assert command.main(experiment(Counter()), places) == tmp_path / "out"


def test_a_folder_that_cannot_be_written_is_one_line(places, monkeypatch):
    def denied(path, text):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(runs, "replace", denied)
    with pytest.raises(
        SystemExit, match=r"error: \[Errno 13\] Permission denied: .*config"
    ):
        command.main(experiment(Counter()), places)

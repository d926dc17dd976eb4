"""Sweeps: finished runs are not repeated, the rest are done."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.harness import runs, sweeps
from tests.experiments.harness.counting import TODO, Counter, Counting, counts, perform

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_a_run_is_a_folder_and_its_rows_say_what_it_was(tmp_path):
    seen = []
    done, rows = perform(tmp_path, on_row=lambda run, row: seen.append(run.name))
    assert done == ["one", "two", "three"]
    assert counts(rows) == [[0, 1], [0, 1, 2], [0]]
    assert seen == ["one"] * 2 + ["two"] * 3 + ["three"]
    for run, own in zip(TODO, rows):
        head = own[0]
        assert (head["kind"], head["command"]) == ("run", "do it")
        assert head["config"] == {"name": run.name, "upto": run.upto, "sizes": [1, 2]}
        assert {"seconds", "ended", "device", "devices", "jax", "commit"} <= set(head)
        assert all(row["run"] == run.name for row in own)
        record, logged = runs.read(tmp_path / run.name)
        assert record["config"] == head["config"] and record["experiment"] == "count"
        assert [logged[-1], *logged[:-1]] == own


def test_finished_runs_are_not_repeated(tmp_path):
    _, rows = perform(tmp_path)
    done, again = perform(tmp_path)
    assert done == [] and again == rows


def test_runs_that_are_known_are_not_repeated_without_their_folders(tmp_path):
    _, rows = perform(tmp_path / "before")
    known = (row for own in rows[1:] for row in own)  # any iterable
    done, again = perform(tmp_path / "after", known=known)
    assert done == ["one"] and again[1:] == rows[1:]
    assert not (tmp_path / "after" / "two").exists()


def test_a_known_run_with_other_settings_is_done_again(tmp_path):
    _, rows = perform(tmp_path / "before", [Counting("one", 5)])
    done, again = perform(tmp_path / "after", TODO[:1], known=rows[0])
    assert done == ["one"] and counts(again) == [[0, 1]]


def test_an_interrupted_run_is_begun_again_and_nothing_is_doubled(tmp_path):
    with pytest.raises(RuntimeError):
        perform(tmp_path, execute=Counter(("two", 2)))
    _, logged = runs.read(tmp_path / "two")
    assert [row["whole"] for row in logged] == [0, 1]
    done, rows = perform(tmp_path)
    assert done == ["two", "three"] and counts(rows) == [[0, 1], [0, 1, 2], [0]]
    _, logged = runs.read(tmp_path / "two")
    assert [row.get("whole") for row in logged] == [0, 1, 2, None]


@pytest.mark.parametrize("left", [None, '{"run": "one", "kind": "count", "who'])
def test_a_run_that_ended_before_or_within_a_row_is_begun_again(tmp_path, left):
    _, rows = perform(tmp_path, TODO[:1])
    metrics = tmp_path / "one" / runs.METRICS
    if left is None:
        metrics.unlink()
    else:
        metrics.write_text(left)
    done, again = perform(tmp_path, TODO[:1])
    assert done == ["one"] and counts(again) == counts(rows)


def test_a_folder_of_a_run_with_other_settings_is_named(tmp_path):
    perform(tmp_path, TODO[:1])
    with pytest.raises(FileExistsError, match="one' holds a run with other settings"):
        perform(tmp_path, [Counting("zero"), Counting("one", 7)])
    assert not (tmp_path / "zero").exists()  # said before anything is done
    assert runs.read(tmp_path / "one")[0]["config"]["upto"] == 2


def test_two_runs_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="several runs are called b, c"):
        perform(tmp_path, [Counting(name) for name in "cabcb"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "costs, done, more, seconds, text",
    [
        (4.0, 0.0, 0.0, 10, ""),  # nothing to judge by
        (4.0, 4.0, 0.0, 10, ""),  # nothing left
        (4.0, 1.0, 0.0, 10, ", about 30 s left"),
        (4.0, 1.0, 1.0, 10, ", about 10 s left"),
        (4.0, 1.0, 0.0, 40, ", about 2.0 min left"),
        (4.0, 1.0, 0.0, 600, ", about 30 min left"),
        (4.0, 1.0, 0.0, 3000, ", about 2.5 h left"),
        (4.0, 0.0, 1.0, 36000, ", about 30 h left"),
    ],
)
def test_the_time_that_is_left_is_said_in_words(
    monkeypatch, costs, done, more, seconds, text
):
    monkeypatch.setattr(sweeps.time, "perf_counter", lambda: 100.0 + seconds)
    assert sweeps._TimeLeft(costs, done, began=100.0).after(more) == text


def test_of_several_processes_only_the_first_writes(tmp_path, monkeypatch):
    perform(tmp_path / "0", TODO[:1])
    told = []

    def first_process(flags):
        told.append(flags.tolist())
        return np.array([True, False])

    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(sweeps.multihost_utils, "broadcast_one_to_all", first_process)
    # It does not look at its own disk, but does what the first process does.
    done, rows = perform(tmp_path / "0", TODO[:2], on_row=pytest.fail)
    assert told == [[False, False]] and done == ["two"]
    assert rows[0] == [] and counts(rows[1:]) == [[0, 1, 2]]
    assert list((tmp_path / "0" / "two").iterdir()) == []


_PROCESS = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_cpu_collectives_implementation", "gloo")
number = int(sys.argv[1])
jax.distributed.initialize(sys.argv[2], 2, number)
import pathlib
from tests.experiments.harness import counting
folder = pathlib.Path(sys.argv[3])
done, rows = counting.perform(folder / str(number))
print(number, done, counting.counts(rows))
"""


def test_two_processes_do_every_run_together(tmp_path):
    perform(tmp_path / "0", TODO[1:2])  # what process 0 has done, process 1 need not see
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(number), address, str(tmp_path)],
            cwd=pathlib.Path(__file__).parents[3],
            env=os.environ | {"PYTHONPATH": "."},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    outs = [process.communicate(timeout=120) for process in both]
    said = [out.splitlines()[-1] if out else err for out, err in outs]
    assert said == [
        "0 ['one', 'three'] [[0, 1], [0, 1, 2], [0]]",
        "1 ['one', 'three'] [[0, 1], [], [0]]",
    ]
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json*")}
    assert written == {
        f"0/{run.name}/{name}" for run in TODO for name in (runs.CONFIG, runs.METRICS)
    }


# --- damaged files ------------------------------------------------------------------------


def damaged(text, draw):
    """A file that lost its end, a line, or a byte, or got another byte."""
    kind, place = draw.integers(4), int(draw.integers(len(text)))
    if kind == 0:
        return text[:place]
    if kind == 1:
        rows = text.splitlines(keepends=True)
        del rows[draw.integers(len(rows))]
        return b"".join(rows)
    other = bytes([int(draw.integers(256))]) if kind == 2 else b""
    return text[:place] + other + text[place + 1 :]


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json"])
def test_a_damaged_run_is_never_taken_for_what_it_measured(tmp_path, name):
    perform(tmp_path)
    (wanted,) = sweeps.finished(TODO[1:2], tmp_path)
    path = tmp_path / "two" / name
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    refused = again = 0
    for _ in range(150):
        path.write_bytes(damaged(whole, draw))
        try:
            (found,) = sweeps.finished(TODO[1:2], tmp_path)
        except (runs.Damaged, FileExistsError) as error:
            assert name in str(error) or "other settings" in str(error)
            refused += 1
            continue
        again += found is None
        # Settings that no run reads, such as the version of a library, may change.
        head = [
            {k: v for k, v in r.items() if k in ("run", "kind", "config")} for r in wanted
        ]
        if found is not None:
            assert found[1:] == wanted[1:]
            assert {k: found[0][k] for k in head[0]} == head[0]
    assert refused > 20 and (again > 20 or name == "config.json")


def test_rows_of_earlier_versions_have_no_checksum_and_load(tmp_path):
    perform(tmp_path)
    path = tmp_path / "one" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    del rows[-1]["seal"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = sweeps.finished(TODO[:1], tmp_path)
    assert found[1:] == rows[:-1]

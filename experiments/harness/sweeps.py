"""A sweep is a list of runs: those that are finished are not repeated, the rest are done.

A run is a frozen dataclass and a folder: its settings are in config.json, what it measured
in metrics.jsonl. When a sweep ends, or is interrupted, the rows of all finished runs are
gathered in one metrics.jsonl, which is what figures and reports read.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.harness import runs
from experiments.harness.console import progress, say

Row = dict[str, Any]


class Run(Protocol):
    """One run: a frozen dataclass of JSON values; they say all that decides its result."""

    @property
    def name(self) -> str:
        """Its folder; no two runs of a sweep have the same."""


class Context(NamedTuple):
    """What a run is given besides its settings, none of which decides its result.

    Attributes:
      folder: for its checkpoints. A run that finds one there goes on from it.
      data_dir: where to look for images, if not where tensorflow-datasets puts them.
      advance: called with the fraction of the run that is done, from 0 to 1.
    """

    folder: pathlib.Path
    data_dir: pathlib.Path | None = None
    advance: Callable[[float], None] = lambda fraction: None


# Yields everything that the run measures, also what an interrupted one before it measured:
# the rows are a function of the settings.
Execute = Callable[[Any, Context], Iterable[Row]]


def perform(
    todo: Sequence[Run],
    execute: Execute,
    folder: pathlib.Path,
    *,
    experiment: str,
    command: str,
    known: Iterable[Row] = (),
    cost: Callable[[Any], float] = lambda run: 1.0,
    data_dir: pathlib.Path | None = None,
    on_row: Callable[[Run, Row], None] = lambda run, row: None,
) -> Iterator[list[Row]]:
    """Does what is left of a sweep, one run after the other.

    With several processes all of them call this and do every run together; process 0 says
    which are finished, and it alone writes.

    Args:
      todo: the runs.
      execute: ``execute(run, context)`` does one and yields its rows.
      folder: each run has a folder of its name in it.
      experiment: what kind of runs they are.
      command: the command line, for the record.
      known: rows of finished runs, as this function returns them; a run whose settings are
        among them is not done again, whether or not its folder is still there.
      cost: the share of a run in the time that is estimated; any unit.
      data_dir: see `Context`.
      on_row: called with each row when it is measured.

    Yields:
      After each run that is done, and once for each that was: its rows, of which the first
      has the kind "run" and says what the run was and where it was made.

    Raises:
      FileExistsError: if a run's folder holds a run with other settings.
      ValueError: if two runs have one name.
    """
    names = [run.name for run in todo]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"several runs are called {', '.join(twice)}.")
    before = finished(todo, folder, known)
    done = _as_process_0([rows is not None for rows in before])
    time_left = _TimeLeft(sum(cost(run) for run, yes in zip(todo, done) if not yes))
    with progress(experiment, len(todo), first="") as advance:
        for place, (run, rows, yes) in enumerate(zip(todo, before, done), 1):
            if yes:
                advance(1)
                yield rows or []
                continue
            text = f"{experiment}, {place} of {len(todo)}: {run.name}"
            advance(0, text + time_left.after(0.0))

            def within(fraction: float, text=text, own=cost(run)):
                ahead = time_left.after(own * fraction)
                advance(0, f"{text}, {fraction:.0%}{ahead}")

            began = time.perf_counter()
            context = Context(folder / run.name, data_dir, within)
            rows = _one(run, execute, context, experiment, command, on_row)
            took = time.perf_counter() - began
            time_left.done += cost(run)
            advance(1)
            say(f"[{place}/{len(todo)}] {run.name}: {took:.0f} s{time_left.after(0.0)}")
            yield rows


def finished(
    todo: Sequence[Run], folder: pathlib.Path, known: Iterable[Row] = ()
) -> list[list[Row] | None]:
    """What is there already of a sweep.

    Args:
      todo: the runs.
      folder: each run has a folder of its name in it; process 0 alone looks there.
      known: rows of finished runs.

    Returns:
      For each run its rows, or None if it is not finished.

    Raises:
      FileExistsError: if a run's folder holds a run with other settings.
    """
    there = by_run(known)
    found = []
    for run in todo:
        rows = there.get(run.name)
        if rows is None or not of_run(rows, run):
            own = folder / run.name
            rows = _in_folder(run, own) if jax.process_index() == 0 else None
        found.append(rows)
    return found


def by_run(rows: Iterable[Row], where: str = "") -> dict[str, list[Row]]:
    """The rows of each run, by its name.

    Raises:
      Damaged: if a row of the file ``where`` names no run.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        if not isinstance(row.get("run"), str):
            raise runs.Damaged(
                f"{where!r} is damaged: a row names no run: {str(row)[:60]}."
            )
        found.setdefault(row["run"], []).append(row)
    return found


def of_run(rows: Sequence[Row], run: Run) -> bool:
    """Whether the rows are those of a finished run with these settings."""
    return any(row["kind"] == "run" and row["config"] == _plain(run) for row in rows)


def _one(run, execute, context, experiment, command, on_row) -> list[Row]:
    """Does one run. Its folder is complete when the row of kind "run" is there."""
    context.folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        record = runs.record(experiment, run, command)
        runs.replace(context.folder / runs.CONFIG, json.dumps(record, indent=2))
        (context.folder / runs.METRICS).write_text("")
    began, rows = time.perf_counter(), []
    for row in execute(run, context):
        rows.append({"run": run.name, **row})
        if jax.process_index() == 0:
            runs.log(context.folder, rows[-1])
            on_row(run, row)
    head = {
        "run": run.name,
        "kind": "run",
        "config": _plain(run),
        "seconds": round(time.perf_counter() - began, 2),
        "ended": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        **runs.machine(),
    }
    head = runs.sealed(head, rows)
    if jax.process_index() == 0:
        runs.log(context.folder, head)
    return [head, *rows]


def _in_folder(run: Run, folder: pathlib.Path) -> list[Row] | None:
    """The rows of a run that was done to its end; None where there is none.

    Raises:
      FileExistsError: if another run is in its folder.
      Damaged: if a file in it is not as it was written.
    """
    if not (folder / runs.CONFIG).exists():
        return None
    if runs.read_record(folder).get("config") != _plain(run):
        raise FileExistsError(
            f"{os.fspath(folder)!r} holds a run with other settings; delete it, or name "
            "another folder with --runs."
        )
    path = folder / runs.METRICS
    # It may have ended before its rows, or within one.
    if not path.exists() or '"kind": "run"' not in _last_line(path):
        return None
    *rows, head = runs.lines(path)
    runs.check_seal(head, rows, os.fspath(path))
    return [head, *rows]


def _last_line(path: pathlib.Path) -> str:
    text = path.read_text("utf-8", errors="replace")
    return text.rpartition("\n")[0].rpartition("\n")[2] if text.endswith("\n") else ""


def _plain(run: Run) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(run), default=os.fspath))


def _as_process_0(flags: Sequence[bool]) -> list[bool]:
    if jax.process_count() == 1:
        return list(flags)
    return [bool(x) for x in multihost_utils.broadcast_one_to_all(np.array(flags))]


@dataclasses.dataclass
class _TimeLeft:
    """Estimates the time that is left from the runs that are done.

    Attributes:
      all: the cost of all that was to do.
      done: the cost of what is done.
      began: when it began.
    """

    all: float
    done: float = 0.0
    began: float = dataclasses.field(default_factory=time.perf_counter)

    def after(self, more: float) -> str:
        """In words, when ``more`` than the finished runs is done; "" if it is unknown."""
        done = self.done + more
        if not done or self.all <= done:
            return ""
        ahead = (self.all - done) * (time.perf_counter() - self.began) / done
        for unit, name in ((3600, "h"), (60, "min")):
            if ahead >= unit:
                return f", about {ahead / unit:.{ahead < 10 * unit:d}f} {name} left"
        return f", about {ahead:.0f} s left"

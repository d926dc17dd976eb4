"""What every experiment has in common: its scales, its command line, its results' folder.

  python -m experiments NAME --scale smoke|cpu|paper

does the runs of the experiment that are not done yet, gathers their rows in
results/NAME/SCALE/metrics.jsonl and makes figures and tables from these alone.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import tyro
from rich.markup import escape

from experiments.harness import lock, runs, sweeps, tables
from experiments.harness.console import progress, say
from experiments.harness.sweeps import Row, Run
from experiments.harness.tables import Table
from synflow_jax.xla.program_cache import keep_programs

# smoke: seconds, to see that all works. cpu: what two processor cores do in hours at most.
# paper: the setting of the paper, for an accelerator.
Scale = Literal["smoke", "cpu", "paper"]

RESULTS = pathlib.Path("results")
TABLES = "tables.md"
RETIRED = "retired.jsonl"


class Experiment(NamedTuple):
    """One experiment of the paper, in all its scales.

    Attributes:
      name: of its module in `experiments`, and of its folder in results/.
      about: one sentence: what is done, and which figure of the paper it is.
      runs: ``runs(scale) -> runs``, in the order in which they are done.
      execute: ``execute(run, context)`` does one and yields its rows.
      figures: file name to ``draw(rows, path)``. It gets the rows of all finished runs,
        which may be a part of the sweep, and draws what there is.
      tables: ``tables(rows)``: what came out in numbers, where they are known beside the
        paper's; printed, in a file of their own beside the figures, and in the report.
      cost: the share of a run in the time that is estimated.
    """

    name: str
    about: str
    runs: Callable[[Scale], Sequence[Run]]
    execute: sweeps.Execute
    figures: Mapping[str, Callable[[list[Row], pathlib.Path], None]]
    tables: Callable[[list[Row]], list[Table]] = lambda rows: []
    cost: Callable[[Any], float] = lambda run: 1.0


@dataclasses.dataclass(frozen=True)
class Options:
    """Does the runs that are not done yet, and makes the figures and tables."""

    scale: Scale = "smoke"
    """smoke: seconds; cpu: two processor cores, up to hours; paper: an accelerator."""
    out: pathlib.Path | None = None
    """Folder for rows, figures and tables. Default: results/NAME/SCALE."""
    runs: pathlib.Path = pathlib.Path("runs")
    """Folder of the runs and their checkpoints; what is finished there is not repeated."""
    data_dir: pathlib.Path | None = None
    """Where to look for images, if not where tensorflow-datasets puts them."""
    only: str = ""
    """Do only the runs in whose name this regular expression is found."""
    draw: bool = False
    """Only gather what is finished and make the figures and tables."""
    tensorboard: bool = False
    """Write events for TensorBoard beside each run's rows; needs tensorboardX."""


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> pathlib.Path:
    """Runs an experiment from the command line.

    Returns:
      The folder with the rows, the figures and the tables.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    prog = f"python -m experiments {experiment.name}"
    options = tyro.cli(Options, args=args, prog=prog, description=experiment.about)
    out = options.out or RESULTS / experiment.name / options.scale
    keep_programs()
    try:
        _perform(experiment, options, out, shlex.join([*prog.split(), *args]))
    except (OSError, runs.Damaged) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on from here") from None
    if jax.process_index() == 0:
        say(f"results: {escape(str(out))}")
    return out


def results(out: pathlib.Path) -> list[Row]:
    """The rows of an experiment's finished runs, run by run; each names its run.

    The first row of a run has the kind "run", and its settings under "config".

    Raises:
      Damaged: if the file is not as it was written; it names the file and the run.
    """
    path = out / runs.METRICS
    if not path.exists():
        return []
    rows = runs.lines(path)
    for own in sweeps.by_run(rows, os.fspath(path)).values():
        heads = [row for row in own if row["kind"] == "run"]
        if len(heads) != 1:
            raise runs.Damaged(
                f"{os.fspath(path)!r} is damaged: run {own[0]['run']!r} has {len(heads)} "
                "rows that say what it was, not one. Delete its rows, and it is done again."
            )
        others = [row for row in own if row["kind"] != "run"]
        runs.check_seal(heads[0], others, os.fspath(path))
    return rows


def configs(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """The settings of each finished run, by its name."""
    return {row["run"]: row["config"] for row in rows if row["kind"] == "run"}


def _perform(
    experiment: Experiment, options: Options, out: pathlib.Path, command: str
) -> None:
    todo = experiment.runs(options.scale)
    wanted = [run for run in todo if re.search(options.only, run.name)]
    folder = options.runs / experiment.name / options.scale
    with contextlib.ExitStack() as locks:
        if jax.process_index() == 0:
            _check_is_own(experiment, options.scale, out)
            locks.enter_context(lock.held(out, command))
            if not options.draw:
                locks.enter_context(lock.held(folder, command))
        _sweep(experiment, options, out, command, todo, wanted, folder)


def _check_is_own(experiment: Experiment, scale: Scale, out: pathlib.Path) -> None:
    """Raises if a folder of results is another experiment's, or of another scale."""
    if not (out / runs.CONFIG).exists():
        return
    found = runs.read_record(out, "Delete it, and it is written again.")
    own = experiment.name, scale
    theirs = found.get("experiment"), found.get("scale")
    if theirs != own:
        raise FileExistsError(
            f"{os.fspath(out)!r} has the results of {theirs[0]} at scale {theirs[1]}, and "
            f"this is {own[0]} at scale {own[1]}; name another folder with --out."
        )


def _sweep(experiment, options, out, command, todo, wanted, folder) -> None:
    """Does what is left of a sweep and writes what there is, also when interrupted."""
    known, rows = results(out), {}
    try:
        if options.draw:
            there = iter(sweeps.finished(wanted, folder, known))
        else:
            there = sweeps.perform(
                wanted,
                experiment.execute,
                folder,
                experiment=experiment.name,
                command=command,
                known=known,
                cost=experiment.cost,
                data_dir=options.data_dir,
                on_row=_events(options, folder),
            )
        for own in there:
            if own:
                rows[own[0]["run"]] = own
    finally:
        if jax.process_index() == 0:
            _gather(experiment, options.scale, out, todo, known, rows)


def _gather(
    experiment: Experiment,
    scale: Scale,
    out: pathlib.Path,
    todo: Sequence[Run],
    known: Sequence[Row],
    new: Mapping[str, list[Row]],
) -> None:
    """Writes the rows of all finished runs, in the order of the sweep, and what follows."""
    found = sweeps.by_run(known) | new
    rows = [row for run in todo for row in found.get(run.name, ())]
    if not rows:
        return
    out.mkdir(parents=True, exist_ok=True)
    retired = _retired(known, rows)
    if retired:
        with (out / RETIRED).open("a") as file:
            file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in retired)
        names = ", ".join(configs(retired))
        say(f"of settings that this sweep has no more, moved to {RETIRED}: {escape(names)}")
    runs.replace(
        out / runs.METRICS,
        "\n".join(json.dumps(row, allow_nan=False) for row in rows),
    )
    done = len(configs(rows))
    other = [
        run.name
        for run in todo
        if run.name in found and not sweeps.of_run(found[run.name], run)
    ]
    about = {"experiment": experiment.name, "scale": scale, "runs": len(todo), "done": done}
    runs.replace(out / runs.CONFIG, json.dumps(about, indent=2))
    with progress("drawing figures", first=""):
        for name, draw in experiment.figures.items():
            draw(rows, out / name)
    made = experiment.tables(rows)
    if made:
        runs.replace(out / TABLES, tables.document(made))
    say(f"{experiment.name}, {scale}: {done} of {len(todo)} runs done")
    if other:
        say(f"made with other settings, and not yet again: {escape(', '.join(other))}")
    if made:
        print(tables.document(made))


def _retired(known: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """The rows of runs that are known and would be written no more."""
    kept = {json.dumps(row["config"]) for row in rows if row["kind"] == "run"}
    gone = {
        row["run"]
        for row in known
        if row["kind"] == "run" and json.dumps(row["config"]) not in kept
    }
    return [row for row in known if row["run"] in gone]


def _events(options: Options, folder: pathlib.Path) -> Callable[[Run, Row], None]:
    """What writes the numbers of rows that have an epoch for TensorBoard, if asked."""
    if not options.tensorboard:
        return lambda run, row: None
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise SystemExit("error: --tensorboard needs `pip install tensorboardX`") from None
    writers = {}

    def write(run: Run, row: Row) -> None:
        if "epoch" not in row:
            return
        if run.name not in writers:
            writers[run.name] = SummaryWriter(str(folder / run.name))
        for name, value in row.items():
            if isinstance(value, float):
                writers[run.name].add_scalar(name, value, row["epoch"])
        writers[run.name].flush()

    return write

"""A run is a folder: its settings in config.json, what it measured in metrics.jsonl."""

import dataclasses
import datetime
import functools
import hashlib
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

CONFIG, METRICS = "config.json", "metrics.jsonl"


class Damaged(ValueError):
    """A file is not as it was written; the message names it and says what to do."""


_VERSIONS = (
    *("jax", "jaxlib", "flax", "optax", "chex", "numpy"),
    *("tensorflow-datasets", "scikit-learn", "matplotlib"),
)


def start(
    folder: pathlib.Path, experiment: str, config: Any, command: str, outputs: list[str]
) -> None:
    """Makes the run's folder and writes down everything needed to repeat it.

    A folder that an earlier run of the same experiment left is emptied of that run's files;
    nothing else in it is touched.

    Args:
      folder: made if it does not exist.
      experiment: what kind of run it is.
      config: the settings, a dataclass.
      command: the command line.
      outputs: names of the other files that the run will write there.

    Raises:
      FileExistsError: if a file in the way is not from such a run.
    """
    names = [CONFIG, METRICS, *outputs]
    present = [name for name in names if (folder / name).exists()]
    if present and _experiment(folder) != experiment:
        raise FileExistsError(
            f"{os.fspath(folder)!r} holds {present[0]}, which is not from an earlier "
            f"{experiment}; name another folder with --out."
        )
    for name in present:
        (folder / name).unlink()
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record(experiment, config, command), indent=2)
    (folder / CONFIG).write_text(text + "\n")


def record(experiment: str, config: Any, command: str) -> dict[str, Any]:
    """What config.json says: everything needed to repeat a run, as JSON gives it back."""
    return {
        "experiment": experiment,
        "command": command,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        **machine(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in _VERSIONS},
        "cores": os.cpu_count(),
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=os.fspath)),
    }


def machine() -> dict[str, Any]:
    """On what a run was made, and by which code."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "commit": commit(),
    }


def replace(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all: a reader never meets a part of it, nor does one
    after the machine stopped."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w") as file:
            file.write(text.rstrip("\n") + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def sealed(head: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of kind "run" with a checksum of itself and of what the run measured."""
    bare = {key: value for key, value in head.items() if key != "seal"}
    text = "\n".join(json.dumps(row, allow_nan=False) for row in (*rows, bare))
    return bare | {"seal": hashlib.sha256(text.encode()).hexdigest()[:16]}


def check_seal(head: dict[str, Any], rows: Sequence[dict[str, Any]], where: str) -> None:
    """Compares the rows of a run with the checksum in the row that says what it was.

    Args:
      head: the row of kind "run". Those of earlier versions have no checksum.
      rows: the others.
      where: the file, for the error.

    Raises:
      Damaged: if they are not those that were measured.
    """
    if "seal" in head and head["seal"] != sealed(head, rows)["seal"]:
        raise Damaged(
            f"{where!r} is damaged: the {len(rows)} rows of run {head.get('run')!r} are "
            "not those that it measured. Delete its rows, and the run is done again."
        )


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a file.

    Raises:
      Damaged: if a line is no row; it says which.
    """
    found = []
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"{os.fspath(path)!r} is damaged: {error}.") from None
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not (isinstance(row, dict) and isinstance(row.get("kind"), str)):
            raise Damaged(
                f"{os.fspath(path)!r} is damaged: line {number} is no row of a run: "
                f"{line[:40]!r}. Delete the rows of that run, and it is done again."
            )
        found.append(row)
    return found


def log(folder: pathlib.Path, row: dict[str, Any]) -> None:
    """Appends one measurement; the only thing that figures and reports read.

    Raises:
      ValueError: if a number is NaN or infinite, which JSON cannot say; use None.
    """
    with open(folder / METRICS, "a") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read(folder: pathlib.Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record of a run, and its rows in the order in which they were logged."""
    return read_record(folder), lines(folder / METRICS)


def read_record(
    folder: pathlib.Path,
    advice: str = "Delete its folder, and the run is done again.",
) -> dict[str, Any]:
    """What config.json says.

    Args:
      folder: of a run, or of results.
      advice: what to do if it is damaged.

    Raises:
      Damaged: if it is no JSON object.
    """
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Damaged(f"{os.fspath(path)!r} is damaged: it is no JSON object. {advice}")
    return found


def _experiment(folder: pathlib.Path) -> str | None:
    try:
        return json.loads((folder / CONFIG).read_text()).get("experiment")
    except (OSError, ValueError, AttributeError):
        return None


@functools.cache
def commit() -> str | None:
    """What git calls the code that runs; None outside a repository or without git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None

"""A run is a folder: its settings in config.json, what it measured in metrics.jsonl."""

import dataclasses
import datetime
import functools
import json
import os
import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

import jax

CONFIG, METRICS = "config.json", "metrics.jsonl"

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
        "commit": _commit(),
    }


def replace(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all: a reader never meets a part of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text.rstrip("\n") + "\n")
    part.replace(path)


def log(folder: pathlib.Path, row: dict[str, Any]) -> None:
    """Appends one measurement; the only thing that figures and reports read.

    Raises:
      ValueError: if a number is NaN or infinite, which JSON cannot say; use None.
    """
    with open(folder / METRICS, "a") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read(folder: pathlib.Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record of a run, and its rows in the order in which they were logged."""
    record = json.loads((folder / CONFIG).read_text())
    lines = (folder / METRICS).read_text().splitlines()
    return record, [json.loads(line) for line in lines]


def _experiment(folder: pathlib.Path) -> str | None:
    try:
        return json.loads((folder / CONFIG).read_text()).get("experiment")
    except (OSError, ValueError, AttributeError):
        return None


@functools.cache
def _commit() -> str | None:
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

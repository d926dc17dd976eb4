"""What every benchmark needs: interleaved timings, peak memory, versions."""

import datetime
import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time

import jax
from rich.console import Console

from experiments.harness import runs

# Compiling is timed.
jax.config.update("jax_enable_compilation_cache", False)

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch")


def described():
    """What the numbers depend on."""
    cores = getattr(os, "process_cpu_count", os.cpu_count)()
    facts = {
        "date": datetime.date.today().isoformat(),
        "commit": runs.commit(),
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "cores": cores,
    }
    for name in PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return facts


def interleaved(functions, *, seconds=0.0, least=5):
    """Runs the functions in turns, so that what slows the machine slows all of them.

    Args:
      functions: each called without arguments; what they return is waited for.
      seconds: at least so long, together.
      least: and at least so many turns, after one that does not count.

    Returns:
      ``(milliseconds, turns)``: the median of each function, and the number of turns.
    """
    for function in functions:
        jax.block_until_ready(function())
    spent = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(spent[0]) < least:
        for function, times in zip(functions, spent):
            start = time.perf_counter()
            jax.block_until_ready(function())
            times.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(times) for times in spent], len(spent[0])


def peak_above(function):
    """Bytes by which the process grew while the function ran, at its largest.

    At least these: memory that the process had freed and kept does not count. None where
    the system does not keep a peak that can be reset (it is Linux's).
    """
    gc.collect()
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    jax.block_until_ready(function())
    return _status("VmHWM") - before


def _status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return 1024 * int(line.split()[1])


def console():
    """Wide enough for the tables where it is not a terminal."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=120)


def report(console, path, row, facts):
    """Prints a row as it ends, and adds it to a file, if there is one."""
    console.print(", ".join(f"{k} {v}" for k, v in row.items()), soft_wrap=True)
    append(path, [row | facts])


def append(path, rows):
    """Adds JSON lines to a file, if there is one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

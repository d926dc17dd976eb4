"""What a user waits for: whole processes, from the shell to the masks.

    python -m benchmarks.whole                     # the networks that take seconds
    python -m benchmarks.whole mlp --turns 5
    python -m benchmarks.whole --before COMMIT     # and the command of an earlier commit
    python -m benchmarks.whole --no-pytorch        # without the extra `bench`

`synflow prune NAME --density 0.01` in 100 rounds, with an empty cache and again with the
cache that it left; and PyTorch, from loading the same weights to saved masks. The processes
take turns, and a time is the median of the turns. Peak memory and the number of programs
that are compiled, or read from the cache, are those of the first turn, and so is what JAX
says of tracing, lowering and compiling them.
"""

import argparse
import importlib.util
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from rich.table import Table

from benchmarks import measuring
from synflow_jax import counts_per_round, models

NAMES = ("mlp", "resnet20", "resnet18", "vgg16_cifar")
DENSITY, ROUNDS = 0.01, 100
ROOT = pathlib.Path(__file__).resolve().parent.parent


def environment(changes):
    """This process's environment with changes, for the package in a folder."""
    # Not the package in the current folder, nor the options of this process.
    return {**os.environ, "PYTHONSAFEPATH": "1", "XLA_FLAGS": "", **changes}


def process(command, **changes):
    """Runs a command; returns seconds, peak bytes, and what it wrote to standard error."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        child = subprocess.Popen(
            command,
            env=environment(changes),
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        text = errors.read().decode()
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{text}")
    return seconds, 1024 * usage.ru_maxrss, text


class Ours:
    """The command of one tree of files: cold, and again with the cache that it left."""

    def __init__(self, name, tree, folder):
        self.name, self.tree, self.cache = name, tree, folder / "cache"
        self.out = folder / "masks.safetensors"

    def cold(self):
        shutil.rmtree(self.cache, ignore_errors=True)
        return self.again()

    def again(self):
        options = f"prune {self.name} --density {DENSITY} --rounds {ROUNDS} --out"
        return process(
            [sys.executable, "-m", "synflow_jax.cli", *options.split(), str(self.out)],
            PYTHONPATH=str(self.tree),
            JAX_COMPILATION_CACHE_DIR=str(self.cache),
            JAX_LOG_COMPILES="1",
        )


def tree_of(commit, folder):
    """The files of a commit, written to a folder."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise SystemExit(f"{commit}: {archive.stderr.decode().strip()}")
    folder.mkdir(parents=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def pytorch(name, folder):
    """Runs the same in PyTorch, in a process that does not import JAX."""
    _, params, _ = models.build(name, jax.random.key(0))
    counts = counts_per_round(params, DENSITY, ROUNDS)
    arrays = {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    np.savez(folder / "weights.npz", counts=np.asarray(counts), **arrays)
    files = [str(folder / "weights.npz"), str(folder / "masks.pt")]
    command = [sys.executable, "-m", "benchmarks.pytorch_baseline", name, *files]
    return lambda: process(command, PYTHONPATH=str(ROOT))


# Python and the imports of the command, and nothing else.
START = "import jax; from synflow_jax.cli import commands, pruning; jax.devices()"

# What JAX logs of each program with ``JAX_LOG_COMPILES``. The tracing of a function that is
# not lowered by itself is part of that of another one.
TRACED = re.compile(r"Finished tracing (\w+) for jit in ([\d.]+) sec")
LOWERED = re.compile(r"jaxpr to MLIR module conversion jit\((\w+)\) in ([\d.]+) sec")
COMPILED = re.compile(r"XLA compilation of jit\(\w+\) in ([\d.]+) sec")


def parts_of(log):
    """Seconds of tracing, lowering and compiling. Programs are compiled beside the tracing
    of others, so their sum can be longer than the process."""
    lowered = LOWERED.findall(log)
    names = {name for name, _ in lowered}
    return {
        "tracing": sum(float(s) for name, s in TRACED.findall(log) if name in names),
        "lowering": sum(float(seconds) for _, seconds in lowered),
        "compiling": sum(float(seconds) for seconds in COMPILED.findall(log)),
    }


def measured(name, *, turns=3, with_pytorch=True, before=None):
    """The row of one network. ``before`` is the tree of an earlier commit; it runs once."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = [pathlib.Path(temporary, part) for part in ("now", "before", "pytorch")]
        for folder in folders:
            folder.mkdir()
        ours = Ours(name, ROOT, folders[0])
        runs = {"cold": ours.cold, "again": ours.again}
        if with_pytorch:
            runs["pytorch"] = pytorch(name, folders[2])
        found = {key: [] for key in runs}
        for _ in range(turns):
            for key, run in runs.items():
                found[key].append(run())
        if before is not None:
            earlier = Ours(name, before, folders[1])
            found |= {"before_cold": [earlier.cold()], "before_again": [earlier.again()]}
        start, *_ = process([sys.executable, "-c", START], PYTHONPATH=str(ROOT))
    row = {"network": name, "turns": turns, "start_s": round(start, 2)}
    for key, values in found.items():
        seconds, peaks, errors = zip(*values)
        row[f"{key}_s"] = round(statistics.median(seconds), 2)
        row[f"{key}_peak_mb"] = round(peaks[0] / 2**20)
        if key != "pytorch":
            row[f"{key}_programs"] = errors[0].count("Finished XLA compilation of")
    for part, seconds in parts_of(found["cold"][0][-1]).items():
        row[f"{part}_s"] = round(seconds, 2)
    return row


COLUMNS = {
    "synflow prune": "cold",
    "again": "again",
    "before": "before_cold",
    "before, again": "before_again",
    "PyTorch": "pytorch",
}


def table(rows):
    shown = Table(title="Seconds from the shell to the masks (programs, peak MB)")
    shown.add_column("network")
    for column in COLUMNS:
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(row["network"], *(_cell(row, key) for key in COLUMNS.values()))
    return shown


def _cell(row, key):
    if f"{key}_s" not in row:
        return "-"
    programs = f"{row[f'{key}_programs']}, " if f"{key}_programs" in row else ""
    return f"{row[f'{key}_s']:.1f} ({programs}{row[f'{key}_peak_mb']})"


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, help="networks")
    parser.add_argument("--turns", type=int, default=3, help="medians are of these")
    parser.add_argument("--before", metavar="COMMIT", help="and its command, once")
    parser.add_argument("--no-pytorch", action="store_true", help="only ours")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines are added to it")
    args = parser.parse_args(argv)
    if not args.no_pytorch and importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not installed: pip install '.[bench]', or --no-pytorch.")
    unknown = [name for name in args.names if name not in models.NETWORKS]
    if unknown:
        parser.error(f"no {', '.join(unknown)} here; see synflow_jax.models.NETWORKS.")
    console, facts, rows = measuring.console(), measuring.described(), []
    with tempfile.TemporaryDirectory() as temporary:
        before = args.before and tree_of(args.before, pathlib.Path(temporary, "tree"))
        for name in args.names:
            row = measured(
                name, turns=args.turns, with_pytorch=not args.no_pytorch, before=before
            )
            rows.append(row)
            measuring.report(console, args.out, row, facts)
    console.print(table(rows))


if __name__ == "__main__":
    main()

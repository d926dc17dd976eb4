"""Two commits beside each other: the first call of `prune`, what of it is tracing and
compiling, a round, and one score with its temporary memory.

    python -m benchmarks --against COMMIT              # all networks but the largest
    python -m benchmarks --against COMMIT mlp resnet20 --out results/zoo_cpu.jsonl
    python -m benchmarks --against COMMIT unet2@512    # U-Nets, by levels and pixels

For each network processes of both take turns, and the ratios are those of the medians.
Beside other work the processor's seconds of compiling vary less than those by the clock.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from rich.table import Table

from benchmarks import measuring, whole
from synflow_jax import models

SCRIPT = pathlib.Path(__file__).with_name("rounds_of.py")
# Those whose rounds or whose compiling take minutes.
LARGE = ("resnet1202", "imagenet", "wide_resnet101", "wide_resnet152")


def names():
    """The networks that are compared if none are named."""
    return [n for n in models.NETWORKS if not any(large in n for large in LARGE)]


def times(tree, name, rounds, turns):
    """What `rounds_of` prints for the package in a folder."""
    command = [sys.executable, str(SCRIPT), name, str(rounds), str(turns)]
    environment = {"PYTHONPATH": str(tree)}
    done = subprocess.run(
        command, env=whole.environment(environment), stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def compared(name, before, *, turns=3, rounds=5):
    """The row of one network: times now, before, and their ratios."""
    found = {"now": [], "before": []}
    for _ in range(turns):
        for key, tree in (("now", whole.ROOT), ("before", before)):
            found[key].append(times(tree, name, rounds, turns))
    row = {"network": name}
    for part in PARTS:
        now, then = (
            statistics.median(row[part] for row in found[key]) for key in ("now", "before")
        )
        row |= {part: round(now, 3), f"{part}_before": round(then, 3)}
        row[f"{part}_ratio"] = round(now / then, 3)
    return row


# What is measured, and its column.
PARTS = {
    "first_s": "first s",
    "compiling_s": "compiling s",
    "compiling_cpu_s": "its processor s",
    "round_ms": "round ms",
    "score_ms": "score ms",
    "score_mb": "score MB",
}


def table(rows):
    shown = Table(title="Now (relative to before; below 1 is less now)")
    shown.add_column("network")
    for column in PARTS.values():
        shown.add_column(column, justify="right")
    for row in rows:
        cells = (f"{row[part]:.4g} ({row[f'{part}_ratio']:.2f})" for part in PARTS)
        shown.add_row(row["network"], *cells)
    return shown


def run(commit, chosen, console, out=None, *, turns=3):
    """Compares the networks one after the other, and prints each row and the table."""
    facts, rows = measuring.described() | {"before": commit, "turns": turns}, []
    with tempfile.TemporaryDirectory() as temporary:
        before = whole.tree_of(commit, pathlib.Path(temporary, "tree"))
        for name in chosen or names():
            rows.append(compared(name, before, turns=turns))
            measuring.report(console, out, rows[-1], facts)
    console.print(table(rows))
    return rows


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:], measuring.console())

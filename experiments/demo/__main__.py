"""The demonstration: which methods keep a network connected, and what that is worth.

  python -m experiments demo

Prunes VGG-16 at initialisation with three methods, then trains a small network under their
masks. Writes metrics, two figures and a report; under three minutes on two cores.

To expect on cifar10_20k (seed 0, one run, jax 0.10.2 on a CPU): dense 55 %; at compression
10^0.5 all methods about 51 %; at 10^1.5 SynFlow 45 %, random 32 %, magnitude 10 %, which is
chance; at 10^2.5 SynFlow 27 %, the others chance.
"""

import shlex
import sys
from collections.abc import Sequence
from typing import Any

import tyro
from rich.markup import escape
from rich.table import Table

from experiments.demo import masking
from experiments.demo.run import Config, run, smoke
from experiments.harness import runs
from experiments.harness.console import CONSOLE, say
from synflow_jax.xla.program_cache import keep_programs


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the demonstration from the command line and prints a summary."""
    args = list(sys.argv[1:] if argv is None else argv)
    config = tyro.cli(Config, args=args, prog="python -m experiments demo")
    command = shlex.join(["python", "-m", "experiments", "demo", *args])
    keep_programs()
    try:
        path = run(smoke(config) if config.smoke else config, command)
    except (FileNotFoundError, FileExistsError) as error:
        raise SystemExit(f"error: {error}") from None
    _, rows = runs.read(path.parent)
    for table in (_masks_table(rows), _accuracy_table(rows)):
        CONSOLE.print(table)
    say(f"report: {escape(str(path))}")


def _masks_table(rows: list[dict[str, Any]]) -> Table:
    masks = [row for row in rows if row.get("part") == "initialisation"]
    table = Table(title=f"{masks[0]['network']} at initialisation", title_justify="left")
    for heading in ("compression", "kept", "method", "layers emptied", "log10 R"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in masks:
        flow = row["log10_flow"]
        table.add_row(
            row["label"],
            f"{row['kept']:,}",
            row["method"],
            f"{len(row['collapsed'])} of {len(row['layers'])}",
            "no path left" if flow is None else f"{flow:.1f}",
            end_section=row["method"] == masking.METHODS[-1],
        )
    return table


def _accuracy_table(rows: list[dict[str, Any]]) -> Table:
    (about,) = (row for row in rows if row["kind"] == "data")
    trained = [row for row in rows if row["kind"] == "trained"]
    table = Table(title=f"Accuracy on {about['data']} after training", title_justify="left")
    table.add_column("compression", justify="right")
    for method in masking.METHODS:
        table.add_column(method, justify="right")
    cells = {(row["label"], row["method"]): f"{row['accuracy']:.1%}" for row in trained}
    for label in dict.fromkeys(row["label"] for row in trained if row["compression"]):
        table.add_row(label, *(cells[label, method] for method in masking.METHODS))
    table.caption = (
        f"dense: {cells['10^0', 'dense']}; chance: {1 / about['num_classes']:.0%}"
    )
    return table


if __name__ == "__main__":
    main()

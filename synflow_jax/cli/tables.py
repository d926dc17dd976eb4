"""Tables of masks, and the same as JSON."""

import json
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
import rich.markup
import rich.table
from jaxtyping import PyTree

from synflow_jax.analysis.summary import Row, summarize
from synflow_jax.cli.errors import printable
from synflow_jax.trees import leaf_names, names_kernel


def layers_of(masks: PyTree) -> list[Row]:
    """A row for each layer: kernels, and other leaves that lost weights."""
    rows = summarize(masks, masks)
    return [row for row in rows if row.kept < row.size or _is_layer(row)]


def as_json(masks: PyTree) -> dict[str, Any]:
    """Every leaf, and the totals of the layers."""
    layers = layers_of(masks)
    return {
        "size": sum(row.size for row in layers),
        "kept": sum(row.kept for row in layers),
        "leaves": [
            {"name": r.name, "shape": list(r.shape), "size": r.size, "kept": r.kept}
            for r in summarize(masks, masks)
        ],
    }


def print_json(value: dict[str, Any]) -> None:
    """Prints an object, in ASCII."""
    print(json.dumps(value, indent=1))


def print_table(masks: PyTree) -> None:
    """Prints the layers, their total, and how many other leaves there are."""
    layers = layers_of(masks)
    table = _table("shape", "weights", "kept", "density")
    for row in layers:
        style = "bold red" if row.size and not row.kept else None
        _add_row(table, row.name, *_numbers(row), style=style)
    size, kept = sum(r.size for r in layers), sum(r.kept for r in layers)
    table.add_section()
    total = Row("total", (), size, kept, kept / size if size else 1.0)
    _add_row(table, total.name, *_numbers(total), style="bold")
    _print(table)
    whole = len(jax.tree.leaves(masks)) - len(layers)
    empty = [row.name for row in layers if row.size and not row.kept]
    print(f"{whole} other leaves are whole; {len(empty)} layers are empty", end="")
    print(printable(f": {', '.join(empty)}") if empty else "")


class Pair(NamedTuple):
    """A leaf in two files of masks: how many weights each keeps, and both."""

    name: str
    size: int
    first: int
    second: int
    both: int

    @property
    def overlap(self) -> float:
        """The share of the weights kept by either that both keep; 1 if none is kept."""
        either = self.first + self.second - self.both
        return self.both / either if either else 1.0


def compared(first: PyTree, second: PyTree) -> list[Pair]:
    """A row for each leaf that is pruned in one of two masks, and a last one for all.

    Raises:
      ValueError: if their leaves have other names or shapes.
    """
    names, others = leaf_names(first), leaf_names(second)
    if names != others:
        differ = sorted(set(names) ^ set(others)) or names
        raise ValueError(f"they have not the same leaves: {', '.join(differ)}.")
    rows = []
    for name, *pair in zip(names, jax.tree.leaves(first), jax.tree.leaves(second)):
        a, b = map(np.asarray, pair)
        if a.shape != b.shape:
            raise ValueError(
                f"`{name}` has shape {a.shape} in one and {b.shape} in the other."
            )
        numbers = (int(np.count_nonzero(x)) for x in (a, b, a & b))
        rows.append(Pair(name, a.size, *numbers))
    rows = [row for row in rows if min(row.first, row.second) < row.size]
    return [*rows, Pair("total", *(sum(n) for n in list(zip(*rows))[1:] or [()] * 4))]


def print_compared(rows: list[Pair]) -> None:
    """Prints what `compared` found."""
    table = _table("weights", "A", "B", "both", "overlap")
    for row in rows:
        if row is rows[-1]:
            table.add_section()
        numbers = [f"{n:,}" for n in row[1:]]
        _add_row(table, row.name, *numbers, f"{row.overlap:.3g}")
    _print(table)


def _is_layer(row: Row) -> bool:
    return names_kernel(row.name) and len(row.shape) >= 2


def _table(*columns: str) -> rich.table.Table:
    table = rich.table.Table()
    table.add_column("layer")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _add_row(
    table: rich.table.Table, name: str, *cells: str, style: str | None = None
) -> None:
    table.add_row(rich.markup.escape(printable(name)), *cells, style=style)


def _numbers(row: Row) -> tuple[str, str, str, str]:
    shape = "x".join(map(str, row.shape))
    return shape, f"{row.size:,}", f"{row.kept:,}", f"{row.density:.3g}"


def _print(table: rich.table.Table) -> None:
    console = rich.console.Console()
    if not console.is_terminal:  # a pipe or a file: wide enough to cut nothing off
        console = rich.console.Console(width=200)
    console.print(table)

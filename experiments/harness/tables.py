"""A table of results: the same cells as Markdown for a file and as HTML for the report."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.harness import page


class Table(NamedTuple):
    """Text in rows; the first column names the row, the others are numbers.

    Attributes:
      title: what it has, one sentence.
      headings: a text for each column.
      rows: for each row a text for each column.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def markdown(table: Table) -> str:
    """The table, without its title, the numbers aligned on the right."""
    rule = "|---|" + "---:|" * (len(table.headings) - 1)
    head, *body = (f"| {' | '.join(cells)} |" for cells in (table.headings, *table.rows))
    return "\n".join([head, rule, *body])


def document(tables: Sequence[Table]) -> str:
    """A Markdown file of tables under their titles."""
    return "\n\n".join(f"{table.title}\n\n{markdown(table)}" for table in tables)


def folded(table: Table) -> str:
    """HTML that shows the title, and the table when it is clicked."""
    cells = (
        [(page.prose(text), "" if place else "left") for place, text in enumerate(row)]
        for row in table.rows
    )
    headings = [page.prose(heading) for heading in table.headings]
    wide = f'<div class="wide">{page.table(headings, cells, left=(0,))}</div>'
    return page.folded(page.prose(table.title), wide)


def mean_and_range(mean: float, low: float, high: float) -> str:
    """A mean with one decimal and, where values differ, from which to which they go."""
    ends = f"{low:.1f}", f"{high:.1f}"
    return f"{mean:.1f}" + ("" if ends[0] == ends[1] else f" ({' to '.join(ends)})")


def power(exponent: float) -> str:
    """A power of ten as plain text."""
    return f"10^{round(exponent, 2):g}"

"""Pieces of HTML for a page that needs no other file."""

import base64
import html
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

# A cell of a table: HTML, and a class of the style sheet or "".
Cell = tuple[str, str]

_STYLE = """
body { font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif; color: #222;
       background: #fff; max-width: 52rem; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.75rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin-top: 2.6rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .92rem;
        font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; vertical-align: top;
         white-space: nowrap; }
th { border-bottom: 2px solid #888; }
tr.first td { border-top: 1px solid #ccc; }
td.left, th.left { text-align: left; white-space: normal; }
.gone { color: #a33c00; font-weight: 600; }
.wide { overflow-x: auto; }
table.words th, table.words td { text-align: left; white-space: normal;
                                 padding: .35rem .6rem; }
table.words td { border-top: 1px solid #ccc; }
@media (max-width: 36rem) {
  table.words thead { display: none; }
  table.words td { display: block; border: 0; padding: .1rem 0; }
  table.words td:first-child { border-top: 1px solid #ccc; font-weight: 600;
                               padding-top: .6rem; }
}
figure { margin: 1.4rem 0; }
img { max-width: 100%; }
figcaption, .note { color: #555; font-size: .9rem; }
.box { background: #f3f6f9; border-left: 4px solid #0072b2; padding: .4rem 1.2rem; }
code { background: #f3f3f3; padding: .1rem .3rem; overflow-wrap: anywhere; }
summary { cursor: pointer; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page: the title and the parts, one below the other."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def table(
    headings: Sequence[str], rows: Iterable[Sequence[Cell]], left: Sequence[int] = ()
) -> str:
    """A table; a row whose first cell says something starts a group.

    Args:
      headings: HTML; none for a table without a head.
      rows: their cells; a last one of class "across" fills the rest of its row.
      left: columns whose heading stands on the left.
    """
    head = "".join(
        f'<th class="{"left" if i in left else ""}">{heading}</th>'
        for i, heading in enumerate(headings)
    )
    across = f' colspan="{len(headings)}"'
    body = "".join(
        f'<tr class="{"first" if cells[0][0] else ""}">'
        + "".join(
            f'<td class="{kind}"{across if kind == "across" else ""}>{text}</td>'
            for text, kind in cells
        )
        + "</tr>\n"
        for cells in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if headings else ""
    return f"<table>{head}<tbody>{body}</tbody></table>"


def image(path: pathlib.Path, caption: str, width: str = "100%") -> str:
    """A PNG, its bytes inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(caption)}" style="width: {width}" '
        f'src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def bullets(items: Iterable[str]) -> str:
    """A list of HTML items."""
    return "<ul>" + "".join(f"<li>{item}</li>\n" for item in items) + "</ul>"


def folded(title: str, content: str) -> str:
    """HTML that shows the title, and the content when it is clicked."""
    return f"<details><summary>{title}</summary>{content}</details>"


def prose(plain: str) -> str:
    """Plain text as HTML, with the powers of ten in it set high."""
    return powers(escape(plain))


def powers(made: str) -> str:
    """HTML, with the powers of ten in it set high."""
    return re.sub(r"10\^(-?\d+(?:\.\d+)?)", r"10<sup>\1</sup>", made)


def percent(fraction: float) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{100 * fraction:.1f}&nbsp;%"


def plural(number: int, noun: str) -> str:
    """A number and what it counts."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def escape(text: Any) -> str:
    """Plain text as HTML."""
    return html.escape(str(text))

"""One page with every figure, beside what the paper found.

  python -m experiments report    # writes results/report.html

Numbers come from the rows that runs logged: each experiment's figures and tables at the
largest scale that was run, paper before cpu before smoke. Words are written by hand, in
docs/evidence: a page an experiment, whose first line names the rows that it speaks of by
their hash. Rows that no page speaks of are shown without words.
"""

import collections
import dataclasses
import hashlib
import importlib
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import markdown_it
import tyro

from experiments.harness import command, runs, tables
from experiments.harness.command import Experiment
from experiments.harness.console import say
from experiments.harness.page import escape, folded, page, plural, powers, table
from experiments.harness.sweeps import Row

# In the order of the paper. Their modules have an EXPERIMENT of the same name.
NAMES = (
    "layer_collapse",
    "conservation",
    "magnitude_training",
    "sparse_training",
    "accuracy",
    "data_ablation",
    "rounds",
    "connected",
    "theory",
    "chaos",
    "decoder",
    "imagenet",
    "imagenet_training",
    "ablation",
)
SCALES = ("paper", "cpu", "smoke")
NAME = "report.html"
PAGES = pathlib.Path("docs/evidence")
OPENING = "README.md"


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes the page."""

    results: pathlib.Path = command.RESULTS
    """Folder with a folder for each experiment; the page is written into it."""
    pages: pathlib.Path = PAGES
    """Folder of the words."""
    smoke: bool = False
    """Show also what was run at scale smoke only."""


def write(
    results: pathlib.Path, pages: pathlib.Path = PAGES, *, smoke: bool = False
) -> pathlib.Path:
    """Writes the page from the folders of the results.

    Args:
      results: with a folder for each experiment and in it one for each scale.
      pages: with a page of words for each experiment, and one to open with.
      smoke: whether an experiment that was run at scale smoke only is shown.

    Returns:
      The path of the page.

    Raises:
      FileNotFoundError: if there are no results.
    """
    parts, missing, described = [], [], False
    for name in NAMES:
        scale = _largest(results / name, smoke)
        if scale is None:
            missing.append(name)
            continue
        experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
        words = words_on(results / name / scale, pages / f"{name}.md")
        described |= words is not None
        parts.append(_section(experiment, scale, results, words))
    if not parts:
        raise FileNotFoundError(f"no results of an experiment in {os.fspath(results)!r}.")
    if missing:
        parts.append(f'<p class="note">Not run: {escape(", ".join(missing))}.</p>')
    if described:
        parts.insert(0, _html((pages / OPENING).read_text("utf-8"), results))
    path = results / NAME
    path.write_text(page("The evidence", parts), "utf-8")
    return path


def words_on(folder: pathlib.Path, path: pathlib.Path) -> str | None:
    """A page of words; None if there is none that speaks of the rows in the folder."""
    if not path.exists():
        return None
    first, _, text = path.read_text("utf-8").partition("\n")
    return text if first == f"<!-- rows {hash_of(folder)} -->" else None


def hash_of(folder: pathlib.Path) -> str:
    """What names the rows of an experiment: the start of their SHA-256."""
    return hashlib.sha256((folder / runs.METRICS).read_bytes()).hexdigest()[:16]


def _largest(folder: pathlib.Path, smoke: bool) -> str | None:
    scales = SCALES if smoke else SCALES[:-1]
    return next((s for s in scales if (folder / s / runs.METRICS).exists()), None)


def _section(
    experiment: Experiment, scale: str, results: pathlib.Path, words: str | None
) -> str:
    folder = results / experiment.name / scale
    rows = command.results(folder)
    if words is None:
        figures = (name for name in experiment.figures if (folder / name).exists())
        shown = (
            f"![{name}](../../results/{experiment.name}/{scale}/{name})" for name in figures
        )
        words = f"# {experiment.name}\n\n{experiment.about}\n\n" + "\n\n".join(shown)
    return (
        f'<section id="{experiment.name}" data-rows="{hash_of(folder)}">'
        + _html(words, results)
        + "\n".join(map(tables.folded, experiment.tables(rows)))
        + _making(experiment, scale, rows)
        + "</section>"
    )


def _html(words: str, results: pathlib.Path) -> str:
    """Markdown as a part of the page. Its paths are from docs/evidence; its headings go a
    level down."""
    made = (
        markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table").render(words)
    )
    made = re.sub(r"(</?h)(\d)", lambda at: f"{at[1]}{int(at[2]) + 1}", made)
    made = made.replace("<table>", '<div class="wide"><table class="words">')
    made = made.replace("</table>", "</table></div>")
    made = re.sub(r'(src|href)="\.\./\.\./results/', r'\1="', made)
    return powers(re.sub(r'href="(\w+)\.md"', r'href="#\1"', made))


def _making(experiment: Experiment, scale: str, rows: Sequence[Row]) -> str:
    """The record: command, runs, time, device, commit and settings."""
    heads = [row for row in rows if row["kind"] == "run"]
    seconds = sum(row["seconds"] for row in heads)
    ended = sorted(row["ended"] for row in heads)
    done, planned = len(heads), len(experiment.runs(scale))
    facts = {
        "command": f"<code>python -m experiments {experiment.name} --scale {scale}</code>",
        "runs": f"{done} of {plural(planned, 'run')}",
        "time": f"{_duration(seconds)} in all, compilation included",
        "ended": f"{escape(ended[-1])}",
        "device": _several(
            f"{row['device']}, {plural(row['devices'], 'device')}, JAX {row['jax']}"
            for row in heads
        ),
        "commit": _several(str(row["commit"]) for row in heads),
        "settings": _settings([row["config"] for row in heads]),
        "rows": f"<code>{experiment.name}/{scale}/{runs.METRICS}</code>",
    }
    cells = [[(key, "left"), (value, "left")] for key, value in facts.items()]
    return folded("How it was made", table([], cells))


def _settings(configs: Sequence[dict[str, Any]]) -> str:
    """Every setting with the values that it has in the runs."""
    values: dict[str, dict[str, None]] = collections.defaultdict(dict)
    for config in configs:
        for key, value in _flat(config):
            values[key][str(value)] = None
    lines = []
    for key, seen in values.items():
        shown = list(seen)
        more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
        lines.append(escape(f"{key} = {', '.join(shown[:12])}{more}"))
    return "<br>".join(lines)


def _flat(config: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _several(texts: Iterable[str]) -> str:
    return "<br>".join(map(escape, dict.fromkeys(texts)))


def _duration(seconds: float) -> str:
    for unit, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds"


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page from the command line."""
    args = list(sys.argv[1:] if argv is None else argv)
    options = tyro.cli(
        Options, args=args, prog="python -m experiments report", description=__doc__
    )
    try:
        path = write(options.results, options.pages, smoke=options.smoke)
    except FileNotFoundError as error:
        raise SystemExit(f"error: {error}") from None
    say(f"report: {escape(str(path))}")


if __name__ == "__main__":
    main()

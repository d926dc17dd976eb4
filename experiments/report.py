"""One page with every figure: how it was made, and what came out beside the paper.

  python -m experiments.report    # writes results/report.html

Reads the results' folders only: the rows and the figures of each experiment at the largest
scale that was run, paper before cpu before smoke. Tables are made from the rows again; the
figures stay files beside the page.
"""

import collections
import dataclasses
import importlib
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import tyro

from experiments.harness import command, runs, tables
from experiments.harness.command import Experiment
from experiments.harness.console import say
from experiments.harness.page import bullets, escape, folded, page, plural, prose, table
from experiments.harness.sweeps import Row

# In the order of the paper. Their modules have an EXPERIMENT of the same name.
NAMES = (
    "layer_collapse",
    "conservation",
    "magnitude_training",
    "accuracy",
    "rounds",
    "theory",
    "imagenet",
    "imagenet_training",
    "ablation",
)
SCALES = ("paper", "cpu", "smoke")
NAME = "report.html"


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes the page."""

    results: pathlib.Path = command.RESULTS
    """Folder with a folder for each experiment; the page is written into it."""
    smoke: bool = False
    """Show also what was run at scale smoke only."""


def write(results: pathlib.Path, *, smoke: bool = False) -> pathlib.Path:
    """Writes the page from the folders of the results.

    Args:
      results: with a folder for each experiment and in it one for each scale.
      smoke: whether an experiment that was run at scale smoke only is shown.

    Returns:
      The path of the page.

    Raises:
      FileNotFoundError: if there are no results.
    """
    found, missing = [], []
    for name in NAMES:
        scale = _largest(results / name, smoke)
        experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
        (found if scale else missing).append((experiment, scale))
    if not found:
        raise FileNotFoundError(f"no results of an experiment in {os.fspath(results)!r}.")
    parts = [_opening(found, missing)]
    for number, (experiment, scale) in enumerate(found, 1):
        parts.append(_section(number, experiment, scale, results))
    path = results / NAME
    path.write_text(page("The experiments of the SynFlow paper, run again", parts), "utf-8")
    return path


def _largest(folder: pathlib.Path, smoke: bool) -> str | None:
    scales = SCALES if smoke else SCALES[:-1]
    return next((s for s in scales if (folder / s / runs.METRICS).exists()), None)


def _opening(
    found: Sequence[tuple[Experiment, str]], missing: Sequence[tuple[Experiment, None]]
) -> str:
    links = [
        f'<a href="#{experiment.name}">{escape(experiment.name)}</a>: '
        f"{escape(experiment.about)}"
        for experiment, _ in found
    ]
    text = (
        "<p>Each section is made from the rows that its runs logged: the figure, the "
        "command and the settings, and sentences that state our numbers beside those of "
        "H. Tanaka, D. Kunin, D. Yamins, S. Ganguli, &ldquo;Pruning neural networks "
        "without any data by iteratively conserving synaptic flow&rdquo;, NeurIPS 2020, "
        "arXiv 2006.05467. <em>Scale cpu</em> is what two processor cores can do: it says "
        "how methods compare there, and is no substitute for the paper's setting. The "
        "published accuracies of SNIP and GraSP are from code that its authors corrected "
        "later.</p>"
    )
    if missing:
        names = ", ".join(escape(experiment.name) for experiment, _ in missing)
        text += f'<p class="note">Not run at a scale that is shown here: {names}.</p>'
    return text + bullets(links)


def _section(number: int, experiment: Experiment, scale: str, results: pathlib.Path) -> str:
    folder = results / experiment.name / scale
    rows = command.results(folder)
    figures = [
        f'<figure><img alt="{escape(experiment.about)}" '
        f'src="{escape((folder / name).relative_to(results))}"></figure>'
        for name in experiment.figures
        if (folder / name).exists()
    ]
    return (
        f'<h2 id="{experiment.name}">{number}. {escape(experiment.name)}</h2>'
        f"<p>{escape(experiment.about)}</p>"
        + "\n".join(figures)
        + f'<p class="note">Scale {scale}, {_runs(experiment, scale, rows)}. '
        + f"{prose(experiment.caption(rows))}</p>"
        + bullets(map(prose, experiment.sentences(rows)))
        + "\n".join(map(tables.folded, experiment.tables(rows)))
        + _making(experiment, scale, rows)
    )


def _runs(experiment: Experiment, scale: str, rows: Sequence[Row]) -> str:
    done, planned = len(command.configs(rows)), len(experiment.runs(scale))
    return (
        f"all of {planned} runs" if done == planned else f"{done} of {planned} runs so far"
    )


def _making(experiment: Experiment, scale: str, rows: Sequence[Row]) -> str:
    """The record: command, runs, time, device, commit and settings."""
    heads = [row for row in rows if row["kind"] == "run"]
    seconds = sum(row["seconds"] for row in heads)
    ended = sorted(row["ended"] for row in heads)
    facts = {
        "command": f"<code>python -m experiments.{experiment.name} --scale {scale}</code>",
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
        Options, args=args, prog="python -m experiments.report", description=__doc__
    )
    try:
        path = write(options.results, smoke=options.smoke)
    except FileNotFoundError as error:
        raise SystemExit(f"error: {error}") from None
    say(f"report: {escape(str(path))}")


if __name__ == "__main__":
    main()

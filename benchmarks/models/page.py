"""docs/models.md, from the rows of results/models.json."""

from collections.abc import Sequence

from benchmarks.models.cases import ROUNDS

INTRODUCTION = """# Models of other libraries

Does it work on a model that was not written for it? `make models` takes {total} models from
the package index as they come, each in an environment with its library, with random weights
(nothing is downloaded). For each of them it

- traces, compiles and computes the score, which must be finite and not zero everywhere;
- compares the scores of all cuts and of all units that it finds (`sj.conservation`);
- prunes to the densities 0.1 and 0.01 in {rounds} rounds: the counts must be exact;
- trains one step of AdamW (`sj.static_pruning`): pruned weights must be exactly zero.

{works} of the {total} do all of it{others}.

The sizes are the libraries' own, or small ones of what would be large. Times are CPU time
of one score; {slowest} takes longest to compile, {compile_s:.0f} s. The rows with more
columns and the versions of the packages are in
[results/models.json](../results/models.json), the list of models in
[benchmarks/models](../benchmarks/models/listed.py).
"""

COLUMNS = ["model", "library", "parameters", "trace", "compile", "run"]
COLUMNS += ["cuts", "gap", "units", "gap", "filled", "no path"]

LEGEND = """
- *cuts*: sets of layers that separate the input from the output, and the largest difference
  of the totals of two, relative to the largest. A path through no layer is cut by none.
- *units*: the neurons and channels whose scores in and out were compared, and the largest
  relative difference.
- *filled*: leaves that start at zero, such as a head or the gate of a residual branch. They
  have the value 1 for scoring (`sj.filled`); the masks were put on the original weights.
- *no path*: prunable leaves that no flow reaches: the output does not depend on them, or
  only by a shift. They are pruned first; `sj.unreached` names them. Here they are experts
  that the router does not choose (NanoMoE), the small network that makes a position bias
  (Swin V2), heads that are not read (ViT, DINOv2, CLIP), and the attention of MLLA, which
  this release of its library computes and does not use.

ViT, DINOv2 and CLIP are read at all tokens, since the class token alone
[carries no flow](flow.md#where-the-flow-decides-sorting-and-routers).
"""

REFUSED = """
A spline of a normalising flow searches the interval of each value among knots that depend
on the input too. Which of them it reads is decided by a comparison of two flows, and what a
layer makes of the others would score 0: it is refused ([limits](flow.md#limits)).
"""


def of(rows: Sequence[dict]) -> str:
    """The page."""
    works = [row for row in rows if row["status"] == "works"]
    others = [row for row in rows if row["status"] != "works"]
    slowest = max(works, key=lambda row: row["compile_s"], default={})
    introduction = INTRODUCTION.format(
        slowest=slowest.get("model"),
        compile_s=slowest.get("compile_s", 0),
        total=len(rows),
        rounds=ROUNDS,
        works=len(works),
        others=f" ([refused](#refused): {len(others)})" if others else "",
    )
    table = _heading() + "".join(map(_line, works)) + LEGEND
    return introduction + table + (_refused(others) if others else "")


def _heading() -> str:
    rules = ["---" if i < 2 else "---:" for i in range(len(COLUMNS))]
    return f"\n| {' | '.join(COLUMNS)} |\n|{'|'.join(rules)}|\n"


def _line(row: dict) -> str:
    cells = [
        row["model"],
        row["environment"],
        f"{row['parameters']:,}",
        f"{row['trace_s']:.1f} s",
        f"{row['compile_s']:.1f} s",
        _milliseconds(row["run_s"]),
        row["cuts"] or "-",
        _gap(row["cut_gap"]) if row["cuts"] > 1 else "-",
        f"{row['units']:,}" if row["units"] else "-",
        _gap(row["unit_gap"]) if row["units"] else "-",
        len(row["filled"]) or "",
        row["unreached"] or "",
    ]
    return f"| {' | '.join(map(str, cells))} |\n"


def _milliseconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1e3 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"


def _gap(gap: float) -> str:
    return f"{gap:.0e}".replace("e-0", "e-") if gap else "0"


def _refused(rows: Sequence[dict]) -> str:
    lines = "".join(
        f"| {row['model']} | {row['environment']} | "
        f"{'`' + row['primitive'] + '`' if row.get('primitive') else '-'} | "
        f"{_cell(row.get('reason', 'wrong'))} |\n"
        for row in rows
    )
    return (
        "\n## Refused\n\n| model | library | primitive | what the error says |\n"
        f"|---|---|---|---|\n{lines}{REFUSED}"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

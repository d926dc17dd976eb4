"""The tables of README.md and docs/speed.md, from the results that are committed.

    python -m benchmarks.pages    # writes them again

Each table is found on its page by its first line.
"""

import json
import pathlib

from experiments.harness.tables import Table, markdown

NAMES = {
    "mlp": "MLP 784-100x5-10",
    "resnet20": "ResNet-20, CIFAR",
    "resnet18": "ResNet-18, CIFAR",
    "resnet110": "ResNet-110, CIFAR",
    "resnet1202": "ResNet-1202, CIFAR",
    "decoder-scanned": "decoder of 12 layers, scanned",
    "decoder-unrolled": "decoder of 12 layers, one after the other",
    "vgg16_cifar": "VGG-16, CIFAR",
    "vgg19_imagenet": "VGG-19, ImageNet",
    "resnet50_imagenet": "ResNet-50, ImageNet",
    "unet of 2 levels": "U-Net, 2 levels",
    "unet of 4 levels": "U-Net, 4 levels",
    "resizing unet of 2 levels": "U-Net, 2 levels, resizing",
    "3d unet of 2 levels": "U-Net of volumes, 2 levels",
}

MB = 2**20


def read(folder=pathlib.Path("results")):
    """All parts: those of `make bench`, and those of commands of their own, of which the
    last row of a network counts."""
    results = json.loads((folder / "bench.json").read_text())
    for part in ("resolution", "kernels", "compiling"):
        rows = map(json.loads, (folder / f"{part}_cpu.jsonl").read_text().splitlines())
        latest = {(row["network"], row.get("pixels")): row for row in rows}
        results[part] = [*latest.values()]
    return results


def waited(results):
    """What the user waits for, and of it the rounds."""
    loops = {row["network"]: row for row in results["loop"]}
    rows = [
        [
            NAMES[row["network"]],
            _million(loops[row["network"]]["weights"]),
            *(f"{_short(row[key])} s" for key in ("cold_s", "again_s", "pytorch_s")),
            "{} s, {} s".format(
                *(_short(loops[row["network"]][key]) for key in ("prune_s", "pytorch_s"))
            ),
        ]
        for row in results["whole"]
    ]
    head = (
        "to 10^2 in 100 rounds",
        "weights",
        "`synflow prune`",
        "again, with its cache",
        "PyTorch",
        "of it the rounds: ours, PyTorch's",
    )
    return _table(head, rows)


def processes(results):
    """Whole processes, their programs and their peaks."""

    def cell(row, kind):
        if f"{kind}_s" not in row:  # it was not compared with a commit
            return "—"
        programs = f"{row[f'{kind}_programs']}, " if f"{kind}_programs" in row else ""
        return f"{row[f'{kind}_s']:.1f} s ({programs}{row[f'{kind}_peak_mb']:,})"

    kinds = ("cold", "again", "before_cold", "before_again", "pytorch")
    rows = [
        [NAMES[row["network"]], *(cell(row, kind) for kind in kinds)]
        for row in results["whole"]
    ]
    head = "network", "`synflow prune`", "again", "before", "before, again", "PyTorch"
    return _table(head, rows)


def parts(results):
    """Where a process with an empty cache spends its time."""
    loops = {row["network"]: row for row in results["loop"]}
    names = ("cold", "start", "tracing", "lowering", "compiling")
    rows = [
        [
            NAMES[row["network"]],
            *(f"{row[f'{name}_s']:.1f} s" for name in names),
            f"{loops[row['network']]['prune_s']:.1f} s",
        ]
        for row in results["whole"]
    ]
    head = "network", "whole", "start and imports", *names[2:], "rounds"
    return _table(head, rows)


def loops(results):
    """A hundred rounds, their floor, compiling and memory."""

    def ms(row, key):
        return f"{1e3 * row[key] / row['rounds']:.4g}"

    rows = [
        [
            NAMES[row["network"]],
            ms(row, "prune_s"),
            ms(row, "pytorch_s"),
            f"{row['times_faster']:.2f}",
            f"{1e3 * row['floor_s'] / row['rounds']:.3g}",
            f"{row['times_floor']:.1f}",
            f"{row['compile_s']:.1f} s",
            "—" if row["peak_over_weights"] is None else f"{row['peak_over_weights']:.1f}",
        ]
        for row in results["loop"]
    ]
    head = (
        "network",
        "ms a round",
        "PyTorch",
        "times faster",
        "floor",
        "times the floor",
        "compiling",
        "peak",
    )
    return _table(head, rows)


KERNELS = {
    "products": "products, convolutions and what is fused with them",
    "rest_of_score": "the rest of the score: absolute values, sums, mantissas",
    "keys": "gradients times weights, and their keys",
    "counting": "counting what lies above candidates",
    "rest_of_selection": "the rest of the selection: the sample, ties, masks",
    "others": "the rest: copies, the loop, what it reports",
}


def kernels(results):
    """Where the time of a round goes, by the part that a kernel is from."""
    columns = results["kernels"]
    rows = [
        [title, *(f"{100 * row[part]:.0f} %" for row in columns)]
        for part, title in KERNELS.items()
    ]
    rows.append(["kernels started", *(f"{row['kernels_a_round']:,}" for row in columns)])
    rows.append(["cores at work", *(f"{row['cores_at_work']:.1f}" for row in columns)])
    names = (NAMES[row["network"]] for row in columns)
    return _table(("part of a round, of the kernels' time", *names), rows)


def compiling(results):
    """The first masks of deep networks, and memory."""
    rows = [
        [
            NAMES[row["network"]],
            f"{row['weights'] / 1e6:.3g} million",
            f"{row['first_s']:.1f} s",
            f"{row['compile_s']:.1f} s",
            f"{row['round_s']:.2f} s",
            f"{row['peak_gb']:.2f} GB",
        ]
        for row in results["compiling"]
    ]
    head = (
        "network",
        "weights",
        "the first time",
        "of it compiling",
        "again",
        "peak of the process",
    )
    return _table(head, rows)


def scores(results):
    """One score beside the plain way to compute it."""
    rows = [
        [
            row["network"],
            _million(row["weights"]),
            f"{row['score_ms']:.4g} ({row['abs_and_grad_ms']:.4g})",
            f"{row['speedup']:.2f}",
            f"{row['compile_ratio']:.2f}",
            "{:.3g} ({:.3g})".format(
                row["temp_bytes"] / 1e6, row["abs_and_grad_temp_bytes"] / 1e6
            ),
        ]
        for row in results["score"]
    ]
    head = (
        "network",
        "weights",
        "one score",
        "times faster",
        "compiling, times as long",
        "temporary MB",
    )
    return _table(head, rows)


def scores_in_loops(results):
    """The same in the body of a loop."""
    rows = [
        [
            row["network"],
            f"{row['score_ms']:.4g} ({row['abs_and_grad_ms']:.4g})",
            f"{row['speedup']:.1f}",
        ]
        for row in results["score_in_loop"]
    ]
    return _table(("network", "one score in a loop", "times faster"), rows)


def resolutions(results):
    """One score against the pixels along an axis."""

    def cells(row, form, *keys, unit=1.0):
        return ["—" if key not in row else form.format(row[key] / unit) for key in keys]

    rows = [
        [
            NAMES[row["network"]],
            str(row["pixels"]),
            *cells(row, "{:,.0f}", "once_ms", "whole_ms", "pytorch_ms"),
            *cells(row, "{:,.0f}", "once_temp_bytes", "whole_temp_bytes", unit=MB),
            *cells(row, "{:.1f}", "once_compile_s", "whole_compile_s"),
        ]
        for row in results["resolution"]
    ]
    head = (
        "network",
        "pixels",
        "ms once",
        "all",
        "PyTorch",
        "MB once",
        "all",
        "compiling, s, once",
        "all",
    )
    return _table(head, rows)


def selections(results):
    """One selection beside others, which do less."""
    others = ("keep_top", "numpy_partition", "top_k", "sort")

    def cell(row, name):
        found = row.get(f"{name}_ms")
        return "—" if found is None else f"{found:.2f}"

    rows = [
        [f"{row['scores']:,}", str(row["leaves"]), *(cell(row, name) for name in others)]
        for row in results["selection"]
    ]
    head = (
        "scores",
        "leaves",
        "keep_top",
        "numpy.partition",
        "lax.top_k",
        "stable sort",
    )
    return _table(head, rows).replace("|---|", "|---:|", 1)  # the first are numbers too


def scaling(results):
    """A round against weights, rounds and batches."""
    rows = [
        [row["axis"], f"{row['value']:,}", f"{row['ms']:.4g}", f"{row['times_one']:.2f}"]
        for row in results["scaling"]
    ]
    last = "relative to the first row, or to pruning without a batch"
    return _table(("axis", "value", "ms", last), rows)


PAGES = {
    "README.md": [waited],
    "docs/speed.md": [
        processes,
        parts,
        compiling,
        loops,
        kernels,
        scores,
        scores_in_loops,
        resolutions,
        selections,
        scaling,
    ],
}


def replaced(text, table):
    """The page with a table in the place of the one that begins alike."""
    head = table.splitlines()[0]
    lines = text.splitlines()
    if lines.count(head) != 1:
        raise ValueError(f"{lines.count(head)} tables begin with {head!r}; wanted one.")
    start = stop = lines.index(head)
    while stop < len(lines) and lines[stop].startswith("|"):
        stop += 1
    return "\n".join([*lines[:start], *table.splitlines(), *lines[stop:]]) + "\n"


def write(results, root=pathlib.Path()):
    """Writes every table of every page, or nothing."""
    texts = {page: (root / page).read_text() for page in PAGES}
    for page, tables in PAGES.items():
        for table in tables:
            texts[page] = replaced(texts[page], table(results))
    for page, text in texts.items():
        (root / page).write_text(text)


def _table(head, rows):
    return markdown(Table("", head, rows))


def _million(weights):
    return f"{weights / 1e6:.2f} million"


def _short(seconds):
    return f"{seconds:.{max(0, 2 - len(str(int(seconds))) + (seconds < 1))}f}"


if __name__ == "__main__":
    write(read())

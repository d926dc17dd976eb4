"""All benchmarks in 15 to 25 minutes: results/bench.json, docs/bench.png and the tables of
README.md and docs/speed.md.

    python -m benchmarks --before COMMIT   # needs the extras `bench` and `plots`
    python -m benchmarks --against COMMIT  # ratios between two commits, by network
    python -m benchmarks --quick           # seconds, no whole processes; writes nothing

Each part by itself, and more: benchmarks.whole, .selection, .flow, .loop, .scaling,
.depth, .kernels, .compiling.
"""

import argparse
import importlib.util
import json
import pathlib
import tempfile
import time

from benchmarks import (
    against,
    figure,
    flow,
    loop,
    measuring,
    pages,
    scaling,
    selection,
    whole,
)

RESULTS, FIGURE = pathlib.Path("results/bench.json"), pathlib.Path("docs/bench.png")

SCORED = ("mlp", "conv", "resnet20", "resnet18", "vgg16_cifar")


def full(before=None):
    """Every part, at the sizes of real networks."""
    yield "whole", [whole.measured(name, before=before) for name in whole.NAMES]
    rates = loop.machine()
    yield "loop", [loop.measured(name, rates, turns=2) for name in loop.NAMES]
    yield (
        "selection",
        [
            *(selection.measured([(int(size),)]) for size in selection.SIZES),
            selection.measured(selection.vgg16_shapes()),
        ],
    )
    yield "score", [flow.measured(name, 1.0, 1) for name in SCORED]
    yield "score_in_loop", [flow.measured(name, 1.0, 1, loop=True) for name in SCORED]
    yield "scaling", scaling.by_weights() + scaling.by_rounds() + scaling.by_batch()


def quick():
    """Every part, at sizes that take seconds; PyTorch where it is installed."""
    pytorch = importlib.util.find_spec("torch") is not None
    yield "selection", [selection.measured([(5000,)], seconds=0)]
    yield "score", [flow.measured("mlp", 0.0, 1)]
    yield "score_in_loop", [flow.measured("mlp", 0.0, 1, loop=True)]
    rates = loop.machine(2**20, 256)
    rows = [loop.measured("mlp", rates, rounds=2, turns=1, pytorch=pytorch)]
    yield "loop", rows
    yield (
        "scaling",
        [
            *scaling.by_weights(widths=(0.2, 0.4), least=2),
            *scaling.by_rounds(rounds=(1, 2), least=2),
            *scaling.by_batch(seeds=(2,), densities=2, rounds=2, least=2),
        ],
    )


TABLES = {
    "whole": whole.table,
    "selection": selection.table,
    "score": lambda rows: flow.table(rows, loop=False),
    "score_in_loop": lambda rows: flow.table(rows, loop=True),
    "loop": loop.table,
    "scaling": scaling.table,
}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test, in seconds")
    parser.add_argument("--before", metavar="COMMIT", help="a column of the first table")
    parser.add_argument("--against", metavar="COMMIT", help="only compare with a commit")
    parser.add_argument(
        "--out", type=pathlib.Path, help="with --against: JSON lines are added to it"
    )
    parser.add_argument(
        "--turns", type=int, default=3, help="processes of each commit, with --against"
    )
    parser.add_argument("names", nargs="*", help="networks to compare with a commit")
    args = parser.parse_args(argv)
    console, start = measuring.console(), time.perf_counter()
    if args.against:
        against.run(args.against, args.names, console, args.out, turns=args.turns)
        return
    if not args.quick and importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not installed: pip install -e '.[bench,plots]'.")
    results = measuring.described()
    if args.before:
        results["before"] = args.before
    console.print(", ".join(f"{key} {value}" for key, value in results.items()))
    with tempfile.TemporaryDirectory() as temporary:
        tree = pathlib.Path(temporary, "tree")
        before = whole.tree_of(args.before, tree) if args.before else None
        for part, rows in quick() if args.quick else full(before):
            results[part] = rows
            console.print(TABLES[part](rows))
    results["seconds"] = round(time.perf_counter() - start)
    if not args.quick:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        shown = pages.read(RESULTS.parent)
        figure.draw(shown, FIGURE)
        pages.write(shown)
        written = ", ".join(map(str, (RESULTS, FIGURE, *pages.PAGES)))
        console.print(f"wrote {written} after {results['seconds']} s")


if __name__ == "__main__":
    main()

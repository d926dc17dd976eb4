"""All benchmarks in under ten minutes: tables, results/bench.json and docs/bench.png.

    python -m benchmarks             # needs the extras `bench` and `plots`
    python -m benchmarks --quick     # seconds; a smoke test that writes nothing

Each part by itself, and more of it: benchmarks.selection, .flow, .loop, .scaling, .depth.
"""

import argparse
import importlib.util
import json
import pathlib
import time

from benchmarks import figure, flow, loop, measuring, scaling, selection

RESULTS, FIGURE = pathlib.Path("results/bench.json"), pathlib.Path("docs/bench.png")

SCORED = ("mlp", "conv", "resnet20", "resnet18", "resnet50", "vgg16_cifar")
LOOPED = ("mlp", "resnet20", "vgg16_cifar")


def full():
    """Every part, at the sizes of real networks."""
    rates = loop.machine()
    yield (
        "selection",
        [
            *(selection.measured([(int(size),)]) for size in selection.SIZES),
            selection.measured(selection.vgg16_shapes()),
        ],
    )
    yield "score", [flow.measured(name, 3.0, 1) for name in SCORED]
    yield "score_in_loop", [flow.measured(name, 3.0, 1, loop=True) for name in LOOPED]
    rows = [loop.measured(name, rates, turns=2) for name in loop.NAMES]
    # A hundred rounds of this one take PyTorch minutes; benchmarks.loop runs them.
    rows.append(loop.measured("vgg19_imagenet", rates, rounds=3, turns=1))
    yield "loop", rows
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
    args = parser.parse_args(argv)
    if not args.quick and importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not installed: pip install -e '.[bench,plots]'.")
    console, start = measuring.console(), time.perf_counter()
    results = measuring.described()
    console.print(", ".join(f"{key} {value}" for key, value in results.items()))
    for part, rows in quick() if args.quick else full():
        results[part] = rows
        console.print(TABLES[part](rows))
    results["seconds"] = round(time.perf_counter() - start)
    if not args.quick:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        shown = figure.read(RESULTS.parent)
        figure.draw(shown, FIGURE)
        console.print(f"wrote {RESULTS} and {FIGURE} after {results['seconds']} s")
        console.print("README.md shows this table (a test compares them):")
        print(figure.markdown(shown))


if __name__ == "__main__":
    main()

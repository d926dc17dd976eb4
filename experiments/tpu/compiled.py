"""Compiles pruning for TPUs that are not there, and says what the programs need.

  make tpu-check                                  in an environment of its own
  python -m experiments.tpu.compiled [NAME ...]   with libtpu (pip install "jax[tpu]")

libtpu compiles for any TPU on any x86-64 Linux machine. For each program: the memory on
each chip, floating operations, what chips exchange, and in what precision it multiplies.
It fails if a program does not compile, if its temporaries are larger than three copies of
a chip's weights and the stated activations, if a selection exchanges more than counts, or
if a product of the flow is not of the highest precision. The programs for CUDA are lowered,
and checked for what their text shows.
"""

import argparse
import json
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

# What libtpu would ask the machine's environment for, if it were a TPU's.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_WORKER_ID", "0")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from jaxtyping import PyTree

import synflow_jax as sj
from experiments.tpu import programs
from experiments.tpu.programs import PROGRAMS, Program

RESULTS, PAGE = pathlib.Path("results/tpu.json"), pathlib.Path("docs/tpu.md")

# Copies of a chip's weights that a program may need besides its arguments, and bytes that a
# selection may exchange at a time: a few counts.
COPIES, COUNTS = 3.0, 1024


# --- what a program shows -----------------------------------------------------------------

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8, "u64": 8}
_EXCHANGE = re.compile(
    r" = (\(?[a-z0-9]+\[.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|"
    r"collective-permute)(?:-start)?\("
)


def exchanges(text: str) -> Iterator[tuple[str, int, bool]]:
    """What a compiled program's chips exchange: kind, bytes on each, whether to select."""
    for line in text.splitlines():
        if found := _EXCHANGE.search(line):
            arrays = re.findall(r"([a-z]+[0-9]*)\[([0-9,]*)\]", found[1])
            sizes = [
                _BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(",") if n)
                for dtype, shape in arrays
            ]
            yield found[2], sum(sizes), "_selected" in line


def products(text: str) -> tuple[int, int]:
    """How many products a lowered program has, and how many of the highest precision."""
    lines = [
        line
        for line in text.splitlines()
        if "stablehlo.dot_general" in line or "stablehlo.convolution" in line
    ]
    highest = [line for line in lines if line.count("HIGHEST") == 2]
    return len(lines), len(highest)


def on_each(tree: PyTree) -> int:
    """Bytes of the shapes on one device."""

    def size(x):
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        return math.prod(shape) * x.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def measured(program: Program) -> dict[str, Any]:
    """A row of the table; ``wrong`` lists why the program fails."""
    devices = topologies.get_topology_desc(program.topology, platform="tpu").devices
    axes = ("data", "model")
    grid = np.array(devices).reshape(program.axes)
    mesh = Mesh(grid, axes, axis_types=(AxisType.Auto,) * 2)
    began = time.perf_counter()
    lowered, params, activations = program.lower(mesh)
    lowering = time.perf_counter() - began
    began = time.perf_counter()
    compiled = lowered.compile()
    compiling = time.perf_counter() - began
    memory, found = compiled.memory_analysis(), [*exchanges(compiled.as_text())]
    weights, temporaries = on_each(params), memory.temp_size_in_bytes
    count, highest = products(lowered.as_text())
    selecting = max((size for _, size, selects in found if selects), default=0)
    wrong = []
    if temporaries > COPIES * weights + activations:
        wrong.append("temporaries")
    if selecting > COUNTS:
        wrong.append("selection")
    if program.of_flow and highest < count:
        wrong.append("precision")
    return {
        "program": program.name,
        "topology": program.topology,
        "chips": mesh.size,
        "weights": weights,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": temporaries,
        "copies": round(temporaries / weights, 2),
        "activations": activations,
        "flops": compiled.cost_analysis().get("flops"),
        "exchanged": {
            kind: [len(sizes), sum(sizes)]
            for kind in sorted({kind for kind, *_ in found})
            for sizes in [[size for k, size, _ in found if k == kind]]
        },
        "largest_to_select": selecting,
        "products": count,
        "highest_precision": highest,
        "lower_s": round(lowering, 1),
        "compile_s": round(compiling, 1),
        "wrong": wrong,
    }


def for_cuda(name: str) -> dict[str, Any]:
    """The program of a network of images that is lowered for CUDA, on one device."""
    apply_fn, shapes, shape = programs.network_of(name)
    score = sj.synflow(apply_fn, shape)
    text = sj.lower_prune(score, shapes, 0.01, platform="cuda").as_text()
    here = sj.lower_prune(score, shapes, 0.01, platform="cpu").as_text()
    count, highest = products(text)
    wrong = ["precision"] if highest < count else []
    if "xi8>" in text:
        wrong.append("counts of a CPU")
    return {
        "program": f"{name}, prune",
        "platform": "cuda",
        "bytes": len(text),
        "bytes_for_a_cpu": len(here),
        "convolutions": text.count("stablehlo.convolution"),
        "products": count,
        "highest_precision": highest,
        "wrong": wrong,
    }


# --- the table ----------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""

    def mb(size):
        return f"{size / 1e6:,.1f}"

    lines = [
        "| program | chips | weights | temporaries | copies | Tflop | exchanged | time |",
        "|---|---|---:|---:|---:|---:|---|---:|",
    ]
    for row in rows:
        exchanged = ", ".join(
            f"{number} {kind} {mb(size)}"
            for kind, (number, size) in row["exchanged"].items()
        )
        cells = (
            row["program"],
            f"{row['chips']} ({row['topology']})",
            mb(row["weights"]),
            mb(row["temporaries"]),
            f"{row['copies']:.2f}",
            f"{(row['flops'] or 0) / 1e12:.3g}",
            exchanged or "nothing",
            f"{row['compile_s']:.0f} s",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(argv: list[str] | None = None) -> None:
    """Compiles the programs and writes the file and, if it compiled all, the page's table.

    Raises:
      SystemExit: if a program fails, with the reasons.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments.tpu.compiled")
    known = [program.name for program in PROGRAMS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(known):
        parser.error(f"there is no program {', '.join(sorted(unknown))}")
    rows, failed = [], []
    for program in PROGRAMS:
        if options.names and program.name not in options.names:
            continue
        try:
            rows.append(measured(program))
        except Exception as error:
            failed.append(f"{program.name}: {type(error).__name__}: {error}"[:500])
            continue
        print(json.dumps(rows[-1]), flush=True)
    cuda = [] if options.names else [*map(for_cuda, ("vgg16_cifar", "resnet50_imagenet"))]
    for row in [*rows, *cuda]:
        failed += [f"{row['program']}: {why}" for why in row["wrong"]]
    if not options.names:
        found = {"jax": jax.__version__, "tpu": rows, "cuda": cuda, "failed": failed}
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        _put_into(PAGE, table(rows))
    if failed:
        sys.exit("\n".join(failed))


def _put_into(page: pathlib.Path, lines: list[str]) -> None:
    """Replaces the first table of a page whose header begins as the new one's does."""
    text = page.read_text().splitlines()
    start = next(i for i, line in enumerate(text) if line.startswith(lines[0][:12]))
    stop = next(i for i in range(start, len(text)) if not text[i].startswith("|"))
    page.write_text("\n".join([*text[:start], *lines, *text[stop:]]) + "\n")


if __name__ == "__main__":
    main()

"""Where the time of a round goes, kernel by kernel: shares of the parts of the algorithm.

    python -m benchmarks.kernels                     # the networks of `benchmarks.loop`
    python -m benchmarks.kernels vgg16_cifar --out results/kernels_cpu.jsonl

A hundred rounds to 10^2 run under `jax.profiler`. Each kernel's own time, without that of
kernels it calls, goes to the part of the program that the compiled text says it is from.
"""

import argparse
import collections
import gzip
import json
import pathlib
import re
import tempfile
import time

import jax
from rich.table import Table

import synflow_jax as sj
from benchmarks import loop, measuring
from synflow_jax import models

# A kernel with a product is of the first part, whatever is fused with it, and one with
# operations of both the score and the selection of the second. The others, in the order of
# a round, are told by the name of the operation that they end with.
PRODUCT = re.compile(r"\b(dot|convolution|custom-call)\(")
PARTS = {
    "keys": r"jit\(_masked\)",
    "rest_of_score": r"jvp\(",
    "counting": r"jit\(_selected\).*/while/",
    "rest_of_selection": r"jit\(_selected\)",
    "others": r"",
}
SHARES = ("products", *PARTS)
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
OPERATION = re.compile(r'op_name="([^"]*)"')


def parts_of(text):
    """``{name of an instruction: its part}`` of a compiled program's text. An instruction
    that the compiler added without a name is of the part of the first that reads it."""
    lines, computations, readers, inside = {}, collections.defaultdict(list), {}, None
    for line in text.splitlines():
        if found := COMPUTATION.match(line):
            inside = found[1]
        elif found := INSTRUCTION.match(line):
            name, line = found.groups()
            lines[name] = line
            computations[inside].append(line)
            for operand in re.findall(r"%([\w.\-]+)", line):
                readers.setdefault(operand, name)

    def part(name):
        fused = re.search(r"fusion\(.*calls=%([\w.\-]+)", lines[name])
        inner = computations[fused[1]] if fused else ()
        if any(PRODUCT.search(line) for line in (lines[name], *inner)):
            return "products"
        if all(any(of in line for line in inner) for of in ("jvp(", "jit(_selected)")):
            return "keys"
        while not (found := OPERATION.search(lines[name])) and name in readers:
            name = readers[name]
        operation = found[1] if found else ""
        return next(part for part in PARTS if re.search(PARTS[part], operation))

    return {name: part(name) for name in lines}


def own_times(events):
    """``(microseconds, starts)`` of each name on the threads of the runtime: its events'
    time without that of the events within them."""
    threads = collections.defaultdict(list)
    python = {
        event["tid"]
        for event in events
        if event.get("name") == "thread_name" and event["args"]["name"] == "python"
    }
    for event in events:
        if event.get("ph") == "X" and event["tid"] not in python:
            threads[event["tid"]].append(event)
    own, starts = collections.Counter(), collections.Counter()
    for found in threads.values():
        running = []  # each within the one before
        for event in sorted(found, key=lambda event: (event["ts"], -event["dur"])):
            while running and event["ts"] >= running[-1]["ts"] + running[-1]["dur"]:
                running.pop()
            if running:
                own[running[-1]["name"]] -= event["dur"]
            own[event["name"]] += event["dur"]
            starts[event["name"]] += 1
            running.append(event)
    return own, starts


def measured(name, rounds=100):
    """The row of one network."""
    apply_fn, params, input_shape = models.build(name, jax.random.key(0))
    score = sj.synflow(apply_fn, input_shape)
    options = {"rounds": rounds, "keep_connected": False}
    density = loop.DENSITY ** (rounds / 100)
    parts = parts_of(sj.lower_prune(score, params, density, **options).compile().as_text())

    def pruned():
        return jax.block_until_ready(sj.prune(score, params, density, **options))

    pruned()
    start = time.perf_counter(), time.process_time()
    pruned()
    clock, processor = time.perf_counter() - start[0], time.process_time() - start[1]
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            pruned()
        (path,) = pathlib.Path(folder).rglob("*.trace.json.gz")
        trace = json.loads(gzip.decompress(path.read_bytes()))
    own, starts = own_times(trace["traceEvents"])
    kernels = own.keys() & parts.keys()
    total = sum(own[kernel] for kernel in kernels)
    shares = collections.Counter()
    for kernel in kernels:
        shares[parts[kernel]] += own[kernel] / total
    return {
        "network": name,
        "rounds": rounds,
        **{part: round(shares[part], 3) for part in SHARES},
        "kernels_a_round": sum(starts[kernel] for kernel in kernels) // rounds,
        "cores_at_work": round(processor / clock, 2),
    }


def table(rows):
    shown = Table(title="Shares of the kernels' time")
    columns = [key for key in rows[0] if key != "rounds"]
    for column in columns:
        justify = "left" if column == "network" else "right"
        shown.add_column(column.replace("_", " "), justify=justify)
    for row in rows:
        cells = (f"{row[key]:.0%}" if key in SHARES else str(row[key]) for key in columns)
        shown.add_row(*cells)
    return shown


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=loop.NAMES, help="networks")
    parser.add_argument("--rounds", type=int, default=100, help="the first of 100")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines are added to it")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in models.NETWORKS]
    if unknown:
        parser.error(f"no network {', '.join(unknown)}.")
    console, facts, rows = measuring.console(), measuring.described(), []
    for name in args.names:
        rows.append(measured(name, args.rounds))
        measuring.report(console, args.out, rows[-1], facts)
    console.print(table(rows))


if __name__ == "__main__":
    main()

"""The first masks of deep networks: seconds of `prune` that are not rounds, and memory.

    python -m benchmarks.compiling                      # all but the network of 1202 layers
    python -m benchmarks.compiling resnet1202           # minutes
    python -m benchmarks.compiling resnet110 --out results/compiling_cpu.jsonl

Each network in a process of its own that has imported everything and initialised the
network. ``decoder`` is a transformer of 12 layers and 100 million weights, its layers in
one `lax.scan` or one after the other.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
from jax import lax
from rich.table import Table

import synflow_jax as sj
from benchmarks import measuring
from synflow_jax import models

LAYERS, WIDTH, HEADS, TOKENS, VOCABULARY = 12, 768, 12, 64, 20_000


def decoder(scanned):
    """``(apply_fn, params, input_shape)`` of a causal transformer before its layer
    norms."""
    shapes = {
        "qkv": {"kernel": (WIDTH, 3, HEADS, WIDTH // HEADS)},
        "out": {"kernel": (HEADS, WIDTH // HEADS, WIDTH)},
        "up": {"kernel": (WIDTH, 4 * WIDTH)},
        "down": {"kernel": (4 * WIDTH, WIDTH)},
    }
    keys = iter(jax.random.split(jax.random.key(0), 1 + 4 * LAYERS))

    def kernel(shape, layers=()):
        return 0.02 * jax.random.normal(next(keys), (*layers, *shape))

    def block():
        return jax.tree.map(kernel, shapes, is_leaf=lambda x: isinstance(x, tuple))

    blocks = [block() for _ in range(LAYERS)]
    if scanned:
        blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    params = {"embedding": {"kernel": kernel((VOCABULARY, WIDTH))}, "blocks": blocks}
    mask = jnp.tril(jnp.ones((TOKENS, TOKENS), bool))

    def normed(x):
        centred = x - x.mean(-1, keepdims=True)
        return centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    def layer(x, p):
        q, k, v = jnp.einsum("td,dche->cthe", normed(x), p["qkv"]["kernel"])
        logits = jnp.einsum("the,she->hts", q, k) / (WIDTH // HEADS) ** 0.5
        weights = jax.nn.softmax(jnp.where(mask[None], logits, -jnp.inf))
        heads = jnp.einsum("hts,she->the", weights, v)
        x = x + jnp.einsum("the,hed->td", heads, p["out"]["kernel"])
        hidden = jax.nn.gelu(normed(x) @ p["up"]["kernel"])
        return x + hidden @ p["down"]["kernel"], None

    def apply_fn(params, tokens):
        table = params["embedding"]["kernel"]
        x = table[tokens]
        if scanned:
            x, _ = lax.scan(layer, x, params["blocks"])
        else:
            for p in params["blocks"]:
                x, _ = layer(x, p)
        return normed(x) @ table.T

    return apply_fn, params, jax.ShapeDtypeStruct((TOKENS,), jnp.int32)


# The parts of the first call that JAX reports. The rest is tracing, and one round.
EVENTS = {
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower_s",
    "/jax/core/compile/backend_compile_duration": "compile_s",
}
NAMES = ("resnet20", "resnet110", "decoder-scanned", "decoder-unrolled")


def network(name):
    if name.startswith("decoder"):
        return decoder(scanned=name == "decoder-scanned")
    return models.build(name, jax.random.key(0))


def measured(name):
    """The row of one network, measured in this process."""
    seconds = {"lower_s": 0.0, "compile_s": 0.0}

    def listen(event, duration, **_):
        if event in EVENTS:
            seconds[EVENTS[event]] += duration

    apply_fn, params, input_shape = network(name)
    jax.block_until_ready(params)
    jax.monitoring.register_event_duration_secs_listener(listen)
    start = time.perf_counter()
    score = sj.synflow(apply_fn, input_shape)
    jax.block_until_ready(sj.prune(score, params, 0.5, rounds=1))
    first = time.perf_counter() - start
    start = time.perf_counter()
    jax.block_until_ready(sj.prune(score, params, 0.5, rounds=1))
    again = time.perf_counter() - start
    return {
        "network": name,
        "weights": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "first_s": round(first, 1),
        **{key: round(value, 1) for key, value in seconds.items()},
        "round_s": round(again, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def table(rows):
    shown = Table(title="One round of `prune`, the first time and again")
    for column in rows[0]:
        shown.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        shown.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()))
    return shown


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, help="networks")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines are added to it")
    parser.add_argument("--here", action="store_true", help="one network, in this process")
    args = parser.parse_args(argv)
    unknown = [n for n in args.names if n not in (*NAMES, *models.NETWORKS)]
    if unknown:
        parser.error(
            f"no {', '.join(unknown)} here; there are {', '.join(NAMES)} and more."
        )
    if args.here:
        print(json.dumps(measured(args.names[0])))
        return
    console, facts, rows = measuring.console(), measuring.described(), []
    for name in args.names:
        command = [sys.executable, "-m", "benchmarks.compiling", name, "--here"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        measuring.report(console, args.out, rows[-1], facts)
    console.print(table(rows))


if __name__ == "__main__":
    main()

"""Prints the times of one network's rounds and of one score, of whichever `synflow_jax` is
imported.

A script of `benchmarks.against`, which runs it with the files of two commits. It uses
only what both have.
"""

import json
import pathlib
import re
import statistics
import sys
import time

import jax
import jax.numpy as jnp

import synflow_jax as sj
from synflow_jax import models

sys.path.append(str(pathlib.Path(__file__).parent))
import unets  # noqa: E402

jax.config.update("jax_enable_compilation_cache", False)


def network(name):
    """``(apply_fn, params, input_shape)`` of a network of the package, or of a U-Net by its
    levels and pixels, such as ``unet4@512``."""
    if found := re.fullmatch(r"unet(\d+)@(\d+)", name):
        levels, pixels = map(int, found.groups())
        return *unets.unet(levels, 2), (pixels, pixels, 3)
    return models.build(name, jax.random.key(0))


def main(name, rounds, turns):
    apply_fn, params, input_shape = network(name)
    score = sj.synflow(apply_fn, input_shape)

    def seconds_of(function):
        """By the clock, and of the processor's cores."""
        start = time.perf_counter(), time.process_time()
        jax.block_until_ready(function())
        return time.perf_counter() - start[0], time.process_time() - start[1]

    def pruned():
        options = {"rounds": rounds, "prunable": lambda path, leaf: leaf.ndim > 1}
        return sj.prune(score, params, 0.5, **options)

    first, first_cpu = seconds_of(pruned)
    times = [seconds_of(pruned) for _ in range(turns)]
    again, again_cpu = (statistics.median(column) for column in zip(*times))
    masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    program = jax.jit(score).lower(params, masks).compile()
    _, *others = (seconds_of(lambda: program(params, masks)) for _ in range(turns + 3))
    # The first of all fetches its memory.
    scored = statistics.median(seconds for seconds, _ in others)
    row = {
        "first_s": first,
        "compiling_s": first - again,
        "compiling_cpu_s": first_cpu - again_cpu,
        "round_ms": 1e3 * again / rounds,
        "score_ms": 1e3 * scored,
        "score_mb": program.memory_analysis().temp_size_in_bytes / 2**20,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

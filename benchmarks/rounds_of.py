"""Prints the times of one network's rounds, of whichever `synflow_jax` is imported.

A script of `benchmarks.against`, which runs it with the files of two commits. It uses
only what both have.
"""

import json
import statistics
import sys
import time

import jax

import synflow_jax as sj
from synflow_jax import models

jax.config.update("jax_enable_compilation_cache", False)


def main(name, rounds, turns):
    apply_fn, params, input_shape = models.build(name, jax.random.key(0))
    score = sj.synflow(apply_fn, input_shape)

    def pruned():
        start = time.perf_counter()
        jax.block_until_ready(sj.prune(score, params, 0.5, rounds=rounds))
        return time.perf_counter() - start

    first = pruned()
    seconds = [pruned() for _ in range(turns)]
    round_ms = 1e3 * statistics.median(seconds) / rounds
    print(json.dumps({"first_s": first, "round_ms": round_ms}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

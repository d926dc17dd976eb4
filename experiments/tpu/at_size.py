"""Prunes a decoder of real size with random weights, here, on one device or on several.

  python -m experiments.tpu.at_size 100M --rounds 10
  python -m experiments.tpu.at_size 100M --rounds 10 --host-devices 8

Prints one line of JSON: weights kept in each round, seconds, and the peak of memory. With
``--host-devices`` the machine's processor counts as several devices.
"""

import argparse
import hashlib
import json
import os
import resource
import sys
import time


def main(argv: list[str] | None = None) -> None:
    """Prunes as the command line asks."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tpu.at_size")
    parser.add_argument("name", help="of experiments.tpu.decoders.DECODERS")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--length", type=int, default=128, help="tokens")
    parser.add_argument("--host-devices", type=int, default=None)
    options = parser.parse_args(argv)
    if options.host_devices is not None:
        flag = f"--xla_force_host_platform_device_count={options.host_devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    json.dump(_pruned(options), sys.stdout)
    print()


def _pruned(options: argparse.Namespace) -> dict:
    # JAX reads its flags when it is imported.
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType

    import synflow_jax as sj
    from experiments.tpu import decoders

    decoder, devices = decoders.DECODERS[options.name], jax.devices()
    mesh = None
    if len(devices) > 1:
        axes = (2, len(devices) // 2), ("data", "model")
        mesh = jax.make_mesh(*axes, axis_types=(AxisType.Auto,) * 2)
    params = decoders.initialised(decoders.shapes(decoder, mesh))
    tokens = jax.ShapeDtypeStruct((1, options.length), jnp.int32)
    score = sj.synflow(decoder, tokens)
    seconds = []
    for _ in range(2):  # the first compiles
        began = time.perf_counter()
        settings = {"rounds": options.rounds}
        masks, info = jax.block_until_ready(
            sj.prune(score, params, options.density, **settings)
        )
        seconds.append(round(time.perf_counter() - began, 2))
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(masks)
    }
    bits = hashlib.sha256()
    for leaf in leaves.values():
        bits.update(np.packbits(np.asarray(leaf)).tobytes())
    return {
        "decoder": options.name,
        "weights": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "devices": len(devices),
        "device": devices[0].device_kind,
        "kept": np.asarray(info.kept).tolist(),
        "kept_in_leaves": {n: int(np.count_nonzero(m)) for n, m in leaves.items()},
        "masks": bits.hexdigest()[:16],
        "seconds_first": seconds[0],
        "seconds_a_round": round(seconds[1] / options.rounds, 3),
        "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    main()

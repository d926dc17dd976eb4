"""Prunes a network by SynFlow on all devices of all processes, and writes its masks.

  python -m experiments.tpu.prune vgg16_cifar --density 0.01 --out results/pruned
  python -m experiments.tpu.launch experiments.tpu.prune ...    as one of several processes

Each leaf is divided over the devices along its longest axis that they share evenly, and its
mask with it; scores are never gathered. The weights are made on the devices, each of which
makes its part. Process 0 writes the masks (`synflow_jax.load_masks` reads them) and a line
of JSON that says what was measured.
"""

import argparse
import functools
import json
import pathlib
import time

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

import synflow_jax as sj
from synflow_jax import models
from synflow_jax.trees import leaf_names


def divided(shapes: PyTree, mesh: Mesh) -> PyTree:
    """How each leaf is divided over a mesh of one axis.

    Args:
      shapes: arrays or their descriptions.
      mesh: with the axis "devices".

    Returns:
      A sharding for each leaf.
    """

    def sharding(leaf):
        even = [n if n % mesh.size == 0 else 0 for n in leaf.shape]
        longest = int(np.argmax(even)) if any(even) else None
        axes = ["devices" if axis == longest else None for axis in range(leaf.ndim)]
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(sharding, shapes)


def main(argv: list[str] | None = None) -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tpu.prune")
    parser.add_argument("network", choices=sorted(models.NETWORKS), metavar="NETWORK")
    parser.add_argument("--density", type=float, default=0.01, help="of what is kept")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--out", type=pathlib.Path, help="the folder of what is written")
    parser.add_argument(
        "--dry-run", action="store_true", help="say how it is divided, and prune nothing"
    )
    options = parser.parse_args(argv)

    network = models.NETWORKS[options.network]
    module = network.make(num_classes=network.num_classes)
    shape = network.input_shape

    def initial(key):
        return module.lazy_init(key, jax.ShapeDtypeStruct((1, *shape), "float32"))

    mesh = jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(AxisType.Auto,))
    key = jax.random.key(options.seed)
    shapes = jax.eval_shape(initial, key)
    shardings = divided(shapes, mesh)
    counts = sj.counts_per_round(shapes["params"], options.density, options.rounds)
    if options.dry_run:
        leaves = zip(*map(jax.tree.leaves, (shapes["params"], shardings["params"])))
        for name, (leaf, sharding) in zip(leaf_names(shapes["params"]), leaves):
            print(f"{name} {list(leaf.shape)} {sharding.spec}")
        print(f"{len(counts)} rounds over {mesh.size} devices leave {counts[-1]} weights")
        return
    apply_fn, params = sj.from_linen(module, jax.jit(initial, out_shardings=shardings)(key))
    score = sj.synflow(apply_fn, shape)
    run = functools.partial(sj.prune, score, params, options.density, rounds=options.rounds)
    seconds = []
    for _ in range(2):  # the first call compiles
        began = time.perf_counter()
        masks, info = jax.block_until_ready(run())
        seconds.append(round(time.perf_counter() - began, 3))
    line = {
        "network": options.network,
        "density": options.density,
        "rounds": options.rounds,
        "kept": int(info.kept[-1]),
        "certified_rounds": int(info.certified.sum()),
        "empty": sj.collapsed(params, masks),
        "seconds": seconds[1],
        "seconds_with_compilation": seconds[0],
        "devices": mesh.size,
        "processes": jax.process_count(),
        "kind": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        sj.save_masks(options.out / f"{options.network}.masks", masks)
        if jax.process_index() == 0:
            path = options.out / f"{options.network}.json"
            path.write_text(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()

"""What several processes do together, started by `test_processes.py`.

python -m tests.devices.processes JOB FOLDER ADDRESS COUNT INDEX
"""

import json
import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import synflow_jax as sj
from synflow_jax.trees import leaf_names
from tests.devices import layouts

LAYOUT = layouts.LAYOUTS["fsdp"]
DENSITY, ROUNDS, STEPS = 0.2, 3, 4


def network():
    return layouts.network_of("mlp", LAYOUT, None)


def batches():
    """Two batches of eight examples, inputs and targets."""
    x = layouts.powers_of_two(1, (2, 8, layouts.WIDTH))
    return x / 8, layouts.powers_of_two(2, (2, 8, 4))


def loss(params, batch):
    x, y = batch
    apply_fn, _ = network()
    return jnp.mean((apply_fn(params, x) / 64 - y) ** 2)


def optimizer(masks):
    return sj.static_pruning(optax.sgd(1e-3, momentum=0.9), masks)


@jax.jit
def step(params, state, batch):
    masks = sj.masks_of(state)
    grads = jax.grad(loss)(params, batch)
    updates, state = optimizer(masks).update(grads, state, params)
    return optax.apply_updates(params, updates), state


def train(params, masks, data, steps=STEPS):
    params = sj.apply_masks(params, masks)
    state = optimizer(masks).init(params)
    for number in range(steps):
        params, state = step(
            params, state, jax.tree.map(lambda x, i=number % 2: x[i], data)
        )
    return params, state


def on_mesh(mesh):
    """The parameters and the batches, of which each process makes its part."""

    def put(x, spec):
        x = np.asarray(x)
        return jax.make_array_from_callback(
            x.shape, NamedSharding(mesh, spec), lambda index: x[index]
        )

    places = layouts.mlp_places(LAYOUT)
    params = jax.tree.map(put, layouts.params_of("mlp"), places)
    return params, jax.tree.map(lambda x: put(x, P(None, ("d", "t"))), batches())


# --- the jobs -----------------------------------------------------------------------------


def everything(folder: pathlib.Path):
    """Prunes, saves, looks at the masks, and trains under them; writes what comes out."""
    params, data = on_mesh(layouts.mesh_of(AxisType.Auto))
    apply_fn, shape = network()
    score = sj.synflow(apply_fn, shape)
    masks, info = sj.prune(score, params, DENSITY, rounds=ROUNDS)
    sj.save_masks(folder / "synflow.masks", masks)
    read = sj.load_masks(folder / "synflow.masks", like=params)
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), read, masks)
    further, _ = sj.prune(sj.magnitude(), params, DENSITY / 2, rounds=1, masks=masks)
    saliency, _ = sj.prune(sj.snip(loss, data), params, DENSITY, rounds=1)
    for name, found in (("further", further), ("snip", saliency)):
        sj.save_masks(folder / f"{name}.masks", found)
    shapes = {n: leaf.shape for n, leaf in zip(leaf_names(params), jax.tree.leaves(params))}
    empty = jax.tree.map(lambda m: m, masks)
    empty["head"]["kernel"] = jnp.zeros_like(masks["head"]["kernel"])
    found = sj.connectivity(apply_fn, params, masks, shape)
    results = {
        "read": all(jax.tree.leaves(same)),
        "kept": np.asarray(info.kept).tolist(),
        "rows": sj.summarize(params, masks),
        "collapsed": sj.collapsed(params, empty),
        "connectivity": [found.connected, found.kept, found.effective, found.empty],
        "shares": sj.densities_of(masks)(shapes, 100).tolist(),
    }
    trained, state = train(params, masks, data)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoint", (trained, state))
    if jax.process_index() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    try:
        sj.save_masks(folder / "not there" / "masks", masks)
    except (FileNotFoundError, RuntimeError) as error:
        kind = type(error).__name__
        (folder / f"error{jax.process_index()}").write_text(kind)


def resuming(folder: pathlib.Path):
    """Prunes in rounds and trains, and saves after each; goes on where it ended.

    The variable KILL names a process and the file after which it kills itself.
    """
    params, data = on_mesh(layouts.mesh_of(AxisType.Auto))
    apply_fn, shape = network()
    pruner = sj.iterative(sj.synflow(apply_fn, shape))
    counts = sj.counts_per_round(params, DENSITY, ROUNDS)
    victim, after = os.environ.get("KILL", "-1 ").split(" ")

    def saved(name):
        if name == after and jax.process_index() == int(victim):
            os.kill(os.getpid(), signal.SIGKILL)

    masks = sj.all_kept(params)
    for number, k in enumerate(counts):
        path = folder / f"round{number}.masks"
        if path.exists():
            masks = sj.load_masks(path, like=params)
            continue
        (masks,), _ = pruner.step(sj.PruneState(masks), params, k)
        sj.save_masks(path, masks)
        saved(path.stem)

    trained = sj.apply_masks(params, masks)
    state = optimizer(masks).init(trained)
    with orbax.checkpoint.CheckpointManager(folder / "steps") as manager:
        done = manager.latest_step()
        if done is not None:
            like = jax.tree.map(abstract, (trained, state))
            restored = orbax.checkpoint.args.StandardRestore(like)
            trained, state = manager.restore(done, args=restored)
        for number in range(0 if done is None else done + 1, STEPS):
            batch = jax.tree.map(lambda x, i=number % 2: x[i], data)
            trained, state = step(trained, state, batch)
            manager.save(number, args=orbax.checkpoint.args.StandardSave((trained, state)))
            manager.wait_until_finished()
            saved(f"step{number}")
    if jax.process_index() == 0:
        (folder / "done").touch()


def abstract(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


JOBS = {"everything": everything, "resuming": resuming}


if __name__ == "__main__":
    job, folder, address, count, index = sys.argv[1:]
    jax.distributed.initialize(address, int(count), int(index))
    with jax.numpy_dtype_promotion("standard"):
        JOBS[job](pathlib.Path(folder))

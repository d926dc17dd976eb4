"""Several processes prune and train as one does, and go on after one was killed."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

import synflow_jax as sj
from synflow_jax.trees import leaf_names
from tests.devices import layouts, processes

pytestmark = pytest.mark.usefixtures("standard_promotion")


def start(job, folder, count, **environ):
    """The processes of a job, eight devices together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={8 // count}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
    }
    words = [sys.executable, "-m", "tests.devices.processes", job, str(folder), address]
    return [
        subprocess.Popen(
            [*words, str(count), str(index)],
            env=environment | environ,
            cwd=pathlib.Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def ended(started, seconds=300):
    """Their exit codes, and what they said."""
    said = [process.communicate(timeout=seconds)[1] for process in started]
    return [process.returncode for process in started], "\n".join(said)


def abstract(tree):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=here), tree
    )


# --- two processes ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    codes, said = ended(start("everything", folder, 2))
    assert codes == [0, 0], said
    return folder


@pytest.fixture(scope="module")
def alone():
    """Parameters, and masks of this process alone."""
    params, (apply_fn, shape) = layouts.params_of("mlp"), processes.network()
    score = sj.synflow(apply_fn, shape)
    masks, info = sj.prune(score, params, processes.DENSITY, rounds=processes.ROUNDS)
    return params, masks, info


def test_two_processes_have_the_masks_of_one(by_two, alone):
    params, masks, info = alone
    results = json.loads((by_two / "results.json").read_text())
    assert results["read"] and results["kept"] == info.kept.tolist()
    read = sj.load_masks(by_two / "synflow.masks", like=params)
    jax.tree.map(np.testing.assert_array_equal, read, masks)
    half = {"density": processes.DENSITY / 2, "masks": masks}
    for name, score, options in (
        ("further", sj.magnitude(), half),
        ("snip", sj.snip(processes.loss, processes.batches()), {}),
    ):
        options = {"density": processes.DENSITY, "rounds": 1} | options
        want, _ = sj.prune(score, params, **options)
        got = sj.load_masks(by_two / f"{name}.masks", like=params)
        differ = jax.tree.map(lambda a, b: int((a != b).sum()), got, want)
        # Sums over the batch round differently.
        assert sum(jax.tree.leaves(differ)) <= (2 if name == "snip" else 0), name


def test_two_processes_say_of_masks_what_one_says(by_two, alone):
    params, masks, _ = alone
    results = json.loads((by_two / "results.json").read_text())
    rows = json.loads(json.dumps(sj.summarize(params, masks)))
    assert results["rows"] == rows
    assert results["collapsed"] == ["head/kernel"]
    named = zip(leaf_names(params), jax.tree.leaves(params))
    shapes = {name: leaf.shape for name, leaf in named}
    assert results["shares"] == sj.densities_of(masks)(shapes, 100).tolist()
    apply_fn, shape = processes.network()
    found = sj.connectivity(apply_fn, params, masks, shape)
    want = [found.connected, found.kept, found.effective, found.empty]
    assert results["connectivity"] == want
    assert (by_two / "error0").read_text() == "FileNotFoundError"
    assert (by_two / "error1").read_text() == "RuntimeError"


def restored(path, params, masks):
    """What was saved on eight devices, on one."""
    state = processes.optimizer(masks).init(params)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, abstract((params, state)))


def assert_trained(got, params, masks):
    """As one process trains."""
    want = processes.train(params, masks, processes.batches())
    for own, other in zip(*map(jax.tree.leaves, (got, want))):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-6)
    jax.tree.map(lambda p, m: np.testing.assert_array_equal(p[~m], 0), got[0], masks)


def test_what_two_processes_train_and_save_one_restores(by_two, alone):
    params, masks, _ = alone
    assert_trained(restored(by_two / "checkpoint", params, masks), params, masks)


# --- four processes, and kills ------------------------------------------------------------


@pytest.mark.long
def test_killed_processes_go_on_where_they_were(tmp_path, alone):
    params, masks, _ = alone
    for victim, after in (("1", "round1"), ("0", "step1"), ("3", "step2")):
        codes, said = ended(start("resuming", tmp_path, 4, KILL=f"{victim} {after}"))
        assert codes[int(victim)] == -9 and all(codes), said
        assert not (tmp_path / "done").exists()
    written = (tmp_path / "round1.masks").stat().st_mtime_ns
    codes, said = ended(start("resuming", tmp_path, 4))
    assert codes == [0] * 4 and (tmp_path / "done").exists(), said
    assert (tmp_path / "round1.masks").stat().st_mtime_ns == written
    read = sj.load_masks(tmp_path / f"round{processes.ROUNDS - 1}.masks", like=params)
    jax.tree.map(np.testing.assert_array_equal, read, masks)
    last = tmp_path / "steps" / str(processes.STEPS - 1) / "default"
    assert_trained(restored(last, params, masks), params, masks)

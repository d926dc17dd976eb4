"""What compiles: six programs for a command, and nothing the second time."""

import contextlib
import gc
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from synflow_jax import cli
from synflow_jax.xla.program_cache import keep_programs

LISTENING = []


def listen(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        for durations in LISTENING:
            durations.append(duration)


# JAX 0.8 cannot unregister it.
jax.monitoring.register_event_duration_secs_listener(listen)


@contextlib.contextmanager
def compiled():
    """A list of the programs that are compiled, or read from JAX's cache, within."""
    durations = []
    LISTENING.append(durations)
    try:
        yield durations
    finally:
        LISTENING.remove(durations)


def network(params, x):
    hidden = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    return hidden @ params["b"]["kernel"]


SHAPE = (6,)
PARAMS = {
    "a": {"kernel": jnp.linspace(-1, 1, 48).reshape(6, 8), "bias": jnp.zeros(8)},
    "b": {"kernel": jnp.linspace(-1, 2, 24).reshape(8, 3)},
}
SCORES = jax.tree.map(jnp.abs, PARAMS)
MASKS = jax.tree.map(lambda leaf: leaf > -0.5, PARAMS)
STARTS = {**MASKS, "a": {**MASKS["a"], "bias": jnp.ones(8, bool)}}
BATCHES = {"x": jnp.ones((2, 4, 6)), "y": jnp.ones((2, 4, 3))}


def loss(params, batch):
    return jnp.mean((network(params, batch["x"]) - batch["y"]) ** 2)


def public():
    """A call of each public function, by name."""
    criteria = {
        "synflow": sj.synflow(network, SHAPE),
        "synflow_l2": sj.synflow_l2(network, SHAPE),
        "magnitude": sj.magnitude(),
        "random": sj.random(jax.random.key(0)),
        "snip": sj.snip(loss, BATCHES),
        "grasp": sj.grasp(loss, BATCHES),
    }
    calls = {
        name: lambda score=score: sj.prune(score, PARAMS, 0.3, rounds=2)
        for name, score in criteria.items()
    }
    score, pruner = criteria["synflow"], sj.iterative(criteria["synflow"])
    dense = sj.all_kept(PARAMS)
    calls |= {
        "each round": lambda: sj.prune(
            score, PARAMS, 0.3, rounds=2, on_round=lambda info: None
        ),
        "from masks": lambda: sj.prune(score, PARAMS, 0.3, rounds=2, masks=STARTS),
        "patterns": lambda: sj.prune(score, PARAMS, 0.3, rounds=2, allocation={"a/*": 0.2}),
        "certified": lambda: sj.prune(score, PARAMS, 0.3, schedule=sj.certified()),
        "iterative": lambda: pruner.step(pruner.init(PARAMS), PARAMS, 20),
        "score": lambda: score(PARAMS, dense),
        "flow": lambda: sj.flow(network)(PARAMS, jnp.ones((1, 6))),
        "log_flow": lambda: sj.log_flow(network, PARAMS, SHAPE),
        "all_kept": lambda: sj.all_kept(PARAMS),
        "apply_masks": lambda: sj.apply_masks(PARAMS, MASKS),
        "count": lambda: sj.count(MASKS),
        "keep_top": lambda: sj.keep_top(SCORES, 20),
        "keep_top, masks": lambda: sj.keep_top(SCORES, 20, MASKS),
        "keep_top_per_layer": lambda: sj.keep_top_per_layer(
            SCORES, {"a": {"kernel": 20, "bias": 1}, "b": {"kernel": 3}}
        ),
        "n_of_m": lambda: sj.n_of_m(PARAMS["b"], 1, 2, 0),
        "blocks": lambda: sj.blocks(PARAMS["b"], (2, 3), 2),
        "unreached": lambda: sj.unreached(network, PARAMS, SHAPE),
        "effective_masks": lambda: sj.effective_masks(network, PARAMS, MASKS, SHAPE),
        "connectivity": lambda: sj.connectivity(network, PARAMS, MASKS, SHAPE),
        "conservation": lambda: sj.conservation(network, PARAMS, MASKS, SHAPE),
        "fewest_weights": lambda: sj.fewest_weights(network, PARAMS, SHAPE),
        "largest_compression": lambda: sj.largest_compression(network, PARAMS, SHAPE),
        "collapsed": lambda: sj.collapsed(PARAMS, MASKS),
        "summarize": lambda: sj.summarize(PARAMS, MASKS),
        "filled": lambda: sj.filled(PARAMS, {"b/kernel": 1.0}),
        "rescaled": lambda: sj.rescaled(PARAMS, MASKS),
    }
    return calls


CALLS = public()


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_compiles_nothing(name):
    CALLS[name]()
    with compiled() as programs:
        CALLS[name]()
    assert not programs


STATM = pathlib.Path("/proc/self/statm")


@pytest.mark.skipif(not STATM.exists(), reason="needs Linux's count of a process's pages")
def test_memory_does_not_grow_with_calls():
    """Of programs and traces: a call that compiled anew would leave some each time."""
    scores = jax.tree.map(lambda leaf: jnp.tile(leaf.ravel(), 100), SCORES)

    def resident():
        gc.collect()
        return int(STATM.read_text().split()[1]) * 4096 / 2**20

    def calls(number):
        for k in range(number):
            sj.keep_top(scores, 100 + k)
            sj.keep_top_per_layer(scores, jax.tree.map(lambda leaf, k=k: k, scores))
            sj.effective_masks(network, PARAMS, MASKS, SHAPE)
            sj.log_flow(network, PARAMS, SHAPE)

    calls(5)
    before = resident()
    calls(100)
    assert resident() - before < 20  # MB; a program is a few


def test_pruning_and_looking_at_the_result_compiles_few_programs():
    def wide(params, x):  # a network that no other test has compiled
        return jnp.tanh(x @ params["a"]["kernel"]) @ params["b"]["kernel"]

    params = jax.tree.map(
        jnp.asarray, {"a": {"kernel": np.ones((13, 17))}, "b": {"kernel": np.ones((17, 3))}}
    )
    with compiled() as programs:
        masks, _ = sj.prune(sj.synflow(wide, (13,)), params, 0.5, rounds=3)
        sj.summarize(params, masks)
        assert sj.collapsed(params, masks) == []
        sj.log_flow(wide, sj.apply_masks(params, masks), (13,))
    assert 2 <= len(programs) <= 6


@pytest.mark.parametrize(
    "target", ["mlp", "conv", "mlp --schedule certified", "mlp --allocation linear1/*=0.1"]
)
def test_a_command_compiles_at_most_six_programs(target, tmp_path):
    out = tmp_path / "masks"
    command = f"prune {target} --density 0.1 --rounds 3 --out {out}".split()
    jax.clear_caches()
    with compiled() as programs:
        assert cli.main(command) == 0
    assert 3 <= len(programs) <= 6


@pytest.mark.parametrize("given", [None, "2"])
def test_the_command_keeps_short_programs_unless_told_otherwise(given, monkeypatch):
    name = "jax_persistent_cache_min_compile_time_secs"
    monkeypatch.delenv(name.upper(), raising=False)
    if given:
        monkeypatch.setenv(name.upper(), given)
    before = jax.config.values[name]
    try:
        jax.config.update(name, 2.0)
        keep_programs()
        assert jax.config.values[name] == (2.0 if given else 0.0)
    finally:
        jax.config.update(name, before)

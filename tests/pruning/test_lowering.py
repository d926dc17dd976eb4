"""Programs of pruning for arrays and devices that are not there, and exported ones."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import synflow_jax as sj
from synflow_jax.pruning import progress
from tests import nets

PARAMS = nets.draw({"a/kernel": (6, 8), "b/kernel": (8, 3)})
BATCHES = jnp.ones((2, 4, 6))


def network(params, x):
    return jax.nn.relu(x @ params["a/kernel"]) @ params["b/kernel"]


SYNFLOW = sj.synflow(network, (6,))
OPTIONS = {
    "synflow": (SYNFLOW, {}),
    "certified": (SYNFLOW, {"schedule": sj.certified()}),
    "from masks": (SYNFLOW, {"masks": jax.tree.map(lambda w: w > -1, PARAMS)}),
    "snip": (sj.snip(lambda p, x: network(p, x).sum(), BATCHES), {"scope": "layer"}),
    "random": (sj.random(jax.random.key(0)), {"keep_connected": False}),
}


def shapes(tree, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_the_program_of_shapes_is_the_program_of_the_arrays(name, monkeypatch):
    score, options = OPTIONS[name]
    options = {"rounds": 3, **options}
    ran = []

    def all_rounds(*args):
        ran.append(progress_rounds.lower(*args).as_text())
        return progress_rounds(*args)

    progress_rounds = progress.all_rounds
    monkeypatch.setattr(progress, "all_rounds", all_rounds)
    sj.prune(score, PARAMS, 0.3, **options)
    assert [sj.lower_prune(score, shapes(PARAMS), 0.3, **options).as_text()] == ran
    assert [sj.lower_prune(score, PARAMS, 0.3, **options).as_text()] == ran


def test_data_may_be_shapes_too():
    loss = lambda p, x: network(p, x).sum()  # noqa: E731
    texts = [
        sj.lower_prune(sj.snip(loss, batches), shapes(PARAMS), 0.3, rounds=1).as_text()
        for batches in (BATCHES, shapes(BATCHES))
    ]
    assert texts[0] == texts[1]


def test_shardings_place_the_program():
    mesh = Mesh(np.array(jax.devices()[:1]), ("devices",))
    rows = NamedSharding(mesh, P("devices"))
    compiled = sj.lower_prune(SYNFLOW, shapes(PARAMS, rows), 0.3, rounds=1).compile()
    (_, params, *_), _ = compiled.input_shardings
    assert all(s.is_equivalent_to(rows, 2) for s in jax.tree.leaves(params))
    assert compiled.memory_analysis().output_size_in_bytes > 72


def test_another_platform_has_its_own_program():
    texts = {
        platform: sj.lower_prune(SYNFLOW, PARAMS, 0.3, platform=platform).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    # JAX writes running sums in another way for each; only CPUs join leaves in a branch.
    branches = {name: text.count("stablehlo.case") for name, text in texts.items()}
    assert branches["tpu"] == branches["cuda"] < branches["cpu"]
    assert texts["cpu"] == sj.lower_prune(SYNFLOW, PARAMS, 0.3).as_text()


def test_it_checks_its_arguments_as_prune_does():
    with pytest.raises(ValueError, match="`density` is"):
        sj.lower_prune(SYNFLOW, shapes(PARAMS), 1.5)
    with pytest.raises(ValueError, match="not to be called inside of a jitted"):
        jax.jit(lambda p: sj.lower_prune(SYNFLOW, p, 0.3) and p)(PARAMS)


def test_an_exported_prune_is_read_back_and_returns_the_same():
    """One file for all platforms; what it returns has the type that `prune` returns."""

    @jax.jit
    def pruned(params):
        return sj.prune(SYNFLOW, params, 0.3, rounds=3)

    platforms = ("cpu", "tpu", "cuda")
    exported = jax.export.export(pruned, platforms=platforms)(shapes(PARAMS))
    read = jax.export.deserialize(exported.serialize())
    assert read.platforms == platforms
    masks, info = read.call(PARAMS)
    assert isinstance(info, sj.PruneInfo)
    nets.assert_equal((masks, info), sj.prune(SYNFLOW, PARAMS, 0.3, rounds=3))


def test_the_loop_takes_less_than_two_copies_of_the_weights():
    """Scores as they are compared, the masks and those before: 4 + 2 bytes a weight. Not
    the ranks of ties, and not which weights are 0."""
    params = {"a/kernel": jnp.zeros((1024, 1024)), "b/kernel": jnp.zeros((1024, 2048))}
    score = sj.synflow(network, (1024,))
    compiled = sj.lower_prune(score, params, 0.1, platform="cpu").compile()
    weights = sum(leaf.nbytes for leaf in params.values())
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * weights

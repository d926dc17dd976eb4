"""Checks on eight devices, run by `test_eight.py` in a process of their own.

python -m tests.devices.eight NAME...    prints what failed, as JSON
"""

import functools
import json
import math
import re
import sys
import tempfile
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import synflow_jax as sj
from synflow_jax.pruning import progress
from synflow_jax.selection.budget import within
from synflow_jax.xla.backends import backend_of
from tests.devices import layouts

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
KINDS = {"auto": AUTO, "explicit": EXPLICIT}


def assert_same(got, want, what=""):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b), what),
        got,
        want,
    )


def assert_in_place(masks, params):
    for (path, mask), leaf in zip(
        jax.tree_util.tree_leaves_with_path(masks), jax.tree.leaves(params)
    ):
        assert mask.sharding.is_equivalent_to(leaf.sharding, leaf.ndim), (
            f"{path}: {mask.sharding} is not {leaf.sharding}"
        )


def divided_network(name, layout, kind):
    mesh, layout = layouts.mesh_of(KINDS[kind]), layouts.LAYOUTS[layout]
    params = layouts.params_of(name)
    network, shape = layouts.network_of(name, layout, KINDS[kind])
    return mesh, network, shape, params, layouts.divided(name, layout, mesh, params)


def pruned(name, layout, kind):
    """The masks of SynFlow are those of one device, and lie where the parameters do."""
    mesh, network, shape, params, spread = divided_network(name, layout, kind)
    plain, _ = layouts.network_of(name, layouts.Layout(), None)
    want, _ = sj.prune(sj.synflow(plain, shape), params, 0.2, rounds=3)
    with jax.set_mesh(mesh):
        masks, info = sj.prune(sj.synflow(network, shape), spread, 0.2, rounds=3)
    assert_same(masks, want)
    assert_in_place(masks, spread)
    size = sum(
        leaf.size
        for n, leaf in zip(sj.trees.leaf_names(params), jax.tree.leaves(params))
        if "kernel" in n
    )
    assert int(info.kept[-1]) == sj.num_kept(size, 0.2)


def whole(name, layout, kind):
    """Other functions of a divided network: as on one device, and divided as it is."""
    mesh, network, shape, params, spread = divided_network(name, layout, kind)
    plain, _ = layouts.network_of(name, layouts.Layout(), None)
    with jax.set_mesh(mesh):
        masks = sj.all_kept(spread)
        assert_in_place(masks, spread)
        scores = sj.synflow(network, shape)(spread, masks)
        want = sj.synflow(plain, shape)(params, sj.all_kept(params))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-9), scores, want
        )
        log = float(sj.log_flow(network, spread, shape))
        np.testing.assert_allclose(log, float(sj.log_flow(plain, params, shape)), 1e-6)
        half = jax.tree.map(lambda x: x > 0, params)
        half = half | {"unused": sj.all_kept(params)["unused"]}
        spread_half = jax.tree.map(lambda m, p: jax.device_put(m, p.sharding), half, spread)
        live = sj.effective_masks(network, spread, spread_half, shape)
        assert_same(live, sj.effective_masks(plain, params, half, shape))
        assert_in_place(live, spread)
        rows = sj.summarize(spread, spread_half)
        assert rows == sj.summarize(params, half)
        found = sj.connectivity(network, spread, spread_half, shape)
        want = sj.connectivity(plain, params, half, shape)
        assert found._replace(log_flow=0.0) == want._replace(log_flow=0.0)


def with_shard_map(kind):
    """A model that divides its work itself has the scores of one that does not."""
    mesh = layouts.mesh_of(KINDS[kind])
    params = {n: {"kernel": layouts.powers_of_two(i, (8, 8))} for i, n in enumerate("abc")}
    places = {"a": P(None, "t"), "b": P("t"), "c": P()}

    def plain(params, x):
        h = jax.nn.relu(x @ params["a"]["kernel"])
        return h @ params["b"]["kernel"] @ params["c"]["kernel"]

    def network(params, x):
        def block(x, a, b):
            return jax.lax.psum(jax.nn.relu(x @ a) @ b, "t")

        block = jax.shard_map(
            block, in_specs=(P(), places["a"], places["b"]), out_specs=P()
        )
        return (
            block(x, params["a"]["kernel"], params["b"]["kernel"]) @ params["c"]["kernel"]
        )

    params = jax.tree.map(jnp.asarray, params)
    spread = {
        n: {"kernel": jax.device_put(leaf["kernel"], NamedSharding(mesh, places[n]))}
        for n, leaf in params.items()
    }
    want, _ = sj.prune(sj.synflow(plain, (8,)), params, 0.3, rounds=3)
    with jax.set_mesh(mesh):
        masks, _ = sj.prune(sj.synflow(network, (8,)), spread, 0.3, rounds=3)
    assert_same(masks, want)
    assert_in_place(masks, spread)


def convolutions():
    """Over Explicit axes a convolution whose kernel is divided says how its result is."""
    mesh = layouts.mesh_of(EXPLICIT)
    shapes = {"a": (3, 3, 2, 8), "b": (3, 3, 8, 4)}
    params = {
        n: {"kernel": layouts.powers_of_two(i, s)}
        for i, (n, s) in enumerate(shapes.items())
    }
    params = jax.tree.map(jnp.asarray, params)
    places = {"a": P(None, None, None, "t"), "b": P(None, None, "t")}
    numbers = ("NHWC", "HWIO", "NHWC")

    def network(out, params, x):
        for name in "ab":
            more = {} if out is None else {"out_sharding": out[name]}
            x = jax.lax.conv_general_dilated(
                x, params[name]["kernel"], (1, 1), "SAME", dimension_numbers=numbers, **more
            )
        return x.sum((1, 2))

    def loss(out, params, batch):
        return jnp.mean(network(out, params, batch) ** 2)

    spread = {
        n: {"kernel": jax.device_put(leaf["kernel"], NamedSharding(mesh, places[n]))}
        for n, leaf in params.items()
    }
    out = {"a": P(None, None, None, "t"), "b": P()}
    image = np.ones((1, 4, 6, 6, 2), np.float32)
    for make in (
        lambda out: sj.synflow(jax.tree_util.Partial(network, out), (6, 6, 2)),
        lambda out: sj.snip(lambda p, batch: loss(out, p, batch), image),
    ):
        want, _ = sj.prune(make(None), params, 0.3, rounds=2)
        with jax.set_mesh(mesh):
            masks, _ = sj.prune(make(out), spread, 0.3, rounds=2)
        assert_same(masks, want)
        assert_in_place(masks, spread)


def made_inside(kind):
    """Random scores, masks from a file, and controls lie where their leaves do."""
    mesh, network, shape, params, spread = divided_network("mlp", "2-D", kind)
    key = jax.random.key(0)
    with jax.set_mesh(mesh):
        kept = sj.all_kept(spread)
        scores = jax.jit(sj.random(key))(spread, kept)
        assert_same(scores, sj.random(key)(params, sj.all_kept(params)))
        assert_in_place(scores, spread)
        masks, _ = sj.prune(sj.random(key), spread, 0.3, rounds=2)
        assert_in_place(masks, spread)
        assert_in_place(sj.iterative(sj.magnitude()).init(spread).masks, spread)
        mixed = sj.shuffled(key, masks)
        assert_in_place(mixed, spread)
        assert sj.summarize(spread, mixed) == sj.summarize(spread, masks)
        fresh = sj.reinitialised(lambda key: params, key, masks)
        assert_in_place(fresh, spread)
        assert_same(fresh, sj.apply_masks(params, jax.tree.map(np.asarray, masks)))
        assert_in_place(sj.rescaled(spread, masks), spread)
        with tempfile.TemporaryDirectory() as folder:
            sj.save_masks(f"{folder}/masks", masks)
            read = sj.load_masks(f"{folder}/masks", like=spread)
            assert_in_place(read, spread)
            assert_same(read, masks)


# --- selection ----------------------------------------------------------------------------

EXCHANGES = "all-[a-z-]+|collective-[a-z-]+|ragged-[a-z-]+|reduce-scatter[a-z-]*"


def assert_numbers_alone_are_exchanged(program):
    """Of the devices' exchanges each is a sum of single numbers."""
    exchanges = re.findall(rf"= (.*?) ({EXCHANGES})\(", program.as_text())
    assert exchanges and {kind for _, kind in exchanges} <= {
        *("all-reduce", "all-reduce-start", "all-reduce-done"),
    }, exchanges
    assert all("[" not in what.replace("[]", "") for what, _ in exchanges), exchanges


def keep_top():
    """Devices exchange counts and no scores; the masks are divided as the scores are."""
    mesh = jax.make_mesh((8,), ("devices",))
    places = {"a": P("devices"), "b": P(None, None, None, "devices"), "c": P("devices")}
    rng = np.random.default_rng(0)
    shapes = {"a": (64, 40), "b": (3, 3, 16, 24), "c": (24,)}
    scores = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    keep = jax.jit(sj.keep_top)
    for scores in (scores, {n: np.round(s) for n, s in scores.items()}):  # then with ties
        spread = {
            n: jax.device_put(s, NamedSharding(mesh, places[n])) for n, s in scores.items()
        }
        flat = np.concatenate([s.ravel() for s in scores.values()])
        order = np.argsort(-flat, kind="stable")
        for k in (0, 1, 100, 3000, flat.size):
            masks = keep(spread, jnp.uint32(k))
            want = np.isin(np.arange(flat.size), order[:k])
            got = np.concatenate([np.ravel(m) for m in masks.values()])
            np.testing.assert_array_equal(got, want)
        assert_in_place(masks, spread)
    assert_numbers_alone_are_exchanged(keep.lower(spread, jnp.uint32(1)).compile())


def budget():
    """Devices exchange sums and no scores."""
    mesh = jax.make_mesh((8,), ("devices",))
    rng = np.random.default_rng(0)
    shapes = [(64, 40), (3, 16, 24)]
    places = [P("devices"), P(None, None, "devices")]
    scores = [rng.integers(0, 6, s).astype(np.float32) for s in shapes]
    eligible = [rng.random(s) < 0.5 for s in shapes]
    spread = [
        [jax.device_put(x, NamedSharding(mesh, p)) for x, p in zip(leaves, places)]
        for leaves in (scores, eligible)
    ]
    ascending = np.sort(np.concatenate([s[m] for s, m in zip(scores, eligible)]))
    affordable = jax.jit(functools.partial(within, backend_of(spread)))
    for amount in (0, 100, 2000, 10**6):
        removed = (np.cumsum(ascending) <= amount).sum()
        got = affordable(*spread, jnp.float32(amount))
        assert int(got.kept) == ascending.size - removed
        assert float(got.next) == [*ascending, np.inf][removed]
    program = affordable.lower(*spread, jnp.float32(1)).compile()
    assert_numbers_alone_are_exchanged(program)


# --- what is exchanged --------------------------------------------------------------------


def exchanged(divides):
    """The bytes that devices exchange in a round are those of docs/scaling.md."""
    width, layers = 512, 4

    def network(params, x):
        for i in range(layers):
            x = jax.nn.relu(x @ params[f"layer{i}"]["kernel"])
        return x

    for devices in (1, 2, 4, 8):
        mesh = jax.make_mesh((devices,), ("d",), axis_types=(AUTO,))
        rows = [divides == "fsdp" or i % 2 == 1 for i in range(layers)]
        params = {
            f"layer{i}": {
                "kernel": jax.device_put(
                    layouts.powers_of_two(i, (width, width)),
                    NamedSharding(mesh, P("d") if by_rows else P(None, "d")),
                )
            }
            for i, by_rows in enumerate(rows)
        }
        program, _ = compiled_loop(sj.synflow(network, (width,)), params)
        sizes = []
        for result, _ in re.findall(rf"= (.*?) ({EXCHANGES})\(", program.as_text()):
            shapes = re.findall(r"\w+\[([\d,]*)\]", result)
            numbers = [math.prod(int(n) for n in s.split(",") if n) for s in shapes]
            sizes.append(4 * sum(numbers))  # all of 32 bits
        forward = sum(rows)
        backward = layers - 1 if divides == "fsdp" else sum(not r for r in rows[1:])
        want = 4 * width * (forward + backward) if devices > 1 else 0
        large = [size for size in sizes if size > 16 * layers]
        assert sum(large) == want, (devices, sorted(sizes), want)


# --- data ---------------------------------------------------------------------------------


def compiled_loop(score, params):
    """The program of a pruning loop, and the masks that it leaves."""
    compiled, loop = [], progress.all_rounds

    def spy(*args):
        compiled.append(loop.lower(*args).compile())
        return loop(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "all_rounds", spy)
        masks, _ = sj.prune(score, params, 0.2, rounds=2)
    return compiled[0], masks


def flops_of(program):
    """Operations of one device."""
    return program.cost_analysis()["flops"]


def data(criterion):
    """Batches that are divided over devices cost each its share of the work."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AUTO,))
    params = jax.tree.map(jnp.asarray, {"a": {"kernel": np.ones((64, 128), np.float32)}})
    x = layouts.powers_of_two(0, (2, 2048, 64))
    y = layouts.powers_of_two(1, (2, 2048, 128))

    def loss(params, batch):
        x, y = batch
        return jnp.mean((jnp.tanh(x @ params["a"]["kernel"]) - y) ** 2)

    make = {"snip": sj.snip, "grasp": sj.grasp}[criterion]
    one = make(loss, (x, y))
    here = NamedSharding(mesh, P(None, "d"))
    many = make(loss, jax.device_put((x, y), here))
    replicated = jax.device_put(params, NamedSharding(mesh, P()))
    program, want = compiled_loop(one, params)
    alone = flops_of(program)
    program, masks = compiled_loop(many, replicated)
    shared = flops_of(program)
    # What selects masks is not shared: parameters are on every device.
    assert shared < alone / 8 * 1.25, (shared, alone)
    inside = jax.jit(lambda p: sj.prune(many, p, 0.2, rounds=2)[0]).lower(replicated)
    inside = flops_of(inside.compile())
    assert inside < alone / 8 * 1.25, (inside, alone)
    differ = int((np.asarray(masks["a"]["kernel"]) != want["a"]["kernel"]).sum())
    assert differ <= 4, differ  # sums over the batch round differently


# --- seeds --------------------------------------------------------------------------------


def seeds(check_vma):
    """Inside `jax.shard_map` each device prunes what it holds, and exchanges nothing."""
    check_vma = check_vma and jax.__version_info__ >= (0, 10)  # before, JAX's own error
    mesh = jax.make_mesh((8,), ("seeds",), axis_types=(AUTO,))
    many = [layouts.params_of("mlp", 10 * seed) for seed in range(16)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    network, shape = layouts.network_of("mlp", layouts.Layout(), None)
    batches = layouts.powers_of_two(0, (1, 4, *shape))

    def loss(params, batch):
        return jnp.mean(network(params, batch) ** 2)

    for score in (sj.synflow(network, shape), sj.snip(loss, batches)):

        def prune(params, score=score):
            return sj.prune(score, params, 0.2, rounds=3)

        spread = jax.jit(
            jax.shard_map(
                jax.vmap(prune),
                mesh=mesh,
                in_specs=P("seeds"),
                out_specs=P("seeds"),
                check_vma=check_vma,
            )
        )
        program = spread.lower(stacked).compile()
        assert not re.findall(rf"= .*? (?:{EXCHANGES})\(", program.as_text())
        masks, info = program(stacked)
        for i, params in enumerate(many):
            want, of_one = prune(params)
            assert_same(jax.tree.map(lambda m, i=i: m[i], masks), want)
            assert info.kept[i].tolist() == of_one.kept.tolist()


def one_seed():
    """Without `jax.vmap`, and by rounds that are certified."""
    mesh = jax.make_mesh((8,), ("seeds",), axis_types=(AUTO,))
    many = [layouts.params_of("mlp", 10 * seed) for seed in range(8)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    network, shape = layouts.network_of("mlp", layouts.Layout(), None)
    score = sj.synflow(network, shape)

    def prune(params):
        params = jax.tree.map(lambda x: x[0], params)
        masks, _ = sj.prune(score, params, 0.3, schedule=sj.certified(0.5))
        return jax.tree.map(lambda m: m[None], masks)

    spread = jax.shard_map(
        prune,
        mesh=mesh,
        in_specs=P("seeds"),
        out_specs=P("seeds"),
        check_vma=jax.__version_info__ >= (0, 10),
    )
    masks = jax.jit(spread)(stacked)
    for i, params in enumerate(many):
        want, _ = sj.prune(score, params, 0.3, schedule=sj.certified(0.5))
        assert_same(jax.tree.map(lambda m, i=i: m[i], masks), want)


def ablation():
    """Seeds, densities and criteria that devices share are those of separate programs."""
    import dataclasses

    from experiments import ablation
    from experiments.training import steps
    from synflow_jax import models
    from tests.experiments import small

    names, seeds, densities = ("synflow", "random"), (0, 3, 5), (0.5, 0.1, 0.02)
    module = models.MLP(hidden=(16, 16))
    with jax.numpy_dtype_promotion("standard"):
        plan = steps.plan(module, small.SETTINGS, small.digits())
        splits = steps.on_device(plan, small.digits())
        counts = ablation.counts_of(plan, splits[0], densities, 5)
        found, many = ablation.ablation(plan, splits, seeds, densities, 5, names)
        assert found.shape == (2, 3, 3)
        plan = dataclasses.replace(plan, devices=None)
        here = jax.tree.map(lambda x: jax.device_put(np.asarray(x)), splits[0])
        for place in np.ndindex(found.shape):
            c, i, j = place
            want = ablation.alone(plan, here, seeds[i], counts[j], names[c])
            got = jax.tree.map(lambda x, place=place: x[place], many)
            assert_same(got.masks, want.masks)
            for a, b in zip(*map(jax.tree.leaves, (got.state.params, want.state.params))):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


CHECKS = {
    **{
        f"{name}-{layout}-{kind}": (pruned, name, layout, kind)
        for name in layouts.NETWORKS
        for layout in layouts.LAYOUTS
        for kind in KINDS
    },
    **{f"functions-{kind}": (whole, "mlp", "2-D", kind) for kind in KINDS},
    **{f"shard_map-{kind}": (with_shard_map, kind) for kind in KINDS},
    **{f"made-inside-{kind}": (made_inside, kind) for kind in KINDS},
    "convolutions": (convolutions,),
    "keep-top": (keep_top,),
    "budget": (budget,),
    **{f"data-{criterion}": (data, criterion) for criterion in ("snip", "grasp")},
    "seeds": (seeds, True),
    "seeds-unchecked": (seeds, False),
    "seeds-certified": (one_seed,),
    "ablation": (ablation,),
    **{f"exchanged-{divides}": (exchanged, divides) for divides in ("fsdp", "megatron")},
}


def main(names):
    failed = {}
    for name in names:
        check, *args = CHECKS[name]
        try:
            check(*args)
        except Exception:
            failed[name] = traceback.format_exc()
    print(json.dumps(failed))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Programs on many devices: the flow of `shard_map` is that of the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

import synflow_jax as sj
from tests import nets

PARAMS = nets.draw(dict(a=(4, 6), b=(6, 4), c=(4, 2)))
MESH = AbstractMesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def mapped(function, in_specs, out_specs, check=True):
    return jax.shard_map(
        function, mesh=MESH, in_specs=in_specs, out_specs=out_specs, check_vma=check
    )


def tensor_parallel(check, params, x):
    """Columns, then rows of the weights on each device, and a sum over the devices."""

    def block(x, a, b):
        return lax.psum(jax.nn.relu(x @ a) @ b, "x")

    block = mapped(block, (P(), P(None, "x"), P("x")), P(), check)
    return block(x, params["a"], params["b"]) @ params["c"]


def scattered(params, x):
    def block(x, a, b):
        x = lax.all_gather(x, "x", axis=1, tiled=True)
        return lax.psum_scatter(x @ a @ b, "x", scatter_dimension=1, tiled=True) / 2

    block = mapped(block, (P(None, "x"), P(), P()), P(None, "x"))
    return block(x, params["a"], params["b"]) @ params["c"]


def rows_on_devices(params, x):
    def block(x, a, b):
        return x @ a @ b

    # Each of the four columns of x on a device of its own, as rows.
    block = mapped(block, (P(("x", "y")), P(), P()), P(("x", "y")))
    return block(jnp.tile(x, (4, 1)), params["a"], params["b"])[:1] @ params["c"]


def permuted(params, x):
    def block(x, a, b):
        there = lax.ppermute(x, "x", [(0, 1), (1, 0)])
        back = lax.ppermute(there, "x", [(0, 1), (1, 0)])
        rows = lax.all_to_all(jnp.tile(back, (2, 1)), "x", 0, 1, tiled=True)
        scale = lax.psum(1.0, "y") * (1.0 + 0.0 * lax.axis_index("x").astype(jnp.float32))
        return (rows @ a @ b) * scale / 2

    block = mapped(block, (P(None, "x"), P(), P()), P("x"), False)
    return block(x, params["a"], params["b"])[:1] @ params["c"]


def plain(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"] @ params["c"]


WRITINGS = {
    "tensor parallel": functools.partial(tensor_parallel, True),
    "unchecked": functools.partial(tensor_parallel, False),
    "scattered": scattered,
    "rows": rows_on_devices,
    "permuted": permuted,
}


@pytest.fixture(scope="module")
def results():
    def of(network, params):
        masks = sj.all_kept(params)
        return sj.log_flow(network, params, (4,)), sj.synflow(network, (4,))(params, masks)

    networks = WRITINGS | {"plain": plain}
    return jax.jit(lambda p: {n: of(f, p) for n, f in networks.items()})(PARAMS)


@pytest.mark.parametrize("name", WRITINGS)
def test_the_flow_on_many_devices_is_that_of_the_whole(name, results):
    (got, scores), (want, others) = results[name], results["plain"]
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    for leaf in PARAMS:
        np.testing.assert_allclose(scores[leaf], others[leaf], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["tensor parallel", "unchecked", "scattered"])
def test_questions_about_paths_go_through_devices(name):
    network = WRITINGS[name]
    masks = sj.all_kept(PARAMS)
    masks["a"] = masks["a"].at[:, 1].set(False)
    everything = dict(prunable=lambda path, leaf: True)
    got = sj.effective_masks(network, PARAMS, masks, (4,), **everything)
    want = sj.effective_masks(plain, PARAMS, masks, (4,), **everything)
    nets.assert_equal(got, want)
    assert sj.fewest_weights(network, PARAMS, (4,), **everything) == 3


def test_the_largest_over_devices_passes():
    def network(params, x):
        def block(x, a):
            return lax.pmax(x @ a, "x")

        return mapped(block, (P(), P(None, "x")), P(), False)(x, params["a"])

    def want(params, x):
        return jnp.maximum(*jnp.split(x @ params["a"], 2, axis=1))

    params = {"a": PARAMS["a"]}
    got, same = (
        jax.jit(lambda p, f=f: sj.synflow(f, (4,))(p, sj.all_kept(p)))(params)
        for f in (network, want)
    )
    np.testing.assert_allclose(got["a"], same["a"], rtol=1e-5)
    reached = sj.effective_masks(
        network, params, sj.all_kept(params), (4,), prunable=lambda path, leaf: True
    )
    assert reached["a"].all()


def test_units_of_a_program_on_many_devices_are_coarse_and_true(results):
    scores = results["tensor parallel"][1]
    with pytest.warns(UserWarning, match="was not checked"):
        found = sj.conservation(
            WRITINGS["tensor parallel"],
            PARAMS,
            sj.all_kept(PARAMS),
            (4,),
            scores=scores,
        )
    assert [layer.name for layer in found.layers] == ["c"]


def test_groups_of_devices_are_refused():
    def network(params, x):
        def block(x, a):
            return lax.all_gather(x @ a, "x", axis_index_groups=[[0], [1]])

        return mapped(block, (P(), P()), P(), False)(x, params["a"])

    with pytest.raises(sj.FlowError, match="within groups of devices"):
        sj.log_flow(network, PARAMS, (4,))

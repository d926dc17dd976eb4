"""Programs are those of the devices that they run on, and not of the host that traces."""

import functools
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import synflow_jax as sj
from synflow_jax.xla.backends import Backend, backend_of
from synflow_jax.xla.jaxprs import holds
from tests import nets

HERE = Backend(cpu=jax.default_backend() == "cpu", one_device=True)
X = jnp.ones(3)


# --- what the arrays say ------------------------------------------------------------------


def seen(transform, *args):
    """What `backend_of` sees of the argument of a function under a transformation."""
    found = []

    def look(x):
        found.append(backend_of(x, np.ones(2)))
        return jnp.sum(x)

    transform(look)(*args)
    return found[-1]


def nested(*transforms):
    return lambda f: functools.reduce(lambda f, transform: transform(f), transforms, f)


OUTSIDE = {
    "vmap": jax.vmap,
    "grad": jax.grad,
    "grad of vmap": nested(jax.vmap, lambda f: lambda x: jnp.sum(f(x)), jax.grad),
    "vmap of grad": nested(jax.grad, jax.vmap),
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (x,)),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_arrays_are_seen_beneath_transformations_that_do_not_compile(name):
    assert seen(OUTSIDE[name], jnp.ones((2, 3))[0 if name == "grad" else slice(2)]) == HERE


@pytest.mark.parametrize("name", ["plain", *OUTSIDE])
def test_in_a_compiled_function_the_devices_are_unknown(name):
    inner = OUTSIDE.get(name, lambda f: f)
    assert (
        seen(nested(inner, jax.jit), jnp.ones((2, 3))[0 if name == "grad" else 0 :]) is None
    )


def test_numpy_arrays_lie_where_jax_will_put_them():
    assert backend_of(np.ones(3), 2.0, None) == HERE
    assert seen(lambda f: jax.jit(lambda: f(np.ones(3)))) is None


def test_a_mesh_is_seen_in_a_compiled_function_too():
    """Of one device here; tests of eight are in a process of their own."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("devices",))
    x = jax.device_put(np.ones(4), NamedSharding(mesh, P("devices")))
    assert backend_of(x) == HERE
    assert backend_of(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)) == HERE
    described = jax.ShapeDtypeStruct(x.shape, x.dtype)
    assert backend_of(described) == HERE


EIGHT = """
import jax, jax.numpy as jnp
import synflow_jax as sj
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from synflow_jax.xla.backends import Backend, _on_one_device, backend_of

leaves = [jnp.zeros((3, 3, 16, 16))] * 20
assert len(jax.devices()) == 8 and backend_of(leaves) == Backend(True, True)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(kind,))
    spread = jax.device_put(jnp.zeros(16), NamedSharding(mesh, P("devices")))
    assert backend_of(spread) == backend_of(leaves, spread) == Backend(True, False)
    seen = []
    look = lambda x: (seen.append((backend_of(x), _on_one_device(x))), x)[1]
    jax.jit(look)(spread)
    each = {"in_specs": P("devices"), "out_specs": P("devices")}
    jax.jit(jax.shard_map(look, mesh=mesh, **each))(spread)
    assert seen[0] == (None, False) and seen[-1] == (None, True), seen
print(jax.jit(sj.keep_top).lower(leaves, jnp.int32(1)).as_text())
"""


def test_leaves_on_one_of_eight_devices_have_the_program_of_one_device():
    flags = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = [sys.executable, "-c", EIGHT]
    got = subprocess.run(run, env=environment, check=True, capture_output=True, text=True)
    leaves = [jnp.zeros((3, 3, 16, 16))] * 20
    want = jax.jit(sj.keep_top).lower(leaves, jnp.int32(1)).as_text()
    assert got.stdout.strip() == want.strip()


# --- the programs -------------------------------------------------------------------------

NUMBERS = ("NHWC", "HWIO", "NHWC")


def network(params, x):
    for w in params["convs"]:
        x = lax.conv_general_dilated(x, w, (1, 1), "SAME", None, None, NUMBERS)
        x = jax.nn.relu(x)
    return x.mean((1, 2)) @ params["dense"]


SHAPE = (4, 4, 2)
SHAPES = {"a": (3, 3, 2, 32), "b": (1, 1, 32, 32), "dense": (32, 5)}
PARAMS = nets.draw(SHAPES)
PARAMS = {"convs": [PARAMS["a"], PARAMS["b"]], "dense": PARAMS["dense"]}
MASKS = jax.tree.map(lambda leaf: leaf > 0, PARAMS)
anything = lambda path, leaf: True  # noqa: E731
SYNFLOW = sj.synflow(network, SHAPE)
SNIP = sj.snip(lambda params, x: network(params, x).sum(), jnp.ones((2, 4, *SHAPE)))


def pruned(score_fn, params, **options):
    return sj.prune(score_fn, params, 0.1, rounds=2, prunable=anything, **options)


PROGRAMS = {
    "prune": lambda p: pruned(SYNFLOW, p),
    "layers of snip": lambda p: pruned(SNIP, p, scope="layer"),
    "a user's criterion": lambda p: pruned(lambda *args: SYNFLOW(*args), p),
    "batch": jax.vmap(lambda p: pruned(SYNFLOW, p)),
    "scores": lambda p: (SYNFLOW(p, MASKS), SNIP(p, MASKS)),
    "flow": lambda p: sj.flow(network)(p, jnp.ones((1, *SHAPE))),
    "paths": lambda p: sj.effective_masks(network, p, MASKS, SHAPE, prunable=anything),
    "selections": lambda p: (
        sj.keep_top(p, 100),
        sj.keep_top_per_layer(p, jax.tree.map(lambda _: 3, p)),
        sj.count(jax.tree.map(lambda leaf: leaf > 0, p)),
        sj.rescaled(p, MASKS),
    ),
}


def lowered(name, *platforms):
    """The texts of a program for several platforms."""
    params = PARAMS
    if name.startswith("batch"):
        params = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), PARAMS)
    traced = jax.jit(lambda params: PROGRAMS[name](params)).trace(params)
    return [traced.lower(lowering_platforms=(p,)).as_text() for p in platforms]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_for_accelerators_hold_nothing_that_is_meant_for_a_cpu(name, monkeypatch):
    cpu, *others = lowered(name, "cpu", "tpu", "cuda")
    either = lax.platform_dependent

    def without_cpu(*args, cpu, default):
        return either(*args, rocm=default, default=default)

    monkeypatch.setattr(lax, "platform_dependent", without_cpu)
    # The loop has the constants of both branches of a user's criterion as its arguments.
    if name != "a user's criterion":
        assert others == lowered(name, "tpu", "cuda")
    for text in others:
        assert "xi8>" not in text
        assert ("stablehlo.convolution" in text) == (name != "selections")
        # Each element of a batch has other kernels: groups of one convolution.
        assert ("feature_group_count = 2" in text) == (name == "batch")
    # Or this test is idle: snip's convolutions are of many images, and a CPU's too.
    assert "feature_group_count = 2" not in cpu
    assert ("stablehlo.convolution" in cpu) == ("snip" in name or name == "scores")
    assert ("xi8>" in cpu) == (name not in ("flow", "scores", "paths"))


@pytest.mark.parametrize("convolves", [False, True])
def test_only_programs_with_convolutions_have_a_branch_for_cpus(convolves):
    apply_fn, shape = (
        (network, SHAPE) if convolves else (lambda p, x: x @ p["dense"], (32,))
    )
    traced = jax.make_jaxpr(lambda p: sj.log_flow(apply_fn, p, shape))(PARAMS)
    assert holds(traced, "platform_index") == convolves


def test_nothing_asks_what_the_host_has():
    package = pathlib.Path(sj.__file__).parent
    for path in package.rglob("*.py"):
        assert not re.search(r"default_backend|device_count", path.read_text()), path

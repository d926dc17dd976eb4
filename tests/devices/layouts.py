"""Networks on many devices, written for Auto and for Explicit axes of a mesh.

Weights are powers of two, so that every sum is exact and masks are the same bit for bit
however the network is divided.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

WIDTH, HIDDEN, HEADS, LAYERS = 16, 32, 4, 2


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a network is divided over a mesh of 2 by 4 devices with the axes "d" and "t".

    Attributes:
      rows: the axis along which the sides of kernels lie that are no units of a layer.
      units: the axis along which the hidden units and the heads lie.
    """

    rows: str | None = None
    units: str | None = None


LAYOUTS = {
    "replicated": Layout(),
    "fsdp": Layout(rows="d"),
    "megatron": Layout(units="t"),
    "2-D": Layout(rows="d", units="t"),
}


def mesh_of(kind: AxisType):
    return jax.make_mesh((2, 4), ("d", "t"), axis_types=(kind,) * 2)


def powers_of_two(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    exponents = rng.integers(0, 3, shape)
    return np.float32(2.0**exponents * rng.choice([-1, 1], shape))


def product(formula: str, x, w, use: P, out: P, explicit: bool):
    """A product with a kernel, which over Explicit axes is first divided as it is used."""
    if not explicit:
        return jnp.einsum(formula, x, w)
    return jnp.einsum(formula, x, jax.sharding.reshard(w, use), out_sharding=out)


# --- two networks: shapes, places and functions -------------------------------------------


def mlp_shapes():
    return {
        "up": {"kernel": (WIDTH, HIDDEN), "bias": (HIDDEN,)},
        "down": {"kernel": (HIDDEN, WIDTH)},
        "head": {"kernel": (WIDTH, 4)},
        "unused": {"table": (24, 8)},  # not prunable
    }


def mlp_places(layout: Layout):
    rows, units = layout.rows, layout.units
    return {
        "up": {"kernel": P(rows, units), "bias": P(units)},
        "down": {"kernel": P(units, rows)},
        "head": {"kernel": P(rows)},
        "unused": {"table": P(rows, units)},
    }


def mlp(layout: Layout, explicit: bool, params, x):
    units = layout.units
    take = functools.partial(product, "bi,io->bo", explicit=explicit)
    h = take(x, params["up"]["kernel"], use=P(None, units), out=P(None, units))
    h = jax.nn.relu(h + params["up"]["bias"][None])
    h = take(h, params["down"]["kernel"], use=P(units), out=P())
    return take(h, params["head"]["kernel"], use=P(), out=P())


def decoder_shapes():
    inner = WIDTH // HEADS
    return {
        "layers": {
            **{name: {"kernel": (LAYERS, WIDTH, HEADS, inner)} for name in "qkv"},
            "o": {"kernel": (LAYERS, HEADS, inner, WIDTH)},
            "up": {"kernel": (LAYERS, WIDTH, HIDDEN)},
            "down": {"kernel": (LAYERS, HIDDEN, WIDTH)},
            "norm": {"scale": (LAYERS, WIDTH)},
        },
        "head": {"kernel": (WIDTH, 8)},
    }


def decoder_places(layout: Layout):
    rows, units = layout.rows, layout.units
    return {
        "layers": {
            **{name: {"kernel": P(None, rows, units)} for name in "qkv"},
            "o": {"kernel": P(None, units, None, rows)},
            "up": {"kernel": P(None, rows, units)},
            "down": {"kernel": P(None, units, rows)},
            "norm": {"scale": P()},
        },
        "head": {"kernel": P(rows)},
    }


def decoder(layout: Layout, explicit: bool, params, x):
    """Attention and a feed-forward part in each layer; scanned and rematerialised."""
    units = layout.units
    take = functools.partial(product, explicit=explicit)

    @jax.checkpoint
    def layer(x, p):
        h = x * p["norm"]["scale"][None, None]
        q, k, v = (
            take(
                "bsd,dhk->bshk",
                h,
                p[name]["kernel"],
                use=P(None, units),
                out=P(None, None, units),
            )
            for name in "qkv"
        )
        weights = jax.nn.softmax(jnp.einsum("bshk,bthk->bhst", q, k))
        mixed = jnp.einsum("bhst,bthk->bshk", weights, v)
        x = x + take("bshk,hkd->bsd", mixed, p["o"]["kernel"], use=P(units), out=P())
        h = take(
            "bsd,dh->bsh",
            x,
            p["up"]["kernel"],
            use=P(None, units),
            out=P(None, None, units),
        )
        h = take("bsh,hd->bsd", jax.nn.gelu(h), p["down"]["kernel"], use=P(units), out=P())
        return x + h, None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    return take("bsd,dv->bsv", x, params["head"]["kernel"], use=P(), out=P())


NETWORKS = {
    "mlp": (mlp, mlp_shapes, mlp_places, (WIDTH,)),
    "decoder": (decoder, decoder_shapes, decoder_places, (3, WIDTH)),
}


def network_of(name: str, layout: Layout, kind: AxisType | None):
    """The function, and the shape of its input."""
    function, *_, shape = NETWORKS[name]
    return functools.partial(function, layout, kind == AxisType.Explicit), shape


def params_of(name: str, seed: int = 0):
    """The parameters on one device."""
    shapes = NETWORKS[name][1]()
    paths, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    leaves = [powers_of_two(seed + i, shape) for i, shape in enumerate(paths)]
    return jax.tree.map(jnp.asarray, treedef.unflatten(leaves))


def divided(name: str, layout: Layout, mesh, params):
    """The parameters on the mesh."""
    places = NETWORKS[name][2](layout)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), places, is_leaf=lambda x: isinstance(x, P)
    )
    return jax.device_put(params, shardings)

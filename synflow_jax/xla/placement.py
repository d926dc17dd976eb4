"""Where arrays lie, and where those belong that a program makes inside.

The type of an array says how it is divided over the Explicit axes of a mesh, and over which
axes it varies inside `jax.shard_map`; an array made like another one has the type of that.
Over Auto axes only concrete arrays are known to be divided.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import Array, Bool, PyTree

Tree = TypeVar("Tree")


def placement_of(leaf: Any) -> NamedSharding | None:
    """The sharding of an array over several devices; None for others, and while tracing."""
    sharding = None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding) and (
        sharding.mesh.size > 1 or AxisType.Explicit in sharding.mesh.axis_types
    ):
        return sharding
    return None


def placed(x: Any, placement: NamedSharding | None) -> Any:
    """In a compiled program: the array, divided as ``placement`` says.

    Over Explicit axes nothing is done, as its type says it already.
    """
    if placement is None or set(placement.mesh.axis_types) != {AxisType.Auto}:
        return x
    return lax.with_sharding_constraint(x, placement)


def all_true_like(leaf: Any) -> Bool[Array, "..."]:
    """An array full of True that lies where another one does."""
    if isinstance(leaf, Tracer):
        return jnp.ones_like(leaf, dtype=bool)
    return jnp.ones(jnp.shape(leaf), bool, device=placement_of(leaf))


def on_auto_axes(x: jax.Array) -> jax.Array:
    """The same array for a program that leaves to XLA how results are divided.

    Nothing is copied. Arrays over Explicit axes need that where a program reshapes them.
    """
    placement = placement_of(x)
    if placement is None or not isinstance(placement.mesh, Mesh):
        return x
    auto = Mesh(placement.mesh.devices, placement.mesh.axis_names)
    shards = [shard.data for shard in x.addressable_shards]
    sharding = NamedSharding(auto, placement.spec)
    return jax.make_array_from_single_device_arrays(x.shape, sharding, shards)


def lying_like(x: Array, like: Array) -> Array:
    """An array, divided over devices as another one of its shape is."""
    if is_divided(like):
        return jax.sharding.reshard(x, jax.typeof(like).sharding)
    placement = placement_of(like)
    return x if placement is None else lax.with_sharding_constraint(x, placement)


def made_like(like: Array, make: Callable[..., Array], *args: Array) -> Array:
    """``make(*args)``, divided over devices as another array of the result's shape is.

    Inside ``make`` XLA decides how arrays are divided, so it may reshape them.
    """
    if is_divided(like):
        return on_auto(make, jax.typeof(like).sharding)(*args)
    return lying_like(make(*args), like)


def on_auto(function: Callable[..., Any], out_sharding: Any) -> Callable[..., Any]:
    """A function inside of which XLA decides how arrays are divided, called with arrays
    over Explicit axes."""
    decided: Any = jax.sharding.auto_axes(function, out_sharding=out_sharding)
    return decided


def is_divided(x: Any) -> bool:
    """Whether the type of an array says that it is divided over devices."""
    spec = jax.typeof(x).sharding.spec
    return any(entry is not None for entry in spec)


def varying_with(tree: Tree, data: PyTree) -> Tree:
    """Inside `jax.shard_map`: a tree, varying over every axis along which ``data`` does.

    A loop needs that of the constants with which its carry starts, and a branch of those
    that it returns. Elsewhere the tree is returned as it is.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    # A sum varies over all axes that one of its terms does, and so does what it decides.
    zeros = [lax.full_like(x, 0, jnp.int32, shape=()) for x in jax.tree.leaves(data)]
    decides = sum(zeros, jnp.int32(0)) == 0
    return jax.tree.map(lambda x: jnp.where(decides, x, x), tree)

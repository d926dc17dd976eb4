"""The devices that a function is traced for: those on which its arrays lie.

A CPU runs a score and a selection fast in other forms than an accelerator does, and leaves
that are spread over devices must be neither reshaped nor joined. The outermost call looks
at its arrays, and hands the answer down to what it calls. If it is traced itself, by
`jax.jit` or `jax.export`, it has one branch for CPUs and one for all other devices, of
which a program that is lowered holds only its own.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend import core
from jax.sharding import AxisType, NamedSharding
from jaxtyping import PyTree

from synflow_jax.xla.jaxprs import beneath, holds


class Backend(NamedTuple):
    """What a program depends on of the devices that it is traced for; static.

    Attributes:
      cpu: whether they are CPUs.
      one_device: whether it is one, so that reshaping moves nothing between devices.
    """

    cpu: bool
    one_device: bool


# The form that runs anywhere, if not as fast.
ANYWHERE = Backend(cpu=False, one_device=False)


def backend_of(*args: PyTree) -> Backend | None:
    """The devices on which the arrays lie.

    Args:
      args: pytrees of arrays or `jax.ShapeDtypeStruct`, also under `jax.vmap` or `jax.grad`
        of a call that is not compiled.

    Returns:
      None if it is not known, because the call is traced.

    Example:
      >>> backend_of(np.ones(3)).one_device
      True
    """
    leaves = [beneath(x) for x in jax.tree.leaves(args)]
    # Within a function that is compiled this is traced, whatever the arguments are.
    default = jax.device_put(np.uint32(0))
    if any(isinstance(x, Tracer) for x in (default, *leaves)):
        return None
    shardings = [getattr(x, "sharding", None) for x in leaves]
    placed = [(x, s) for x, s in zip(leaves, shardings) if s is not None]
    # JAX moves the others to where these are.
    committed = [pair for pair in placed if getattr(pair[0], "committed", True)]
    pairs = committed or placed or [(default, default.sharding)]
    devices = set().union(*(sharding.device_set for _, sharding in pairs))
    one_device = len(devices) == 1 and not any(_is_divided(s) for _, s in pairs)
    return Backend(next(iter(devices)).platform == "cpu", one_device)


def on_backend(
    body: Callable[..., PyTree],
    *args: PyTree,
    backend: Backend | None = None,
    differs: Callable[[core.ClosedJaxpr], bool] | None = None,
) -> PyTree:
    """``body(backend, *args)``, for the devices on which it will run.

    Args:
      body: a function whose results have the same structure and types for every backend.
      args: its arguments, pytrees of arrays.
      backend: where it runs, if the caller knows.
      differs: whether a CPU should run another program than the traced one, which is for
        other devices; None: always. Tracing, differentiating and batching two branches
        takes twice as long.

    Example:
      >>> import jax.numpy as jnp
      >>> def body(backend, x):
      ...     return jnp.sin(x) if backend.cpu else jnp.cos(x)
      >>> traced = jax.jit(lambda x: on_backend(body, x)).trace(jnp.ones(2))
      >>> for platform in ("cpu", "cuda"):
      ...     program = traced.lower(lowering_platforms=(platform,)).as_text()
      ...     print(platform, "sine" in program.replace("cosine", ""))
      cpu True
      cuda False
    """
    backend = backend or backend_of(*args)
    if backend is not None:
        return body(backend, *args)
    one_device = all(map(_on_one_device, jax.tree.leaves(args)))
    elsewhere = functools.partial(body, Backend(cpu=False, one_device=one_device))
    if differs is not None:
        traced, shapes = jax.make_jaxpr(elsewhere, return_shape=True)(*args)
        results = jax.tree.structure(shapes)

        def elsewhere(*args):
            outs = core.jaxpr_as_fun(traced)(*jax.tree.leaves(args))
            return jax.tree.unflatten(results, outs)

        if not differs(traced):
            return elsewhere(*args)
    # Compiled, so that its constants stay in its branch.
    on_cpu = jax.jit(functools.partial(body, Backend(cpu=True, one_device=one_device)))
    return lax.platform_dependent(*args, cpu=on_cpu, default=elsewhere)


def has_convolutions(jaxpr: core.ClosedJaxpr) -> bool:
    """Whether a function convolves: its program for a CPU is another one then."""
    return holds(jaxpr, "conv_general_dilated")


def _is_divided(sharding: Any) -> bool:
    """Whether a type says that its arrays are divided, if only over a mesh of one device:
    they cannot be reshaped then."""
    if not isinstance(sharding, NamedSharding):
        return False
    is_typed = AxisType.Explicit in sharding.mesh.axis_types
    return is_typed and any(entry is not None for entry in sharding.spec)


def _on_one_device(x: Any) -> bool:
    """Whether an array lies on one device, as far as JAX knows of one that is traced.

    Inside of `jax.shard_map` it does.
    """
    if not isinstance(x, Tracer):
        sharding = getattr(x, "sharding", None)
        return sharding is None or len(sharding.device_set) == 1
    sharding = getattr(jax.typeof(x), "sharding", None)
    if sharding is None:
        return True
    if _is_divided(sharding):
        return False
    mesh = sharding.mesh
    axes = zip(mesh.axis_sizes, mesh.axis_types)
    return math.prod(n for n, kind in axes if kind != AxisType.Manual) == 1

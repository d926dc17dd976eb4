"""Rules of `shard_map` and of communication between devices.

The flow of a program that runs on many devices is the flow of the same program on a mapped
axis: `jax.vmap` with the name of the mesh's axis computes it, on any number of devices, and
its derivative is that of the whole.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from synflow_jax.transform.control_flow import on_one_exponent, without_history
from synflow_jax.transform.scaled import Scaled, aligned, normalised, power_of_two
from synflow_jax.transform.structural import first_largest
from synflow_jax.transform.values import (
    Equation,
    Tokens,
    Value,
    as_array,
    carries_flow,
)
from synflow_jax.xla.placement import is_divided, on_auto


def shard_map(equation: Equation, *operands: Value):
    """Goes inside for every device, each with its shards."""
    params = equation.params
    sizes = params["mesh"].shape
    manual = params.get("newly_manual_axes") or frozenset(sizes)
    axes = [name for name in sizes if name in manual]
    if any(isinstance(x, Tokens) for x in operands):
        raise ValueError("integers of the input enter it: look them up before.")
    values = [as_array(without_history(x)) for x in operands]
    flows = [isinstance(x, Scaled) for x in values]
    exponents = [x.exponent if flow else None for x, flow in zip(values, flows)]
    arrays = [x.mantissa if flow else x for x, flow in zip(values, flows)]
    specs = [
        _named(spec, arrays[i].ndim, axes) for i, spec in enumerate(params["in_specs"])
    ]
    found = []

    def whole(arrays, exponents):
        def on_device(*arrays):
            inputs = [x if e is None else Scaled(x, e) for x, e in zip(arrays, exponents)]
            outs = equation.inside(params["jaxpr"], *inputs)
            found[:] = outs = [*map(without_history, outs)]
            return [x if isinstance(x, Scaled) else jnp.asarray(as_array(x)) for x in outs]

        arrays = [_split(x, spec, axes, sizes) for x, spec in zip(arrays, specs)]
        run = on_device
        for name in axes[::-1]:  # the first axis of the mesh is the outermost
            at = [0 if any(name in names for names in spec) else None for spec in specs]
            run = jax.vmap(run, in_axes=at, axis_name=name, axis_size=sizes[name])
        outs = run(*arrays)
        if any(isinstance(x, Tokens) for x in found):
            raise ValueError("integers of the input leave it.")
        outs = [_gathered(x, spec, axes) for x, spec in zip(outs, params["out_specs"])]
        return [(*x,) if isinstance(x, Scaled) else (x, jnp.int32(0)) for x in outs]

    if any(map(is_divided, arrays)):  # over Explicit axes, which cannot be split
        places = [(PartitionSpec(*spec), PartitionSpec()) for spec in params["out_specs"]]
        outs = on_auto(whole, places)(arrays, exponents)
    else:
        outs = whole(arrays, exponents)
    return [Scaled(*x) if isinstance(f, Scaled) else x[0] for x, f in zip(outs, found)]


def _named(spec, ndim: int, axes: Sequence[str]) -> list[tuple[str, ...]]:
    """For each axis of an array the names of the mesh's axes that it is split along."""
    entries = [*spec, *[None] * ndim][:ndim]
    named = [x if isinstance(x, tuple) else (x,) if x is not None else () for x in entries]
    return [tuple(name for name in names if name in axes) for names in named]


def _split(x: Array, spec: list[tuple[str, ...]], axes: Sequence[str], sizes) -> Array:
    """The shards of an array, along new leading axes in the order of the mesh."""
    shape, places = [], {}
    for length, names in zip(x.shape, spec):
        for name in names:
            places[name] = len(shape)
            shape.append(sizes[name])
            length //= sizes[name]
        shape.append(length)
    leading = [places[name] for name in axes if name in places]
    return jnp.moveaxis(x.reshape(shape), leading, range(len(leading)))


def _gathered(out: Value, spec, axes: Sequence[str]) -> Value:
    """The whole array of its shards; of copies, the first device's."""
    if isinstance(out, Scaled):
        flat = out.exponent.reshape(-1)
        mantissa = out.mantissa.reshape(flat.size, *out.mantissa.shape[len(axes) :])
        mantissa, exponent = on_one_exponent(Scaled(mantissa, flat))
        return Scaled(_joined(mantissa.reshape(out.mantissa.shape), spec, axes), exponent)
    return _joined(out, spec, axes)


def _joined(x: Array, spec, axes: Sequence[str]) -> Array:
    ndim = x.ndim - len(axes)
    named = _named(spec, ndim, axes)
    used = [name for names in named for name in names]
    for place in reversed([i for i, name in enumerate(axes) if name not in used]):
        x = lax.index_in_dim(x, 0, place, keepdims=False)
    leading = [name for name in axes if name in used]
    order, shape = [], []
    for k, names in enumerate(named):
        order += [*(leading.index(name) for name in names), len(leading) + k]
        shape.append(x.shape[len(leading) + k])
        for name in names:
            shape[-1] *= x.shape[leading.index(name)]
    return x.transpose(order).reshape(shape)


# --- communication ------------------------------------------------------------------------


def communicate(equation: Equation, *operands: Value):
    """Moves entries between devices, or adds them up."""
    flows = [*filter(carries_flow, operands)]
    if len(flows) < len(operands):
        raise ValueError("it communicates flows and parameters at once.")
    axes = _axes(equation)
    mantissas, exponent = aligned(flows)
    top = lax.pmax(exponent, axes)
    shift = power_of_two(exponent - top, equation.dtype)
    return [normalised(x, top) for x in equation.bind(*(m * shift for m in mantissas))]


def largest(equation: Equation, *operands: Value):
    """The largest over the devices, the first among equals. It is also the rule of `pmin`,
    since absolute values have no sign."""
    return [_largest(flow, _axes(equation)) for flow in operands]


def _largest(flow: Scaled, axes: Sequence[str]) -> Scaled:
    top = lax.pmax(flow.exponent, axes)
    mantissa = flow.mantissa * power_of_two(flow.exponent - top, flow.mantissa.dtype)
    everywhere = lax.all_gather(mantissa, axes)
    return normalised(first_largest([*everywhere]), top)


def union(equation: Equation, *operands: Value):
    """Of zeros and ones: whatever any device has."""
    axes = _axes(equation)
    return [Scaled(lax.psum(x.mantissa, axes), x.exponent) for x in operands]


def _axes(equation: Equation) -> tuple[str, ...]:
    params = equation.params
    axes = params["axes"] if "axes" in params else params["axis_name"]
    if params.get("axis_index_groups") is not None:
        raise ValueError("communication within groups of devices has no rule.")
    return axes if isinstance(axes, tuple) else (axes,)

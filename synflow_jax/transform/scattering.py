"""Rules that write entries of one array into another: scatters and updates of slices."""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from synflow_jax.transform.scaled import Scaled, aligned, normalised
from synflow_jax.transform.structural import nearly
from synflow_jax.transform.values import (
    Equation,
    Value,
    as_flows,
    carries_flow,
    must_be_plain,
)

WRITES = (
    "the positions that it writes (which the flow decides by `top_k` and `argmax` alone)"
)


def updating(equation: Equation, array: Value, update: Value, *places: Value):
    """Writes one array into another; if one of them is a parameter value, it carries no
    flow."""
    must_be_plain(places, WRITES)
    mantissas, exponent = aligned(as_flows([array, update], equation.dtype))
    (updated,) = equation.bind(*mantissas, *places)
    return [normalised(updated, exponent)]


def scatter(equation: Equation, array: Value, places: Value, updates: Value):
    """Writes or adds entries into an array, at positions that are parameter values."""
    must_be_plain([places], WRITES)
    (array, updates), exponent = aligned(as_flows([array, updates], equation.dtype))
    put = lax.scatter_add if equation.name == "scatter-add" else lax.scatter
    written = put(array, places, updates, **_settings(equation))
    return [normalised(written, exponent)]


def scatter_sub(equation: Equation, array: Value, places: Value, updates: Value):
    """As a subtraction: the array's flow passes. If only the updates carry flow, they are
    written as by `scatter-add`."""
    must_be_plain([places], WRITES)
    return [array] if carries_flow(array) else scatter(equation, array, places, updates)


def scatter_mul(equation: Equation, array: Value, places: Value, updates: Value):
    """Multiplies entries of a flow by the absolute values of parameters."""
    must_be_plain([places, updates], "what it multiplies by, and where,")
    sizes = equation.absolute(updates)
    zero = sizes == 0  # of several factors for one entry the logarithms are added up
    logs = jnp.where(zero, 0, jnp.log(jnp.where(zero, 1, sizes)))
    none = jnp.zeros(array.mantissa.shape, equation.dtype)
    settings = _settings(equation)
    zeros = lax.scatter_add(none, places, zero.astype(none.dtype), **settings)
    factors = jnp.exp(lax.scatter_add(none, places, logs, **settings))
    factors = jnp.where(zeros > 0, 0, factors)
    return [normalised(array.mantissa * factors, array.exponent)]


def scatter_max(equation: Equation, array: Value, places: Value, updates: Value):
    """The largest of what is written to each position, the first among equals: the maximum
    of each segment. It is also the rule of the minimum, since absolute values have no
    sign."""
    must_be_plain([places], WRITES)
    (array, updates), exponent = aligned(as_flows([array, updates], equation.dtype))
    settings = _settings(equation)
    fixed, written = map(lax.stop_gradient, (array, updates))
    threshold = nearly(lax.scatter_max(fixed, places, written, **settings))
    # Which update is the first that comes near to the threshold of its position.
    number = jnp.arange(updates.size, dtype=jnp.int32).reshape(updates.shape)
    near = written >= _read(equation, threshold, places, updates.shape, jnp.inf)
    candidates = jnp.where(near, number, updates.size)
    none = jnp.full(array.shape, updates.size, jnp.int32)
    first = lax.scatter_min(none, places, candidates, **settings)
    first = jnp.where(fixed >= threshold, -1, first)  # what is there comes first
    taken = number == _read(equation, first, places, updates.shape, -2)
    taken = jnp.where(taken, updates, 0)
    none = jnp.zeros_like(array)
    largest = jnp.where(first == -1, array, 0)
    largest += lax.scatter_add(none, places, taken, **settings)
    largest = jnp.where(jnp.isnan(threshold), threshold, largest)  # to be reported
    return [normalised(largest, exponent)]


def scatter_union(equation: Equation, array: Value, places: Value, updates: Value):
    """Of maxima, where any entry may be the largest: all that is written is added up."""
    must_be_plain([places], WRITES)
    (array, updates), exponent = aligned(as_flows([array, updates], equation.dtype))
    return [
        Scaled(lax.scatter_add(array, places, updates, **_settings(equation)), exponent)
    ]


def _settings(equation: Equation) -> dict:
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    return {name: equation.params[name] for name in names}


def _read(
    equation: Equation, array: Array, places: Array, shape: tuple[int, ...], fill
) -> Array:
    """For each update the entry of an array at the position to which it is written."""
    numbers = equation.params["dimension_numbers"]
    windows = iter(shape[axis] for axis in numbers.update_window_dims)
    single = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    sizes = [1 if axis in single else next(windows) for axis in range(array.ndim)]
    if not math.prod(shape):
        return jnp.zeros(shape, array.dtype)
    return lax.gather(
        array,
        places,
        lax.GatherDimensionNumbers(
            offset_dims=numbers.update_window_dims,
            collapsed_slice_dims=numbers.inserted_window_dims,
            start_index_map=numbers.scatter_dims_to_operand_dims,
            operand_batching_dims=numbers.operand_batching_dims,
            start_indices_batching_dims=numbers.scatter_indices_batching_dims,
        ),
        slice_sizes=sizes,
        mode=equation.params["mode"],
        fill_value=fill,
    )

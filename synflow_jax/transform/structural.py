"""Rules that move, concatenate and add up the entries of a flow, and max pooling."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from synflow_jax.transform.history import (
    added_to,
    added_together,
    common_shift,
    shift_of,
)
from synflow_jax.transform.scaled import Scaled, aligned, normalised
from synflow_jax.transform.values import (
    Derived,
    Equation,
    Inverse,
    Stopped,
    Value,
    as_flows,
    carries_flow,
    must_be_plain,
    plain_or_flow,
)

_DECIDED = "(which the flow decides by `sort`, `top_k` and `argmax` alone)"


def structural(equation: Equation, flow: Value, *places: Value):
    """Moves entries without changing them; the positions are parameter values."""
    must_be_plain(places, f"the positions that it reads {_DECIDED}")
    if not carries_flow(flow):
        raise ValueError("the flow must enter it as the array that is moved.")
    at = [plain_or_flow(place) for place in places]
    mantissa, exponent = plain_or_flow(flow)
    moved = [Scaled(out, exponent) for out in equation.bind(mantissa, *at)]
    if isinstance(flow, Inverse):
        return [*map(Inverse, moved, equation.bind(flow.factor, *at))]
    if isinstance(flow, Stopped):
        return [*map(Stopped, moved, moved)]
    if isinstance(flow, Derived) and (flow.shift or flow.added):
        return [_moved(equation, flow, i, new, at) for i, new in enumerate(moved)]
    return moved


def _moved(equation: Equation, flow: Derived, i: int, new: Scaled, at) -> Derived:
    """The i-th result, with what the flow leaves out."""
    added = flow.added
    if added is None:
        return Derived(new, shift=flow.shift)
    # Not kept: it may be asked for while a branch or a loop is traced.
    return Derived(new, shift=flow.shift, added=lambda: equation.bind(added(), *at)[i])


def taking(equation: Equation, flow: Value, *places: Value):
    """Moves entries and drops some, perhaps the largest: so the result is normalised."""
    taken = []
    for new in structural(equation, flow, *places):
        scaled = normalised(*plain_or_flow(new))
        left_out = isinstance(new, Derived)
        taken.append(dataclasses.replace(new, flow=scaled) if left_out else scaled)
    return taken


def placing(equation: Equation, flow: Value):
    """Says where entries are stored, and changes none of them."""
    (placed,) = structural(equation, flow)
    if isinstance(flow, Inverse | Stopped):
        return [placed]
    flow_ = plain_or_flow(placed)
    return [Derived(flow_, flow, scales=True, shift=shift_of(flow), added=added_to(flow))]


def joining(equation: Equation, *operands: Value):
    """Concatenates arrays; parameter values among them carry no flow."""
    flows = as_flows([*map(plain_or_flow, operands)], equation.dtype)
    mantissas, exponent = aligned(flows)
    (joined,) = equation.bind(*mantissas)
    shift = common_shift(operands)
    added = added_together(operands, lambda *arrays: equation.bind(*arrays)[0])
    return [Derived(Scaled(joined, exponent), shift=shift, added=added)]


def pad(equation: Equation, flow: Value, value: Value):
    """Pads the flow with zeros, whatever the padding value is: that value is a shift."""
    if not carries_flow(flow):
        raise ValueError("the flow must enter it as the array that is padded.")

    def padded(array):
        return equation.bind(array, jnp.zeros((), array.dtype))[0]

    mantissa, exponent = plain_or_flow(flow)
    added = added_together([flow], padded)
    return [Derived(Scaled(padded(mantissa), exponent), added=added)]


def summing(equation: Equation, flow: Scaled):
    """Adds up entries of the flow: sums, means and average pooling."""
    (total,) = equation.bind(flow.mantissa)
    return [normalised(total, flow.exponent)]


def summing_logs(equation: Equation, flow: Scaled):
    """The logarithm of a running sum of exponentials: the running sum of the flow."""
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    running = lax.cumsum(flow.mantissa, axis=axis, reverse=reverse)
    return [normalised(running, flow.exponent)]


def barrier(equation: Equation, *operands: Value):
    """Every operand passes; the primitive orders computations, or says where they are."""
    return operands


# --- the largest --------------------------------------------------------------------------

# Relative margin within which entries of a window count as equal to its largest. On an
# all-ones input whole regions of an image have equal flow up to rounding (1e-7 a sum), and
# without the margin rounding, hence the platform, would choose the path.
_TIE = 2.0**-13


def reduce_window_max(equation: Equation, flow: Scaled):
    """Max pooling: the flow of the largest entry of each window, the first among equals.

    Max pooling is positively homogeneous, so the flow is conserved. Entries within 2**-13
    of the largest count as equal to it, on every platform and in every precision.
    """
    entries = pooled_entries(equation, flow, fill=-jnp.inf)
    return [normalised(first_largest(entries), flow.exponent)]


def pooled_entries(equation: Equation, flow: Scaled, fill: float) -> list[Array]:
    """For each offset in the pooling window, the entries there; ``fill`` outside the
    image."""
    params = equation.params
    if set(params["base_dilation"]) != {1}:
        raise ValueError("max pooling with a base dilation has no rule.")
    return window_slices(
        flow.mantissa,
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        params["window_dilation"],
        fill,
    )


def reduce_max(equation: Equation, flow: Scaled):
    """Global max pooling: `reduce_window_max` over whole axes. It is also the rule of the
    minimum, since absolute values have no sign."""
    axes = equation.params["axes"]
    if not axes:
        return [flow]
    ahead = jnp.moveaxis(flow.mantissa, axes, range(len(axes)))
    rows = ahead.reshape(-1, *ahead.shape[len(axes) :])
    fixed = lax.stop_gradient(rows)
    first = jnp.argmax(fixed >= nearly(fixed.max(axis=0, keepdims=True)), axis=0)
    chosen = jnp.take_along_axis(rows, first[None], axis=0)[0]
    return [normalised(chosen, flow.exponent)]


def reduce_all(equation: Equation, flow: Scaled):
    """`reduce_max` over all axes: whether any entry of a whole batch is true."""
    params = {"axes": tuple(range(flow.mantissa.ndim))}
    return reduce_max(equation._replace(params=params), flow)


def cumulative_max(equation: Equation, flow: Scaled):
    """The largest entry so far, the first among equals. It is also the rule of the running
    minimum, since absolute values have no sign."""
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    ahead = jnp.moveaxis(flow.mantissa, axis, -1)
    lines = ahead.reshape(-1, ahead.shape[-1])
    lines = jnp.flip(lines, 1) if reverse else lines
    # The running maximum grows, so the first entry near to it is found by bisection.
    top = lax.cummax(lax.stop_gradient(lines), axis=1)
    first = jax.vmap(jnp.searchsorted)(top, nearly(top))
    chosen = jnp.take_along_axis(lines, first, axis=1)
    chosen = jnp.flip(chosen, 1) if reverse else chosen
    chosen = jnp.moveaxis(chosen.reshape(ahead.shape), -1, axis)
    return [normalised(chosen, flow.exponent)]


def first_largest(entries: list[Array]) -> Array:
    """Entry by entry the largest of several arrays, the first among equals."""
    fixed = [lax.stop_gradient(entry) for entry in entries]
    threshold = nearly(functools.reduce(jnp.maximum, fixed))
    chosen = entries[-1]
    for entry, value in zip(entries[-2::-1], fixed[-2::-1]):
        chosen = jnp.where(value >= threshold, entry, chosen)
    return jnp.where(jnp.isnan(threshold), threshold, chosen)  # to be reported


def nearly(largest: Array) -> Array:
    """Threshold above which entries count as equal to the largest; infinity is kept."""
    return largest - jnp.where(jnp.isfinite(largest), _TIE * jnp.abs(largest), 0)


def window_slices(x: Array, window, strides, padding, dilation, fill) -> list[Array]:
    """For each offset in the window, the entries at that offset of every window."""
    x = lax.pad(x, jnp.asarray(fill, x.dtype), [(low, high, 0) for low, high in padding])
    reach = [(w - 1) * d for w, d in zip(window, dilation)]
    slices = []
    for place in np.ndindex(*window):
        start = [p * d for p, d in zip(place, dilation)]
        stop = [s + n - r for s, n, r in zip(start, x.shape, reach)]
        slices.append(lax.slice(x, start, stop, strides))
    return slices

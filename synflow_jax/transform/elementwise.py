"""Sums, products and quotients of flows; nonlinearities, gates and normalisations."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from synflow_jax.transform.contractions import factors
from synflow_jax.transform.history import (
    added_to,
    added_together,
    common_dominator,
    common_shift,
    derived,
    outer_factors,
    scaling,
    shift_of,
)
from synflow_jax.transform.scaled import (
    Scaled,
    aligned,
    normalised,
    normalised_once,
    total,
)
from synflow_jax.transform.structural import first_largest
from synflow_jax.transform.values import (
    Derived,
    Equation,
    Flowing,
    Inverse,
    Plain,
    Stopped,
    Value,
    as_array,
    as_flows,
    carries_flow,
    known,
    number_of,
    one_flow,
    plain_or_flow,
)
from synflow_jax.trees import is_floating

_MINUS_ONE = np.asarray(-1, np.float32)

# An array that was added before an exponential masks the entries in which it is below this.
# The exponential of less is zero in every precision, and -1e4 is the least negative mask in
# use (in bfloat16 it is -9984).
_MASK = -9e3


# --- sums ---------------------------------------------------------------------------------


def add(equation: Equation, left: Value, right: Value):
    """Two flows add up. A parameter (a bias) is dropped, or added as its absolute value."""
    if not (carries_flow(left) and carries_flow(right)):
        flow, shift = (left, right) if carries_flow(left) else (right, left)
        return [_shifted(equation, flow, shift)]
    if isinstance(left, Stopped) != isinstance(right, Stopped):
        return _as_it_is(equation, right if isinstance(left, Stopped) else left)
    (a, b), exponent = aligned([plain_or_flow(left), plain_or_flow(right)])
    both = normalised_once(a + b, exponent)
    if isinstance(left, Stopped):
        return [Stopped(both, both)]
    shift = shift_of(left) + shift_of(right)
    added = _sum(added_to(left), added_to(right))
    return [derived(both, left, right, shift=shift, added=added)]


def subtract(equation: Equation, left: Value, right: Value):
    """Centring: the first operand. A parameter (a running mean) is treated as a bias."""
    if carries_flow(left) and carries_flow(right):
        return _as_it_is(equation, left)
    if carries_flow(left):
        return [_shifted(equation, left, right, sign=-1)]
    (negative,) = negate(equation, right)
    return [_shifted(equation, negative, left)]


def negate(equation: Equation, flow: Value):
    """Absolute values have no sign; what the flow leaves out has."""
    if not isinstance(flow, Derived) or not (flow.shift or flow.added):
        return [flow]
    left_out = _times_left_out(flow, _MINUS_ONE, False)
    return [scaling(flow.flow, flow, _MINUS_ONE, False, **left_out)]


def _shifted(equation: Equation, flow: Flowing, shift: Plain, sign: int = 1) -> Flowing:
    (passed,) = _as_it_is(equation, flow)
    if isinstance(passed, Inverse):
        return passed
    result = plain_or_flow(passed)
    if equation.biases:
        # The authors' code subtracts the absolute value of a running mean; so does this.
        masked = sign * as_array(shift) <= _MASK
        bias = jnp.where(masked, 0, sign * equation.absolute(shift))
        (a, b), exponent = aligned([result, normalised(bias)])
        result = normalised(a + b, exponent)
    if isinstance(flow, Stopped):
        return Stopped(result, derived(result, flow))
    number = sign * number_of(shift) if known(shift) else 0.0
    shape = result.mantissa.shape

    def term():
        return jnp.broadcast_to(sign * as_array(shift), shape)

    added = _sum(added_to(flow), term)
    return derived(result, passed, shift=shift_of(flow) + number, added=added)


def _sum(left: Callable | None, right: Callable | None) -> Callable[[], Array] | None:
    if left is None or right is None:
        return left or right
    return lambda: left() + right()


def _times_left_out(flow: Flowing, plain: Plain, invert: bool) -> dict[str, Any]:
    """What the flow leaves out, times or divided by a plain value."""
    shift, added = 0.0, added_to(flow)
    if shift_of(flow) and known(plain):
        with np.errstate(all="ignore"):
            number = np.float64(number_of(plain))
            shift = float(shift_of(flow) / number if invert else shift_of(flow) * number)
    if added is None:
        return dict(shift=shift)
    factor = as_array(plain)
    return dict(shift=shift, added=lambda: added() / factor if invert else added() * factor)


# --- products -----------------------------------------------------------------------------


def multiply(equation: Equation, left: Value, right: Value):
    """Multiplies by |parameter|. Two flows: an activation, a normalisation or a gate.

    Two functions of one flow (``x * sigmoid(x)``, ``x * x``) make an activation of that
    flow, so their product is the flow itself; parameters that multiply the functions
    multiply it. A flow times the inverse of a flow is normalised: the statistic drops out.
    Any other product of two flows is their geometric mean, and a number that was added to
    one of them multiplies the other: ``(1 + s) * x`` is ``x + s * x``.
    """
    if not carries_flow(left):
        left, right = right, left
    if not carries_flow(right):
        return [_times(equation, left, right)]
    if isinstance(left, Inverse):
        left, right = right, left
    if isinstance(right, Inverse):
        return [_times(equation, left, right.factor)]
    origin = common_dominator(left, right)
    if origin is not None:
        outer = (*outer_factors(left, origin), *outer_factors(right, origin))
        # One parameter in both, as in (g * y) * (g * y), is one factor, as in (g * y)**2.
        outer = tuple({id(factor): (factor, inverts) for factor, inverts in outer}.values())
        return [_activation(equation, origin, outer)]
    a, b, exponent = factors(equation, plain_or_flow(left), plain_or_flow(right))
    terms = [normalised(a * b, exponent)]
    for one, other in ((left, right), (right, left)):
        if shift_of(one):
            mantissa, exponent = plain_or_flow(other)
            mantissa = jnp.broadcast_to(mantissa, terms[0].mantissa.shape)
            number = equation.absolute(np.asarray(shift_of(one), equation.dtype))
            terms.append(normalised(mantissa * number, exponent))
    return [Derived(total(terms), shift=shift_of(left) * shift_of(right))]


def multiplies_paths(equation: Equation, left: Value, right: Value) -> bool:
    """Whether `multiply` keeps paths: for weights, activations and normalisations."""
    inverses = isinstance(left, Inverse) + isinstance(right, Inverse)
    if one_flow(equation, left, right) or inverses == 1:
        return True
    return not inverses and common_dominator(left, right) is not None


def divide(equation: Equation, left: Value, right: Value):
    """Divides by |parameter|; division by a flow is a normalisation."""
    if not carries_flow(right):
        return [_times(equation, left, right, invert=True)]
    if isinstance(right, Inverse):
        flow = left if carries_flow(left) else _times(equation, right.flow, left)
        return [_times(equation, flow, right.factor, invert=True)]
    if carries_flow(left):
        return [_nonlinear(equation, left, right)]
    return [_inverse(equation, plain_or_flow(right), left)]


def divides_paths(equation: Equation, left: Value, right: Value) -> bool:
    """Whether `divide` keeps paths: division by the inverse of a flow is a product."""
    return not (carries_flow(left) and isinstance(right, Inverse)) and not (
        isinstance(left, Inverse) and carries_flow(right)
    )


def _activation(
    equation: Equation,
    origin: Scaled | Derived,
    outer: tuple[tuple[Plain, bool], ...],
) -> Derived:
    """An activation of a flow, times parameters."""
    mantissa, exponent = plain_or_flow(origin)
    for factor, inverts in outer:
        scale = equation.absolute(factor)
        scale = jnp.reshape(scale, ()) if scale.size == 1 else scale
        mantissa = mantissa / scale if inverts else mantissa * scale
    flow = normalised(mantissa, exponent) if outer else plain_or_flow(origin)
    return dataclasses.replace(derived(flow, origin), factors=outer)


def _times(
    equation: Equation, flow: Flowing, plain: Plain, invert: bool = False
) -> Flowing:
    """The flow times, or divided by, the absolute value of a plain value."""
    mantissa, exponent = plain_or_flow(flow)
    scale = equation.absolute(plain)
    if isinstance(flow, Inverse):
        factor = flow.factor / scale if invert else flow.factor * scale
        stretched = jnp.broadcast_to(mantissa, factor.shape)
        return Inverse(Scaled(stretched, exponent), factor)
    scaled = normalised(mantissa / scale if invert else mantissa * scale, exponent)
    left_out = _times_left_out(flow, plain, invert)
    return scaling(scaled, flow, plain, invert, **left_out)


def _inverse(equation: Equation, flow: Scaled, factor: Plain) -> Inverse:
    (shape,) = equation.out_shapes
    factor = jnp.broadcast_to(equation.absolute(factor), shape)
    return Inverse(Scaled(jnp.broadcast_to(flow.mantissa, shape), flow.exponent), factor)


def power(equation: Equation, base: Value, *exponents: Value):
    """A nonlinearity; a negative exponent makes it a normalisation."""
    exponent = exponents[0] if exponents else equation.params.get("y", -0.5)
    if isinstance(exponent, int | float) or known(exponent):
        if np.less(exponent, 0):
            flow = plain_or_flow(base)
            return [_inverse(equation, flow, np.ones((), flow.mantissa.dtype))]
    return nonlinearity(equation, base, *exponents)


# --- nonlinearities -----------------------------------------------------------------------


def nonlinearity(equation: Equation, *operands: Value):
    """The flow passes unchanged."""
    return [_nonlinear(equation, _only(operands))]


def exponential(equation: Equation, flow: Value):
    """A nonlinearity. Entries to which an array below -9000 was added (the mask of a
    softmax) carry no flow."""
    (result,) = nonlinearity(equation, flow)
    added = added_to(flow)
    if added is None:
        return [result]
    mantissa, exponent = plain_or_flow(result)
    open_entries = jnp.where(added() <= _MASK, 0, mantissa)
    return [derived(normalised(open_entries, exponent), flow)]


def identity(equation: Equation, *operands: Value):
    """A change of precision, or none: the flow passes unchanged."""
    return _as_it_is(equation, _only(operands))


def compare(equation: Equation, left: Value, *right: Value):
    """A step function: the flow passes; of two flows, the first does."""
    return [_nonlinear(equation, *filter(carries_flow, (left, *right)))]


def stop(equation: Equation, flow: Value):
    """The flow passes. If it is added to another flow (a straight-through estimator), it
    is dropped as a shift."""
    if isinstance(flow, Inverse | Stopped):
        flow = plain_or_flow(flow)
    return [Stopped(plain_or_flow(flow), flow)]


def maximum(equation: Equation, left: Value, right: Value):
    """ReLU: the flow passes. Of two flows the larger passes, the first if they are equal.

    This is also the rule of the minimum, since absolute values have no sign.
    """
    if not (carries_flow(left) and carries_flow(right)):
        flow, bound = (left, right) if carries_flow(left) else (right, left)
        (passed,) = nonlinearity(equation, flow, bound)
        if known(bound) and number_of(bound) <= _MASK and added_to(flow):
            return [flow]  # a bound of masked logits
        if not equation.biases:
            return [passed]
        mantissa, exponent = plain_or_flow(passed)  # may be negative after a running mean
        return [Scaled(jnp.where(mantissa > 0, mantissa, 0), exponent)]
    entries, exponent = aligned([plain_or_flow(left), plain_or_flow(right)])
    entries = [jnp.broadcast_to(entry, equation.out_shapes[0]) for entry in entries]
    return [derived(Scaled(first_largest(entries), exponent), left, right)]


def select_n(equation: Equation, which: Value, *cases: Value):
    """Chooses entries among cases; a parameter value among them carries no flow.

    Where the input itself decides (``where(x > 0, x, 0.1 * x)``) it is a nonlinearity, and
    if all cases are parameters (``where(x > 0, a, b)``), those are its weights.
    """
    flows = [case for case in cases if carries_flow(case)]
    if not carries_flow(which):
        if all(isinstance(flow, Inverse) for flow in flows):
            scales = [c.factor if carries_flow(c) else equation.absolute(c) for c in cases]
            return [Inverse(flows[0].flow, lax.select_n(which, *scales))]
        mantissas, exponent = aligned(
            as_flows([*map(plain_or_flow, cases)], equation.dtype)
        )
        chosen = normalised(lax.select_n(which, *mantissas), exponent)
        added = added_together(cases, lambda *terms: lax.select_n(which, *terms))
        return [derived(chosen, *flows, shift=common_shift(cases), added=added)]
    if not flows:
        return [_steps(equation, which, cases)]
    if len(flows) == 1:
        return [_nonlinear(equation, flows[0], which)]
    origin = common_dominator(which, *flows, through_layers=True)
    if origin is None:
        raise ValueError("the input chooses between two flows that it does not consist of.")
    outer = [outer_factors(flow, origin) for flow in flows]
    if not all(outer):  # the slope of a leaky ReLU belongs to the activation
        return [_activation(equation, origin, ())]
    mantissa, exponent = total(
        [plain_or_flow(_activation(equation, origin, f)) for f in outer]
    )
    share = equation.absolute(np.asarray(1 / len(flows), equation.dtype))
    return [derived(normalised(mantissa * share, exponent), origin)]


def _steps(equation: Equation, which: Flowing, cases: tuple[Plain, ...]) -> Flowing:
    """Numbers make a step function, parameters a layer: their absolute values add up."""
    weights = [case for case in cases if not known(case) and is_floating(case)]
    if not weights:
        return _nonlinear(equation, which)
    heights = [equation.absolute(weight) for weight in weights]
    mantissa, exponent = plain_or_flow(which)
    mantissa = jnp.broadcast_to(mantissa, equation.out_shapes[0])
    return normalised(mantissa * sum(heights[1:], heights[0]), exponent)


def selects_paths(equation: Equation, which: Value, *cases: Value) -> bool:
    """Whether `select_n` keeps paths: it does unless one flow lets another pass."""
    flows = [case for case in cases if carries_flow(case)]
    if not carries_flow(which) or not flows:
        return True
    return common_dominator(which, *flows, through_layers=True) is not None


def _only(operands: tuple[Value, ...]) -> Flowing:
    flows = [operand for operand in operands if carries_flow(operand)]
    if len(flows) != 1:
        raise ValueError("the flow must enter it in one operand, not in several.")
    return flows[0]


def _nonlinear(equation: Equation, flow: Flowing, *others: Flowing) -> Flowing:
    """A nonlinear function of the flow, and of others that drop out: the flow itself, which
    forgets what was added to it."""
    (passed,) = _as_it_is(equation, flow)
    if isinstance(passed, Inverse):
        return passed
    return derived(plain_or_flow(passed), flow, *others)


def _as_it_is(equation: Equation, flow: Flowing):
    """The flow, broadcast to the shape of the result if a dropped operand was larger."""
    (shape,) = equation.out_shapes
    mantissa, exponent = plain_or_flow(flow)
    if mantissa.shape != shape:
        stretched = Scaled(jnp.broadcast_to(mantissa, shape), exponent)
        if isinstance(flow, Inverse):
            return [Inverse(stretched, jnp.broadcast_to(flow.factor, shape))]
        return [stretched]
    return [flow.of if isinstance(flow, Stopped) else flow]

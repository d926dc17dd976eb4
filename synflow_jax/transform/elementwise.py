"""Sums, products and quotients of flows; nonlinearities, gates and normalisations."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from synflow_jax.transform.contractions import factors
from synflow_jax.transform.scaled import Scaled, aligned, normalised, normalised_once
from synflow_jax.transform.structural import first_largest
from synflow_jax.transform.values import (
    Equation,
    Flowing,
    Inverse,
    Plain,
    Pointwise,
    Stopped,
    Value,
    as_flows,
    carries_flow,
    one_flow,
    origin_of,
    plain_or_flow,
)

# Types of an exponent that is known while tracing.
_NUMBERS = (np.ndarray, np.generic, int, float)

# An added constant below this masks entries of a softmax (minus infinity); it is no shift.
_MASK = -1e9


def add(equation: Equation, left: Value, right: Value):
    """Two flows add up. A parameter (a bias) is dropped, or added as its absolute value."""
    if not (carries_flow(left) and carries_flow(right)):
        flow, shift = (left, right) if carries_flow(left) else (right, left)
        return [_shifted(equation, flow, shift)]
    if isinstance(left, Stopped) != isinstance(right, Stopped):
        return _as_it_is(equation, right if isinstance(left, Stopped) else left)
    (a, b), exponent = aligned([plain_or_flow(left), plain_or_flow(right)])
    total = normalised_once(a + b, exponent)
    if isinstance(left, Stopped):
        return [Stopped(total)]
    return [_pointwise(total, left, right)]


def subtract(equation: Equation, left: Value, right: Value):
    """Centring: the first operand. A parameter (a running mean) is treated as a bias."""
    if carries_flow(left) and carries_flow(right):
        return _as_it_is(equation, left)
    if carries_flow(left):
        return [_shifted(equation, left, right, sign=-1)]
    return [_shifted(equation, right, left)]


def _shifted(equation: Equation, flow: Flowing, shift: Plain, sign: int = 1) -> Flowing:
    (passed,) = _as_it_is(equation, flow)
    if isinstance(passed, Inverse):
        return passed
    value = plain_or_flow(passed)
    masked = sign * jnp.asarray(shift) <= _MASK
    if equation.biases:
        # The authors' code subtracts the absolute value of a running mean; so does this.
        added = jnp.where(masked, 0, sign * equation.absolute(shift))
        (a, b), exponent = aligned([value, normalised(added)])
        value = normalised(a + b, exponent)
    shifted = Scaled(jnp.where(masked, 0, value.mantissa), value.exponent)
    return Stopped(shifted) if isinstance(flow, Stopped) else _pointwise(shifted, passed)


def multiply(equation: Equation, left: Value, right: Value):
    """Multiplies by |parameter|. Two flows: an activation, a normalisation or a gate.

    A flow times a function of itself (``x * sigmoid(x)``, ``x * x``) is an activation of
    that flow, so it is the flow itself. A flow times the inverse of a flow is normalised:
    the statistic drops out. Any other product of two flows is their geometric mean.
    """
    if not carries_flow(left):
        left, right = right, left
    if not carries_flow(right):
        return [_times(equation, left, right)]
    if isinstance(left, Inverse):
        left, right = right, left
    if isinstance(right, Inverse):
        return [_times(equation, left, right.factor)]
    if origin_of(left) is origin_of(right):
        return [origin_of(left)]
    a, b, exponent = factors(equation, plain_or_flow(left), plain_or_flow(right))
    return [normalised(a * b, exponent)]


def multiplies_paths(equation: Equation, left: Value, right: Value) -> bool:
    """Whether `multiply` keeps paths: for weights, activations and normalisations."""
    inverses = isinstance(left, Inverse) + isinstance(right, Inverse)
    if one_flow(equation, left, right) or inverses == 1:
        return True
    return not inverses and origin_of(left) is origin_of(right)


def divide(equation: Equation, left: Value, right: Value):
    """Divides by |parameter|; division by a flow is a normalisation."""
    if not carries_flow(right):
        return [_times(equation, left, right, invert=True)]
    if isinstance(right, Inverse):
        flow = left if carries_flow(left) else _times(equation, right.flow, left)
        return [_times(equation, flow, right.factor, invert=True)]
    if carries_flow(left):
        return _as_it_is(equation, left)
    return [_inverse(equation, plain_or_flow(right), left)]


def divides_paths(equation: Equation, left: Value, right: Value) -> bool:
    """Whether `divide` keeps paths: division by the inverse of a flow is a product."""
    return not (carries_flow(left) and isinstance(right, Inverse)) and not (
        isinstance(left, Inverse) and carries_flow(right)
    )


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
    # A number scales the argument of a function; an array of them is a layer.
    return _pointwise(scaled, flow) if jnp.size(plain) == 1 else scaled


def _inverse(equation: Equation, flow: Scaled, factor: Plain) -> Inverse:
    (shape,) = equation.out_shapes
    factor = jnp.broadcast_to(equation.absolute(factor), shape)
    return Inverse(Scaled(jnp.broadcast_to(flow.mantissa, shape), flow.exponent), factor)


def power(equation: Equation, base: Value, *exponents: Value):
    """A nonlinearity; a negative exponent makes it a normalisation."""
    exponent = exponents[0] if exponents else equation.params.get("y", -0.5)
    if isinstance(exponent, _NUMBERS) and np.all(np.less(exponent, 0)):
        flow = plain_or_flow(base)
        return [_inverse(equation, flow, np.ones((), flow.mantissa.dtype))]
    return identity(equation, base, *exponents)


# --- nonlinearities -----------------------------------------------------------------------


def identity(equation: Equation, *operands: Value):
    """A nonlinearity, a change of sign or of precision: the flow passes unchanged."""
    flows = [operand for operand in operands if carries_flow(operand)]
    if len(flows) != 1:
        raise ValueError("the flow must enter it in one operand, not in several.")
    return _as_it_is(equation, flows[0])


def compare(equation: Equation, left: Value, *right: Value):
    """A step function: the flow passes; of two flows, the first does."""
    return _as_it_is(equation, next(x for x in (left, *right) if carries_flow(x)))


def stop(equation: Equation, flow: Value):
    """The flow passes. If it is added to another flow (a straight-through estimator), it
    is dropped as a shift."""
    return [Stopped(plain_or_flow(flow))]


def maximum(equation: Equation, left: Value, right: Value):
    """ReLU: the flow passes. Of two flows the larger passes, the first if they are equal.

    This is also the rule of the minimum, since absolute values have no sign.
    """
    if not (carries_flow(left) and carries_flow(right)):
        (passed,) = identity(equation, left, right)
        if not equation.biases:
            return [passed]
        mantissa, exponent = plain_or_flow(passed)  # may be negative after a running mean
        return [Scaled(jnp.where(mantissa > 0, mantissa, 0), exponent)]
    entries, exponent = aligned([plain_or_flow(left), plain_or_flow(right)])
    entries = [jnp.broadcast_to(entry, equation.out_shapes[0]) for entry in entries]
    return [_pointwise(Scaled(first_largest(entries), exponent), left, right)]


def select_n(equation: Equation, which: Value, *cases: Value):
    """Chooses entries among cases; a parameter value among them carries no flow.

    Where the input itself decides (``where(x > 0, x, 0.1 * x)``) it is a nonlinearity.
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
        return [_pointwise(chosen, *flows)]
    if not flows:
        return _as_it_is(equation, which)
    if len(flows) == 1:
        return _as_it_is(equation, flows[0])
    own = [flow for flow in flows if origin_of(flow) is origin_of(which)]
    if not own:
        raise ValueError("the input chooses between two flows that it does not consist of.")
    return [origin_of(which)] if len(own) > 1 else _as_it_is(equation, own[0])


def selects_paths(equation: Equation, which: Value, *cases: Value) -> bool:
    """Whether `select_n` keeps paths: it does unless one flow lets another pass."""
    if not carries_flow(which):
        return True
    flows = [case for case in cases if carries_flow(case)]
    return all(origin_of(flow) is origin_of(which) for flow in flows)


def _as_it_is(equation: Equation, flow: Flowing):
    """The flow, broadcast to the shape of the result if a dropped operand was larger."""
    (shape,) = equation.out_shapes
    mantissa, exponent = plain_or_flow(flow)
    if mantissa.shape != shape:
        stretched = Scaled(jnp.broadcast_to(mantissa, shape), exponent)
        if isinstance(flow, Inverse):
            return [Inverse(stretched, jnp.broadcast_to(flow.factor, shape))]
        return [stretched]
    return [flow.flow if isinstance(flow, Stopped) else flow]


def _pointwise(result: Scaled, *operands: Flowing) -> Scaled | Pointwise:
    """The result, marked as a pointwise function of the origin that all operands share."""
    origins = [origin_of(operand) for operand in operands]
    same = all(origin is origins[0] for origin in origins)
    if same and origins[0].mantissa.shape == result.mantissa.shape:
        return Pointwise(result, origins[0])
    return result

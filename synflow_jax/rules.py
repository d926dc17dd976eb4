"""What each primitive does to the flow: one function a rule, one table."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from synflow_jax.control import cond, scan
from synflow_jax.equations import Equation, Rule, Value, as_flows, must_be_plain
from synflow_jax.scaled import Scaled, aligned, normalised
from synflow_jax.windows import conv, window_slices

# --- weights ------------------------------------------------------------------------------


def _size(plain: Array, like: Scaled) -> Array:
    """The absolute value of a parameter, at its point of use, in the flow's precision."""
    return jnp.abs(plain.astype(like.mantissa.dtype))


def dot_general(equation: Equation, left: Value, right: Value):
    """A product with parameters uses their absolute values; of two flows, both of them."""
    exponent = jnp.int32(0)
    arrays = []
    for operand, other in ((left, right), (right, left)):
        if isinstance(operand, Scaled):
            exponent += operand.exponent
            arrays.append(operand.mantissa)
        else:
            arrays.append(_size(operand, other))
    product = lax.dot_general(
        *arrays,
        dimension_numbers=equation.params["dimension_numbers"],
        precision=lax.Precision.HIGHEST,
    )
    return [normalised(product, exponent)]


def conv_general_dilated(equation: Equation, image: Value, kernel: Value):
    """A convolution of the flow with the absolute value of its kernel."""
    if not isinstance(image, Scaled) or isinstance(kernel, Scaled):
        raise ValueError(
            "the flow must enter a convolution as its image, and the kernel must be made "
            "of parameters."
        )
    weights = _size(kernel, image)
    settings = equation.params | dict(
        precision=lax.Precision.HIGHEST, preferred_element_type=None
    )
    settings.pop("out_sharding", None)
    product = conv(image.mantissa, weights, settings)
    return [normalised(product, image.exponent)]


# --- arithmetic ---------------------------------------------------------------------------


def add(equation: Equation, left: Value, right: Value):
    """Two flows add up. A parameter (a bias) is dropped, or joins in its absolute value."""
    if equation.biases:
        like = left if isinstance(left, Scaled) else right
        left, right = (
            v if isinstance(v, Scaled) else normalised(_size(v, like))
            for v in (left, right)
        )
    flows = [value for value in (left, right) if isinstance(value, Scaled)]
    if len(flows) == 1:
        return _stretched(equation, flows[0])
    (a, b), exponent = aligned(flows)
    return [normalised(a + b, exponent)]


def subtract(equation: Equation, left: Value, right: Value):
    """Centring: the first operand. A parameter (a running mean) is as a bias."""
    if isinstance(left, Scaled) and isinstance(right, Scaled):
        return _stretched(equation, left)
    return add(equation, left, right)


def multiply(equation: Equation, left: Value, right: Value):
    """Scaling by a parameter scales by its absolute value; two flows multiply."""
    if isinstance(left, Scaled) and isinstance(right, Scaled):
        product = left.mantissa * right.mantissa
        return [normalised(product, left.exponent + right.exponent)]
    flow, plain = (left, right) if isinstance(left, Scaled) else (right, left)
    return [normalised(flow.mantissa * _size(plain, flow), flow.exponent)]


def divide(equation: Equation, left: Value, right: Value):
    """Division by a parameter divides by its absolute value; by a flow, it normalises."""
    if not isinstance(left, Scaled):
        raise ValueError("a parameter divided by the flow is not linear in the flow.")
    if isinstance(right, Scaled):
        return _stretched(equation, left)
    return [normalised(left.mantissa / _size(right, left), left.exponent)]


def _stretched(equation: Equation, flow: Scaled):
    """The flow itself, broadcast where the dropped operand was the larger one."""
    mantissa = jnp.broadcast_to(flow.mantissa, equation.out_shapes[0])
    return [Scaled(mantissa, flow.exponent)]


def identity(equation: Equation, *operands: Value):
    """A nonlinearity, a change of sign or of precision: the flow passes as it is."""
    flows = [operand for operand in operands if isinstance(operand, Scaled)]
    if len(flows) != 1:
        raise ValueError("the flow must enter it in one operand, not in several.")
    return _stretched(equation, flows[0])


# --- structure ----------------------------------------------------------------------------


def structural(equation: Equation, flow: Value, *places: Value):
    """Moves entries about and leaves their values alone; where to is a parameter value."""
    if not isinstance(flow, Scaled):
        raise ValueError("the flow must enter it as the array that is moved.")
    must_be_plain(places, "the places that it reads")
    outs = equation.bind(flow.mantissa, *places)
    return [Scaled(out, flow.exponent) for out in outs]


def taking(equation: Equation, flow: Value, *places: Value):
    """Moves entries about and leaves some behind, the largest perhaps."""
    return [normalised(*out) for out in structural(equation, flow, *places)]


def joining(equation: Equation, *operands: Value):
    """Puts arrays side by side; parameter values between them carry no flow."""
    flows = as_flows(operands)
    mantissas, exponent = aligned(flows)
    (joined,) = equation.bind(*mantissas)
    return [Scaled(joined, exponent)]


def pad(equation: Equation, flow: Value, value: Value):
    """Surrounds the flow with nothing, whatever the padding value: it is a shift."""
    if not isinstance(flow, Scaled):
        raise ValueError("the flow must enter it as the array that is padded.")
    (padded,) = equation.bind(flow.mantissa, jnp.zeros((), flow.mantissa.dtype))
    return [Scaled(padded, flow.exponent)]


def select_n(equation: Equation, which: Value, *cases: Value):
    """Takes entries of one case or another; a parameter value among them is no flow."""
    must_be_plain([which], "the condition")
    mantissas, exponent = aligned(as_flows(cases))
    return [normalised(lax.select_n(which, *mantissas), exponent)]


def summing(equation: Equation, flow: Scaled):
    """Adds entries of the flow to each other: sums, means and average pooling."""
    (total,) = equation.bind(flow.mantissa)
    return [normalised(total, flow.exponent)]


# Values this close to a window's largest count as equal to it. On an all-ones input whole
# regions of an image have equal flow but for rounding (1e-7 a sum); without the margin,
# rounding, and so the platform, would choose the path.
_TIE = 2.0**-13


def reduce_window_max(equation: Equation, flow: Scaled):
    """Max pooling: the flow of the largest entry of each window, the first among equals.

    It is positively homogeneous, so the flow is conserved. Equal means within 2**-13 of
    the largest, the same on every platform and in every precision.
    """
    params = equation.params
    if set(params["base_dilation"]) != {1}:
        raise ValueError("max pooling with a base dilation has no rule.")
    entries = window_slices(
        flow.mantissa,
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        params["window_dilation"],
        fill=-jnp.inf,
    )
    return [normalised(_first_largest(entries), flow.exponent)]


def reduce_max(equation: Equation, flow: Scaled):
    """Global max pooling: as max pooling, over whole axes."""
    axes = equation.params["axes"]
    if not axes:
        return [flow]
    ahead = jnp.moveaxis(flow.mantissa, axes, range(len(axes)))
    rows = ahead.reshape(-1, *ahead.shape[len(axes) :])
    fixed = lax.stop_gradient(rows)
    first = jnp.argmax(fixed >= _nearly(fixed.max(axis=0, keepdims=True)), axis=0)
    chosen = jnp.take_along_axis(rows, first[None], axis=0)[0]
    return [normalised(chosen, flow.exponent)]


def maximum(equation: Equation, left: Value, right: Value):
    """ReLU and its like: the flow passes. Of two flows the larger, the first if equal."""
    if not (isinstance(left, Scaled) and isinstance(right, Scaled)):
        return identity(equation, left, right)
    entries, exponent = aligned([left, right])
    entries = [jnp.broadcast_to(entry, equation.out_shapes[0]) for entry in entries]
    return [Scaled(_first_largest(entries), exponent)]


def _first_largest(entries: list[Array]) -> Array:
    fixed = [lax.stop_gradient(entry) for entry in entries]
    threshold = _nearly(functools.reduce(jnp.maximum, fixed))
    chosen = entries[-1]
    for entry, value in zip(entries[-2::-1], fixed[-2::-1]):
        chosen = jnp.where(value >= threshold, entry, chosen)
    return jnp.where(jnp.isnan(threshold), threshold, chosen)  # to be reported


def _nearly(largest: Array) -> Array:
    """What counts as equal to the largest. Infinity stays what it is."""
    return largest - jnp.where(jnp.isfinite(largest), _TIE * jnp.abs(largest), 0)


# --- calls --------------------------------------------------------------------------------


def call(equation: Equation, *operands: Value):
    """A jitted or custom-derivative function: go inside, unless its name says enough."""
    if equation.params.get("name") in NONLINEARITIES and _is_elementwise(
        equation, operands
    ):
        return identity(equation, *operands)
    for name in ("jaxpr", "call_jaxpr"):
        if name in equation.params:
            return equation.inside(equation.params[name], *operands)
    raise ValueError("its inner function could not be found.")


def _is_elementwise(equation: Equation, operands: Sequence[Value]) -> bool:
    """Whether a call looks like jax.nn's function of that name, and not a user's own."""
    flows = [operand for operand in operands if isinstance(operand, Scaled)]
    scalars = [x for x in operands if not isinstance(x, Scaled) and x.ndim == 0]
    return (
        len(flows) == 1
        and len(scalars) == len(operands) - 1
        and equation.out_shapes == [flows[0].mantissa.shape]
        and not len(getattr(equation.params.get("jaxpr"), "consts", ()))
    )


# Functions of jax.nn and jax.numpy, by the name under which JAX compiles them.
NONLINEARITIES = frozenset(
    "celu clip elu hard_sigmoid hard_silu hard_tanh leaky_relu log_sigmoid mish relu relu6 "
    "selu silu soft_sign softplus sparse_plus sparse_sigmoid squareplus".split()
)

RULES: dict[str, Rule] = {
    "dot_general": dot_general,
    "conv_general_dilated": conv_general_dilated,
    "add": add,
    "add_any": add,
    "sub": subtract,
    "mul": multiply,
    "div": divide,
    "max": maximum,
    "clamp": identity,
    "neg": identity,
    "convert_element_type": identity,
    "copy": identity,
    "copy_p": identity,
    "name": identity,
    "reduce_precision": identity,
    "stop_gradient": identity,
    "reshape": structural,
    "transpose": structural,
    "squeeze": structural,
    "broadcast_in_dim": structural,
    "rev": structural,
    "slice": taking,
    "split": taking,
    "dynamic_slice": taking,
    "gather": taking,
    "sharding_constraint": structural,
    "concatenate": joining,
    "pad": pad,
    "select_n": select_n,
    "cumsum": summing,
    "reduce_sum": summing,
    "reduce_window_sum": summing,
    "reduce_window_max": reduce_window_max,
    "reduce_max": reduce_max,
    "jit": call,
    "custom_jvp_call": call,
    "custom_vjp_call": call,
    "remat2": call,
    "checkpoint": call,
    "cond": cond,
    "scan": scan,
}

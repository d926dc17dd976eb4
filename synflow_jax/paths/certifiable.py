"""Whether what is pruned removes at most its scores of the flow.

Theorem T5: if the flow is a sum over paths, of products of the weights on each, then
removing weights removes no path that is not counted in their scores, so of a flow of 1 at
least 1 minus the total of their scores is left. So a round that removes less than 1 leaves
a path from the input to the output. (Of several outputs, to one of them.)
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from synflow_jax.precision import cast_floating, scoring_dtype, widened
from synflow_jax.topology.units import units_of
from synflow_jax.transform.elementwise import multiply, select_n
from synflow_jax.transform.interpreter import Settings, interpret
from synflow_jax.transform.rules import flow_rules
from synflow_jax.transform.values import (
    Equation,
    Inverse,
    Value,
    carries_flow,
    origin_of,
    sees_kinds,
)
from synflow_jax.trees import Params, leaf_names
from synflow_jax.xla.jaxprs import FlowError


def why_unbounded(
    apply_fn: Callable[..., PyTree], params: Params, chosen: Sequence[bool], inputs: PyTree
) -> str | None:
    """Why removing weights may remove more of the flow than their scores; None if not.

    The flow is a sum over paths unless two flows are multiplied (attention, gates) or one
    lets the other pass (a minimum, a choice), and the weights on them are the parameters
    unless these are computed with before they are used (a standardised kernel), divide or
    choose.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      params: the parameters, of which only shapes and dtypes are read.
      chosen: for each leaf, whether it may lose weights.
      inputs: what ``apply_fn`` takes as ``x``.

    Returns:
      A sentence that names the line or the leaf, or None.
    """
    shapes = jax.eval_shape(widened, params)
    dtype = jnp.dtype(scoring_dtype(*jax.tree.leaves(shapes)))
    inputs = cast_floating(inputs, dtype)
    settings = Settings(dtype, rules={**flow_rules, **_REFUSING})

    def outputs(params):
        flows = interpret(apply_fn, params, (inputs,), settings)
        return jax.tree.map(jnp.asarray, jax.tree.leaves(flows))

    try:
        jax.eval_shape(outputs, shapes)
    except FlowError as error:
        return str(error)
    try:
        with jax.ensure_compile_time_eval():  # constants, also while a loop is traced
            computed = units_of(apply_fn, shapes, inputs).computed
    except jax.errors.JAXTypeError as error:
        return f"its structure depends on traced values: {str(error).splitlines()[0]}"
    for number, (name, yes) in enumerate(zip(leaf_names(params), chosen)):
        if yes and number in computed:
            return f"`{name}` is computed with before it is used, divides or chooses."
    return None


def _refuse() -> None:
    raise ValueError("of two flows that meet here, without the one the other is lost too.")


@sees_kinds
def _multiply(equation: Equation, left: Value, right: Value):
    both = carries_flow(left) and carries_flow(right)
    if both and not isinstance(left, Inverse) and not isinstance(right, Inverse):
        if origin_of(left) is not origin_of(right):
            _refuse()
    return multiply(equation, left, right)


@sees_kinds
def _select_n(equation: Equation, which: Value, *cases: Value):
    others = (c for c in cases if carries_flow(c) and carries_flow(which))
    if any(origin_of(case) is not origin_of(which) for case in others):
        _refuse()
    return select_n(equation, which, *cases)


def _reduce_min(equation: Equation, flow: Value):
    _refuse()


def _refusing(name: str) -> Callable[..., Sequence[Value]]:
    rule = flow_rules[name]

    def refusing(equation: Equation, left: Value, right: Value, *rest: Value):
        if carries_flow(left) and carries_flow(right):
            _refuse()
        return rule(equation, left, right, *rest)

    return sees_kinds(refusing) if getattr(rule, "sees_kinds", False) else refusing


_PAIRS = "dot_general ragged_dot_general conv_general_dilated min"
_REFUSING = {
    "mul": _multiply,
    "select_n": _select_n,
    "reduce_min": _reduce_min,
    **{name: _refusing(name) for name in _PAIRS.split()},
}

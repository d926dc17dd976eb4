"""Where the flow of a network is no longer finite: the line, for an error."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from synflow_jax.precision import cast_floating, scoring_dtype, widened
from synflow_jax.transform.interpreter import Settings, interpret
from synflow_jax.transform.rules import flow_rules
from synflow_jax.transform.values import (
    Equation,
    Flowing,
    Rule,
    Rules,
    Value,
    carries_flow,
    checked_rules,
    plain_or_flow,
)
from synflow_jax.trees import Params, is_floating
from synflow_jax.xla.jaxprs import FlowError


def where_not_finite(
    apply_fn: Callable[..., PyTree],
    params: Params,
    inputs: PyTree,
    rules: Rules = flow_rules,
) -> str | None:
    """The first line of a network at which its flow is NaN or infinite.

    It runs the flow operation by operation on the host, so it is slow, and meant for the
    message of an error. Of a loop or a rematerialised part it names the whole.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      params: the parameters.
      inputs: what ``apply_fn`` takes as ``x``.
      rules: as in `flow`.

    Returns:
      A sentence, or None if the flow is finite.

    Example:
      >>> network = lambda params, x: x @ params["w"]
      >>> params = {"w": jnp.full((2, 1), 3e38)}
      >>> reason = where_not_finite(network, params, jnp.ones((1, 2)))
      >>> reason[:58]
      'flow cannot pass the primitive `dot_general`, called at <d'
    """
    params, inputs = jax.tree.map(jnp.asarray, (widened(params), inputs))
    dtype = jnp.dtype(scoring_dtype(*jax.tree.leaves(params)))
    settings = Settings(
        dtype,
        rules=checked_rules(rules),
        before_rule=_parameters_are_finite,
        after_rule=_flow_is_finite,
    )
    try:
        interpret(apply_fn, params, (cast_floating(inputs, dtype),), settings)
    except FlowError as error:
        return str(error)
    return None


def _parameters_are_finite(rule: Rule, equation: Equation, *operands: Value) -> None:
    if rule.goes_inside:
        return
    for x in map(plain_or_flow, operands):
        if carries_flow(x) or isinstance(x, Tracer) or not is_floating(x):
            continue
        if np.isnan(np.asarray(x)).any():  # also while a loop is traced
            raise ValueError(
                "a parameter, or a value computed from parameters or statistics, of shape "
                f"{list(jnp.shape(x))}, holds NaN here (the root of a negative variance?)."
            )


def _flow_is_finite(value: Flowing) -> Flowing:
    mantissa = plain_or_flow(value).mantissa
    if not isinstance(mantissa, Tracer) and not np.isfinite(np.asarray(mantissa)).all():
        raise ValueError(
            "here the flow becomes NaN or infinite: a sum of products with these weights "
            "is larger than a float holds (3e38 in float32), a divisor is 0, or a "
            "parameter is infinite."
        )
    return value

"""Whether pruning weights removes at most the sum of their scores from the flow.

Theorem T5 (docs/theory.md has the proof): if the flow is a sum over paths, each the product
of the weights along it, or a maximum of such sums, then removing weights whose scores sum
to ``s`` leaves at least ``1 - s`` of the flow. So a round whose removed scores sum to less
than 1 leaves a path from the input to an output.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from synflow_jax.precision import cast_floating, scoring_dtype, widened
from synflow_jax.topology.units import units_of
from synflow_jax.transform.interpreter import Settings, interpret
from synflow_jax.transform.rules import flow_rules
from synflow_jax.transform.values import (
    Equation,
    Rule,
    Rules,
    Value,
    carries_flow,
    checked_rules,
)
from synflow_jax.trees import Params, leaf_names
from synflow_jax.xla.jaxprs import FlowError


def why_not_certifiable(
    apply_fn: Callable[..., PyTree],
    params: Params,
    is_prunable: Sequence[bool],
    inputs: PyTree,
    rules: Rules = flow_rules,
) -> str | None:
    """The reason why Theorem T5 does not hold for a network; None if it does.

    It needs two things. Every rule that the network uses must keep paths
    (`Rule.keeps_paths`): a product of two flows (attention, gates) does not. And no
    prunable leaf may be computed with before it is used (a standardised kernel), divide or
    choose, since its entries are then no weights on paths.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      params: the parameters, of which only shapes and dtypes are read.
      is_prunable: for each leaf, whether it may lose weights.
      inputs: what ``apply_fn`` takes as ``x``.
      rules: as in `flow`.

    Returns:
      A sentence that names the line or the leaf, or None.
    """
    shapes = jax.eval_shape(widened, params)
    dtype = jnp.dtype(scoring_dtype(*jax.tree.leaves(shapes)))
    inputs, rules = cast_floating(inputs, dtype), checked_rules(rules)
    settings = Settings(dtype, rules=rules, before_rule=_must_keep_paths)

    def outputs(params):
        flows = interpret(apply_fn, params, (inputs,), settings)
        return jax.tree.map(jnp.asarray, jax.tree.leaves(flows))

    try:
        jax.eval_shape(outputs, shapes)
    except FlowError as error:
        return str(error)
    try:
        computed = units_of(apply_fn, shapes, inputs, rules).computed
    except jax.errors.JAXTypeError as error:
        return f"its structure depends on traced values: {str(error).splitlines()[0]}"
    for number, (name, yes) in enumerate(zip(leaf_names(params), is_prunable)):
        if yes and number in computed:
            return f"`{name}` is computed with before it is used, divides or chooses."
    return None


def _must_keep_paths(rule: Rule, equation: Equation, *operands: Value) -> None:
    keeps = rule.keeps_paths
    if keeps(equation, *operands) if callable(keeps) else keeps:
        return
    if sum(map(carries_flow, operands)) > 1:
        raise ValueError(
            "two flows meet here, and without the one the other is lost too: the flow is "
            "no sum over paths."
        )
    raise ValueError(
        "its rule keeps no paths, as far as is known (`Rule(apply, keeps_paths=True)` says "
        "that it does)."
    )

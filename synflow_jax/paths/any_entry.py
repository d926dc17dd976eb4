"""Rules of questions about paths: where one entry passes, any of them may.

A path is a path whatever the absolute values of its weights are, so where the flow passes
the largest of several entries, a question about paths passes them all.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from synflow_jax.transform import (
    class_rules,
    class_windows,
    products,
    scattering,
    sharded,
    sorting,
)
from synflow_jax.transform.class_rules import counted
from synflow_jax.transform.elementwise import add, maximum
from synflow_jax.transform.rules import flow_rules
from synflow_jax.transform.scaled import Scaled
from synflow_jax.transform.structural import pooled_entries
from synflow_jax.transform.values import Classed, Equation, Rule, Value, carries_flow

# A question is asked once or a few times, where scores are computed a hundred times: equal
# positions are computed once from larger convolutions on (`Settings.least`), since more has
# to be compiled. U-Nets of 2 levels have that many at 512 pixels, VGG-19 at 224.
LEAST = 2 * 10**8


def replaced(others: Mapping[str, Rule], rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """The rules of a table, with others where they are the package's. A rule of the user's
    own stays in its place."""
    same = {n: rule for n, rule in others.items() if rules.get(n) == flow_rules[n]}
    return {**rules, **same}


def stored_mantissas(outs: PyTree) -> list[Array]:
    """What is stored of each output that carries flow, times its number of positions."""
    leaves = jax.tree.leaves(outs, is_leaf=lambda x: isinstance(x, Scaled | Classed))
    return [counted(x).mantissa for x in leaves if isinstance(x, Scaled | Classed)]


def _reduce_window_max(equation: Equation, flow: Scaled) -> list[Scaled]:
    entries = pooled_entries(equation, flow, fill=0.0)
    return [Scaled(sum(entries[1:], entries[0]), flow.exponent)]


def _windows_once(refinement, apply, equation: Equation, flow: Value):
    """Of a flow of which equal positions are stored once."""
    as_sum = equation._replace(name="reduce_window_sum")
    return class_windows.summing(refinement, apply, as_sum, flow)


def _reduce_max(equation: Equation, flow: Scaled) -> list[Scaled]:
    axes = equation.params.get("axes", range(flow.mantissa.ndim))
    return [Scaled(jnp.sum(flow.mantissa, axis=tuple(axes)), flow.exponent)]


def _cumulative_max(equation: Equation, flow: Scaled) -> list[Scaled]:
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    return [Scaled(lax.cumsum(flow.mantissa, axis, reverse), flow.exponent)]


def _maximum(equation: Equation, left: Value, right: Value) -> Sequence[Value]:
    both = carries_flow(left) and carries_flow(right)
    return (add if both else maximum)(equation, left, right)


# Where the values of the flow decide what goes where.
DECIDED = {
    "sort": Rule(sorting.any_order),
    "top_k": Rule(sorting.any_largest),
    "approx_top_k": Rule(sorting.any_largest),
    "argmax": Rule(sorting.any_position),
    "argmin": Rule(sorting.any_position),
}
ANY_ENTRY = {
    **DECIDED,
    **dict.fromkeys(
        ["max", "min"], Rule(_maximum, sees_kinds=True, at_classes=class_rules.entrywise)
    ),
    **dict.fromkeys(
        "reduce_max reduce_min reduce_or reduce_and unvmap_any unvmap_all "
        "unvmap_max".split(),
        Rule(_reduce_max, at_classes=class_rules.largest),
    ),
    **dict.fromkeys(
        ["reduce_window_max", "reduce_window_min"],
        Rule(_reduce_window_max, at_classes=_windows_once),
    ),
    **dict.fromkeys(
        ["cummax", "cummin"], Rule(_cumulative_max, at_classes=class_rules.along_axis)
    ),
    **dict.fromkeys(["scatter-max", "scatter-min"], Rule(scattering.scatter_union)),
    **dict.fromkeys(["pmax", "pmin"], Rule(sharded.union)),
    **dict.fromkeys(
        ["reduce_prod", "cumprod"], Rule(products.product_of_reached, sees_kinds=True)
    ),
}

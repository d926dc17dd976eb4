"""The error about a primitive without a rule: the reason, and what to type."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from synflow_jax.transform.results import check_results
from synflow_jax.transform.scaled import Scaled
from synflow_jax.transform.values import (
    Derived,
    Equation,
    Rule,
    Value,
    carries_flow,
    plain_or_flow,
)

# Rules that may be given to another primitive: when, and for how many flows.
_LIKELY = {
    "tanh": ("it acts on each entry by itself, as a nonlinearity does", 1),
    "rev": ("it moves entries to places that do not depend on their values", 1),
    "reduce_sum": ("it adds up entries", 1),
    "add": ("it adds up its operands, or passes both of them on", 2),
    "max": ("it passes the larger of its operands", 2),
    "sub": ("it passes its first operand, as centring does", 2),
    "mul": ("nothing passes where one of its operands is zero, as in a gate", 2),
}

_OUTSIDE = "It calls a function that JAX does not look into."
_BITS = "It reads the bits of numbers, and a flow has none."
_FACTORS = (
    "It factorises a matrix that depends on the input, or divides by one. No function of "
    "absolute values that is of degree one replaces it."
)
_ANY_FUNCTION = (
    "It combines entries by a function of the model, which may be none of a sum, a product "
    "and a maximum: use `jnp.sum`, `jnp.prod`, `jnp.max`, or a `lax.scan`."
)
_DERIVATIVE = "It is part of a derivative, which has signs that a flow does not keep."
_RANDOM = "It makes random numbers, which do not depend on how much flow arrives."
_MUTABLE = "It reads or writes a mutable array. Return the array instead."
_CUDNN = "It is a kernel of cuDNN: use `implementation='xla'` of the same function."
_PARITY = "A parity does not grow with the number of entries that are true."

# Why primitives have no rule.
_REASONS = {
    name: reason
    for reason, names in {
        _OUTSIDE: (
            "pure_callback io_callback ffi_call pallas_call tpu_custom_call call_exported "
            "custom_partitioning"
        ),
        _BITS: (
            "bitcast_convert_type clz population_count mulhi shift_left "
            "shift_right_logical shift_right_arithmetic"
        ),
        _FACTORS: (
            "cholesky eig eigh svd qr lu schur hessenberg tridiagonal geqrf geqp3 "
            "householder_product triangular_solve tridiagonal_solve ormqr cholesky_update"
        ),
        _ANY_FUNCTION: "reduce reduce_window",
        _DERIVATIVE: (
            "select_and_scatter select_and_scatter_add select_and_gather_add igamma_grad_a"
        ),
        _RANDOM: "rng_uniform rng_bit_generator random_bits random_gamma random_seed",
        _MUTABLE: "get swap addupdate new_ref freeze",
        _CUDNN: "dot_product_attention_fwd dot_product_attention_fwd_wrapper",
        _PARITY: "reduce_xor",
    }.items()
    for name in names.split()
}


def unknown(
    name: str,
    line: str,
    equation: Equation,
    operands: Sequence[Value],
    rules: Mapping[str, Rule],
) -> str:
    """The message about a primitive without a rule.

    It recommends only rules that work if they are typed: each of them is tried.
    """
    number = sum(map(carries_flow, operands))
    shapes = equation.out_shapes
    results = f"{len(shapes)} result{'s' * (len(shapes) != 1)} of the shapes {shapes}"
    reason = _REASONS.get(name, "What it does to the flow is not known.")
    refused = name in _REASONS and reason != _OUTSIDE
    likely = [
        n
        for n, (_, flows) in _LIKELY.items()
        if not refused
        and flows == number
        and n in rules
        and _works(rules[n], equation, operands)
    ]
    if any(shape == out for shape in _shapes(operands) for out in shapes):
        likely = [n for n in likely if n != "reduce_sum"]
    advice = [
        f"If {_LIKELY[n][0]}, give it that rule: rules={{**synflow_jax.flow_rules, "
        f"{name!r}: synflow_jax.flow_rules[{n!r}]}}."
        for n in likely[:4]
    ]
    return " ".join(
        [
            f"flow has no rule for the primitive `{name}`, called at {line}.",
            reason,
            f"It takes {len(operands)} operand{'s' * (len(operands) != 1)}, of which "
            f"{number} carr{'y' if number != 1 else 'ies'} flow, and returns {results}.",
            *advice,
            f"{'Otherwise write' if advice else 'Write'} a rule, a function that returns a "
            f"list of {len(shapes)} flow{'s' * (len(shapes) != 1)} of these shapes "
            "(docs/flow.md, A rule of your own).",
        ]
    )


def _shapes(operands: Sequence[Value]) -> list[tuple[int, ...]]:
    flows = [plain_or_flow(x) for x in operands if carries_flow(x)]
    return [flow.mantissa.shape for flow in flows]


def _works(rule: Rule, equation: Equation, operands: Sequence[Value]) -> bool:
    """Whether a rule returns flows of the right shapes for these operands."""
    if not rule.sees_kinds:
        operands = [*map(plain_or_flow, operands)]
    found = []

    def run():
        outs = rule.apply(equation, *operands)
        check_results(rule, equation, outs)
        found.append(all(isinstance(out, Scaled | Derived) for out in outs))
        return jnp.zeros(())

    try:
        jax.eval_shape(run)
    except Exception:  # a rule for other operands may fail in any way
        return False
    return found[0]

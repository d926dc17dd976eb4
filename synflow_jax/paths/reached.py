"""Which parameters lie on a path from input to output: the flow with 0 and 1 as its
numbers.

A float cannot hold one thin path next to the 2**200 paths of the wide layers around it. So
here every nonzero parameter, value and gradient is set to 1 after each equation of the
network: a value is 1 where any flow arrives, its gradient is 1 where any flow continues,
and nothing can get lost.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from synflow_jax.paths.any_entry import ANY_ENTRY, LEAST, replaced, stored_mantissas
from synflow_jax.precision import cast_floating, scoring_dtype, split_floating, widened
from synflow_jax.transform.interpreter import Settings, interpret
from synflow_jax.transform.network_flow import ones, total_flow, uniform
from synflow_jax.transform.rules import flow_rules
from synflow_jax.transform.scaled import Scaled
from synflow_jax.transform.values import (
    Flowing,
    Rule,
    Rules,
    checked_rules,
    plain_or_flow,
    with_flow,
)
from synflow_jax.trees import Masks, Params
from synflow_jax.xla.backends import Backend
from synflow_jax.xla.programs import program


def on_paths(
    apply_fn: Callable[..., PyTree],
    params: Params,
    input_shape: PyTree,
    *,
    rules: Rules = flow_rules,
) -> Masks:
    """Whether each parameter lies on a path from input to output.

    In exact arithmetic these are the parameters whose synflow score is not 0, except for
    max pooling: here every entry of a window passes, not only the largest.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      params: a pytree of arrays.
      input_shape: as in `synflow_jax.synflow`.
      rules: as in `flow`.

    Returns:
      Boolean leaves shaped like ``params``; False for those that hold no floating numbers,
      for parameters that are 0 and for those that the flow drops (biases).

    Raises:
      ValueError: as `flow` does.

    Example:
      >>> params = {"a": jnp.array([[1e-30, 0.0]]), "b": jnp.array([[2.0], [3.0]])}
      >>> on_paths(lambda p, x: x @ p["a"] @ p["b"], params, (1,))["b"]
      Array([[ True],
             [False]], dtype=bool)
    """
    run = program(_alive, apply_fn, checked_rules(rules))
    return run(params, uniform(ones(input_shape)))


def _alive(
    apply_fn: Callable[..., PyTree],
    rules: Mapping[str, Rule],
    backend: Backend,
    params: Params,
    inputs: PyTree,
) -> Masks:
    # Raises what flow raises, with the line of the model.
    jax.eval_shape(lambda p: total_flow(apply_fn, p, inputs, rules=rules), params)
    wide = widened(params)
    weights, merged = split_floating(wide)
    dtype = scoring_dtype(*jax.tree.leaves(wide))
    inputs = cast_floating(inputs, dtype)

    def connects(parameter):
        array = jnp.asarray(parameter)
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            array = jnp.abs(array)
        return _connects(array.astype(dtype))

    settings = Settings(
        jnp.dtype(dtype),
        rules=replaced(ANY_ENTRY, rules),
        absolute=connects,
        after_rule=_zero_or_one,
        backend=backend,
        least=LEAST,
    )

    def outputs_reached(weights):
        outs = interpret(apply_fn, merged(weights), (inputs,), settings)
        return sum(map(jnp.sum, stored_mantissas(outs)), jnp.zeros((), dtype))

    found = jax.grad(outputs_reached)(weights)
    alive = [(gradient != 0) & (w != 0) for gradient, w in zip(found, weights)]
    return merged(alive, lambda leaf: jnp.zeros(jnp.shape(leaf), bool))


# --- zeros and ones -----------------------------------------------------------------------


def _ones_where_reached(count: Array) -> Array:
    # A count is a sum of ones, or of halves where two flows are multiplied, and negative
    # for a divisor. Convolutions by Fourier transforms miss zero a little.
    return (jnp.abs(count) > 0.25).astype(count.dtype)


@jax.custom_vjp
def _reached(count: Array) -> Array:
    """1 where any flow arrives; its gradient is 1 where any flow continues."""
    return _ones_where_reached(count)


_reached.defvjp(
    lambda count: (_ones_where_reached(count), None),
    lambda _, gradient: (_ones_where_reached(gradient),),
)


@jax.custom_vjp
def _connects(parameter: Array) -> Array:
    """1 unless the parameter is 0; its gradient is 1 where flow continues, with the
    parameter's sign."""
    return (parameter != 0).astype(parameter.dtype)


_connects.defvjp(
    lambda parameter: (_connects(parameter), jnp.sign(parameter)),
    lambda sign, gradient: (sign * _ones_where_reached(gradient),),
)


def _zero_or_one(value: Flowing) -> Flowing:
    mantissa, exponent = plain_or_flow(value)
    count = mantissa * jnp.exp2(exponent.astype(mantissa.dtype))
    flow = Scaled(_reached(count), jnp.zeros_like(exponent))
    return with_flow(value, flow)

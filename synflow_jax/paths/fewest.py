"""The shortest path from input to output, counted in weights.

The search uses no magnitudes, since a small one could be lost next to a large one. Each
value of the network becomes a row of booleans: whether a path of no weight reaches it, a
path of at most one, of at most two, and so on. A weight shifts the row by one place.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, PyTree

from synflow_jax.paths.any_entry import DECIDED, LEAST, replaced, stored_mantissas
from synflow_jax.precision import cast_floating, scoring_dtype, widened
from synflow_jax.transform.interpreter import Settings, interpret
from synflow_jax.transform.network_flow import ones, uniform
from synflow_jax.transform.rules import flow_rules
from synflow_jax.transform.scaled import Scaled
from synflow_jax.transform.values import (
    Flowing,
    Plain,
    Rule,
    Rules,
    checked_rules,
    plain_or_flow,
    with_flow,
)
from synflow_jax.trees import Params, Prunable, is_kernel, prunable_leaves
from synflow_jax.xla.backends import Backend
from synflow_jax.xla.programs import program


def fewest_weights(
    apply_fn: Callable[..., PyTree],
    params: Params,
    input_shape: PyTree,
    *,
    prunable: Prunable = is_kernel,
    rules: Rules = flow_rules,
) -> int:
    """The smallest number of prunable weights that keeps a network connected.

    It is the number of weights on the shortest path from input to output: the number of
    layers for a chain, and less with shortcuts. Paths use only weights that are not zero,
    so the function also answers for masked parameters. Any other parameter that is zero,
    such as the scale of a normalisation, blocks a path too.

    The number is exact if every path is a chain of different weights, used as they are.
    Where two flows are multiplied (gates, attention) both must be alive, but only the
    larger of their two numbers counts, so more weights may be needed. A weight that a path
    meets several times (recurrence, tied layers) counts each time, so fewer may suffice.
    Where the values of the flow decide what passes (`sort`, `top_k`, `argmax`) any entry
    may, so more weights may be needed. A
    value computed from weights before it is used, such as a standardised kernel, counts as
    a weight.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``, in evaluation mode.
      params: a pytree of arrays. To ask about the architecture whatever the weights,
        replace kernels that are zero by ones.
      input_shape: as in `synflow`.
      prunable: as in `prune`; parameters that it refuses are not counted.
      rules: as in `flow`.

    Returns:
      An integer; 0 if a path meets no prunable weight.

    Raises:
      ValueError: if no path leads from input to output, no leaf is prunable, or the network
        has no flow (`flow`).

    Example:
      >>> params = {"a": {"kernel": np.ones((2, 2))}, "b": {"kernel": np.ones((2, 2))}}
      >>> def chain(params, x):
      ...     return x @ params["a"]["kernel"] @ params["b"]["kernel"]
      >>> fewest_weights(chain, params, (2,))
      2
      >>> def residual(params, x):
      ...     return chain(params, x) + x
      >>> fewest_weights(residual, params, (2,))
      0
    """
    is_prunable = tuple(prunable_leaves(params, prunable))
    samples, inputs, rules = (
        _sampled(params, is_prunable),
        uniform(ones(input_shape)),
        checked_rules(rules),
    )
    levels = 16  # enough for most networks with shortcuts, and chains of fewer layers
    while True:
        reached = np.asarray(
            program(_reached_through, apply_fn, rules, levels, is_prunable)(samples, inputs)
        )
        if not reached.any():
            raise ValueError(NO_PATH)
        fewest = int(np.argmax(reached))
        if fewest < levels:
            return fewest
        levels *= 2


NO_PATH = (
    "no path leads from the input to the output before anything is pruned: parameters that "
    "are zero block every path. `unreached` names the leaves behind them."
)


def is_connected(
    apply_fn: Callable[..., PyTree],
    params: Params,
    input_shape: PyTree,
    rules: Rules = flow_rules,
) -> bool:
    """Whether any path of parameters that are not zero leads from input to output."""
    none = (False,) * len(jax.tree.leaves(params))
    run = program(_reached_through, apply_fn, checked_rules(rules), 0, none)
    return bool(run(params, uniform(ones(input_shape)))[0])


# --- how many weights a path needs --------------------------------------------------------

# A weight passes on this value, any other parameter 1. One sum then separates what arrives
# through weights from what arrives without: however many paths arrive, the two stay far
# apart. Rounding errors of convolutions by Fourier transforms, where the sum should be 0,
# lie between them.
_THROUGH_A_WEIGHT = 2.0**-60

# Samples of each prunable leaf. In two of them one of millions of computed entries
# (standardised kernels, say) can be equal by chance; in three of them none is.
_SAMPLES = 3


def _sampled(params: Params, is_prunable: Sequence[bool]) -> PyTree:
    """The parameters, with other random values of the prunable leaves along a new leading
    axis: of the opposite sign, and zero where the parameter is zero."""
    rng = np.random.default_rng(0)

    def sampled(leaf):
        factors = -1 - rng.random((_SAMPLES - 1, *leaf.shape), np.float32)
        return jnp.concatenate([leaf[None], leaf[None] * jnp.asarray(factors, leaf.dtype)])

    leaves, treedef = jax.tree.flatten(widened(params))
    leaves = [sampled(leaf) if yes else leaf for leaf, yes in zip(leaves, is_prunable)]
    return jax.tree.unflatten(treedef, leaves)


def _reached_through(
    apply_fn: Callable[..., PyTree],
    rules: Mapping[str, Rule],
    levels: int,
    is_sampled: Sequence[bool],
    backend: Backend,
    params: PyTree,
    inputs: PyTree,
) -> Bool[Array, " numbers"]:
    """Whether a path through at most 0, 1, 2, ... weights reaches the output.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      rules: a table of rules.
      levels: the largest number of weights that is told apart from more.
      is_sampled: which leaves have samples along a leading axis. A value that differs
        between the samples is a weight, or is computed from weights.
      backend: where it runs.
      params: the parameters, with the samples of those leaves.
      inputs: what ``apply_fn`` takes as ``x``.

    Returns:
      A boolean for at most 0 weights, at most 1, and so on up to ``levels - 1``; the last,
      at ``levels``, is for any number of weights.
    """
    leaves, treedef = jax.tree.flatten(widened(params))
    dtype = jnp.dtype(scoring_dtype(*leaves))
    inputs = cast_floating(inputs, dtype)

    def passed_on(parameter: Plain) -> Array:
        samples = lax.all_gather(jnp.asarray(parameter), "samples")
        differ = jnp.any(samples != samples[:1], axis=0)
        value = jnp.where(differ, _THROUGH_A_WEIGHT, 1.0)
        return jnp.where(jnp.abs(samples[0]) > 0, value, 0.0).astype(dtype)

    def as_boolean(value: Flowing) -> Flowing:
        mantissa, exponent = plain_or_flow(value)
        amount = jnp.abs(mantissa * jnp.exp2(exponent.astype(dtype)))
        through = (amount > _THROUGH_A_WEIGHT / 2) & (amount < _THROUGH_A_WEIGHT**0.5)
        # Arriving through a weight with at most n weights means at most n - 1 before it.
        # The last number stands for any, so it follows itself.
        number = lax.axis_index("numbers")
        before = jnp.where(number < levels, number - 1, number)
        through = lax.all_gather(through, "numbers")[before] & (before >= 0)
        flow = Scaled((through | (amount > 0.25)).astype(dtype), jnp.zeros_like(exponent))
        return with_flow(value, flow)

    rules = replaced(DECIDED, rules)
    settings = Settings(
        dtype,
        rules=rules,
        absolute=passed_on,
        after_rule=as_boolean,
        backend=backend,
        least=LEAST,
    )

    def output_reached(*leaves):
        params = jax.tree.unflatten(treedef, leaves)
        outs = interpret(apply_fn, params, (inputs,), settings)
        return jnp.any(jnp.array([*map(jnp.any, stored_mantissas(outs))], bool))

    each = [None] * len(leaves)
    output_reached = jax.vmap(
        output_reached, each, axis_name="numbers", axis_size=levels + 1
    )
    each = [0 if yes else None for yes in is_sampled]
    output_reached = jax.vmap(output_reached, each, axis_name="samples", axis_size=_SAMPLES)
    return output_reached(*leaves)[0]

"""SynFlow, and the same criterion for squared weights."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from synflow_jax.masks import apply_masks
from synflow_jax.paths.certifiable import why_not_certifiable
from synflow_jax.precision import no_score, split_floating, widened
from synflow_jax.pruning.criterion import FlowCriterion
from synflow_jax.transform.finite import where_not_finite
from synflow_jax.transform.network_flow import ones, total_flow, uniform
from synflow_jax.transform.rules import flow_rules
from synflow_jax.transform.values import Rules, checked_rules
from synflow_jax.trees import Masks, Params, ScoreFn, Scores, check_masks
from synflow_jax.xla.backends import Backend
from synflow_jax.xla.loops import as_if_from
from synflow_jax.xla.programs import program


def synflow(
    apply_fn: Callable[..., PyTree],
    input_shape: PyTree,
    *,
    biases: bool = False,
    rules: Rules = flow_rules,
) -> ScoreFn:
    r"""Synaptic flow: needs neither data nor labels.

    With every weight replaced by its absolute value and an all-ones input, let ``R`` be the
    sum of the outputs (see `flow`). The score of a weight is ``|w| * dR/d|w| / R``: the
    share of the total flow that passes through it, between 0 and 1. The scores of every set
    of weights that separates the input from the output, such as a layer, sum to 1 (the
    conservation law of the paper); the paper's own scores are these times ``R``.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``, traceable by JAX, in evaluation mode.
      input_shape: the shape of one example, without the batch axis; or a pytree of
        `jax.ShapeDtypeStruct` that describes the whole input, batch axis included, in which
        arrays are constants of the network (attention masks, positions, a timestep).
      biases: adds the absolute values of biases to the flow, as in the authors' code.
      rules: the rule of each primitive, as in `flow`. The table is copied.

    Returns:
      ``score(params, masks) -> scores``: leaves shaped like ``params``, float32 (float64
      for float64 parameters) whatever the precision of the parameters, non-negative, and
      finite at any depth. A pruned weight scores 0, and every weight scores 0 if no path is
      left. Parameters that hold no floating numbers score 0. So do parameters on which the
      output does not depend; `prune` prunes them first, and `unreached` names them. A
      parameter that is used several times scores the sum over its uses. Where the network
      computes its weights from parameters (weight standardisation, say), the score is the
      absolute value of the parameter times its gradient, and the sums are no longer 1.

    Raises:
      ValueError: while tracing, if ``masks`` does not mirror ``params`` or the network has
        no flow (`flow`).

    Example:
      >>> score = synflow(lambda params, x: x @ params["w"], input_shape=(2,))
      >>> params = {"w": jnp.array([[1.0, -2.0], [-3.0, 4.0]])}
      >>> (10 * score(params, {"w": jnp.ones((2, 2), bool)})["w"]).round()
      Array([[1., 2.],
             [3., 4.]], dtype=float32)

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), equation for S_SF and Theorem 2.
    """
    inputs, rules = ones(input_shape), checked_rules(rules)

    def score(backend: Backend, params: Params, masks: Masks) -> Scores:
        marked = uniform(inputs)
        return _shares(apply_fn, rules, biases, backend, params, masks, marked)

    def why_not(params: Params, is_prunable: Sequence[bool]) -> str | None:
        if biases:
            return (
                "with `biases` the scores are not shares of the flow along paths, since "
                "flow starts at biases too."
            )
        return why_not_certifiable(apply_fn, params, is_prunable, inputs, rules)

    def where(params: Params) -> str | None:
        return where_not_finite(apply_fn, params, inputs, rules)

    return FlowCriterion(score, why_not, where)


def flow_scores(
    apply_fn: Callable[..., PyTree],
    params: Params,
    masks: Masks,
    input_shape: PyTree,
    *,
    rules: Rules = flow_rules,
) -> Scores:
    """The scores of `synflow`, computed by a program that later calls find again."""
    run = program(_shares, apply_fn, checked_rules(rules), False)
    return run(params, masks, uniform(ones(input_shape)))


def _shares(
    apply_fn: Callable[..., PyTree],
    rules: Rules,
    biases: bool,
    backend: Backend,
    params: Params,
    masks: Masks,
    inputs: PyTree,
) -> Scores:
    """Each weight's share of the flow."""
    check_masks(masks, params)
    weights, merged = split_floating(widened(params))
    settings = {"biases": biases, "rules": rules, "backend": backend, "masks": masks}

    def mantissa_of_flow(weights):
        return total_flow(apply_fn, merged(weights), inputs, **settings).mantissa

    total, gradients = jax.value_and_grad(mantissa_of_flow)(weights)
    # Where nothing flows every score is zero, not zero over zero.
    divisor = jnp.where(total == 0, jnp.ones_like(total), total)
    # In a loop of rounds XLA would keep which weights are 0, as that is always the same.
    zero = as_if_from(total, jnp.zeros_like(total))
    shares = [_share(w, g / divisor, zero) for w, g in zip(weights, gradients)]
    return apply_masks(merged(shares, no_score), masks)


def synflow_l2(
    apply_fn: Callable[..., PyTree], input_shape: PyTree, *, rules: Rules = flow_rules
) -> ScoreFn:
    """Synaptic flow of the squared weights: the l2 path norm instead of the l1 path norm.

    A path counts the product of its squared weights, so few strong paths outweigh many weak
    ones. It is `synflow` of ``params ** 2``, hence a synaptic saliency: it is conserved,
    and its rounds can be certified. (PHEW's code multiplies the derivative in the square by
    the weight itself, which is no synaptic saliency and is not conserved.)

    Args:
      apply_fn: ``apply_fn(params, x) -> y``, in evaluation mode. All of ``params`` is
        squared, and nothing else: not the variances of batch norm.
      input_shape, rules: as in `synflow`.

    Returns:
      ``score(params, masks) -> scores``, as `synflow` does.

    Raises:
      ValueError: as `synflow` does.

    Example:
      >>> score = synflow_l2(lambda params, x: x @ params["w"], input_shape=(2,))
      >>> params = {"w": jnp.array([[1.0, -2.0], [-3.0, 4.0]])}
      >>> (30 * score(params, {"w": jnp.ones((2, 2), bool)})["w"]).round()
      Array([[ 1.,  4.],
             [ 9., 16.]], dtype=float32)

    References:
      Gebhart, Saxena and Schrater, "A Unified Paths Perspective for Pruning at
      Initialization" (arXiv 2101.10552).
    """
    of_weights = synflow(apply_fn, input_shape, rules=rules)

    def score(backend: Backend, params: Params, masks: Masks) -> Scores:
        weights, merged = split_floating(widened(params))
        return of_weights.score(backend, merged([w * w for w in weights]), masks)

    def where(params: Params) -> str | None:
        weights, merged = split_floating(widened(params))
        return of_weights.where_not_finite(merged([w * w for w in weights]))

    return FlowCriterion(score, of_weights.why_not_certifiable, where)


def _share(weight: Array, gradient: Array, zero: Array) -> Array:
    """The weight times its gradient; zero for a zero weight, whatever its gradient."""
    share = jnp.abs(weight * gradient)
    return jnp.where(weight != zero.astype(weight.dtype), share, jnp.zeros_like(weight))

"""Criteria: functions that score every weight of a masked network, higher = keep."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from synflow_jax.masks import apply_masks
from synflow_jax.paths.certifiable import why_unbounded
from synflow_jax.precision import no_score, split_floating, widened
from synflow_jax.transform.network_flow import ones, total_flow
from synflow_jax.trees import Masks, Params, ScoreFn, Scores


def synflow(
    apply_fn: Callable[..., PyTree], input_shape: PyTree, *, biases: bool = False
) -> ScoreFn:
    r"""Synaptic flow: needs neither data nor labels.

    With every weight replaced by its size and an all-ones input, let ``R`` be the sum of
    the outputs (see `flow`). The score of a weight is ``|w| * dR/d|w| / R``: the share of
    the total flow that passes through it, between 0 and 1. The scores of every set of
    weights that separates the input from the output, such as a layer, sum to 1 (the
    conservation law of the paper); the paper's own scores are these times ``R``.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``, traceable by JAX, in evaluation mode.
      input_shape: the shape of one example, without the batch axis; or a pytree of
        `jax.ShapeDtypeStruct` that describes the whole input, batch axis included.
      biases: let added parameters join the flow, as in the authors' code (`flow`).

    Returns:
      ``score(params, masks) -> scores``: leaves shaped like ``params``, float32 (float64
      for float64 parameters) whatever the precision of the parameters, non-negative, and
      finite at any depth. A pruned weight scores 0, and so does everything when no path is
      left. Parameters that hold no floating numbers score 0. So do those that the output
      does not depend on, which `prune` then prunes first: `unreached` names them. A
      parameter that is used several times scores the sum over its uses. Where the network
      computes its weights from parameters (weight standardisation, say) the score is the
      size of the parameter times its gradient, and the sums are no longer 1.

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
    inputs = ones(input_shape)

    def score(params: Params, masks: Masks) -> Scores:
        wide = widened(params)
        weights, merged = split_floating(wide)
        alive, masked = split_floating(apply_masks(wide, masks))

        def mantissa_of_flow(alive):
            return total_flow(apply_fn, masked(alive), inputs, biases=biases).mantissa

        # In the masked weights; the weights and masks themselves are met again only in the
        # shares. So the compiler keeps no copy of all weights until the backward pass.
        total, gradients = jax.value_and_grad(mantissa_of_flow)(alive)
        # Where nothing flows every score is zero, not zero over zero.
        divisor = jnp.where(total == 0, jnp.ones_like(total), total)
        shares = [_share(w, g / divisor) for w, g in zip(weights, gradients)]
        return apply_masks(merged(shares, no_score), masks)

    if not biases:  # `prune` asks, to certify its rounds; with biases flow needs no path
        score.why_unbounded = functools.partial(why_unbounded, apply_fn, inputs=inputs)
    return score


def synflow_l2(apply_fn: Callable[..., PyTree], input_shape: PyTree) -> ScoreFn:
    """Synaptic flow of the squared weights: the l2 path norm in the place of the l1.

    A path counts the product of the squares of its weights, so few strong paths outweigh
    many weak ones. It is `synflow` of ``params ** 2``: a synaptic saliency too, conserved,
    and its rounds may be certified. (In PHEW's code the derivative in the square is
    multiplied by the weight itself, which is no saliency, and not conserved.)

    Args:
      apply_fn: ``apply_fn(params, x) -> y``, in evaluation mode. All of ``params`` is
        squared, and nothing else: not the variances of batch norm.
      input_shape: as in `synflow`.

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
    of_weights = synflow(apply_fn, input_shape)

    def score(params: Params, masks: Masks) -> Scores:
        weights, merged = split_floating(widened(params))
        return of_weights(merged([w * w for w in weights]), masks)

    score.why_unbounded = of_weights.why_unbounded
    return score


def _share(weight: Array, gradient: Array) -> Array:
    """The weight times its gradient; zero for a zero weight, whatever its gradient."""
    share = jnp.abs(weight * gradient)
    return jnp.where(weight != 0, share, jnp.zeros_like(weight))

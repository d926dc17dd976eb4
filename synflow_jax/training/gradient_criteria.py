"""Criteria of a training step's own gradients, for `gradual_pruning`."""

import dataclasses
from collections.abc import Callable
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from synflow_jax.precision import no_score, widened
from synflow_jax.trees import Masks, Params, Scores, is_floating


@dataclasses.dataclass(frozen=True)
class GradientCriterion:
    """A criterion that needs the gradients of a training step: see `gradient_criterion`.

    Attributes:
      fn: ``fn(params, masks, grads) -> scores``.
      decay: of the moving average of the scores, in [0, 1); 0 for the scores of one step.
    """

    fn: Callable[[Params, Masks, PyTree], Scores]
    decay: float = 0.0

    def __call__(self, params: Params, masks: Masks) -> NoReturn:
        raise ValueError(
            "a gradient criterion has scores only while a network trains: give it to "
            "`gradual_pruning`. For the gradients of batches of your own there are `snip`, "
            "`fisher` and `gradient_norm`."
        )


def gradient_criterion(
    fn: Callable[[Params, Masks, PyTree], Scores], decay: float = 0.0
) -> GradientCriterion:
    """Makes a criterion of a training step's own gradients, for `gradual_pruning`.

    The wrapper calls ``fn`` with the gradients that come into its update, with those of
    pruned weights too, and with the parameters at which they were taken, before the update.

    Args:
      fn: ``fn(params, masks, grads) -> scores``, leaves shaped like ``params``.
      decay: if above 0, weights are ranked by the moving average ``decay * average + (1 -
        decay) * scores`` over all steps. It starts at 0 and is part of the optimizer's
        state, with one number for each parameter. If 0, by the scores of the pruning step,
        and nothing is kept.

    Returns:
      A criterion that only `gradual_pruning` takes.

    Raises:
      ValueError: if ``decay`` is not in [0, 1) or ``fn`` is not callable.

    Example:
      >>> size = lambda params, masks, grads: jax.tree.map(jnp.abs, grads)
      >>> gradient_criterion(size, decay=0.9).decay
      0.9
    """
    if not callable(fn):
        raise ValueError(
            f"`fn` is a function (params, masks, grads) -> scores; got {fn!r}."
        )
    if isinstance(decay, bool) or not isinstance(decay, int | float | np.number):
        raise ValueError(f"`decay` is a number in [0, 1); got {decay!r}.")
    if not 0 <= decay < 1:
        raise ValueError(f"`decay` is in [0, 1); got {decay}.")
    return GradientCriterion(fn, float(decay))


def weight_times_gradient(decay: float = 0.0) -> GradientCriterion:
    """The absolute value of weight times gradient, for `gradual_pruning`.

    To first order it is the change of the loss if the weight were removed: `snip`, of the
    batches on which the network trains.

    Args:
      decay: as in `gradient_criterion`.

    Returns:
      A criterion that only `gradual_pruning` takes.

    Raises:
      ValueError: if ``decay`` is not in [0, 1).

    Example:
      >>> fn = weight_times_gradient().fn
      >>> fn({"w": jnp.array([1.0, -2.0])}, None, {"w": jnp.array([3.0, 0.5])})
      {'w': Array([3., 1.], dtype=float32)}

    References:
      Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient
      Inference", ICLR 2017, equation 8, for single weights.
    """
    return gradient_criterion(_absolute_products, decay)


def _absolute_products(params: Params, masks: Masks, grads: PyTree) -> Scores:
    def product(param, grad):
        return jnp.abs(param * grad) if is_floating(param) else no_score(param)

    return jax.tree.map(product, widened(params), widened(grads))

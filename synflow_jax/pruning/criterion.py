"""What the loop knows of a criterion: its data, and whether its scores bound the flow.

A criterion is any function ``(params, masks) -> scores``. The criteria of this package are
records that say more.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from synflow_jax.trees import Masks, Params, ScoreFn, Scores
from synflow_jax.xla.constants import Hoisted, hoisted


@dataclasses.dataclass(frozen=True)
class Formula:
    """What of a criterion is the same for all data, such as the loss of `snip`.

    Formulas of equal parts are equal, so that a loop which is compiled for one criterion
    serves another with other data of equal shapes.

    Attributes:
      make: ``make(function, *options, data, params, masks) -> scores``.
      function: the user's loss or network.
      options: hashable.
    """

    make: Callable[..., Scores]
    function: Callable[..., Any] | None = None
    options: tuple[Any, ...] = ()

    def __call__(self, data: PyTree, params: Params, masks: Masks) -> Scores:
        return self.make(self.function, *self.options, data, params, masks)


@dataclasses.dataclass(frozen=True, eq=False)
class DataCriterion:
    """A criterion that needs data or a random key: ``score(params, masks) -> scores``.

    Attributes:
      formula: the formula.
      data: a pytree of arrays, its batches or its key.
    """

    formula: Formula
    data: PyTree = dataclasses.field(repr=False)

    def __call__(self, params: Params, masks: Masks) -> Scores:
        return self.formula(self.data, params, masks)


@dataclasses.dataclass(frozen=True, eq=False)
class FlowCriterion:
    """A criterion whose scores are shares of the flow: ``score(params, masks) -> scores``.

    Attributes:
      score: the criterion.
      why_not_certifiable: ``why_not_certifiable(params, is_prunable)`` gives the reason why
        removed scores do not bound the removed flow, or None if they do.
    """

    score: ScoreFn = dataclasses.field(repr=False)
    why_not_certifiable: Callable[[Params, Sequence[bool]], str | None] = dataclasses.field(
        repr=False
    )

    def __call__(self, params: Params, masks: Masks) -> Scores:
        return self.score(params, masks)


# The type of the functions that `jax.jit` returns.
_Jitted = type(jax.jit(lambda: None))


def why_not_certified(
    score_fn: ScoreFn, params: Params, is_prunable: Sequence[bool]
) -> str | None:
    """The reason why rounds of a criterion cannot be certified; None if they can.

    Only the object that `synflow` or `synflow_l2` returned has certificates, by itself or
    under `jax.jit`. A function that wraps it may have changed the scores.
    """
    if isinstance(score_fn, _Jitted):
        score_fn = getattr(score_fn, "__wrapped__", score_fn)
    if type(score_fn) is not FlowCriterion:
        return "the criterion's scores are not shares of the flow, as those of synflow are."
    return score_fn.why_not_certifiable(params, is_prunable)


def without_constants(
    score_fn: ScoreFn, params: Params, masks: Masks
) -> tuple[Hoisted, tuple[PyTree, ...]]:
    """A criterion as ``score(constants, *more, params, masks)``, and these first arguments.

    The constants are arrays that it closes over (batch statistics, say). A criterion with
    data has its data as one more argument.
    """
    more = (score_fn.data,) if isinstance(score_fn, DataCriterion) else ()
    function = score_fn.formula if isinstance(score_fn, DataCriterion) else score_fn
    score, constants = hoisted(function, *more, params, masks)
    return score, (constants, *more)

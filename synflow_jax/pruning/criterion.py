"""Criteria as the loop sees them: their data, and whether their scores bound the flow.

A criterion is any function ``(params, masks) -> scores``. The criteria of this package are
records that say more.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from synflow_jax.trees import Masks, Params, ScoreFn, Scores
from synflow_jax.xla.constants import Hoisted, hoisted


@dataclasses.dataclass(frozen=True)
class Formula:
    """The part of a criterion that does not depend on its data, such as the loss of `snip`.

    Formulas of equal parts are equal, so that a loop which is compiled for one criterion
    serves another with other data of equal shapes.

    Attributes:
      make: ``make(function, *options, data, params, masks) -> scores``.
      function: the user's loss or network. One that cannot be hashed equals only itself.
      options: hashable.
    """

    make: Callable[..., Scores]
    function: Callable[..., Any] | None = None
    options: tuple[Any, ...] = ()

    def _parts(self) -> tuple[Any, ...]:
        try:
            hash(self.function)
        except TypeError:
            return self.make, id(self.function), self.options
        return self.make, self.function, self.options

    def __hash__(self) -> int:
        return hash(self._parts())

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Formula) and self._parts() == other._parts()

    def __call__(self, data: PyTree, params: Params, masks: Masks) -> Scores:
        return self.make(self.function, *self.options, data, params, masks)


@dataclasses.dataclass(frozen=True, eq=False)
class DataCriterion:
    """A criterion that needs data or a random key: ``score(params, masks) -> scores``.

    Attributes:
      formula: the formula.
      data: a pytree of arrays, its batches or its key.
      traced: the formula as a function of this criterion alone: JAX keeps the trace of a
        function, and the formula may read other values when the next criterion is made.
    """

    formula: Formula
    data: PyTree = dataclasses.field(repr=False)
    traced: Callable[..., Scores] = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "traced", functools.partial(self.formula))

    def __call__(self, params: Params, masks: Masks) -> Scores:
        return self.formula(self.data, params, masks)


@dataclasses.dataclass(frozen=True, eq=False)
class FlowCriterion:
    """A criterion whose scores are shares of the flow: ``score(params, masks) -> scores``.

    Attributes:
      score: the criterion.
      why_not_certifiable: ``why_not_certifiable(params, is_prunable)`` gives the reason why
        removed scores do not bound the removed flow, or None if they do.
      where_not_finite: ``where_not_finite(params)`` names the line at which the flow is NaN
        or infinite; None if there is none.
    """

    score: ScoreFn = dataclasses.field(repr=False)
    why_not_certifiable: Callable[[Params, Sequence[bool]], str | None] = dataclasses.field(
        repr=False
    )
    where_not_finite: Callable[[Params], str | None] = dataclasses.field(
        default=lambda params: None, repr=False
    )

    def __call__(self, params: Params, masks: Masks) -> Scores:
        return self.score(params, masks)


# The type of the functions that `jax.jit` returns.
_Jitted = type(jax.jit(lambda: None))


def flow_criterion(score_fn: ScoreFn) -> FlowCriterion | None:
    """The criterion, if its scores are shares of the flow.

    That is the object that `synflow` or `synflow_l2` returned, by itself or under
    `jax.jit`. A function that wraps it may have changed the scores.
    """
    inner: Any = score_fn
    while isinstance(inner, _Jitted):
        inner = vars(inner)["__wrapped__"]
    return inner if type(inner) is FlowCriterion else None


def why_not_certified(
    score_fn: ScoreFn, params: Params, is_prunable: Sequence[bool]
) -> str | None:
    """The reason why rounds of a criterion cannot be certified; None if they can."""
    criterion = flow_criterion(score_fn)
    if criterion is None:
        return "the criterion's scores are not shares of the flow, as those of synflow are."
    return criterion.why_not_certifiable(params, is_prunable)


def without_constants(
    score_fn: ScoreFn, params: Params, masks: Masks
) -> tuple[Hoisted, tuple[PyTree, ...]]:
    """A criterion as ``score(constants, *more, params, masks)``, and these first arguments.

    The constants are arrays that it closes over (batch statistics, say). A criterion with
    data has its data as one more argument.
    """
    if isinstance(score_fn, DataCriterion):
        data, key = score_fn.data, score_fn.formula
        score, constants = hoisted(score_fn.traced, data, params, masks, key=key)
        return score, (constants, data)
    score, constants = hoisted(score_fn, params, masks)
    return score, (constants,)

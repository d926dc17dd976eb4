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
from synflow_jax.xla.backends import Backend, has_convolutions, on_backend
from synflow_jax.xla.constants import Hoisted, hoisted


@dataclasses.dataclass(frozen=True)
class Formula:
    """The part of a criterion that does not depend on its data, such as the loss of `snip`.

    Formulas of equal parts are equal, so that a loop which is compiled for one criterion
    serves another with other data of equal shapes.

    Attributes:
      make: ``make(function, *options, backend, data, params, masks) -> scores``.
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

    def __call__(
        self, backend: Backend, data: PyTree, params: Params, masks: Masks
    ) -> Scores:
        return self.make(self.function, *self.options, backend, data, params, masks)


@dataclasses.dataclass(frozen=True, eq=False)
class DataCriterion:
    """A criterion that needs data or a random key: ``score(params, masks) -> scores``.

    Attributes:
      formula: the formula.
      data: a pytree of arrays, its batches or its key.
      on: ``on(backend)(data, params, masks) -> scores``, a function of this criterion
        alone: JAX keeps the trace of a function, and the formula may read other values when
        the next criterion is made.
    """

    formula: Formula
    data: PyTree = dataclasses.field(repr=False)
    on: Callable[[Backend], Callable[..., Scores]] = dataclasses.field(
        init=False, repr=False
    )

    def __post_init__(self):
        object.__setattr__(self, "on", _on(self.formula))

    def __call__(self, params: Params, masks: Masks) -> Scores:
        args = self.data, params, masks
        return on_backend(self.formula, *args, differs=has_convolutions)


@dataclasses.dataclass(frozen=True, eq=False)
class FlowCriterion:
    """A criterion whose scores are shares of the flow: ``score(params, masks) -> scores``.

    Attributes:
      score: ``score(backend, params, masks) -> scores``.
      why_not_certifiable: ``why_not_certifiable(params, is_prunable)`` gives the reason why
        removed scores do not bound the removed flow, or None if they do.
      where_not_finite: ``where_not_finite(params)`` names the line at which the flow is NaN
        or infinite; None if there is none.
      on: ``on(backend)(params, masks) -> scores``.
    """

    score: Callable[[Backend, Params, Masks], Scores] = dataclasses.field(repr=False)
    why_not_certifiable: Callable[[Params, Sequence[bool]], str | None] = dataclasses.field(
        repr=False
    )
    where_not_finite: Callable[[Params], str | None] = dataclasses.field(
        default=lambda params: None, repr=False
    )
    on: Callable[[Backend], ScoreFn] = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "on", _on(self.score))

    def __call__(self, params: Params, masks: Masks) -> Scores:
        return on_backend(self.score, params, masks, differs=has_convolutions)


def _on(score: Callable[..., Scores]) -> Callable[[Backend], Callable[..., Scores]]:
    """The function for each backend, always the same one."""
    return functools.cache(lambda backend: functools.partial(score, backend))


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


def data_of(score_fn: ScoreFn) -> PyTree:
    """The data of a criterion that has data; None of any other."""
    return score_fn.data if isinstance(score_fn, DataCriterion) else None


def score_on(score_fn: ScoreFn, backend: Backend) -> ScoreFn:
    """The criterion for known devices. Any but this package's chooses within it."""
    if type(score_fn) is FlowCriterion:
        return score_fn.on(backend)
    if type(score_fn) is DataCriterion:
        return functools.partial(score_fn.on(backend), score_fn.data)
    return score_fn


def without_constants(
    score_fn: ScoreFn, backend: Backend, params: Params, masks: Masks
) -> tuple[Hoisted, tuple[PyTree, ...]]:
    """A criterion as ``score(constants, *more, params, masks)``, and these first arguments.

    The constants are arrays that it closes over (batch statistics, say). A criterion with
    data has its data as one more argument. A function of the user's that calls a criterion
    of this package does not hand on where it runs: that is chosen within it.
    """
    if isinstance(score_fn, DataCriterion):
        data, key = score_fn.data, score_fn.formula
        score, constants = hoisted(score_fn.on(backend), data, params, masks, key=key)
        return score, (constants, data)
    criterion = flow_criterion(score_fn)
    function = score_fn if criterion is None else criterion.on(backend)
    score, constants = hoisted(function, params, masks, key=score_fn)
    return score, (constants,)

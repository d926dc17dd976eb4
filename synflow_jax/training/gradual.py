"""Gradual pruning: an optax transformation that prunes a network while it trains."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Integer, Key, PyTree

from synflow_jax.masks import all_kept
from synflow_jax.pruning.counts import Allocations, groups_of, leaves_of
from synflow_jax.pruning.criterion import DataCriterion, score_on
from synflow_jax.pruning.rounds import Choice, Method, Scope, one_round, placements_of
from synflow_jax.pruning.schedules import Schedule, cubic
from synflow_jax.training.copies import masked_copies, masked_updates_of, trained
from synflow_jax.training.gradient_criteria import GradientCriterion
from synflow_jax.training.optim import (
    as_transformation,
    copy_placed_like,
    needs_params,
    start_under,
    step_under,
)
from synflow_jax.training.timetable import Asked, Recipe, check_numbers, recipe_of
from synflow_jax.trees import (
    Masks,
    Params,
    Prunable,
    ScoreFn,
    Scores,
    check_like,
    is_kernel,
    prunable_leaves,
)
from synflow_jax.xla import counts
from synflow_jax.xla.backends import ANYWHERE, Backend
from synflow_jax.xla.batching import each_on_backend, when


class GradualPruningState(NamedTuple):
    """State of `gradual_pruning`.

    Attributes:
      masks: leaves shaped like the parameters; True = kept.
      step: number of updates done.
      steps: numbers of the updates that prune.
      counts: for each of them, how many weights it leaves.
      asked: the density, begin and end that decided them.
      key: of the criterion, if it is `random`; otherwise None.
      averages: moving averages of a gradient criterion's scores; None without decay.
      recipe: what else decided the counts; static.
      inner: the state of the optimizer; every copy of the parameters in it is masked.
    """

    masks: Masks
    step: Integer[Array, ""]
    steps: Integer[Array, " rounds"]
    counts: Integer[Array, "rounds *groups"] | counts.Wide
    asked: Asked
    key: Key[Array, ""] | None
    averages: PyTree
    recipe: Recipe
    inner: optax.OptState


def gradual_pruning(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    score_fn: ScoreFn | GradientCriterion,
    density: float,
    *,
    begin: int,
    end: int,
    every: int = 1,
    schedule: Schedule = cubic,
    masks: Masks | None = None,
    scope: Scope = "global",
    allocation: Allocations | None = None,
    prunable: Prunable = is_kernel,
) -> optax.GradientTransformationExtraArgs:
    """Prunes a network while any optimizer trains it.

    Updates are counted from 1. Updates ``begin``, ``begin + every``, ... up to ``end``
    prune: after the optimizer's step, the criterion scores the updated parameters, the best
    of the weights that are still kept stay, and the update of each weight that goes is
    minus its value. The last of them reaches the density. With ``begin == end`` all happens
    in one step. Between, and afterwards, it is `static_pruning`.

    It must be the outermost transformation, since `optax.apply_updates` has to see its
    updates of pruned weights as they are; only `optax.apply_if_finite` and
    `optax.MultiSteps` may be around it. The former does not count an update that it
    rejects, which delays the schedule. Inside `optax.MultiSteps` the accumulated steps
    count, one in k; around it, as ``optimizer``, it counts every call.

    All that may vary from seed to seed is part of the state: masks, counts, steps and the
    key of `random`. A compiled step serves other densities and times (`replace_schedule`)
    and other masks (`replace_masks`). Under `jax.vmap` the criterion and the selection run
    only in steps in which some element of the batch is pruned.

    Args:
      optimizer: any optax optimizer, or `optax.MultiSteps` of one. Extra arguments of its
        update, such as ``value``, are passed on.
      score_fn: the criterion: `magnitude`, `random`, or any other, such as `synflow`, of
        which each pruning step is a round (of Algorithm 1 to the letter: a step that cuts
        the network is not undone); or a criterion of the gradients that come in, such as
        `weight_times_gradient` (`gradient_criterion`).
      density: fraction of the prunable weights kept from the last pruning step on, in
        (0, 1].
      begin: number of the first update that prunes, at least 1.
      end: number of the update at or before which the last pruning happens.
      every: updates from one pruning step to the next.
      schedule: ``schedule(density, rounds) -> densities`` after each pruning step, such as
        `cubic`.
      masks: where to start, as in `prune`. Default: all weights are kept. The parameters
        must be zero where pruned; if they are not, the first update makes them.
      scope, allocation, prunable: as in `prune`.

    Returns:
      An `optax.GradientTransformationExtraArgs` whose ``update`` needs ``params``. Pruned
      weights are exactly 0 after `optax.apply_updates`, in every copy of the parameters
      that the inner state holds too. Updates have the promoted type of parameter and
      update. A pruned weight stays pruned. A weight that is NaN or infinite cannot be made
      zero by adding an update: it becomes NaN when it is pruned.

    Raises:
      ValueError: if a number is out of range or an array of JAX, ``begin`` is above
        ``end``, or ``score_fn`` is not callable. Its ``init`` raises it if the schedule
        rises, the density is above that of ``masks``, no leaf is prunable, the criterion
        does not fit the parameters, or the masks do not mirror them or are traced.

    Example:
      >>> from synflow_jax.criteria import magnitude
      >>> optimizer = gradual_pruning(optax.sgd(0.5), magnitude(), 0.5, begin=2, end=2)
      >>> params = {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
      >>> grads = {"kernel": jnp.array([[0.0, 1.0, 0.0, 6.0]])}
      >>> state = optimizer.init(params)
      >>> for _ in range(2):
      ...     updates, state = optimizer.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> params["kernel"]
      Array([[ 0.,  0.,  3., -2.]], dtype=float32)

    References:
      Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
      compression", 2017 (arXiv 1710.01878). Their t0, at which nothing is pruned yet, is
      ``begin - every``.
    """
    check_numbers(density, begin, end, every, scope)
    if not callable(score_fn):
        raise ValueError(
            f"`score_fn` is a criterion, such as magnitude(); got {score_fn!r}."
        )
    inner = as_transformation(optimizer)
    decay = score_fn.decay if isinstance(score_fn, GradientCriterion) else 0.0

    def scores_of(backend: Backend, masks: Masks, operands: "_Operands") -> Scores:
        if isinstance(score_fn, GradientCriterion) and score_fn.decay:
            return operands.averages
        if isinstance(score_fn, GradientCriterion):
            return score_fn.fn(operands.params, masks, operands.gradients)
        after = _updated(operands.params, operands.updates)
        if isinstance(score_fn, DataCriterion) and operands.key is not None:
            return score_fn.formula(backend, operands.key, after, masks)
        return score_on(score_fn, backend)(after, masks)

    def pruned(backend: Backend, masks: Masks, k: Any, operands: "_Operands") -> Masks:
        params = operands.params
        is_prunable = tuple(prunable_leaves(params, prunable))
        groups = groups_of(params, is_prunable, scope, allocation)

        def score(_, masks):
            return scores_of(backend, masks, operands)

        static = is_prunable, False, score, backend, placements_of(params)
        method = Method(score, groups, *static)
        return one_round(method, lambda _: Choice(k), (), params, masks).masks

    def init(params: PyTree) -> Any:  # optax's type has no static nodes
        now = trained(params)
        leaves = leaves_of(now, prunable_leaves(now, prunable), masks)
        recipe = recipe_of(leaves, every, schedule, scope, allocation)
        table = recipe.timetable(density, begin, end)
        number = jax.tree.map(jnp.asarray, table.counts)
        start, state = start_under(inner, all_kept(now) if masks is None else masks, params)
        key = _key_of(score_fn)
        operands = _Operands(now, now, now, None, key)
        averages = None
        if isinstance(score_fn, GradientCriterion) and decay:
            scores = jax.eval_shape(score_fn.fn, now, start, now)
            check_like(scores, now, name="scores")
            averages = jax.tree.map(lambda s, p: _zeros_like(s, p), scores, now)
            operands = operands._replace(averages=averages)
        # Raises now, and not in the first update, if the criterion does not fit.
        check = functools.partial(pruned, ANYWHERE)
        jax.eval_shape(check, start, counts.at(number, 0), operands)
        return GradualPruningState(
            masks=start,
            step=jnp.zeros((), jnp.int32),
            steps=jnp.asarray(table.steps),
            counts=number,
            asked=Asked(*map(jnp.asarray, table.asked)),
            key=None if key is None else jnp.copy(key),
            averages=averages,
            recipe=recipe,
            inner=state,
        )

    def update(updates, state, params=None, **extra_args):
        needs_params(params, "gradual_pruning")
        gradients, now, masks = updates, trained(params), state.masks
        averages = state.averages
        if isinstance(score_fn, GradientCriterion) and decay:
            scores = score_fn.fn(now, masks, gradients)
            averages = jax.tree.map(
                lambda average, score: decay * average + (1 - decay) * score,
                averages,
                scores,
            )
        updates, new = step_under(inner, masks, updates, state.inner, params, extra_args)
        updates = masked_updates_of(params, updates, masks)
        step = optax.safe_increment(state.step)
        is_due = state.steps == step
        masks = when(
            jnp.any(is_due),
            each_on_backend(pruned),
            masks,
            counts.at(state.counts, jnp.argmax(is_due)),
            _Operands(now, trained(updates), gradients, averages, state.key),
        )
        state = state._replace(
            masks=masks, step=step, averages=averages, inner=masked_copies(new, masks)
        )
        return masked_updates_of(params, updates, masks), state

    return optax.GradientTransformationExtraArgs(init, update)


class _Operands(NamedTuple):
    """What a pruning step reads of the update that it belongs to.

    Attributes:
      params: before the update.
      updates: of the optimizer.
      gradients: that came in.
      averages: as in the state.
      key: as in the state.
    """

    params: Params
    updates: PyTree
    gradients: PyTree
    averages: PyTree
    key: Any


def _updated(params: Params, updates: PyTree) -> Params:
    """`optax.apply_updates` for types that JAX may be told not to promote."""

    def add(update, param):
        if update is None or isinstance(update, optax.MaskedNode):
            return param
        return (jnp.asarray(param, update.dtype) + update).astype(param.dtype)

    def is_hole(x):
        return x is None or isinstance(x, optax.MaskedNode)

    return jax.tree.map(add, updates, params, is_leaf=is_hole)


def _key_of(score_fn: Any) -> Any:
    """The random key that is all the data of a criterion; None if it has others."""
    data = score_fn.data if isinstance(score_fn, DataCriterion) else None
    dtype = getattr(data, "dtype", None)
    is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return data if is_key else None


def _zeros_like(score: jax.ShapeDtypeStruct, param: Array) -> Array:
    """Zeros of the score's type, placed as its parameter is."""
    return copy_placed_like(jnp.zeros(score.shape, score.dtype), param)

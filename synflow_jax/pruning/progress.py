"""Rounds one after another; a round that cuts the network is undone and taken in steps."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, PyTree

from synflow_jax.masks import all_kept
from synflow_jax.pruning.lost_flow import check_rounds
from synflow_jax.pruning.rounds import (
    Choice,
    Method,
    Plan,
    PruneInfo,
    empty_report,
    in_their_places,
    one_round,
    readable,
)
from synflow_jax.pruning.trials import (
    Trial,
    nothing_done,
    number_at_start,
    target_of,
    together_with,
)
from synflow_jax.trees import Masks, Params
from synflow_jax.xla import counts
from synflow_jax.xla.batching import one_by_one
from synflow_jax.xla.placement import placed, placement_of, varying_with

# Seconds. Rounds that take less are run several at a time if each is to be reported.
_SHORT_S = 0.25


class Progress(NamedTuple):
    """What one scoring hands to the next.

    Attributes:
      masks: what is scored next. If rounds may be undone, each prunable leaf is a pair of
        masks along a leading axis: that scored next, at ``trial.slot``, and that before the
        last step.
      number: the round in progress, from 0.
      infos: the reports of all rounds, with a leading axis.
      last: the report of the last round that ended.
      unreached: for each prunable leaf, whether all its scores were 0 at the start.
      trial: how the round in progress stands, if rounds may be undone; else None.
    """

    masks: Masks
    number: Array
    infos: PruneInfo
    last: PruneInfo
    unreached: Array
    trial: Trial | None


def run_rounds(
    method: Method,
    plan: Plan,
    constants: tuple[PyTree, ...],
    params: Params,
    targets: PyTree,
    *,
    limit: int,
    masks: Masks | None = None,
    keep_connected: bool = False,
    on_round: Callable[[PruneInfo], None] | None = None,
) -> tuple[Masks, PruneInfo]:
    """Prunes in rounds: all of them in one compiled loop, or one scoring at a time.

    Args:
      method: how to prune.
      plan: how many weights rounds leave, and when they end.
      constants: the arrays that the criterion needs.
      params: the parameters.
      targets: the arrays that the plan needs, such as counts.
      limit: the largest number of rounds.
      masks: the weights that are kept at the start; default, all.
      keep_connected: whether a round after which all scores are 0 is undone. Half of its
        removals are tried then, and so on; after a step that leaves flow, the rest of the
        round. If one weight more would cut the network, the round is taken as it is.
      on_round: called on the host for each round, short ones several at a time; None for
        the compiled loop.

    Returns:
      The masks, and what the rounds report. Under jit and vmap it has ``limit`` rounds, the
      last of them without effect if the plan ends before.

    Raises:
      FloatingPointError: if a score was NaN or infinite (not under jit or vmap).
      ValueError: if no flow reaches any prunable leaf before the first round (not under jit
        or vmap).
    """
    static = (method, plan, limit, keep_connected)
    # Explicitly, as `jax.transfer_guard` may want it.
    constants, targets = jax.tree.map(_on_device, (constants, targets))
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(params)):
        # A constant of the program around forgets how it is divided over devices.
        constants = jax.tree.map(lambda x: placed(x, placement_of(x)), constants)
    if on_round is None:
        left, infos, done, unreached = all_rounds(
            *static, constants, params, targets, masks
        )
        if not isinstance(done, Tracer):
            rows = _rows(infos, 0, int(done))
            check_rounds(rows, 1, method, constants, params, unreached, masks)
            infos = readable(rows)
        return left, infos
    # A copy, since each scoring overwrites the masks that it is given.
    given = None if masks is None else jax.tree.map(jnp.array, masks)
    progress, goes_on = _start(method, limit, keep_connected, params, given), True
    reported, together = 0, 1
    while goes_on:
        start = time.perf_counter()
        progress, goes_on = _scored(
            *static,
            constants,
            params,
            targets,
            progress,
            jax.device_put(np.int32(together)),
        )
        infos, done = jax.device_get((progress.infos, progress.number))
        while reported < done:  # one scoring can end two rounds
            info = jax.tree.map(lambda x, i=reported: x[i : i + 1], infos)
            unreached = progress.unreached if not reported else None
            check_rounds(info, reported + 1, method, constants, params, unreached, masks)
            on_round(readable(jax.tree.map(lambda x: x[0], info)))
            reported += 1
        # A program that ends gives its memory back, and fetching it again takes a third of
        # the time of a short round.
        if time.perf_counter() - start < _SHORT_S:
            together = min(2 * together, limit)
    left, infos = _finished(method, progress)
    return left, readable(_rows(infos, 0, reported))


def _on_device(x: Any) -> Any:
    return jax.device_put(x) if isinstance(x, np.ndarray | np.generic) else x


def _rows(infos: PruneInfo, start: int, stop: int) -> PruneInfo:
    """The reports of some rounds, on the host: nothing is compiled for it."""
    return jax.tree.map(lambda x: x[start:stop], jax.device_get(infos))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def all_rounds(method, plan, limit, keep_connected, constants, params, targets, masks=None):
    """The masks, the reports of ``limit`` rounds, how many rounds there were, and for each
    prunable leaf whether all its scores were 0 at the start."""
    static = (method, plan, limit, keep_connected)

    def run(constants, params, targets, masks):
        def score(progress):
            progress = _one_scoring(*static, constants, params, targets, progress)
            return varying_with(progress, (constants, params, targets))

        start = _start(method, limit, keep_connected, params, masks)
        progress = lax.while_loop(
            functools.partial(_goes_on, *static, targets),
            score,
            varying_with(start, (constants, params, targets)),
        )
        # Rounds that did not take place report the last state, and that they removed
        # nothing.
        last = progress.last._replace(removed=jnp.zeros_like(progress.last.removed))
        took_place = jnp.arange(limit, dtype=progress.number.dtype) < progress.number
        infos = jax.tree.map(
            lambda xs, x: jnp.where(took_place, xs, x), progress.infos, last
        )
        infos = _certified_from_the_start(infos)
        return _present(method, progress), infos, progress.number, progress.unreached

    # Masks have no gradient, and a loop whose length is not static has no reverse mode.
    operands = lax.stop_gradient((constants, params, targets, masks))
    return one_by_one(method.backend, run)(*operands)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _start(method, limit, keep_connected, params, given) -> Progress:
    """The given masks, or everything kept, before the first scoring."""
    masks, info = all_kept(params) if given is None else given, empty_report(method)
    masks = in_their_places(method, masks)
    infos = jax.tree.map(lambda x: jnp.zeros((limit, *x.shape), x.dtype), info)
    trial = None
    if keep_connected:
        kept = number_at_start(method, params, given)
        no = jnp.bool_(False)
        none = nothing_done(info)
        slot, removed = jnp.int32(0), jax.tree.map(jnp.zeros_like, kept)
        trial = Trial(slot, kept, removed, no, no, no, none, none)
        masks = _of_prunable(method, lambda m: jnp.stack([m, m]), masks)
    unreached = jnp.zeros(sum(method.is_prunable), bool)
    return Progress(masks, jnp.int32(0), infos, info, unreached, trial)


def _goes_on(method, plan, limit, keep_connected, targets, progress: Progress) -> Array:
    """Whether another scoring follows."""
    goes_on = plan.goes_on(targets, progress.number, progress.last)
    goes_on = (progress.number == 0) | goes_on
    if progress.trial is not None:
        goes_on = goes_on | progress.trial.open
    return goes_on


def _one_scoring(
    method, plan, limit, keep_connected, constants, params, targets, progress
) -> Progress:
    """Scores the network and takes a round, or a step of one, or undoes the last step."""
    if keep_connected:
        return _one_step(method, limit, constants, params, targets, progress)
    choose = functools.partial(plan.choose, targets, progress.number)
    masks, info, _, unreached = one_round(method, choose, constants, params, progress.masks)
    infos = _written(progress.infos, progress.number, info)
    first = jnp.where(progress.number == 0, unreached, progress.unreached)
    return Progress(masks, progress.number + 1, infos, info, first, None)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=7)
def _scored(
    method, plan, limit, keep_connected, constants, params, targets, progress, together
) -> tuple[Progress, Array]:
    """Scores up to ``together`` times; and whether another scoring follows."""
    static = (method, plan, limit, keep_connected)

    def goes_on(state):
        number, progress = state
        return (number < together) & _goes_on(*static, targets, progress)

    def score(state):
        number, progress = state
        return number + 1, _one_scoring(*static, constants, params, targets, progress)

    start = jnp.zeros_like(together), progress
    _, progress = lax.while_loop(goes_on, score, start)
    return progress, _goes_on(*static, targets, progress)


@functools.partial(jax.jit, static_argnums=0)
def _finished(method: Method, progress: Progress) -> tuple[Masks, PruneInfo]:
    """The masks that the rounds leave, and their reports."""
    return _present(method, progress), _certified_from_the_start(progress.infos)


def _written(infos: PruneInfo, number: Array, info: PruneInfo, where=True) -> PruneInfo:
    """The reports with that of one round, if ``where``."""
    number = jnp.where(where, number, infos.density.shape[0])  # no round: not written
    return jax.tree.map(lambda xs, x: xs.at[number].set(x, mode="drop"), infos, info)


def _certified_from_the_start(infos: PruneInfo) -> PruneInfo:
    """No round is certified if leaves that no flow reached at the start are pruned."""
    return infos._replace(certified=infos.certified & (infos.unreached[:1] == 0))


# --- rounds that may be undone ------------------------------------------------------------


def _of_prunable(method: Method, change: Callable, masks: PyTree, *others: PyTree) -> Any:
    """The masks with their prunable leaves changed."""
    leaves, treedef = jax.tree.flatten(masks)
    rows = zip(method.is_prunable, leaves, *map(jax.tree.leaves, others))
    return treedef.unflatten(change(*row) if yes else row[0] for yes, *row in rows)


def _present(method: Method, progress: Progress) -> Masks:
    """The masks of the network as it is."""
    trial = progress.trial
    if trial is None:
        return progress.masks

    def present(pair):
        return lax.dynamic_index_in_dim(pair, trial.slot, keepdims=False)

    return _of_prunable(method, present, progress.masks)


def _one_step(method, limit, constants, params, targets, progress) -> Progress:
    """Scores the network, and takes the rest of the round, or undoes the last step."""
    trial = progress.trial
    # If this scoring finds flow, the last step holds, and with it perhaps its round.
    ended = trial.open & jnp.all(trial.kept <= target_of(targets, progress.number, limit))
    number = jnp.where(ended, progress.number + 1, progress.number)
    whole = counts.smaller(trial.kept, target_of(targets, number, limit))
    k = counts.where(trial.halved, trial.kept - trial.removed, whole)
    new, info, flows, unreached = one_round(
        method, lambda scored: Choice(k), constants, params, _present(method, progress)
    )
    undone = trial.open & ~flows & (info.nonfinite == 0)
    # What is not to be kept is written over the masks that cut the network.
    slot = jnp.where(undone, trial.slot, 1 - trial.slot)

    def written(pair, mask):
        return lax.dynamic_update_index_in_dim(pair, mask, slot, axis=0)

    masks = _of_prunable(method, written, progress.masks, new)

    nothing, confirmed = nothing_done(info), trial.info
    begun = _where(ended, nothing, confirmed)
    done = together_with(begun, info)
    cut = trial.cut | (~flows & ~trial.open)
    # A certified step leaves flow, so no scoring need show it.
    settled = info.certified | cut
    last = settled & jnp.all(counts.equal(k, whole)) & (number < limit)
    on = Trial(
        slot=1 - trial.slot,
        kept=k,
        removed=trial.kept - k,
        open=~settled & (number < limit),
        halved=jnp.bool_(False),
        cut=cut,
        info=_where(last, nothing, done),
        confirmed=begun,
    )
    less = counts.halved(trial.removed)
    some = jnp.any(~counts.is_zero(less))
    retried = trial.confirmed._replace(retries=trial.confirmed.retries + 1)
    back = Trial(
        slot=1 - trial.slot,
        kept=trial.kept + trial.removed,
        removed=less,
        open=jnp.bool_(False),
        halved=some,
        cut=~some,
        info=retried,
        confirmed=retried,
    )
    ended, last = ended & ~undone, last & ~undone
    infos = _written(progress.infos, progress.number, confirmed, where=ended)
    infos = _written(infos, number, done, where=last)
    report = _where(last, done, _where(ended, confirmed, progress.last))
    is_first = (progress.number == 0) & ~trial.open & counts.is_zero(confirmed.kept)
    first = jnp.where(is_first, unreached, progress.unreached)
    number = jnp.where(last, number + 1, jnp.where(undone, progress.number, number))
    return Progress(masks, number, infos, report, first, _where(undone, back, on))


def _where(condition: Array, yes: PyTree, no: PyTree) -> Any:
    """Of two trees of numbers the one that is chosen."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)

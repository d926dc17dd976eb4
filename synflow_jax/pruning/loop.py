"""The loop: score, select, again, in one compilation for all rounds."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from synflow_jax.masks import all_kept
from synflow_jax.pruning.certified_rounds import (
    CERTIFIED,
    MAX_ROUNDS,
    Certified,
    certified,
    certified_targets,
)
from synflow_jax.pruning.counts import (
    Allocations,
    check_above,
    check_scope,
    counts_per_round,
    groups_of,
    kept_of,
    size_of_prunable,
)
from synflow_jax.pruning.criterion import data_of, flow_criterion, score_on
from synflow_jax.pruning.progress import run_rounds
from synflow_jax.pruning.rounds import (
    Choice,
    Method,
    Plan,
    PruneInfo,
    Scope,
    method_of,
    one_round,
    placements_of,
)
from synflow_jax.pruning.schedules import Schedule, exponential, num_kept
from synflow_jax.selection.arguments import as_counts
from synflow_jax.trees import (
    Masks,
    Params,
    Prunable,
    ScoreFn,
    is_kernel,
    not_floating,
    prunable_leaves,
)
from synflow_jax.xla import counts
from synflow_jax.xla.backends import backend_of, on_backend
from synflow_jax.xla.batching import each_on_backend


class PruneState(NamedTuple):
    """What one round of `iterative` hands to the next, and nothing else.

    Attributes:
      masks: boolean leaves shaped like the parameters; True = kept. To begin with other
        masks than all True, make the state of them: ``PruneState(masks)``.
    """

    masks: Masks


class Pruner(NamedTuple):
    """A pair of pure functions, in the manner of `optax.GradientTransformation`.

    Attributes:
      init: ``init(params) -> state`` with everything kept.
      step: ``step(state, params, k) -> (state, info)``, one round that leaves the counts
        ``k`` (see `iterative`).
    """

    init: Callable[[Params], PruneState]
    step: Callable[[PruneState, Params, PyTree], tuple[PruneState, PruneInfo]]


def iterative(
    score_fn: ScoreFn,
    *,
    scope: Scope = "global",
    allocation: Allocations | None = None,
    prunable: Prunable = is_kernel,
    regrow: bool = False,
) -> Pruner:
    """One round of pruning as a pair of pure functions, for a loop of your own.

    Use it for rounds between epochs of training, or for a batch of densities by `jax.vmap`
    over the counts (`counts_per_round` makes them).

    Args:
      score_fn: the criterion.
      scope: ``"global"``: one ranking over all prunable weights; ``k`` is one count.
        ``"layer"``: one ranking a leaf; ``k`` has one count for each prunable leaf.
      allocation: as in `prune`; of it only which leaves are ranked by themselves is read,
        and ``k`` is a row of ``counts_per_round(..., allocation=allocation)``.
      prunable: ``prunable(path, leaf) -> bool``; leaves it refuses stay whole.
      regrow: as in `prune`.

    Returns:
      A `Pruner`. Without ``regrow`` a pruned weight never returns, whatever its score.

    Example:
      >>> from synflow_jax.criteria import magnitude
      >>> pruner = iterative(magnitude())
      >>> params = {"kernel": jnp.array([[1.0, -3.0, 2.0]])}
      >>> state, info = pruner.step(pruner.init(params), params, 2)
      >>> state.masks["kernel"]
      Array([[False,  True,  True]], dtype=bool)
    """
    check_scope(scope)

    def init(params: Params) -> PruneState:
        return PruneState(all_kept(params))

    def step(state: PruneState, params: Params, k: PyTree):
        is_prunable = tuple(prunable_leaves(params, prunable))
        groups = groups_of(params, is_prunable, scope, allocation)
        placements = placements_of(params)

        def leave(backend, k, params, masks):
            # Not traced before: a loop of one's own may change what the criterion reads.
            score = score_on(score_fn, backend)
            static = is_prunable, regrow, score_fn, backend, placements
            method = Method(score, groups, *static)
            masks, info, *_ = one_round(method, lambda _: Choice(k), (), params, masks)
            return masks, info

        k, size = as_counts(k), size_of_prunable(params, is_prunable)
        k = counts.as_count(k, size) if counts.is_wide(size) else k
        k = k if isinstance(k, jax.Array) else jax.device_put(k)
        masks, info = each_on_backend(leave)(k, params, state.masks)
        return PruneState(masks), info

    return Pruner(init, step)


def prune(
    score_fn: ScoreFn,
    params: Params,
    density: float,
    *,
    rounds: int = 100,
    schedule: Schedule | Certified = exponential,
    scope: Scope = "global",
    allocation: Allocations | None = None,
    prunable: Prunable = is_kernel,
    masks: Masks | None = None,
    regrow: bool = False,
    keep_connected: bool = True,
    on_round: Callable[[PruneInfo], None] | None = None,
) -> tuple[Masks, PruneInfo]:
    """Prunes to a density in rounds: score, keep the best, score what is left.

    One compiled loop for all rounds and every density. Another loop is compiled for another
    ``score_fn`` object, for other shapes and for another number of rounds; so make the
    criterion once and reuse it. A criterion with other data of equal shapes, such as `snip`
    with the same loss and other batches, uses the loop again. It works inside `jax.jit` and
    under `jax.vmap` over a batch of parameters, keys or data; on a CPU the elements of a
    batch are pruned one by one.

    Args:
      score_fn: the criterion, such as ``synflow(apply_fn, input_shape)``.
      params: a pytree of arrays.
      density: fraction of the prunable weights kept, in (0, 1]: 0.01 is a compression of
        10^2.
      rounds: number of rounds, the paper's n. With 1 even SynFlow disconnects networks.
      schedule: ``schedule(density, rounds) -> densities``, such as `exponential`, that do
        not rise and end at the density; or `certified`, which finds the number of rounds
        itself.
      scope: ``"global"``: one ranking over all prunable weights. ``"layer"``: one ranking a
        leaf, each leaf pruned to the density.
      allocation: how many weights each leaf keeps, such as `uniform`, `erk`, `balanced` or
        ``densities_of(masks)``; the criterion then chooses within the leaves. Or a dict
        from patterns of leaf names (`matching`) to densities: each leaf that a pattern
        matches is pruned to that density by itself, by the same schedule (the first pattern
        that matches counts), and the criterion shares out what is left of ``density`` among
        all other prunable leaves.
      prunable: ``prunable(path, leaf) -> bool``, the path being the leaf's name such as
        ``"Dense_0/kernel"``; leaves it refuses stay whole and do not count.
      masks: where to start: weights that they prune stay pruned, whatever the criterion.
        Densities are still those of all prunable weights. From masks of the density ``d0``
        the rounds leave ``d0 * schedule(density / d0, rounds)``. Default: all are kept.
      regrow: let pruned weights return in later rounds, if their score is among the
        highest: rounds in the manner of FORCE. Use it with `snip`, `grasp`, `fisher`,
        `gradient_norm` or `ntk_sap`, which also score pruned weights; the other criteria
        score them 0, so nothing would return.
      keep_connected: undo a round after which no flow is left, and take it in smaller
        steps: half of its removals, scored again, and so on. If one weight more would cut
        the network, the round is taken as it is, since the count always wins. For `synflow`
        and `synflow_l2` (of any input), without ``regrow``; no other criterion knows the
        flow. A run that does not cut the network is the same with and without. False is
        Algorithm 1 of the paper to the letter.
      on_round: called on the host with each round's `PruneInfo`, in order, to show
        progress. Rounds that take a quarter of a second or more are reported as they end,
        shorter ones several at a time. Not under jit or vmap.

    Returns:
      ``(masks, info)``: boolean leaves shaped like ``params``, True = kept, with exactly
      ``num_kept(size, density)`` prunable weights kept (in each leaf for scope "layer", and
      ``num_kept(size, its density)`` in a leaf that a pattern of ``allocation`` matches);
      and a `PruneInfo` whose arrays have a leading axis ``rounds``. A `certified` schedule
      has as many rounds as it took; under jit and vmap `MAX_ROUNDS`, the last ones without
      effect. It keeps more weights where nothing more can go.

    Raises:
      ValueError: if an argument is out of range, no leaf is prunable, a target is above
        what ``masks`` keep, the densities of ``allocation`` do not fit ``density``, or the
        criterion does not return scores shaped like the parameters; with `certified`, if
        the criterion is not synflow, or if its scores do not bound what their removal
        removes (attention, gates), naming the line.
      ValueError: if no flow reaches a prunable leaf before the first round, as with a
        zero-initialised head: naming the leaves that are all zero (not under jit or vmap,
        where ``info.unreached`` counts the leaves).
      FloatingPointError: if a score is NaN or infinite (not under jit or vmap, where
        ``info.nonfinite`` reports it).

    Warns:
      UserWarning: if all scores of some prunable leaves are 0 before the first round,
        naming them. No round is certified then. And if the default of ``prunable`` leaves a
        kernel whole because it holds integers or complex numbers.

    Example:
      >>> from synflow_jax.criteria import synflow
      >>> score = synflow(lambda params, x: x @ params["kernel"], input_shape=(2,))
      >>> params = {"kernel": jnp.array([[1.0, -2.0], [-3.0, 4.0]])}
      >>> masks, info = prune(score, params, 0.5, rounds=2)
      >>> masks["kernel"]
      Array([[False, False],
             [ True,  True]], dtype=bool)
      >>> info.kept
      Array([3, 2], dtype=int32)

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), Algorithm 1. Rounds with regrowth: de Jorge et
      al., "Progressive Skeletonization: Trimming more fat from a network at
      initialization", ICLR 2021 (FORCE).
    """
    params = jax.tree.map(jnp.asarray, params)
    rounds_of = prepared(
        score_fn,
        params,
        density,
        rounds=rounds,
        schedule=schedule,
        scope=scope,
        allocation=allocation,
        prunable=prunable,
        masks=masks,
        regrow=regrow,
        keep_connected=keep_connected,
    )

    def run(backend, params, masks):
        method, constants = rounds_of.method_on(backend, params)
        return run_rounds(
            method,
            rounds_of.plan,
            constants,
            params,
            rounds_of.targets,
            limit=rounds_of.limit,
            masks=masks,
            keep_connected=rounds_of.keep_connected,
            on_round=on_round,
        )

    masks = jax.tree.map(jnp.asarray, masks)
    backend = backend_of(params, masks, data_of(score_fn))
    return on_backend(run, params, masks, backend=backend)


class Prepared(NamedTuple):
    """The rounds that arguments of `prune` ask for; everything but the parameters.

    Attributes:
      method_on: ``method_on(backend, params) -> (method, constants)``: how to prune on
        these devices, and the arrays that the criterion needs.
      plan: how many weights rounds leave, and when they end.
      targets: the arrays that the plan needs, such as counts.
      limit: the largest number of rounds.
      keep_connected: whether a round that cuts the network is undone.
    """

    method_on: Callable[..., tuple[Method, tuple[PyTree, ...]]]
    plan: Plan
    targets: PyTree
    limit: int
    keep_connected: bool


def prepared(
    score_fn: ScoreFn,
    params: Params,
    density: float,
    *,
    rounds: int = 100,
    schedule: Schedule | Certified = exponential,
    scope: Scope = "global",
    allocation: Allocations | None = None,
    prunable: Prunable = is_kernel,
    masks: Masks | None = None,
    regrow: bool = False,
    keep_connected: bool = True,
) -> Prepared:
    """Checks the arguments of `prune`, of whose parameters only shapes are read."""
    is_prunable = tuple(prunable_leaves(params, prunable))
    if whole := not_floating(params, prunable):
        warnings.warn(
            f"{', '.join(whole)}: only floating leaves can be pruned, so these stay whole "
            "and do not count in the density. To say that it is meant so: "
            "prunable=synflow_jax.matching(without=...).",
            stacklevel=3,
        )
    if schedule is certified:
        raise ValueError("`schedule` is certified(), with or without a ratio.")
    if masks is not None and regrow:
        raise ValueError(
            "with `masks` no pruned weight returns, and with `regrow` they do: give one of "
            "the two."
        )
    kept = None if masks is None else kept_of(masks, params, is_prunable)
    size = size_of_prunable(params, is_prunable)
    if isinstance(schedule, Certified):
        if scope != "global" or allocation is not None or regrow:
            raise ValueError(
                "a `certified` schedule ranks all weights together and lets none return: "
                '`scope` is "global", `allocation` None and `regrow` False.'
            )
        targets = certified_targets(size, density, schedule.max_ratio)
        if kept is not None:
            k = num_kept(size, density)
            check_above(k, density, sum(kept), size, "density", "")
        plan, limit, groups = CERTIFIED, MAX_ROUNDS, None
    else:
        targets = counts_per_round(
            params,
            density,
            rounds,
            schedule=schedule,
            scope=scope,
            allocation=allocation,
            prunable=prunable,
            masks=masks,
        )
        plan, limit = COUNTS, len(targets)
        targets = counts.as_count(targets, size)
        groups = groups_of(params, is_prunable, scope, allocation)

    def method_on(backend, params):
        return method_of(
            score_fn,
            backend,
            params,
            jax.eval_shape(all_kept, params),
            is_prunable=is_prunable,
            groups=groups,
            regrow=regrow,
        )

    # A certified round never cuts.
    may_cut = keep_connected and plan is COUNTS and _has_flow(score_fn, regrow)
    return Prepared(method_on, plan, targets, limit, may_cut)


def _has_flow(score_fn: ScoreFn, regrow: bool) -> bool:
    """Whether all scores are 0 where no flow is left, and it cannot come back."""
    return not regrow and flow_criterion(score_fn) is not None


# Rounds that leave given counts: ``targets`` are the counts.
COUNTS = Plan(
    choose=lambda targets, number, scored: Choice(counts.at(targets, number)),
    goes_on=lambda targets, number, info: number < len(jax.tree.leaves(targets)[0]),
)

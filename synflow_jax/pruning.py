"""The loop: score, select, again, in one compilation for all rounds."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, ArrayLike, Bool, Float, Integer, PyTree

from synflow_jax import budget
from synflow_jax.allocations import Allocation, whole_counts
from synflow_jax.counting import count_where
from synflow_jax.masks import all_kept, count
from synflow_jax.schedules import (
    Certified,
    Schedule,
    certified,
    check_density,
    check_rounds,
    exponential,
    num_kept,
)
from synflow_jax.selection import Selection, select, select_per_layer
from synflow_jax.trees import (
    Masks,
    Params,
    Prunable,
    ScoreFn,
    check_like,
    is_floating,
    is_kernel,
    leaf_names,
    prunable_leaves,
)

Scope = Literal["global", "layer"]


class PruneState(NamedTuple):
    """What one round hands to the next, and nothing else."""

    masks: Masks  # boolean leaves shaped like the parameters; True = kept


class PruneInfo(NamedTuple):
    """What a round reports and the next round does not need.

    Attributes:
      kept: prunable weights kept after the round.
      density: the same as a fraction of all prunable weights.
      removed: total score of what is not kept but might have been. With `synflow` it is
        the share of the flow that the round removed, the paper's prune-size ratio.
      certified: whether the round cannot have cut the last path of the flow: it removed
        less than all of it, and the flow is a sum over paths. (Of several outputs, the
        paths to one may all be cut.) Never of other criteria than `synflow` and its kin,
        whose scores say nothing about it.
      stopped: whether a `certified` schedule ended here, above its target, because any
        weight more would have cut the last path.
      nonfinite: weights alive before the round whose score was NaN or infinite; with
        ``regrow`` of all prunable weights.
    """

    kept: Integer[Array, "*rounds"]
    density: Float[Array, "*rounds"]
    removed: Float[Array, "*rounds"]
    certified: Bool[Array, "*rounds"]
    stopped: Bool[Array, "*rounds"]
    nonfinite: Integer[Array, "*rounds"]

    @property
    def certificate(self) -> Bool[Array, ""]:
        """Whether no round can have cut the last path."""
        return jnp.all(self.certified)


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
    prunable: Prunable = is_kernel,
    regrow: bool = False,
) -> Pruner:
    """One round of pruning as a pair of pure functions; `prune` is a scan over it.

    Use it to write a loop of your own: rounds between epochs of training, or a batch of
    densities by `jax.vmap` over the counts (`counts_per_round` makes them).

    Args:
      score_fn: the criterion.
      scope: ``"global"``: one ranking over all prunable weights; ``k`` is one count.
        ``"layer"``: one ranking a leaf; ``k`` has one count for each prunable leaf.
      prunable: ``prunable(path, leaf) -> bool``; leaves it refuses stay whole.
      regrow: as in `prune`.

    Returns:
      A `Pruner`. Without ``regrow`` a pruned weight never returns, whatever its score.

    Example:
      >>> from synflow_jax.scores import magnitude
      >>> pruner = iterative(magnitude())
      >>> params = {"kernel": jnp.array([[1.0, -3.0, 2.0]])}
      >>> state, info = pruner.step(pruner.init(params), params, 2)
      >>> state.masks["kernel"]
      Array([[False,  True,  True]], dtype=bool)
    """
    _check_scope(scope)

    def init(params: Params) -> PruneState:
        return PruneState(all_kept(params))

    def step(state: PruneState, params: Params, k: PyTree):
        chosen = prunable_leaves(params, prunable)
        one_round = functools.partial(_one_round, score_fn, scope, chosen, regrow)
        masks, info = _one_by_one(one_round)(params, state.masks, k)
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
    allocation: Allocation | None = None,
    prunable: Prunable = is_kernel,
    regrow: bool = False,
    on_round: Callable[[PruneInfo], None] | None = None,
) -> tuple[Masks, PruneInfo]:
    """Prunes to a density in rounds: score, keep the best, score what is left.

    One jitted scan: it compiles once for all rounds and every density, and again only for
    another ``score_fn`` object, other shapes or another number of rounds; so make the
    criterion once and reuse it. It works inside `jax.jit` and under `jax.vmap` over a batch
    of parameters, keys or data; on a CPU the elements of a batch are pruned one by one.

    Args:
      score_fn: the criterion, such as ``synflow(apply_fn, input_shape)``.
      params: a pytree of arrays.
      density: fraction of the prunable weights kept, in (0, 1]: 0.01 is a compression of
        10^2.
      rounds: number of rounds, the paper's n. With 1 even SynFlow disconnects networks.
      schedule: ``schedule(density, rounds) -> densities``, such as `exponential`; or
        `certified`, which finds the number of rounds itself.
      scope: ``"global"``: one ranking over all prunable weights. ``"layer"``: one ranking a
        leaf, each leaf pruned to the density.
      allocation: how many weights each leaf keeps, such as `uniform`, `erk`, `balanced` or
        ``densities_of(masks)``; the criterion then chooses within the leaves.
      prunable: ``prunable(path, leaf) -> bool``, the path being the leaf's name such as
        ``"Dense_0/kernel"``; leaves it refuses stay whole and do not count.
      regrow: let pruned weights return in later rounds, if their score is among the
        highest: rounds in the manner of FORCE. Only `snip` and its kin say what a pruned
        weight is worth; the other criteria score it 0.
      on_round: called on the host after each round with that round's `PruneInfo`, to show
        progress. The rounds are then dispatched one at a time. Not under jit or vmap.

    Returns:
      ``(masks, info)``: boolean leaves shaped like ``params``, True = kept, with exactly
      ``num_kept(size, density)`` prunable weights kept (in each leaf for scope "layer");
      and a `PruneInfo` whose arrays have a leading axis ``rounds``. A `certified` schedule
      has as many rounds as it took; under jit and vmap `MAX_ROUNDS`, the last ones without
      effect. It keeps more weights where nothing more can go.

    Raises:
      ValueError: if an argument is out of range, no leaf is prunable, or the criterion
        does not return scores shaped like the parameters; with `certified`, if the
        criterion is not synflow, or if its scores do not bound what their removal removes
        (attention, gates), naming the line.
      FloatingPointError: if a score is NaN or infinite (not under jit or vmap, where
        ``info.nonfinite`` reports it).

    Example:
      >>> from synflow_jax.scores import synflow
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
    chosen = tuple(prunable_leaves(params, prunable))
    if schedule is certified:
        raise ValueError("`schedule` is certified(), with or without a ratio.")
    if isinstance(schedule, Certified):
        if scope != "global" or allocation is not None or regrow:
            raise ValueError(
                "a `certified` schedule ranks all weights together and lets none return: "
                '`scope` is "global", `allocation` None and `regrow` False.'
            )
        return _certified(score_fn, chosen, params, density, schedule.max_ratio, on_round)
    counts = counts_per_round(
        params,
        density,
        rounds,
        schedule=schedule,
        scope=scope,
        allocation=allocation,
        prunable=prunable,
    )
    scope = "global" if counts.ndim == 1 else "layer"
    if on_round is None:
        masks, info = _all_rounds(score_fn, scope, chosen, regrow, params, counts)
        _check_finite(info, params, first=1)
        return masks, info
    masks, infos = all_kept(params), []
    for i in range(len(counts)):
        one = counts[i : i + 1]
        masks, info = _rounds(score_fn, scope, chosen, regrow, params, masks, one)
        _check_finite(info, params, first=i + 1)
        infos.append(info)
        on_round(jax.tree.map(lambda x: x[0], info))
    return masks, jax.tree.map(lambda *xs: jnp.concatenate(xs), *infos)


def counts_per_round(
    params: Params,
    density: float,
    rounds: int,
    *,
    schedule: Schedule | Certified = exponential,
    scope: Scope = "global",
    allocation: Allocation | None = None,
    prunable: Prunable = is_kernel,
) -> Integer[np.ndarray, "rounds *leaves"]:
    """Whole numbers of weights to keep after each round, computed on the host.

    Args:
      params: a pytree of arrays, of which only names, shapes and dtypes are read.
      density, rounds, schedule, scope, allocation, prunable: as in `prune`, but for
        `certified`, whose counts are found in the rounds.

    Returns:
      ``[rounds]`` for scope "global"; ``[rounds, prunable leaves]`` for scope "layer" and
      with an allocation.

    Raises:
      ValueError: if an argument is out of range or no leaf is prunable.

    Example:
      >>> counts_per_round({"kernel": jnp.ones((10, 10))}, 0.01, 2)
      array([10,  1], dtype=uint32)
    """
    _check_scope(scope)
    check_rounds(rounds)
    rounds = int(rounds)
    chosen = prunable_leaves(params, prunable)
    named = zip(leaf_names(params), jax.tree.leaves(params), chosen)
    leaves = [(name, leaf) for name, leaf, yes in named if yes]
    sizes = [leaf.size for _, leaf in leaves]
    if isinstance(schedule, Certified):
        raise ValueError("a `certified` schedule finds its counts in the rounds.")
    densities = schedule(density, rounds)
    if np.shape(densities) != (rounds,):
        raise ValueError(
            f"`schedule` must return one density for each of the {rounds} rounds; it "
            f"returned shape {np.shape(densities)}."
        )
    if allocation is not None:
        if scope != "global":
            raise ValueError('`scope` is not "layer" with an `allocation` of its own.')
        shapes = {name: leaf.shape for name, leaf in leaves}
        if len(shapes) < len(leaves):
            raise ValueError(
                f"two leaves have one name: {', '.join(n for n, _ in leaves)}."
            )
        totals = [num_kept(sum(sizes), d) for d in densities]
        counts = whole_counts(allocation, shapes, totals)
    elif scope == "global":
        counts = [num_kept(sum(sizes), d) for d in densities]
    else:
        counts = [[num_kept(size, d) for size in sizes] for d in densities]
    return np.asarray(counts, np.uint32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _all_rounds(score_fn, scope, chosen, regrow, params, counts):
    def rounds(params, counts):
        masks = all_kept(params)
        return _rounds(score_fn, scope, chosen, regrow, params, masks, counts)

    return _one_by_one(rounds)(params, counts)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=5)
def _rounds(score_fn, scope, chosen, regrow, params, masks, counts):
    def one_round(masks, k):
        return _one_round(score_fn, scope, chosen, regrow, params, masks, k)

    return lax.scan(one_round, masks, counts)


def _one_by_one(function: Callable) -> Callable:
    """Under `jax.vmap` on a CPU: each element of the batch by itself.

    A CPU has no cores to spare for a batch, and XLA's convolutions with a kernel for each
    image are slow there.
    """

    def call(*args):
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args))
        if jax.default_backend() != "cpu" or not traced:
            return function(*args)
        # What the criterion closes over, such as its data, may be part of the batch, and
        # `sequential_vmap` batches nothing but arguments.
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)

        def flat(consts, leaves):
            return jaxpr_as_fun(ClosedJaxpr(program.jaxpr, consts))(*leaves)

        # Masks have no gradient; said here, since `sequential_vmap` has no reverse mode.
        operands = lax.stop_gradient((program.consts, jax.tree.leaves(args)))
        outs = jax.custom_batching.sequential_vmap(flat)(*operands)
        return jax.tree.unflatten(jax.tree.structure(shapes), outs)

    return call


# --- one round ----------------------------------------------------------------------------


def _one_round(
    score_fn: ScoreFn,
    scope: Scope,
    chosen: Sequence[bool],
    regrow: bool,
    params: Params,
    masks: Masks,
    k: PyTree,
) -> tuple[Masks, PruneInfo]:
    scores, alive = _prunable(score_fn(params, masks), chosen, params, masks)
    eligible = None if regrow else alive
    if scope == "global":
        selection = select(scores, k, eligible)
    elif jnp.shape(k) != (len(scores),):
        raise ValueError(
            f'`k` has shape {jnp.shape(k)}, but for scope "layer" it needs one count for '
            f"each of the {len(scores)} prunable leaves."
        )
    else:
        selection = select_per_layer(scores, list(k), eligible)
    certifies = not regrow and _why_unbounded(score_fn, params, chosen) is None
    return _outcome(selection, chosen, masks, certifies)


def _prunable(
    scores: PyTree, chosen: Sequence[bool], params: Params, masks: Masks
) -> tuple[list[Array], list[Array]]:
    """The scores of the prunable leaves, and what of them is alive."""
    check_like(scores, params, name="scores")
    scores = [s for s, yes in zip(jax.tree.leaves(scores), chosen) if yes]
    return scores, [m for m, yes in zip(jax.tree.leaves(masks), chosen) if yes]


def _outcome(
    selection: Selection, chosen: Sequence[bool], masks: Masks, certifies: bool
) -> tuple[Masks, PruneInfo]:
    kept, size = count(selection.masks), sum(mask.size for mask in selection.masks)
    info = PruneInfo(
        kept=kept,
        density=kept.astype(jnp.float32) / float(size),
        removed=selection.removed,
        # A network without flow was disconnected before.
        certified=certifies & selection.positive & (selection.removed < _WHOLE),
        stopped=jnp.bool_(False),
        nonfinite=selection.nonfinite,
    )
    remaining = iter(selection.masks)
    leaves, treedef = jax.tree.flatten(masks)
    masks = [next(remaining) if yes else mask for mask, yes in zip(leaves, chosen)]
    return jax.tree.unflatten(treedef, masks), info


def _why_unbounded(score_fn: ScoreFn, params: Params, chosen: Sequence[bool]) -> str | None:
    """Why removing weights may remove more of the flow than their scores; None if not."""
    ask = getattr(score_fn, "why_unbounded", None)
    if ask is None:
        return "the criterion's scores are not shares of the flow, as those of synflow are."
    return ask(params, chosen)


# --- certified rounds ---------------------------------------------------------------------

# What a certified schedule may take; each of its rounds removes at least one weight.
MAX_ROUNDS = 10_000

# Scores are sums in float32: what carries more than this may carry everything.
_WHOLE = 1 - 2.0**-10


def _certified(
    score_fn: ScoreFn,
    chosen: tuple[bool, ...],
    params: Params,
    density: float,
    max_ratio: float,
    on_round: Callable[[PruneInfo], None] | None,
) -> tuple[Masks, PruneInfo]:
    check_density(density)
    leaves = [leaf for leaf, yes in zip(jax.tree.leaves(params), chosen) if yes]
    if not sum(leaf.size for leaf in leaves):
        raise ValueError("the prunable leaves have no entries, so nothing can be pruned.")
    target = np.uint32(num_kept(sum(leaf.size for leaf in leaves), density))
    ratio = np.float32(min(max_ratio, _WHOLE))
    if on_round is None:
        masks, infos, rounds = _adaptive_rounds(score_fn, chosen, params, target, ratio)
        if not isinstance(rounds, jax.core.Tracer):
            infos = jax.tree.map(lambda x: x[: int(rounds)], infos)
        _check_finite(infos, params, first=1)
        return masks, infos
    masks, infos = all_kept(params), []
    while not infos or _unfinished(infos[-1], target, len(infos)):
        masks, info = _adaptive_round(score_fn, chosen, params, masks, target, ratio)
        _check_finite(jax.tree.map(lambda x: x[None], info), params, first=len(infos) + 1)
        infos.append(info)
        on_round(info)
    return masks, jax.tree.map(lambda *xs: jnp.stack(xs), *infos)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _adaptive_rounds(score_fn, chosen, params, target, ratio):
    """The masks, what each of `MAX_ROUNDS` reports, and how many rounds there were."""

    def all_rounds(params, target, ratio):
        def round_(masks):
            return _affordable_round(score_fn, chosen, params, masks, target, ratio)

        def unfinished(state):
            _, info, _, done = state
            return _unfinished(info, target, done)

        def another(state):
            masks, _, infos, done = state
            masks, info = round_(masks)
            infos = jax.tree.map(lambda xs, x: xs.at[done].set(x), infos, info)
            return masks, info, infos, done + 1

        masks, info = round_(all_kept(params))
        infos = jax.tree.map(lambda x: jnp.zeros((MAX_ROUNDS,), x.dtype).at[0].set(x), info)
        start = (masks, info, infos, jnp.int32(1))
        masks, last, infos, done = lax.while_loop(unfinished, another, start)
        # Rounds that did not take place leave everything as it is.
        last = last._replace(removed=jnp.zeros_like(last.removed))
        took_place = jnp.arange(MAX_ROUNDS, dtype=done.dtype) < done
        infos = jax.tree.map(lambda xs, x: jnp.where(took_place, xs, x), infos, last)
        return masks, infos, done

    return _one_by_one(all_rounds)(params, target, ratio)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _adaptive_round(score_fn, chosen, params, masks, target, ratio):
    return _affordable_round(score_fn, chosen, params, masks, target, ratio)


def _unfinished(info: PruneInfo, target: ArrayLike, done: ArrayLike) -> Array:
    going = (info.kept.astype(jnp.uint32) > target) & ~info.stopped
    return going & (info.nonfinite == 0) & (done < MAX_ROUNDS)


def _affordable_round(
    score_fn: ScoreFn,
    chosen: Sequence[bool],
    params: Params,
    masks: Masks,
    target: Array,
    ratio: Array,
) -> tuple[Masks, PruneInfo]:
    """Removes as many weights as carry ``ratio`` of the flow, or one that carries more."""
    why = _why_unbounded(score_fn, params, chosen)
    if why is not None:
        raise ValueError(f"`schedule` cannot certify rounds of this criterion: {why}")
    every = score_fn(params, masks)
    scores, alive = _prunable(every, chosen, params, masks)
    before = count(alive).astype(jnp.uint32)
    affordable = budget.within(scores, alive, ratio.astype(scores[0].dtype))
    one = (affordable.kept == before) & (affordable.next < _WHOLE)
    k = jnp.maximum(jnp.where(one, before - 1, affordable.kept), target)
    # Nothing flows if nothing scores: then no weight is the right one.
    flows = sum(count_where(lambda s: s > 0, s) for s in jax.tree.leaves(every)) > 0
    k = jnp.where(flows, k, before)
    masks, info = _outcome(select(scores, k, alive), chosen, masks, certifies=True)
    return masks, info._replace(stopped=(k == before) & (before > target))


# --- checks -------------------------------------------------------------------------------


def _check_scope(scope: str) -> None:
    if scope not in ("global", "layer"):
        raise ValueError(f'`scope` is "global" or "layer"; got {scope!r}.')


def _check_finite(info: PruneInfo, params: Params, first: int) -> None:
    if isinstance(info.nonfinite, jax.core.Tracer):
        return
    nonfinite = np.asarray(info.nonfinite)
    if not nonfinite.any():
        return
    round_ = int(np.argmax(nonfinite > 0))
    floating = [
        (name, leaf)
        for name, leaf in zip(leaf_names(params), jax.tree.leaves(params))
        if is_floating(leaf)
    ]
    bad = [name for name, leaf in floating if not bool(jnp.isfinite(leaf).all())]
    raise FloatingPointError(
        f"in round {round_ + first}, {nonfinite[round_]} scores are NaN or infinite; "
        "parameters that hold NaN or infinity: "
        f"{', '.join(bad) or 'none, so the criterion made them'}."
    )

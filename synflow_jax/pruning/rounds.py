"""One round, scores to masks; rounds one after another; and what a round reports."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Integer, PyTree

from synflow_jax.masks import all_kept, count
from synflow_jax.pruning.criterion import why_not_certified, without_constants
from synflow_jax.selection.top_k import Selection, select, select_per_layer
from synflow_jax.trees import Masks, Params, ScoreFn, check_like, is_floating, leaf_names
from synflow_jax.xla.batching import one_by_one

Scope = Literal["global", "layer"]

# Scores are sums in float32: scores that sum to more than this may sum to 1.
WHOLE = 1 - 2.0**-10


class PruneInfo(NamedTuple):
    """What a round reports and the next round does not need.

    Attributes:
      kept: prunable weights kept after the round.
      density: the same as a fraction of all prunable weights.
      removed: sum of the scores of eligible weights that are not kept. With `synflow` it is
        the share of the flow that the round removed, the paper's prune-size ratio.
      certified: True if this round provably left an input-output path: the removed scores
        sum to less than 1 and the flow is a sum over paths. (Of several outputs, the paths
        to one may all be cut.) Always False with ``regrow``, and for criteria other than
        `synflow` and `synflow_l2`.
      stopped: whether a `certified` schedule ended here, above its target, because removing
        one weight more would have cut the last path.
      nonfinite: weights kept before the round whose score was NaN or infinite; with
        ``regrow``, of all prunable weights.
    """

    kept: Integer[Array, "*rounds"]
    density: Float[Array, "*rounds"]
    removed: Float[Array, "*rounds"]
    certified: Bool[Array, "*rounds"]
    stopped: Bool[Array, "*rounds"]
    nonfinite: Integer[Array, "*rounds"]

    @property
    def certificate(self) -> Bool[Array, ""]:
        """Whether every round provably left an input-output path."""
        return jnp.all(self.certified)


class Method(NamedTuple):
    """How a round prunes: everything about it that is static.

    Attributes:
      score_fn: the criterion, without the arrays that it closes over (`without_constants`).
      scope: ``"global"`` or ``"layer"``.
      is_prunable: for each leaf, whether it is pruned.
      regrow: whether pruned weights may return.
      criterion: the criterion as it was given, or its formula: what certificates ask.
    """

    score_fn: Callable[..., PyTree]
    scope: Scope
    is_prunable: tuple[bool, ...]
    regrow: bool
    criterion: Any


def method_of(
    score_fn: ScoreFn,
    params: Params,
    masks: Masks,
    *,
    is_prunable: Sequence[bool],
    scope: Scope = "global",
    regrow: bool = False,
) -> tuple[Method, tuple[PyTree, ...]]:
    """The method that prunes by a criterion, and the arrays that the criterion needs."""
    score, constants = without_constants(score_fn, params, masks)
    return Method(score, scope, tuple(is_prunable), regrow, score.key), constants


class Scored(NamedTuple):
    """A masked network after scoring.

    Attributes:
      every: the scores of all leaves.
      scores: those of the prunable leaves.
      alive: the masks of the prunable leaves.
      why_not_certified: why removed scores do not bound the removed flow; None if they do.
    """

    every: PyTree
    scores: list[Array]
    alive: list[Array]
    why_not_certified: str | None


class Choice(NamedTuple):
    """How many weights a round leaves: one count, or for scope "layer" one for each
    leaf."""

    k: PyTree
    stopped: ArrayLike = False  # whether pruning ends here, above its target


class Plan(NamedTuple):
    """How many weights rounds leave, and when they end. Its functions are static.

    Attributes:
      choose: ``choose(targets, number, scored) -> choice`` for the round of that number,
        from 0.
      goes_on: ``goes_on(targets, number, info) -> bool``: whether another round follows
        after ``number`` of them, the last of which reported ``info``.
    """

    choose: Callable[[PyTree, ArrayLike, Scored], Choice]
    goes_on: Callable[[PyTree, ArrayLike, PruneInfo], ArrayLike]


def one_round(
    method: Method,
    choose: Callable[[Scored], Choice],
    constants: tuple[PyTree, ...],
    params: Params,
    masks: Masks,
) -> tuple[Masks, PruneInfo]:
    """Scores the weights that are kept and keeps the best of them.

    Args:
      method: how to prune.
      choose: says how many weights to leave.
      constants: the arrays that the criterion needs.
      params: the parameters.
      masks: the weights kept so far.

    Raises:
      ValueError: if the count does not fit the scope, or the scores do not mirror the
        parameters.
    """
    every = method.score_fn(*constants, params, masks)
    check_like(every, params, name="scores")
    scores, alive = (
        [x for x, yes in zip(jax.tree.leaves(tree), method.is_prunable) if yes]
        for tree in (every, masks)
    )
    why_not = why_not_certified(method.criterion, params, method.is_prunable)
    choice = choose(Scored(every, scores, alive, why_not))
    eligible = None if method.regrow else alive
    if method.scope == "global":
        selection = select(scores, choice.k, eligible)
    elif jnp.shape(choice.k) != (len(scores),):
        raise ValueError(
            f'`k` has shape {jnp.shape(choice.k)}, but for scope "layer" it needs one '
            f"count for each of the {len(scores)} prunable leaves."
        )
    else:
        selection = select_per_layer(scores, list(choice.k), eligible)
    info = _report(selection, choice, certifies=why_not is None and not method.regrow)
    remaining = iter(selection.masks)
    leaves, treedef = jax.tree.flatten(masks)
    leaves = [next(remaining) if yes else m for m, yes in zip(leaves, method.is_prunable)]
    return jax.tree.unflatten(treedef, leaves), info


def _report(selection: Selection, choice: Choice, *, certifies: bool) -> PruneInfo:
    kept, size = count(selection.masks), sum(mask.size for mask in selection.masks)
    return PruneInfo(
        kept=kept,
        density=kept.astype(jnp.float32) / float(size),
        removed=selection.removed,
        # If no score is positive, the network was disconnected before.
        certified=certifies & selection.positive & (selection.removed < WHOLE),
        stopped=jnp.asarray(choice.stopped),
        nonfinite=selection.nonfinite,
    )


# --- rounds one after another -------------------------------------------------------------


def run_rounds(
    method: Method,
    plan: Plan,
    constants: tuple[PyTree, ...],
    params: Params,
    targets: PyTree,
    *,
    limit: int,
    on_round: Callable[[PruneInfo], None] | None = None,
) -> tuple[Masks, PruneInfo]:
    """Prunes in rounds: all of them in one compiled loop, or one at a time.

    Args:
      method: how to prune.
      plan: how many weights rounds leave, and when they end.
      constants: the arrays that the criterion needs.
      params: the parameters.
      targets: the arrays that the plan needs, such as counts.
      limit: the largest number of rounds.
      on_round: called on the host after each round; None for the compiled loop.

    Returns:
      The masks, and what the rounds report. Under jit and vmap it has ``limit`` rounds, the
      last of them without effect if the plan ends before.

    Raises:
      FloatingPointError: if a score was NaN or infinite (not under jit or vmap).
    """
    if on_round is None:
        masks, infos, done = _all_rounds(method, plan, limit, constants, params, targets)
        if not isinstance(done, Tracer) and int(done) < limit:
            infos = jax.tree.map(lambda x: x[: int(done)], infos)
        check_finite(infos, params, first=1)
        return masks, infos
    masks, infos = all_kept(params), []
    while not infos or plan.goes_on(targets, len(infos), infos[-1]):
        number = np.int32(len(infos))
        masks, info = single_round(method, plan, constants, params, masks, targets, number)
        check_finite(jax.tree.map(lambda x: x[None], info), params, first=len(infos) + 1)
        infos.append(info)
        on_round(info)
    return masks, jax.tree.map(lambda *xs: jnp.stack(xs), *infos)


@functools.partial(jax.jit, static_argnums=(0, 1))
def single_round(method, plan, constants, params, masks, targets, number):
    """The round of that number, from 0; compiled once for all of them."""
    choose = functools.partial(plan.choose, targets, number)
    return one_round(method, choose, constants, params, masks)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _all_rounds(method, plan, limit, constants, params, targets):
    """The masks, the reports of ``limit`` rounds, and how many rounds there were."""

    def all_rounds(constants, params, targets):
        def unfinished(state):
            _, info, _, done = state
            return (done == 0) | plan.goes_on(targets, done, info)

        def another(state):
            masks, _, infos, done = state
            masks, info = single_round(
                method, plan, constants, params, masks, targets, done
            )
            infos = jax.tree.map(lambda xs, x: xs.at[done].set(x), infos, info)
            return masks, info, infos, done + 1

        masks, start = all_kept(params), jnp.int32(0)
        _, shapes = jax.eval_shape(
            functools.partial(single_round, method, plan),
            constants,
            params,
            masks,
            targets,
            start,
        )
        info = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        infos = jax.tree.map(lambda x: jnp.zeros((limit, *x.shape), x.dtype), shapes)
        state = lax.while_loop(unfinished, another, (masks, info, infos, start))
        masks, last, infos, done = state
        # Rounds that did not take place report the last state, and that they removed
        # nothing.
        last = last._replace(removed=jnp.zeros_like(last.removed))
        took_place = jnp.arange(limit, dtype=done.dtype) < done
        infos = jax.tree.map(lambda xs, x: jnp.where(took_place, xs, x), infos, last)
        return masks, infos, done

    # Masks have no gradient, and a loop whose length is not static has no reverse mode.
    operands = lax.stop_gradient((constants, params, targets))
    return one_by_one(all_rounds)(*operands)


def check_finite(info: PruneInfo, params: Params, first: int) -> None:
    """Raises if a score was NaN or infinite; while tracing it cannot tell and does not.

    Args:
      info: of several rounds.
      params: in which the message looks for the cause.
      first: the number of the first of the rounds, from 1.

    Raises:
      FloatingPointError: naming the round and the leaves.
    """
    if isinstance(info.nonfinite, Tracer):
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

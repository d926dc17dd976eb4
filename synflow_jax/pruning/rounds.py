"""One round, scores to masks, and what it reports."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, ArrayLike, Bool, Float, Integer, PyTree

from synflow_jax.masks import as_integer
from synflow_jax.precision import scoring_dtype
from synflow_jax.pruning.criterion import why_not_certified, without_constants
from synflow_jax.selection.groups import select_in_groups
from synflow_jax.selection.top_k import Selection, select
from synflow_jax.trees import Masks, Params, ScoreFn, check_like
from synflow_jax.xla import counts
from synflow_jax.xla.backends import Backend
from synflow_jax.xla.constants import Hoisted
from synflow_jax.xla.placement import placed, placement_of

Scope = Literal["global", "layer"]

# For each prunable leaf, the number of the group in which its weights are ranked.
Groups = tuple[int, ...]

# Scores are sums in float32: scores that sum to more than this may sum to 1.
WHOLE = 1 - 2.0**-10


class PruneInfo(NamedTuple):
    """What a round reports and the next round does not need.

    Attributes:
      kept: prunable weights kept after the round. Of networks with more than 2**32 - 2 of
        them it is numpy's uint64, and while tracing a count in two words (`xla.counts`).
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
      unreached: prunable leaves that had weights before the round, all with score 0.
      retries: how often the round was undone because it had cut the network, and tried in
        smaller steps.
    """

    kept: Integer[Array | np.ndarray, "*rounds"] | counts.Wide
    density: Float[Array, "*rounds"]
    removed: Float[Array, "*rounds"]
    certified: Bool[Array, "*rounds"]
    stopped: Bool[Array, "*rounds"]
    nonfinite: Integer[Array, "*rounds"]
    unreached: Integer[Array, "*rounds"]
    retries: Integer[Array, "*rounds"]

    @property
    def certificate(self) -> Bool[Array, ""]:
        """Whether every round provably left an input-output path."""
        return jnp.all(self.certified)


# So that `jax.export` can write a function that returns what `prune` returns.
jax.export.register_namedtuple_serialization(
    PruneInfo, serialized_name="synflow_jax.PruneInfo"
)


class Method(NamedTuple):
    """How a round prunes: everything about it that is static.

    Attributes:
      score_fn: the criterion, without the arrays that it closes over (`without_constants`).
      groups: for each prunable leaf the number of its group, each of which is ranked by
        itself; None if all prunable weights are ranked together.
      is_prunable: for each leaf, whether it is pruned.
      regrow: whether pruned weights may return.
      criterion: the criterion as it was given, or its formula: what certificates ask.
      backend: the devices that it prunes on.
      placements: for each leaf, how it is divided over devices, and its mask with it; None
        where it is not, and while tracing.
    """

    score_fn: Callable[..., PyTree]
    groups: Groups | None
    is_prunable: tuple[bool, ...]
    regrow: bool
    criterion: Any
    backend: Backend
    placements: tuple[NamedSharding | None, ...]


def method_of(
    score_fn: ScoreFn,
    backend: Backend,
    params: Params,
    masks: Masks,
    *,
    is_prunable: Sequence[bool],
    groups: Groups | None = None,
    regrow: bool = False,
) -> tuple[Method, tuple[PyTree, ...]]:
    """The method that prunes by a criterion, and the arrays that the criterion needs."""
    score, constants = without_constants(score_fn, backend, params, masks)
    static = tuple(is_prunable), regrow, score.key, backend, placements_of(params)
    return Method(score, groups, *static), constants


def placements_of(params: Params) -> tuple[NamedSharding | None, ...]:
    return tuple(map(placement_of, jax.tree.leaves(params)))


class Scored(NamedTuple):
    """A masked network after scoring.

    Attributes:
      every: the scores of all leaves.
      scores: those of the prunable leaves.
      alive: the masks of the prunable leaves.
      why_not_certified: why removed scores do not bound the removed flow; None if they do.
      backend: the devices that they lie on.
    """

    every: PyTree
    scores: list[Array]
    alive: list[Array]
    why_not_certified: str | None
    backend: Backend


class Choice(NamedTuple):
    """How many weights a round leaves.

    Attributes:
      k: one count, or one for each group of leaves.
      stopped: whether pruning ends here, above its target.
      near: about the lowest score that remains, where the choice found it; it only saves
        time.
    """

    k: PyTree
    stopped: ArrayLike = False
    near: Float[Array, ""] | None = None


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


class Round(NamedTuple):
    """What one round makes, and what its scores say of the network before it.

    Attributes:
      masks: the weights that are left.
      info: the report.
      flows: whether a weight that was kept has a positive score.
      unreached: for each prunable leaf, whether it had weights, all with score 0.
    """

    masks: Masks
    info: PruneInfo
    flows: Bool[Array, ""]
    unreached: Bool[Array, " leaves"]


def one_round(
    method: Method,
    choose: Callable[[Scored], Choice],
    constants: tuple[PyTree, ...],
    params: Params,
    masks: Masks,
) -> Round:
    """Scores the weights that are kept and keeps the best of them.

    Args:
      method: how to prune.
      choose: says how many weights to leave.
      constants: the arrays that the criterion needs.
      params: the parameters.
      masks: the weights kept so far.

    Raises:
      ValueError: if the counts do not fit the groups, or the scores do not mirror the
        parameters.
    """
    every = method.score_fn(*constants, params, masks)
    check_like(every, params, name="scores")
    scores, alive = (
        [x for x, yes in zip(jax.tree.leaves(tree), method.is_prunable) if yes]
        for tree in (every, masks)
    )
    why_not = why_not_certified(method.criterion, params, method.is_prunable)
    choice = choose(Scored(every, scores, alive, why_not, method.backend))
    eligible = None if method.regrow else alive
    if method.groups is None:
        selection = select(scores, choice.k, eligible, method.backend, choice.near)
    else:
        number = len(set(method.groups))
        shape = jnp.shape(jax.tree.leaves(choice.k)[0])
        if shape != (number,):
            raise ValueError(
                f"`k` has shape {shape}, but it needs one count for each of "
                f"the {number} groups of prunable leaves that are ranked by themselves: "
                'with scope "layer", each leaf.'
            )
        ks = [counts.at(choice.k, group) for group in range(number)]
        groups = method.groups
        selection = select_in_groups(scores, ks, groups, eligible, method.backend)
    certifies = why_not is None and not method.regrow
    info = _report(selection, choice, certifies=certifies)
    remaining = iter(selection.masks)
    leaves, treedef = jax.tree.flatten(masks)
    leaves = [next(remaining) if yes else m for m, yes in zip(leaves, method.is_prunable)]
    masks = in_their_places(method, jax.tree.unflatten(treedef, leaves))
    return Round(masks, info, selection.positive, selection.unreached)


def in_their_places(method: Method, masks: Masks) -> Masks:
    """The masks, divided over devices as their parameters are."""
    leaves, treedef = jax.tree.flatten(masks)
    return treedef.unflatten(map(placed, leaves, method.placements))


def _report(selection: Selection, choice: Choice, *, certifies: bool) -> PruneInfo:
    size = sum(mask.size for mask in jax.tree.leaves(selection.masks))
    return PruneInfo(
        kept=as_integer(selection.kept, size),
        density=counts.as_float(selection.kept) / float(size),
        removed=selection.removed,
        # If no score is positive, the network was disconnected before.
        certified=certifies & selection.positive & (selection.removed < WHOLE),
        stopped=jnp.asarray(choice.stopped),
        nonfinite=selection.nonfinite,
        unreached=jnp.sum(selection.unreached, dtype=jnp.int32),
        retries=jnp.int32(0),
    )


def readable(infos: PruneInfo) -> PruneInfo:
    """Reports on the host as they are returned: arrays of JAX, and counts that need more
    than 32 bits as numpy's."""
    if isinstance(infos.kept, counts.Wide):
        return jax.device_put(infos._replace(kept=None))._replace(
            kept=counts.on_host(infos.kept)
        )
    return jax.device_put(infos)


def empty_report(method: Method) -> PruneInfo:
    """A report of no round: zeros of the types that a round's report has.

    The method is one that `method_of` made.
    """
    assert isinstance(method.score_fn, Hoisted)
    every = zip(method.score_fn.shapes(), method.is_prunable)
    scores = [score for score, yes in every if yes]
    dtype = jax.dtypes.canonicalize_dtype(scoring_dtype(*scores))
    size = sum(math.prod(score.shape) for score in scores)
    none = jax.tree.map(jnp.asarray, counts.as_count(0, size))
    return PruneInfo(
        kept=as_integer(none, size),
        density=jnp.zeros((), jnp.float32),
        removed=jnp.zeros((), dtype),
        certified=jnp.zeros((), bool),
        stopped=jnp.zeros((), bool),
        nonfinite=jnp.zeros((), jnp.uint32),
        unreached=jnp.zeros((), jnp.int32),
        retries=jnp.zeros((), jnp.int32),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def single_round(method, plan, constants, params, masks, targets, number):
    """The round of that number, from 0; compiled once for all of them."""
    choose = functools.partial(plan.choose, targets, number)
    masks, info, *_ = one_round(method, choose, constants, params, masks)
    return masks, info

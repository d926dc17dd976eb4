"""One round, scores to masks, and what it reports."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, PyTree

from synflow_jax.masks import count
from synflow_jax.selection.top_k import Selection, select, select_per_layer
from synflow_jax.trees import Masks, Params, ScoreFn, check_like, is_floating, leaf_names

Scope = Literal["global", "layer"]

# Scores are sums in float32: what carries more than this may carry everything.
WHOLE = 1 - 2.0**-10


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


def one_round(
    score_fn: ScoreFn,
    scope: Scope,
    chosen: Sequence[bool],
    regrow: bool,
    params: Params,
    masks: Masks,
    k: PyTree,
) -> tuple[Masks, PruneInfo]:
    """Scores what is kept and keeps the ``k`` best of it.

    Args:
      score_fn, scope, regrow, params: as for `synflow_jax.prune`.
      chosen: for each leaf, whether it is pruned.
      masks: what is kept so far.
      k: the count to leave, or for scope "layer" one for each chosen leaf.

    Raises:
      ValueError: if ``k`` does not fit the scope, or the scores not the parameters.
    """
    scores, alive = prunable_scores(score_fn(params, masks), chosen, params, masks)
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
    certifies = not regrow and why_unbounded(score_fn, params, chosen) is None
    return outcome(selection, chosen, masks, certifies)


def prunable_scores(
    scores: PyTree, chosen: Sequence[bool], params: Params, masks: Masks
) -> tuple[list[Array], list[Array]]:
    """The scores of the prunable leaves, and what of them is alive."""
    check_like(scores, params, name="scores")
    scores = [s for s, yes in zip(jax.tree.leaves(scores), chosen) if yes]
    return scores, [m for m, yes in zip(jax.tree.leaves(masks), chosen) if yes]


def outcome(
    selection: Selection, chosen: Sequence[bool], masks: Masks, certifies: bool
) -> tuple[Masks, PruneInfo]:
    """The masks after a selection among the chosen leaves, and what the round reports."""
    kept, size = count(selection.masks), sum(mask.size for mask in selection.masks)
    info = PruneInfo(
        kept=kept,
        density=kept.astype(jnp.float32) / float(size),
        removed=selection.removed,
        # A network without flow was disconnected before.
        certified=certifies & selection.positive & (selection.removed < WHOLE),
        stopped=jnp.bool_(False),
        nonfinite=selection.nonfinite,
    )
    remaining = iter(selection.masks)
    leaves, treedef = jax.tree.flatten(masks)
    masks = [next(remaining) if yes else mask for mask, yes in zip(leaves, chosen)]
    return jax.tree.unflatten(treedef, masks), info


def why_unbounded(score_fn: ScoreFn, params: Params, chosen: Sequence[bool]) -> str | None:
    """Why removing weights may remove more of the flow than their scores; None if not."""
    ask = getattr(score_fn, "why_unbounded", None)
    if ask is None:
        return "the criterion's scores are not shares of the flow, as those of synflow are."
    return ask(params, chosen)


def check_finite(info: PruneInfo, params: Params, first: int) -> None:
    """Raises if a score was NaN or infinite; while tracing it cannot tell and does not.

    Args:
      info: of several rounds.
      params: in which the message looks for the cause.
      first: the number of the first of the rounds, from 1.

    Raises:
      FloatingPointError: naming the round and the leaves.
    """
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

"""What is said, on the host, of scores that are zero, NaN or infinite, and why they are."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from synflow_jax.masks import all_kept
from synflow_jax.pruning.criterion import flow_criterion
from synflow_jax.pruning.rounds import Method, PruneInfo
from synflow_jax.trees import Masks, Params, filled, is_floating, leaf_names


def check_rounds(
    infos: PruneInfo,
    first: int,
    method: Method,
    constants: tuple[PyTree, ...],
    params: Params,
    unreached: Bool[Array, " leaves"] | None,
    masks: Masks | None = None,
) -> None:
    """Raises if scores were NaN or infinite, or if no flow reached a prunable leaf.

    Args:
      infos: the reports of several rounds, on the host.
      first: the number of the first of them, from 1.
      method, constants, params: as in `run_rounds`.
      unreached: for each prunable leaf, whether all its scores were 0 before the first
        round; None if these are later rounds.
      masks: the weights that were kept at the start, if not all.

    Raises:
      FloatingPointError: naming the round, and the leaves or the line of the model.
      ValueError: naming the leaves that are all zero.

    Warns:
      UserWarning: if some leaves were unreached, naming them.
    """
    nonfinite = np.asarray(infos.nonfinite)
    if nonfinite.any():
        at = int(np.argmax(nonfinite > 0))
        raise FloatingPointError(
            f"in round {at + first}, {nonfinite[at]} scores are NaN or infinite. "
            + _why_not_finite(method, constants, params)
        )
    if unreached is None or not np.asarray(unreached).any():
        return
    names = [name for name, yes in zip(leaf_names(params), method.is_prunable) if yes]
    lost = [name for name, yes in zip(names, np.asarray(unreached)) if yes]
    of_flow = flow_criterion(method.criterion) is not None
    why = _zero_leaves(method, constants, params, lost, masks) if of_flow else ""
    if of_flow and len(lost) == _number_with_weights(method, masks):
        reason = _where_not_finite(method, params)
        if reason is not None:
            raise FloatingPointError(f"every score is 0 before the first round: {reason}")
        raise ValueError(
            "no flow reaches a prunable leaf before the first round (R is 0, or flows past "
            f"them all), so weights would be removed by their position. {why}"
        )
    warnings.warn(
        f"all scores of {len(lost)} of {len(names)} prunable leaves are 0 before the first "
        "round, so their weights are the first to be removed, by their position: "
        f"{', '.join(lost)}. {why}",
        stacklevel=6,
    )


def _number_with_weights(method: Method, masks: Masks | None) -> int:
    """The number of prunable leaves that had weights at the start."""
    leaves = [None] * len(method.is_prunable) if masks is None else jax.tree.leaves(masks)
    pairs = zip(leaves, method.is_prunable)
    return sum(leaf is None or bool(jnp.any(leaf)) for leaf, yes in pairs if yes)


def _zero_leaves(
    method: Method,
    constants: tuple[PyTree, ...],
    params: Params,
    lost: list[str],
    masks: Masks | None,
) -> str:
    """Names the leaves that are all zero and keep the flow from leaves that are lost."""
    zero = [name for name, leaf in _floating(params) if _is_zero(leaf)]
    ones = filled(params, dict.fromkeys(zero, 1.0))
    if masks is not None:
        scores = jax.jit(method.score_fn)(*constants, params, all_kept(params))
        named = zip(leaf_names(params), jax.tree.leaves(scores))
        if any(name in lost and bool(jnp.any(score != 0)) for name, score in named):
            return "Without `masks` flow reaches them: the masks cut every path to them."
    scores = jax.jit(method.score_fn)(*constants, ones, all_kept(ones))
    named = zip(leaf_names(params), jax.tree.leaves(scores))
    found = {name for name, score in named if bool(jnp.any(score != 0))}
    zero = [name for name in zero if name in found]
    if not zero or not found & set(lost):
        return (
            "No leaf that is all zero is the cause; `synflow_jax.unreached` names the "
            "leaves through which no flow passes. Where the output is read at a learned "
            "token alone, such as a class token, score with the output of all tokens "
            "(docs/flow.md, Class tokens)."
        )
    values = f"{{{', '.join(f'{name!r}: 1.0' for name in zero)}}}"
    return (
        f"All zero (or below {np.finfo(np.float32).tiny:.1g}, which counts as zero): "
        f"{', '.join(zero)}. Prune before the zero initialisation; or prune "
        f"synflow_jax.filled(params, {values}), which has other values there, and put the "
        "masks on the original parameters."
    )


def _is_zero(leaf: Any) -> bool:
    return leaf.size > 0 and bool(
        jnp.all(jnp.abs(jnp.asarray(leaf, jnp.float32)) < jnp.finfo(jnp.float32).tiny)
    )


def _why_not_finite(method: Method, constants: tuple[PyTree, ...], params: Params) -> str:
    bad = [name for name, leaf in _floating(params) if not bool(jnp.isfinite(leaf).all())]
    if bad:
        return f"Parameters that hold NaN or infinity: {', '.join(bad)}."
    if reason := _where_not_finite(method, params):
        return reason
    shapes = [
        f"{x.dtype}{list(x.shape)}"
        for x in jax.tree.leaves(constants)
        if is_floating(x) and not bool(jnp.isfinite(x).all())
    ]
    if shapes:
        return (
            "All parameters are finite, but arrays that the criterion closes over (data, "
            f"statistics) hold NaN or infinity: {', '.join(shapes)}."
        )
    return "All parameters are finite, so the criterion made them."


def _where_not_finite(method: Method, params: Params) -> str | None:
    criterion = flow_criterion(method.criterion)
    return None if criterion is None else criterion.where_not_finite(params)


def _floating(params: Params) -> list[tuple[str, Any]]:
    pairs = zip(leaf_names(params), jax.tree.leaves(params))
    return [(name, leaf) for name, leaf in pairs if is_floating(leaf)]

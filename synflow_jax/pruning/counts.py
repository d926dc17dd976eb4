"""How many weights each round leaves: integers, computed on the host."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Integer

from synflow_jax.masks import kept_in_leaves
from synflow_jax.pruning.allocations import Allocation, integer_counts
from synflow_jax.pruning.certified_rounds import Certified
from synflow_jax.pruning.rounds import Groups, Scope
from synflow_jax.pruning.schedules import (
    Schedule,
    as_density,
    as_rounds,
    densities_after,
    exponential,
    num_kept,
)
from synflow_jax.trees import (
    Masks,
    Params,
    Prunable,
    check_masks,
    is_kernel,
    leaf_names,
    names_leaf,
    prunable_leaves,
)

# How many weights each leaf keeps: a function, or densities by patterns of leaf names.
Allocations = Allocation | Mapping[str, float]


def counts_per_round(
    params: Params,
    density: float,
    rounds: int,
    *,
    schedule: Schedule | Certified = exponential,
    scope: Scope = "global",
    allocation: Allocations | None = None,
    prunable: Prunable = is_kernel,
    masks: Masks | None = None,
) -> Integer[np.ndarray, "rounds *groups"]:
    """Integer counts of weights to keep after each round, computed on the host.

    Args:
      params: a pytree of arrays, of which only names, shapes and dtypes are read.
      density, rounds, schedule, scope, allocation, prunable, masks: as in `prune`, but for
        `certified`, whose counts are found in the rounds.

    Returns:
      ``[rounds]`` for scope "global"; ``[rounds, prunable leaves]`` for scope "layer" and
      with an allocation that is a function. With ``{pattern: density}``, a column for each
      leaf that is matched and one for all others together, in the order of the leaves.
      uint32; uint64 if a count needs it.

    Raises:
      ValueError: if an argument is out of range or no leaf is prunable.

    Example:
      >>> import jax.numpy as jnp
      >>> counts_per_round({"kernel": jnp.ones((10, 10))}, 0.01, 2)
      array([10,  1], dtype=uint32)
    """
    check_scope(scope)
    leaves = leaves_of(params, prunable_leaves(params, prunable), masks)
    return counts_of(leaves, density, rounds, schedule, scope, allocation)


class Leaves(NamedTuple):
    """The prunable leaves, as far as counts depend on them; hashable.

    Attributes:
      names: of the leaves.
      shapes: of the leaves.
      kept: how many weights each of them has before the first round.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    kept: tuple[int, ...]


def leaves_of(params: Params, is_prunable: Sequence[bool], masks: Masks | None) -> Leaves:
    """The prunable leaves, all weights of which are kept if there are no masks.

    Raises:
      ValueError: if the masks do not mirror the parameters, or are traced.
    """
    named = zip(leaf_names(params), jax.tree.leaves(params), is_prunable)
    leaves = [(name, tuple(jnp.shape(leaf))) for name, leaf, yes in named if yes]
    names, shapes = (tuple(each) for each in zip(*leaves))
    kept = map(math.prod, shapes) if masks is None else kept_of(masks, params, is_prunable)
    return Leaves(names, shapes, tuple(kept))


def counts_of(
    leaves: Leaves,
    density: float,
    rounds: int,
    schedule: Schedule | Certified,
    scope: Scope,
    allocation: Allocations | None,
) -> Integer[np.ndarray, "rounds *groups"]:
    """`counts_per_round` of the leaves of some parameters.

    Raises:
      ValueError: as `counts_per_round` does.
    """
    density, rounds = as_density(density), as_rounds(rounds)
    names, shapes, kept = leaves
    sizes = [math.prod(shape) for shape in shapes]
    if isinstance(schedule, Certified):
        raise ValueError("a `certified` schedule finds its counts in the rounds.")
    if allocation is not None and scope != "global":
        raise ValueError('`scope` is not "layer" with an `allocation` of its own.')

    def scheduled(size: int, kept: int, density: float, name: str, of: str) -> list[int]:
        return _scheduled(schedule, rounds, (size, kept), density, name, of)

    if allocation is None and scope == "layer":
        rows = zip(names, sizes, kept)
        columns = [scheduled(s, k, density, "density", f" of `{n}`") for n, s, k in rows]
        return _integers(columns).T.reshape(rounds, len(names))
    totals = scheduled(sum(sizes), sum(kept), density, "density", "")
    if allocation is None:
        counts = totals
    elif isinstance(allocation, Mapping):
        matched = _matches(allocation, names)
        own = {
            i: scheduled(
                sizes[i],
                kept[i],
                as_density(allocation[pattern], f"allocation[{pattern!r}]"),
                f"allocation[{pattern!r}]",
                f" of `{names[i]}`",
            )
            for i, pattern in enumerate(matched)
            if pattern is not None
        }
        counts = _with_rest(own, totals, kept, sum(sizes))
    elif callable(allocation):
        if len(set(names)) < len(names):
            raise ValueError(f"two leaves have one name: {', '.join(names)}.")
        counts = integer_counts(allocation, dict(zip(names, shapes)), totals, kept)
    else:
        raise ValueError(
            "`allocation` is a function, such as synflow_jax.erk, or {pattern: density}; "
            f"got {allocation!r}."
        )
    return _integers(counts)


def _integers(counts: Any) -> np.ndarray:
    """uint32; uint64 if one of the counts needs it."""
    wide = np.asarray(counts, np.uint64)
    return wide.astype(np.uint32) if wide.max(initial=0) < 2**32 else wide


def groups_of(
    params: Params,
    is_prunable: Sequence[bool],
    scope: Scope,
    allocation: Allocations | None,
) -> Groups | None:
    """For each prunable leaf the number of its group, which is ranked by itself; None if
    all are one group."""
    names = [name for name, yes in zip(leaf_names(params), is_prunable) if yes]
    if isinstance(allocation, Mapping):
        matched = _matches(allocation, names)
        own = [i if pattern is not None else -1 for i, pattern in enumerate(matched)]
        order = {key: number for number, key in enumerate(dict.fromkeys(own))}
        return tuple(order[key] for key in own)
    return None if scope == "global" and allocation is None else tuple(range(len(names)))


def size_of_prunable(params: Params, is_prunable: Sequence[bool]) -> int:
    """The number of entries of all prunable leaves."""
    pairs = zip(jax.tree.leaves(params), is_prunable)
    return sum(leaf.size for leaf, yes in pairs if yes)


def in_groups(numbers: Sequence[int], groups: Groups | None) -> list[int] | int:
    """The sums of numbers, one a leaf, over the groups; over all leaves for None."""
    if groups is None:
        return sum(numbers)
    sums = [0] * (max(groups, default=-1) + 1)
    for number, group in zip(numbers, groups):
        sums[group] += number
    return sums


def kept_of(masks: Masks, params: Params, is_prunable: Sequence[bool]) -> list[int]:
    """How many weights masks keep of each prunable leaf.

    Raises:
      ValueError: if the masks do not mirror the parameters, or are traced.
    """
    check_masks(masks, params)
    leaves = jax.tree.leaves(masks)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise ValueError(
            "`masks` are traced, but how many weights they keep must be known on the host: "
            "call it outside jit and vmap, or take rounds by `iterative`, whose state is "
            "masks."
        )
    return kept_in_leaves([leaf for leaf, yes in zip(leaves, is_prunable) if yes])


def check_above(k: int, density: float, kept: int, size: int, name: str, of: str) -> None:
    """Raises if a density asks for more weights than the masks at the start keep.

    Raises:
      ValueError: with both numbers.
    """
    if k > kept:
        raise ValueError(
            f"`{name}` is {density}, which keeps {k} of {size} weights{of}, but `masks` "
            f"keep only {kept}, and a pruned weight stays pruned: ask for at most "
            f"{kept / max(size, 1):.6g}."
        )


def check_scope(scope: str) -> None:
    """Raises unless ``scope`` is one of two words.

    Raises:
      ValueError: with what was given.
    """
    if scope not in ("global", "layer"):
        raise ValueError(f'`scope` is "global" or "layer"; got {scope!r}.')


def _scheduled(
    schedule: Schedule,
    rounds: int,
    weights: tuple[int, int],
    density: float,
    name: str,
    of: str,
) -> list[int]:
    """Counts from those that are kept at the start to a density of all weights."""
    size, kept = weights
    last = num_kept(size, density)
    check_above(last, density, kept, size, name, of)
    if not kept:
        return [0] * rounds
    start = kept / size
    after = densities_after(schedule, min(density / start, 1.0), rounds)
    return [*(num_kept(size, start * d) for d in after[:-1]), last]


def _matches(allocation: Mapping[str, float], names: Sequence[str]) -> list[str | None]:
    """For each leaf the first pattern that matches it; None if none does."""
    for pattern in allocation:
        if not isinstance(pattern, str):
            raise ValueError(
                f"a pattern of `allocation` is a string, such as '*/kernel'; got "
                f"{pattern!r}."
            )
        if not any(names_leaf(pattern, name) for name in names):
            raise ValueError(
                f"the pattern {pattern!r} of `allocation` matches no prunable leaf; they "
                f"are {', '.join(names)}."
            )
    return [next((p for p in allocation if names_leaf(p, n)), None) for n in names]


def _with_rest(
    own: Mapping[int, list[int]], totals: list[int], kept: Sequence[int], size: int
) -> np.ndarray:
    """A column for each leaf that has its own density, and one for the others together."""
    matched = np.sum(list(own.values()), axis=0, dtype=np.int64) if own else 0
    others = [i for i in range(len(kept)) if i not in own]
    room = sum(kept[i] for i in others)
    rest = (np.asarray(totals, np.int64) - matched).tolist()
    if not 0 <= rest[-1] <= room:
        fixed = totals[-1] - rest[-1]
        raise ValueError(
            f"`density` keeps {totals[-1]} of {size} weights and the leaves that "
            f"`allocation` matches keep {fixed}, so the {len(others)} other prunable "
            f"leaves would keep {rest[-1]} of their {room}. Choose a `density` from "
            f"{fixed / size:.6g} to {(fixed + room) / size:.6g}, or other densities in "
            "`allocation`."
        )
    # Before the last round they cannot keep more than they have, nor less than later.
    for i in reversed(range(len(rest) - 1)):
        rest[i] = min(max(rest[i], rest[i + 1]), room)
    columns = {i: own[i] if i in own else rest for i in [*own, *others[:1]]}
    return np.asarray([columns[i] for i in sorted(columns)]).T

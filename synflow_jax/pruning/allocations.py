"""Allocations: how many weights each layer keeps; a criterion then selects them.

An allocation is a function ``allocation(shapes, k) -> shares``. It is given the shapes of
the prunable leaves, by name, and the number ``k`` of weights to keep, and returns how many
of them each leaf keeps, as real numbers that sum to ``k``. `integer_counts` rounds them to
integers.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.core import Tracer

from synflow_jax.masks import kept_in_leaves
from synflow_jax.trees import Masks, check_masks, leaf_names

Shapes = Mapping[str, tuple[int, ...]]
Allocation = Callable[[Shapes, int], Sequence[float] | np.ndarray]


def uniform(shapes: Shapes, k: int) -> np.ndarray:
    """Every layer keeps the same fraction of its weights.

    The first layer too, which much of the literature leaves dense under this name.

    Args:
      shapes: the shapes of the prunable leaves, by name.
      k: number of weights to keep in all layers together.

    Returns:
      float64 [leaves], in the order of ``shapes``; their sum is ``k``.

    Example:
      >>> uniform({"a/kernel": (2, 30), "b/kernel": (30, 1)}, 9)
      array([6., 3.])
    """
    return _proportional(_sizes(shapes), _sizes(shapes), k)


def balanced(shapes: Shapes, k: int) -> np.ndarray:
    """Every layer keeps the same number of weights; a layer that has fewer keeps all.

    SynFlow's own allocation approaches this one as compression grows.

    Args:
      shapes: the shapes of the prunable leaves, by name.
      k: number of weights to keep in all layers together.

    Returns:
      float64 [leaves], in the order of ``shapes``; their sum is ``k``.

    Example:
      >>> balanced({"a/kernel": (2, 30), "b/kernel": (30, 1), "c/kernel": (1, 2)}, 22)
      array([10., 10.,  2.])

    References:
      Gadhikar et al., "Why Random Pruning Is All We Need to Start Sparse", ICML 2023.
    """
    sizes = _sizes(shapes)
    return _proportional(sizes, np.ones_like(sizes), k)


def erk(shapes: Shapes, k: int) -> np.ndarray:
    """Erdős–Rényi–Kernel: a layer keeps weights in proportion to the sum of its dimensions.

    The fraction that a layer keeps is then proportional to ``(in + out + height + width) /
    (in * out * height * width)``, so small layers stay denser than large ones. A layer that
    has fewer weights than its share keeps all.

    Args:
      shapes: the shapes of the prunable leaves, by name.
      k: number of weights to keep in all layers together.

    Returns:
      float64 [leaves], in the order of ``shapes``; their sum is ``k``.

    Example:
      >>> erk({"a/kernel": (3, 3, 4, 10), "b/kernel": (10, 20)}, 50)
      array([20., 30.])

    References:
      Mocanu et al., "Scalable Training of Artificial Neural Networks with Adaptive Sparse
      Connectivity", Nature Communications 2018; Evci et al., "Rigging the Lottery", ICML
      2020, for kernels.
    """
    dimensions = np.array([max(sum(s), 1) for s in shapes.values()], np.float64)
    return _proportional(_sizes(shapes), dimensions, k)


def densities_of(masks: Masks) -> Allocation:
    """Gives every layer the density that it has in ``masks``, for use with any criterion.

    With masks made by SynFlow it separates SynFlow's densities of layers from its choice of
    weights: ``prune(random(key), params, density, allocation=densities_of(masks))`` keeps
    the densities and selects the weights within each layer at random.

    If ``k`` is the number of weights that ``masks`` keep, every layer keeps as many as
    there. If ``k`` is larger, as in the rounds before the last, a layer with density ``d``
    in ``masks`` has density ``d ** t``, with the same ``t`` below 1 for all layers. If
    ``k`` is smaller, all layers lose the same fraction of the weights that they keep there.

    Args:
      masks: boolean leaves with the names of the parameters; True = kept; not traced.

    Returns:
      An allocation.

    Raises:
      ValueError: if ``masks`` are traced or not boolean. The allocation raises it if a
        prunable leaf is missing from ``masks`` or has another shape there.

    Example:
      >>> masks = {"a": np.array([True, False, False, False]), "b": np.array([True, False])}
      >>> densities_of(masks)({"a": (4,), "b": (2,)}, 2)
      array([1., 1.])
      >>> densities_of(masks)({"a": (4,), "b": (2,)}, 4).round(2)
      array([2.44, 1.56])

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), section 8, and Frankle et al., "Pruning Neural
      Networks at Initialization: Why Are We Missing the Mark?", ICLR 2021, who find that
      the fractions kept in each layer matter, and not which weights are kept.
    """
    if any(isinstance(mask, Tracer) for mask in jax.tree.leaves(masks)):
        raise ValueError(
            "`masks` are traced, but how many weights each layer keeps must be known on "
            "the host: call `densities_of` outside jit and vmap."
        )
    check_masks(masks, masks)
    named = dict(zip(leaf_names(masks), jax.tree.leaves(masks)))
    shape_of = {name: np.shape(mask) for name, mask in named.items()}
    kept_of = dict(zip(named, kept_in_leaves(masks)))

    def allocation(shapes: Shapes, k: int) -> np.ndarray:
        for name, shape in shapes.items():
            if shape_of.get(name) != tuple(shape):
                raise ValueError(
                    f"the masks given to `densities_of` have for `{name}` the shape "
                    f"{shape_of.get(name, '(no such leaf)')}, but its parameter has shape "
                    f"{shape}."
                )
        sizes = _sizes(shapes)
        kept = np.array([kept_of[name] for name in shapes], np.float64)
        if k <= kept.sum():
            return kept * (k / max(kept.sum(), 1))
        some = kept > 0
        # Layers that are empty in `masks` keep weights only while all others are full.
        if k >= sizes[some].sum():
            empty = np.where(some, 0, sizes)
            rest = (k - sizes[some].sum()) / max(empty.sum(), 1)
            return np.where(some, sizes, empty * rest)
        density = np.where(some, kept / np.maximum(sizes, 1), 0)

        def at(t):
            return np.where(some, sizes * density**t, 0)

        low, high = 0.0, 1.0
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle).sum() > k else (low, middle)
        return at(high) * (k / at(high).sum())

    return allocation


def integer_counts(
    allocation: Allocation,
    shapes: Shapes,
    totals: Sequence[int],
    kept: Sequence[int] | None = None,
) -> list[list[int]]:
    """Integer numbers of weights that each layer keeps after each round.

    Args:
      allocation: divides a total among the layers.
      shapes: the shapes of the prunable leaves, by name.
      totals: number of weights to keep after each round, never rising.
      kept: number of weights that each leaf has left at the start; default, all.

    Returns:
      For each round a list with one count for each leaf, in the order of ``shapes``. The
      counts of a round sum exactly to its total and differ from the allocation's shares by
      rounding. The count of a leaf never rises from one round to the next. In a round
      before the last, a leaf that has fewer weights left than its share keeps them all, and
      the others share the rest.

    Raises:
      ValueError: if the allocation does not return one share for each leaf, each between 0
        and the leaf's number of weights, with the requested sum; if ``totals`` rise; or if
        a leaf has fewer weights left than its last share.

    Example:
      >>> integer_counts(uniform, {"a": (30,), "b": (40,)}, [69, 8])
      [[30, 39], [3, 5]]
    """
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()]
    if any(later > sooner for sooner, later in zip(totals, totals[1:])):
        raise ValueError(f"`totals` must not rise from round to round; got {list(totals)}.")
    room = list(sizes if kept is None else kept)
    # Backwards, so that every round keeps at least as many weights as the round after it.
    counts, fewest = [], [0] * len(sizes)
    for total in reversed(totals):
        shares = np.asarray(allocation(shapes, total), np.float64)
        _check_shares(shares, shapes, sizes, total)
        if not counts:
            _check_room(shares, shapes, room)
        fewest = _largest_remainders(_within(shares, room, total), fewest, room, total)
        counts.append(fewest)
    return counts[::-1]


def _sizes(shapes: Shapes) -> np.ndarray:
    return np.array([np.prod(shape) for shape in shapes.values()], np.float64)


def _proportional(sizes: np.ndarray, parts: np.ndarray, k: int) -> np.ndarray:
    """Shares ``min(size, c * part)``, with the ``c`` for which they sum to ``k``."""
    shares, open_ = np.zeros_like(sizes), np.ones(len(sizes), bool)
    while open_.any():
        left = k - shares[~open_].sum()
        shares[open_] = left * parts[open_] / max(parts[open_].sum(), 1)
        full = open_ & (shares >= sizes)
        if not full.any():
            break
        shares[full] = sizes[full]
        open_ &= ~full
    return shares


def _largest_remainders(
    shares: np.ndarray, fewest: Sequence[int], sizes: Sequence[int], total: int
) -> list[int]:
    """Rounds shares to integers that sum to ``total``: the largest remainders go up.

    No count is below ``fewest`` or above ``sizes``.
    """
    counts = np.clip(np.floor(shares + 1e-9).astype(np.int64), fewest, sizes)
    while counts.sum() != total:
        step = 1 if counts.sum() < total else -1
        able = counts < sizes if step == 1 else counts > np.asarray(fewest)
        owed = np.where(able, step * (shares - counts), -np.inf)
        counts[int(np.argmax(owed))] += step
    return counts.tolist()


def _within(shares: np.ndarray, room: Sequence[int], total: int) -> np.ndarray:
    """The shares, none above what its leaf has left; the others share the rest."""
    within = np.minimum(shares, room)
    left = np.asarray(room) - within
    return within + left * ((total - within.sum()) / max(left.sum(), 1))


def _check_room(shares: np.ndarray, shapes: Shapes, room: Sequence[int]) -> None:
    for name, share, most in zip(shapes, shares, room):
        if share >= most + 1:
            raise ValueError(
                f"`allocation` gives `{name}` {share:.6g} weights, but `masks` keep only "
                f"{most} of it, and a pruned weight stays pruned."
            )


def _check_shares(
    shares: np.ndarray, shapes: Shapes, sizes: Sequence[int], total: int
) -> None:
    if shares.shape != (len(sizes),):
        raise ValueError(
            f"`allocation` must return one number for each of the {len(sizes)} prunable "
            f"leaves; it returned shape {shares.shape}."
        )
    slack = 1e-6 * max(total, 1)
    for name, size, share in zip(shapes, sizes, shares):
        if not -slack <= share <= size + slack:
            raise ValueError(
                f"`allocation` must give each leaf between 0 and all of its weights; it "
                f"gave `{name}`, which has {size} weights, {share} to keep."
            )
    if abs(shares.sum() - total) > max(slack, 0.5):
        raise ValueError(
            f"`allocation` was asked to share out {total} weights, but its shares sum to "
            f"{shares.sum()}."
        )

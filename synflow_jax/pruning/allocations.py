"""How many weights each layer keeps, whichever weights those are.

An allocation is a function ``allocation(shapes, k) -> shares``: of the prunable leaves, by
name, the shapes; of ``k`` weights to keep, how many fall to each leaf, as real numbers that
sum to ``k``. `whole_counts` makes whole numbers of them.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from synflow_jax.trees import Masks, check_masks, leaf_names

Shapes = Mapping[str, tuple[int, ...]]
Allocation = Callable[[Shapes, int], Sequence[float]]


def uniform(shapes: Shapes, k: int) -> np.ndarray:
    """Every layer keeps the same fraction of its weights.

    Args:
      shapes: of the prunable leaves, by name.
      k: number of weights to keep, all layers together.

    Returns:
      float64 [leaves], in the order of ``shapes``, sum ``k``.

    Example:
      >>> uniform({"a/kernel": (2, 30), "b/kernel": (30, 1)}, 9)
      array([6., 3.])
    """
    return _filled(_sizes(shapes), _sizes(shapes), k)


def balanced(shapes: Shapes, k: int) -> np.ndarray:
    """Every layer keeps the same number of weights; one that has fewer keeps all.

    SynFlow comes to such layers by itself as compression grows.

    Args:
      shapes: of the prunable leaves, by name.
      k: number of weights to keep, all layers together.

    Returns:
      float64 [leaves], in the order of ``shapes``, sum ``k``.

    Example:
      >>> balanced({"a/kernel": (2, 30), "b/kernel": (30, 1), "c/kernel": (1, 2)}, 22)
      array([10., 10.,  2.])

    References:
      Gadhikar et al., "Why Random Pruning Is All We Need to Start Sparse", ICML 2023.
    """
    sizes = _sizes(shapes)
    return _filled(sizes, np.ones_like(sizes), k)


def erk(shapes: Shapes, k: int) -> np.ndarray:
    """Erdős–Rényi–Kernel: a layer keeps weights in proportion to the sum of its dimensions.

    So the fraction kept is in proportion to ``(in + out + height + width) / (in * out *
    height * width)``: small layers stay denser than large ones. One that would keep more
    than it has keeps all.

    Args:
      shapes: of the prunable leaves, by name.
      k: number of weights to keep, all layers together.

    Returns:
      float64 [leaves], in the order of ``shapes``, sum ``k``.

    Example:
      >>> erk({"a/kernel": (3, 3, 4, 10), "b/kernel": (10, 20)}, 50)
      array([20., 30.])

    References:
      Mocanu et al., "Scalable Training of Artificial Neural Networks with Adaptive Sparse
      Connectivity", Nature Communications 2018; Evci et al., "Rigging the Lottery", ICML
      2020, for kernels.
    """
    dimensions = np.array([max(sum(s), 1) for s in shapes.values()], np.float64)
    return _filled(_sizes(shapes), dimensions, k)


def densities_of(masks: Masks) -> Allocation:
    """The densities that another criterion found, for any criterion within the layers.

    With masks of SynFlow it separates what SynFlow says about layers from what it says
    about weights: ``prune(random(key), params, density, allocation=densities_of(masks))``.

    At the number of weights that ``masks`` keep, every layer keeps as many as they do. At
    more, as in the rounds before the last, a layer of density ``d`` has the density ``d **
    t``, with one ``t`` below 1 for all; at fewer, all layers lose the same fraction.

    Args:
      masks: boolean leaves with the names of the parameters, True = kept; not traced.

    Returns:
      An allocation.

    Raises:
      ValueError: if ``masks`` are traced or not boolean; when called, if a leaf to prune
        is not in them or has another shape.

    Example:
      >>> masks = {"a": np.array([True, False, False, False]), "b": np.array([True, False])}
      >>> densities_of(masks)({"a": (4,), "b": (2,)}, 2)
      array([1., 1.])
      >>> densities_of(masks)({"a": (4,), "b": (2,)}, 4).round(2)
      array([2.44, 1.56])

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), section 8, and Frankle et al., "Pruning Neural
      Networks at Initialization: Why Are We Missing the Mark?", ICLR 2021, for layerwise
      fractions as what matters.
    """
    if any(isinstance(mask, jax.core.Tracer) for mask in jax.tree.leaves(masks)):
        raise ValueError(
            "`masks` are traced, but how many weights each layer keeps must be known on "
            "the host: call `densities_of` outside jit and vmap."
        )
    check_masks(masks, masks)
    named = dict(zip(leaf_names(masks), jax.tree.leaves(masks)))
    shape_of = {name: np.shape(mask) for name, mask in named.items()}
    kept_of = {name: int(np.count_nonzero(mask)) for name, mask in named.items()}

    def allocation(shapes: Shapes, k: int) -> np.ndarray:
        for name, shape in shapes.items():
            if shape_of.get(name) != tuple(shape):
                raise ValueError(
                    f"the masks of `densities_of` have for `{name}` the shape "
                    f"{shape_of.get(name, '(no such leaf)')}; its parameter has {shape}."
                )
        sizes = _sizes(shapes)
        kept = np.array([kept_of[name] for name in shapes], np.float64)
        if k <= kept.sum():
            return kept * (k / max(kept.sum(), 1))
        some = kept > 0
        if k >= sizes[some].sum():  # the layers that end up empty go first
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


def whole_counts(
    allocation: Allocation, shapes: Shapes, totals: Sequence[int]
) -> list[list[int]]:
    """Whole numbers of weights for each layer after each round, exact in total.

    Args:
      allocation: how a total is shared out.
      shapes: of the prunable leaves, by name.
      totals: number of weights to keep after each round, falling.

    Returns:
      For each round one count a leaf, in the order of ``shapes``: they sum to the total of
      the round, differ from the allocation's by rounding, and never grow from round to
      round.

    Raises:
      ValueError: if the allocation returns something else than one share a leaf, from 0 to
        its size, with the sum that was asked for; or if totals rise.

    Example:
      >>> whole_counts(uniform, {"a": (30,), "b": (40,)}, [69, 8])
      [[30, 39], [3, 5]]
    """
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()]
    if any(later > sooner for sooner, later in zip(totals, totals[1:])):
        raise ValueError(
            f"`schedule` must not rise with an allocation; got {list(totals)}."
        )
    # From the last round to the first, since no weight may be missing later.
    counts, fewest = [], [0] * len(sizes)
    for total in reversed(totals):
        shares = np.asarray(allocation(shapes, total), np.float64)
        _check(shares, shapes, sizes, total)
        fewest = _rounded(shares, fewest, sizes, total)
        counts.append(fewest)
    return counts[::-1]


def _sizes(shapes: Shapes) -> np.ndarray:
    return np.array([np.prod(shape) for shape in shapes.values()], np.float64)


def _filled(sizes: np.ndarray, parts: np.ndarray, k: int) -> np.ndarray:
    """Shares ``min(size, c * part)`` that sum to ``k``."""
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


def _rounded(
    shares: np.ndarray, fewest: Sequence[int], sizes: Sequence[int], total: int
) -> list[int]:
    """The largest remainders are rounded up; nothing goes below ``fewest``."""
    counts = np.clip(np.floor(shares + 1e-9).astype(np.int64), fewest, sizes)
    while counts.sum() != total:
        step = 1 if counts.sum() < total else -1
        able = counts < sizes if step == 1 else counts > np.asarray(fewest)
        owed = np.where(able, step * (shares - counts), -np.inf)
        counts[int(np.argmax(owed))] += step
    return counts.tolist()


def _check(shares: np.ndarray, shapes: Shapes, sizes: Sequence[int], total: int) -> None:
    if shares.shape != (len(sizes),):
        raise ValueError(
            f"`allocation` must return one number for each of the {len(sizes)} prunable "
            f"leaves; it returned shape {shares.shape}."
        )
    slack = 1e-6 * max(total, 1)
    for name, size, share in zip(shapes, sizes, shares):
        if not -slack <= share <= size + slack:
            raise ValueError(
                f"`allocation` gave `{name}`, which has {size} weights, {share} to keep."
            )
    if abs(shares.sum() - total) > max(slack, 0.5):
        raise ValueError(
            f"`allocation` was asked to share out {total} weights, but its numbers sum to "
            f"{shares.sum()}."
        )

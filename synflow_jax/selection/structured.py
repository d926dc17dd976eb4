"""Scores to masks with a pattern: n of every m entries, or whole blocks.

No kernel here makes such a network faster: the masks are exact, and what multiplies them
fast (sparse tensor cores, block-sparse kernels) is other software.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from synflow_jax.precision import scoring_dtype
from synflow_jax.selection.arguments import size_of_scores
from synflow_jax.selection.keys import to_key
from synflow_jax.selection.top_k import keep_top
from synflow_jax.trees import Masks, Scores


def n_of_m(scores: Scores, n: int, m: int, axis: int) -> Masks:
    """Keeps the ``n`` highest scores of every ``m`` consecutive entries along an axis.

    Among equal scores the one that comes first along the axis wins; a NaN ranks below every
    number. Masks with this pattern make nothing faster by themselves: that takes kernels
    such as those for 2:4 sparsity on NVIDIA's tensor cores, which this package has not.

    Args:
      scores: floating leaves; higher means keep. Give only the leaves that are to have the
        pattern.
      n: entries kept of each group, from 0 to ``m``.
      m: entries of a group, at least 1.
      axis: of every leaf; its length must be a multiple of ``m``. For ``x @ kernel``, axis
        0 groups the inputs of a unit, as sparse tensor cores want it.

    Returns:
      Boolean leaves shaped like ``scores``; True marks a kept entry.

    Raises:
      ValueError: if ``n`` or ``m`` is out of range, or if a leaf is not floating or does
        not have the axis with such a length: naming the leaf.

    Example:
      >>> n_of_m({"w": jnp.array([[1.0, 3.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])}, 2, 4, 1)
      {'w': Array([[False,  True,  True, False],
             [ True,  True, False, False]], dtype=bool)}

    References:
      Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021 (arXiv 2104.08378).
    """
    if not all(isinstance(x, int | np.integer) for x in (n, m)) or not 0 <= n <= m or m < 1:
        raise ValueError(
            f"`n` is an integer from 0 to `m`, at least 1; got {n!r} of {m!r}."
        )
    size_of_scores(scores)  # checks that they are floating

    def masks(path, leaf):
        where = f"scores{jax.tree_util.keystr(path)}"
        shape = jnp.shape(leaf)
        if not -len(shape) <= axis < len(shape) or shape[axis] % m:
            raise ValueError(
                f"`{where}` has shape {shape}; along axis {axis} it needs a number of "
                f"entries that is a multiple of {m}."
            )
        last = jnp.moveaxis(jnp.asarray(leaf, scoring_dtype(leaf)), axis, -1)
        keys = to_key(last.reshape(-1, m))
        one, other = keys[:, :, None], keys[:, None, :]
        place = np.arange(m)
        sooner = jnp.asarray(place[None, None, :] < place[None, :, None])
        rank = jnp.sum((other > one) | (other == one) & sooner, axis=-1)
        return jnp.moveaxis((rank < n).reshape(last.shape), -1, axis)

    return jax.tree_util.tree_map_with_path(masks, scores)


def blocks(
    scores: Scores,
    shape: Sequence[int],
    k: int | np.integer | Integer[Array | np.ndarray, ""],
) -> Masks:
    """Keeps the ``k`` blocks of the highest total scores, counted over the whole tree.

    Exactly ``k`` blocks are kept whole, and the others not at all. Among blocks of equal
    totals the one that comes first wins (leaves in `jax.tree.leaves` order, then the flat
    index of the block). A block with a NaN ranks below every other. Masks of blocks make
    nothing faster by themselves: that takes a block-sparse kernel, which this package has
    not.

    Args:
      scores: floating leaves; higher means keep. Give only the leaves that are to have the
        pattern.
      shape: of a block, along the last axes of every leaf; along the axes before, a block
        has one entry. The lengths of the axes must be multiples. ``(16, 16)`` for kernels
        of dense layers; ``(3, 3, 1, 1)`` for whole filters of one channel.
      k: number of blocks to keep, from 0 to their total. May be traced.

    Returns:
      Boolean leaves shaped like ``scores``; True marks a kept entry.

    Raises:
      ValueError: if a concrete ``k`` is out of range, or if a leaf is not floating or
        cannot be divided into such blocks: naming the leaf.

    Example:
      >>> blocks({"w": jnp.array([[1.0, 0.0, 5.0, 0.0], [1.0, 0.0, 0.0, 0.0]])}, (2, 2), 1)
      {'w': Array([[False, False,  True,  True],
             [False, False,  True,  True]], dtype=bool)}

    References:
      Narang et al., "Block-Sparse Recurrent Neural Networks", 2017 (arXiv 1711.02782), who
      rank blocks by their largest entry.
    """
    shape = tuple(int(s) for s in shape)
    size_of_scores(scores)

    def block_of(path, leaf):
        whole = (1,) * (jnp.ndim(leaf) - len(shape)) + shape
        lengths = jnp.shape(leaf)
        if len(whole) != len(lengths) or any(
            s < 1 or x % s for x, s in zip(lengths, whole)
        ):
            raise ValueError(
                f"`scores{jax.tree_util.keystr(path)}` has shape {lengths}, which cannot "
                f"be divided into blocks of the shape {shape}."
            )
        return whole

    def totals(leaf, block):
        leaf = jnp.asarray(leaf, scoring_dtype(leaf))
        split = [x for length, s in zip(leaf.shape, block) for x in (length // s, s)]
        return jnp.sum(leaf.reshape(split), axis=tuple(range(1, 2 * leaf.ndim, 2)))

    def spread(mask, block):
        for axis, s in enumerate(block):
            mask = jnp.repeat(mask, s, axis=axis)
        return mask

    leaves, treedef = jax.tree.flatten(scores)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(scores)]
    each = [block_of(*pair) for pair in zip(paths, leaves)]
    kept = keep_top([totals(*pair) for pair in zip(leaves, each)], k)
    return jax.tree.unflatten(treedef, [spread(*pair) for pair in zip(kept, each)])

"""Masks with a pattern, against sorting."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj

# Small integers, so that ties are the rule, and NaN, which ranks below every number.
numbers = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0, -np.inf, np.nan])
arrays = hnp.arrays(np.float32, (4, 6), elements=numbers)
n_of_m = jax.jit(sj.n_of_m, static_argnums=(1, 2, 3))


def best(values, k):
    """Places of the k best: higher first, NaN last, then in order."""
    worth = [(not np.isnan(v), v if not np.isnan(v) else 0) for v in values]
    return sorted(range(len(values)), key=lambda i: (worth[i], -i), reverse=True)[:k]


@hypothesis.given(arrays, st.sampled_from([(1, 2, 0), (2, 4, 0), (2, 3, 1), (0, 3, -1)]))
def test_every_group_keeps_its_best(scores, pattern):
    n, m, axis = pattern
    got = n_of_m({"w": jnp.asarray(scores)}, n, m, axis)["w"]
    rows = np.moveaxis(scores, axis, -1).reshape(-1, m)
    want = np.zeros(rows.shape, bool)
    for row, mask in zip(rows, want):
        mask[best(row, n)] = True
    lead = np.moveaxis(scores, axis, -1).shape
    np.testing.assert_array_equal(got, np.moveaxis(want.reshape(lead), -1, axis))


block_masks = jax.jit(sj.blocks, static_argnums=1)


@hypothesis.given(arrays, st.integers(0, 9), st.sampled_from([(2, 2), (1, 3), (2,)]))
def test_exactly_the_best_blocks_are_kept_whole(scores, k, shape):
    tree = {"b": jnp.asarray(scores), "a": jnp.asarray(scores[:2, ::-1])}
    tree = jax.tree.map(lambda s: jnp.where(jnp.isinf(s), 0, s), tree)
    rows, columns = shape if len(shape) == 2 else (1, *shape)
    blocks = [
        (name, slice(i, i + rows), slice(j, j + columns))
        for name in sorted(tree)
        for i in range(0, len(tree[name]), rows)
        for j in range(0, 6, columns)
    ]
    totals = [float(np.asarray(tree[n])[i, j].sum()) for n, i, j in blocks]
    want = {name: np.zeros(leaf.shape, bool) for name, leaf in tree.items()}
    for place in best(totals, k):
        name, i, j = blocks[place]
        want[name][i, j] = True
    got = block_masks(tree, shape, jnp.uint32(k))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_what_cannot_be_divided_is_named(no_typecheck):
    tree = {"w": jnp.ones((4, 6)), "bias": jnp.ones(6)}
    with pytest.raises(
        ValueError, match=r"`scores\['bias'\]` has shape \(6,\); along axis 1"
    ):
        sj.n_of_m(tree, 1, 2, 1)
    with pytest.raises(
        ValueError, match=r"`scores\['w'\]` has shape \(4, 6\); along axis 1"
    ):
        sj.n_of_m({"w": tree["w"]}, 1, 4, 1)
    with pytest.raises(ValueError, match="got 3 of 2"):
        sj.n_of_m(tree, 3, 2, 0)
    with pytest.raises(
        ValueError, match=r"`scores\['bias'\]` has shape \(6,\), which cannot"
    ):
        sj.blocks(tree, (2, 2), 1)
    with pytest.raises(
        ValueError, match=r"`scores\['w'\]` has shape \(4, 6\), which cannot"
    ):
        sj.blocks({"w": tree["w"]}, (3, 2), 1)
    with pytest.raises(ValueError, match="`k` must lie between 0 and the 6 scores"):
        sj.blocks({"w": tree["w"]}, (2, 2), 7)

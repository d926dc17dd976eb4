"""Single precision against double, on networks put together at random."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from tests import blocks


@hypothesis.given(blocks.architectures, st.integers(0, 10**6))
@hypothesis.settings(blocks.each_compiles, max_examples=4)
def test_scores_in_single_precision_are_those_in_double(architecture, seed):
    score = jax.jit(sj.synflow(blocks.network(architecture), blocks.INPUT))
    single, double = (
        score(params, sj.all_kept(params))
        for params in (blocks.parameters(architecture, seed, d) for d in ("f4", "f8"))
    )
    for got, want in zip(jax.tree.leaves(single), jax.tree.leaves(double)):
        assert got.dtype == jnp.float32 and want.dtype == jnp.float64
        # Pooled ties are broken alike in both; the smallest scores are rounded absolutely.
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-9)


@pytest.mark.filterwarnings("ignore:all scores of")  # two parameters are not read
def test_every_kind_of_round_runs_in_double_precision():
    params = blocks.parameters(["residual"], 0, "f8")
    score = sj.synflow(blocks.network(["residual"]), blocks.INPUT)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    for changes in (
        dict(schedule=sj.certified(0.3)),
        dict(scope="layer"),
        dict(allocation=sj.erk),
    ):
        masks, info = sj.prune(
            score, params, 0.5, rounds=3, prunable=lambda path, leaf: True, **changes
        )
        assert info.removed.dtype == jnp.float64
        assert abs(int(info.kept[-1]) - size / 2) <= len(jax.tree.leaves(params))

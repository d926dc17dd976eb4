"""The theory of the paper as properties of random networks."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from synflow_jax.models import MLP
from tests import blocks, nets
from tests.transform.test_network_flow import mlp_weights

WIDTHS = (4, 5, 5, 3)
SHAPES = {str(i): s for i, s in enumerate(zip(WIDTHS, WIDTHS[1:]))}
seeds = st.integers(0, 10**6)
masked_share = st.floats(0.3, 1.0)


def apply_fn(params, x):
    return nets.mlp([params[str(i)] for i in range(len(params))], x)


# Built once: a fresh closure inside a test would compile for every example.
score_by_paths = jax.jit(sj.synflow(nets.mlp, (nets.WIDTHS[0],)))
score = jax.jit(sj.synflow(apply_fn, (WIDTHS[0],)))
score_conv = jax.jit(sj.synflow(nets.convnet, nets.CONVNET_INPUT))
log_flow = jax.jit(lambda params: sj.log_flow(apply_fn, params, (WIDTHS[0],)))


def masks_of(params, share, seed):
    rng = np.random.default_rng(seed + 1)
    return jax.tree.map(lambda p: jnp.asarray(rng.random(p.shape) < share), params)


@hypothesis.given(mlp_weights)
def test_a_score_is_the_sum_over_the_paths_through_a_weight(weights):
    """Theorem T1: enumerated on a 2-3-4-2 network."""
    params = [jnp.asarray(w) for w in weights]
    got = score_by_paths(params, sj.all_kept(params))
    total, scores = nets.flow_by_paths([w.astype(np.float64) for w in weights])
    for g, want in zip(got, scores):
        np.testing.assert_allclose(g, want / (total or 1), rtol=1e-5, atol=1e-9)


@hypothesis.given(seeds, masked_share)
def test_every_layer_carries_the_same_total(seed, share):
    params = nets.draw(SHAPES, seed)
    scores = score(params, masks_of(params, share, seed))
    totals = [float(s.sum()) for s in scores.values()]
    assert totals == pytest.approx([1.0] * 3, rel=1e-5) or totals == [0.0] * 3


@hypothesis.given(seeds, masked_share)
def test_what_flows_into_a_neuron_flows_out(seed, share):
    params = nets.draw(SHAPES, seed)
    scores = score(params, masks_of(params, share, seed))
    for i in (0, 1):
        into, out = scores[str(i)].sum(0), scores[str(i + 1)].sum(1)
        np.testing.assert_allclose(into, out, rtol=1e-5, atol=1e-7)


@hypothesis.given(seeds)
def test_cuts_of_a_residual_network_carry_the_whole_flow(seed):
    """The stem and the classifier are cuts; the branch alone carries less."""
    params = nets.draw(nets.CONVNET_SHAPES, seed)
    scores = score_conv(params, sj.all_kept(params))
    np.testing.assert_allclose(scores["a"].sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(scores["c"].sum(), 1, rtol=1e-5)
    assert 0 < float(scores["b"].sum()) < 1


@hypothesis.given(seeds, st.floats(1e-3, 1e3), st.integers(0, WIDTHS[1] - 1))
def test_rescaling_a_neuron_changes_no_score(seed, factor, unit):
    params = nets.draw(SHAPES, seed)
    rescaled = params | {
        "0": params["0"].at[:, unit].multiply(factor),
        "1": params["1"].at[unit].divide(factor),
    }
    masks = sj.all_kept(params)
    nets.assert_close(score(params, masks), score(rescaled, masks))


@hypothesis.given(seeds, st.floats(1e-6, 1e6), st.sampled_from(sorted(SHAPES)))
def test_rescaling_a_layer_changes_no_share(seed, factor, layer):
    params = nets.draw(SHAPES, seed)
    rescaled = params | {layer: params[layer] * factor}
    masks = sj.all_kept(params)
    nets.assert_close(score(params, masks), score(rescaled, masks))


@hypothesis.given(seeds, st.permutations(range(WIDTHS[1])))
def test_permuting_neurons_permutes_scores(seed, order):
    order = np.array(order)
    params = nets.draw(SHAPES, seed)
    permuted = params | {"0": params["0"][:, order], "1": params["1"][order]}
    masks = sj.all_kept(params)
    before, after = score(params, masks), score(permuted, masks)
    np.testing.assert_allclose(before["0"][:, order], after["0"], rtol=1e-5)
    np.testing.assert_allclose(before["1"][order], after["1"], rtol=1e-5)
    np.testing.assert_allclose(before["2"], after["2"], rtol=1e-5)


@hypothesis.given(seeds, masked_share)
def test_removing_weights_removes_at_most_their_scores(seed, share):
    """T5: R' >= R - (sum of the scores removed)."""
    params = nets.draw(SHAPES, seed)
    masks = masks_of(params, share, seed)
    scores = score(params, sj.all_kept(params))
    removed = sum(
        float(jnp.where(m, 0, s).sum())
        for m, s in zip(jax.tree.leaves(masks), jax.tree.leaves(scores))
    )
    left = jnp.exp(log_flow(sj.apply_masks(params, masks)) - log_flow(params))
    assert float(left) >= 1 - removed - 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_pruning_one_weight_at_a_time_ends_with_one_path(seed):
    """T6: exactly one weight a layer, and flow through them."""
    params = nets.draw(SHAPES, seed)
    everything = lambda path, leaf: True  # noqa: E731
    size = sum(p.size for p in params.values())
    pruner = sj.iterative(sj.synflow(apply_fn, (WIDTHS[0],)), prunable=everything)
    counts = jnp.arange(size - 1, len(SHAPES) - 1, -1, dtype=jnp.uint32)
    state, _ = jax.lax.scan(
        lambda state, k: pruner.step(state, params, k), pruner.init(params), counts
    )
    assert [int(m.sum()) for m in state.masks.values()] == [1] * len(SHAPES)
    assert jnp.isfinite(log_flow(sj.apply_masks(params, state.masks)))


def _power_of_two_network(seed):
    """Sums of small powers of two are exact in float32, in whatever order."""
    rng = np.random.default_rng(seed)
    sizes = {"0": (6, 8), "1": (8, 8), "2": (8, 8), "3": (8, 4)}
    return {
        n: jnp.asarray(rng.choice([-1, 1], s) * 2.0 ** rng.integers(-2, 3, s), jnp.float32)
        for n, s in sizes.items()
    }


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_powers_of_two_are_exact(seed):
    params = _power_of_two_network(seed)
    got = jax.jit(sj.synflow(apply_fn, (6,)))(params, sj.all_kept(params))
    total, want = _flow_of_matrices([np.float64(w) for w in params.values()])
    for g, w in zip(got.values(), want):
        np.testing.assert_array_equal(g, (np.float32(w) / np.float32(total)))


@pytest.mark.parametrize("seed", range(3))
def test_masks_of_powers_of_two_are_exact(seed):
    """Algorithm 1 in double precision, by paths and a stable sort, bit for bit."""
    params = _power_of_two_network(seed)
    weights = [np.float64(w) for w in params.values()]
    size, kept = sum(w.size for w in weights), [np.ones(w.shape, bool) for w in weights]
    everything = lambda path, leaf: True  # noqa: E731
    for k in sj.counts_per_round(params, 0.1, 20, prunable=everything):
        alive = [np.where(m, w, 0) for m, w in zip(kept, weights)]
        _, scores = _flow_of_matrices(alive)
        ranked = np.concatenate([np.where(m, s, -1).ravel() for m, s in zip(kept, scores)])
        flat = np.zeros(size, bool)
        flat[np.argsort(-ranked, kind="stable")[:k]] = True
        ends = np.cumsum([m.size for m in kept])
        parts = np.split(flat, ends[:-1])
        kept = [part.reshape(m.shape) for part, m in zip(parts, kept)]
    score_fn = sj.synflow(apply_fn, (6,))
    masks, _ = sj.prune(score_fn, params, 0.1, rounds=20, prunable=everything)
    nets.assert_equal(list(masks.values()), kept)


def _flow_of_matrices(weights):
    """R and the scores of a chain of layers, as products of matrices."""
    sizes = [abs(w) for w in weights]
    ahead = [np.ones(len(sizes[0]))]
    for w in sizes:
        ahead.append(ahead[-1] @ w)
    behind = [np.ones(sizes[-1].shape[1])]
    for w in reversed(sizes):
        behind.append(w @ behind[-1])
    pairs = zip(ahead, sizes, reversed(behind[:-1]))
    return ahead[-1].sum(), [a[:, None] * w * b[None, :] for a, w, b in pairs]


@pytest.mark.parametrize("seed", range(3))
def test_survival_at_the_largest_compression(seed):
    """N / L by 100 exponential rounds: one weight a layer, on one path (T7)."""
    module = MLP(width=0.3)
    variables = module.init(jax.random.key(seed), jnp.ones((1, 28, 28, 1)))
    network, params = sj.from_linen(module, variables)
    size = sum(p["kernel"].size for p in params.values())
    masks, info = sj.prune(sj.synflow(network, (28, 28, 1)), params, 6 / size)
    assert [int(m["kernel"].sum()) for m in masks.values()] == [1] * 6
    flow = sj.log_flow(network, sj.apply_masks(params, masks), (28, 28, 1))
    assert jnp.isfinite(flow) and info.kept[-1] == 6


# --- networks put together at random ------------------------------------------------------


@hypothesis.given(blocks.architectures, seeds, st.floats(1e-3, 1e3))
@blocks.each_compiles
def test_every_network_conserves_its_flow_and_is_of_degree_one(architecture, seed, factor):
    network = blocks.network(architecture)
    params = blocks.parameters(architecture, seed)
    score = jax.jit(sj.synflow(network, blocks.INPUT))
    scores = score(params, sj.all_kept(params))
    assert all(jnp.isfinite(s).all() and (s >= 0).all() for s in jax.tree.leaves(scores))
    assert float(scores["first"].sum()) == pytest.approx(1, rel=1e-5)
    assert float(scores["last"].sum()) == pytest.approx(1, rel=1e-5)
    # Twice the weights of a cut, or twice the input, is twice the flow in equal shares.
    rescaled = params | {"first": params["first"] * factor}
    nets.assert_close(score(rescaled, sj.all_kept(params)), scores, rtol=1e-4)
    ones, flow = jnp.ones((1, *blocks.INPUT)), jax.jit(sj.flow(network))
    sizes = [
        jnp.log2(m) + e.astype(m.dtype)
        for m, e in (flow(params, ones), flow(params, ones * factor))
    ]
    np.testing.assert_allclose(sizes[1] - sizes[0], np.log2(factor), atol=1e-4)

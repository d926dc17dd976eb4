"""Rounds that cannot disconnect a network: the bound, what it allows, where they end."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp

import synflow_jax as sj
from synflow_jax.pruning.certified_rounds import MAX_ROUNDS
from synflow_jax.selection.budget import within
from synflow_jax.xla.backends import Backend
from tests import blocks, nets

# Some networks do not read all of their parameters, or let no flow reach them.
pytestmark = pytest.mark.filterwarnings("ignore:all scores of .* leaves are 0")

WIDTHS = (4, 6, 6, 3)
SHAPES = {str(i): s for i, s in enumerate(zip(WIDTHS, WIDTHS[1:]))}
SIZE = sum(a * b for a, b in SHAPES.values())
seeds = st.integers(0, 10**6)


def everything(path, leaf):
    return True


def chain(params, x):
    return nets.mlp([params[str(i)] for i in range(len(params))], x)


SYNFLOW = sj.synflow(chain, WIDTHS[:1])
log_flow = jax.jit(lambda params: sj.log_flow(chain, params, WIDTHS[:1]))


def prune(params, density, ratio=0.5, score=SYNFLOW, **more):
    schedule = sj.certified(ratio)
    return sj.prune(score, params, density, schedule=schedule, prunable=everything, **more)


# --- what a budget pays for ---------------------------------------------------------------

ONE = Backend(cpu=True, one_device=True)
jitted_within = jax.jit(functools.partial(within, ONE))
small_numbers = hnp.arrays(np.float32, 40, elements=st.integers(0, 5).map(float))


@hypothesis.given(small_numbers, hnp.arrays(bool, 40), st.floats(0, 0.99))
def test_a_budget_pays_for_as_many_of_the_lowest_as_cost_no_more(scores, eligible, share):
    candidates = np.sort(scores[eligible])
    hypothesis.assume(candidates.sum() > 0)
    budget = np.float32(np.floor(share * candidates.sum()))
    halves = np.split(scores, 2), np.split(eligible, 2)
    got = jitted_within(*jax.tree.map(jnp.asarray, halves), jnp.float32(budget))
    paid = int((np.cumsum(candidates) <= budget).sum())
    assert int(got.kept) == len(candidates) - paid
    assert float(got.next) == candidates[paid]


def test_a_budget_for_everything_leaves_nothing():
    scores, eligible = [jnp.array([1.0, 2.0])], [jnp.array([True, True])]
    kept, price, _ = within(ONE, scores, eligible, jnp.float32(3.0))
    assert kept == 0 and price == jnp.inf


def test_a_budget_over_many_scores():
    """Enough of them that a CPU adds them up in rows."""
    rng = np.random.default_rng(0)
    scores = np.exp(4 * rng.standard_normal(40_007)).astype(np.float32)
    eligible = rng.random(scores.size) < 0.7
    totals = np.cumsum(np.sort(scores[eligible].astype(np.float64)))
    for share in (1e-4, 0.1, 0.6):
        budget = np.float32(share * totals[-1])
        got = jitted_within([jnp.asarray(scores)], [jnp.asarray(eligible)], budget)
        want = eligible.sum() - (totals <= budget).sum()
        assert abs(int(got.kept) - want) <= 1  # the sum's last digit


# --- the bound ----------------------------------------------------------------------------

SUMS = sorted(set(blocks.BLOCKS) - {"attention", "gate"})
sums_of_paths = st.lists(st.sampled_from(SUMS), min_size=1, max_size=4)


@hypothesis.given(sums_of_paths, seeds, st.floats(0.05, 0.5))
@hypothesis.example(["residual", "max pooling", "tied", "conv"], 0, 0.1)
@blocks.each_compiles
def test_removing_weights_removes_at_most_their_scores_of_any_sum_over_paths(
    architecture, seed, share
):
    """T5, with shortcuts, pooling, norms and shared weights."""
    network = blocks.network(architecture)
    params = blocks.parameters(architecture, seed)
    whole = sj.all_kept(params)
    scores = jax.jit(sj.synflow(network, blocks.INPUT))(params, whole)
    flow = jax.jit(lambda masks: sj.log_flow(
        network, sj.apply_masks(params, masks), blocks.INPUT
    ))  # fmt: skip
    rng = np.random.default_rng(seed)
    for _ in range(3):
        masks = jax.tree.map(lambda p: jnp.asarray(rng.random(p.shape) > share), params)
        removed = sum(
            float(jnp.where(mask, 0, score).sum())
            for mask, score in zip(jax.tree.leaves(masks), jax.tree.leaves(scores))
        )
        left = float(jnp.exp(flow(masks) - flow(whole)))
        # Max pooling takes the first entry within 2**-13 of the largest.
        assert left >= 1 - removed - 4 * 2.0**-13


@pytest.mark.parametrize("block", ["attention", "gate"])
def test_where_flows_are_multiplied_no_round_is_certified(block):
    network, params = blocks.network([block]), blocks.parameters([block], 0)
    score = sj.synflow(network, blocks.INPUT)
    with pytest.raises(ValueError, match=r"cannot certify.*blocks\.py.*the other is lost"):
        prune(params, 0.5, score=score)
    _, info = sj.prune(score, params, 0.5, rounds=3, prunable=everything)
    assert (np.asarray(info.removed) < 1).all() and not info.certificate


SQUARES = {"k": (4, 4), "s": (4, 4)}
OTHERWISE = {
    "standardised": lambda p, x: x @ (p["k"] - p["k"].mean(0, keepdims=True)),
    "a factor that is computed": lambda p, x: x @ (p["k"] * jnp.tanh(p["s"])),
    "a divisor": lambda p, x: x @ (p["k"] / p["s"]),
    "a divisor of the flow": lambda p, x: (x @ p["k"]) / p["s"][0][None],
    "normalised, with a scale of its shape": lambda p, x: (
        x @ (p["k"] / jnp.linalg.norm(p["k"], axis=0, keepdims=True) * p["s"])
    ),
    "a condition": lambda p, x: jnp.where(p["s"][:1] > 0, x, 0.0) @ p["k"],
    "a mask": lambda p, x: x @ jnp.where(p["s"] > 0, p["k"], 0.0),
    "a branch": lambda p, x: jax.lax.cond(
        p["s"].sum() > 0, lambda x: x, lambda x: 2 * x, x @ p["k"]
    ),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_parameters_that_act_otherwise_than_as_weights_certify_nothing(name):
    score, params = sj.synflow(OTHERWISE[name], (4,)), nets.draw(SQUARES)
    with pytest.raises(ValueError, match="`[ks]` is computed with before it is used"):
        prune(params, 0.5, score=score)
    _, info = sj.prune(score, params, 0.9, rounds=1, prunable=everything)
    assert not info.certified.any()


TWO_FLOWS = {
    "minimum": lambda p, x: jnp.minimum(x @ p["k"], x @ p["s"]),
    "least": lambda p, x: (x @ p["k"]).min(-1, keepdims=True),
    "choice": lambda p, x: jnp.where(x @ p["k"] > 0, x @ p["s"], 0.0),
}


@pytest.mark.parametrize("name", TWO_FLOWS)
def test_where_one_flow_is_lost_without_another_no_round_is_certified(name):
    score, params = sj.synflow(TWO_FLOWS[name], (4,)), nets.draw(SQUARES)
    reason = "keeps no paths" if name == "least" else "without the one the other is"
    with pytest.raises(ValueError, match=f"cannot certify.*{reason}"):
        prune(params, 0.5, score=score)


def _leaky(x):
    return jnp.where(x > 0, x, 0.1 * x)


INDEX = np.array([0, 2, 1, 3])
ORDINARY = {
    "a constant mask": lambda p, x: x @ jnp.tril(p["k"]) @ p["s"],
    "entries in another order": lambda p, x: (
        x[:, INDEX] @ p["k"][jnp.asarray(INDEX)] @ p["s"]
    ),
    "padding": lambda p, x: jnp.pad(x @ p["k"], ((0, 0), (0, 2)))[:, 2:] @ p["s"][:4],
    "leaky": lambda p, x: _leaky(x @ p["k"]) @ p["s"],
    "clipped": lambda p, x: jnp.minimum(jax.nn.relu(x @ p["k"]), 6.0) @ p["s"],
}


@pytest.mark.parametrize("name", ORDINARY)
def test_constants_of_the_network_are_read_while_a_loop_is_traced(name):
    score, params = sj.synflow(ORDINARY[name], (4,)), nets.draw(SQUARES)
    _, info = sj.prune(score, params, 0.9, rounds=3, prunable=everything)
    assert info.certificate == (np.asarray(info.removed) < 1).all()


PRODUCTS = {
    "swish": lambda x: x * jax.nn.sigmoid(x),
    "a square": lambda x: x * x,
    "normalised": lambda x: x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True)),
    "normalised, factor first": lambda x: jax.lax.rsqrt((x * x).sum(-1, keepdims=True)) * x,
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_flow_times_a_function_of_itself_keeps_its_certificate(name):
    score = sj.synflow(lambda p, x: PRODUCTS[name](x @ p["k"]) @ p["s"], (4,))
    _, info = prune(nets.draw(SQUARES), 0.5, score=score)
    assert info.certificate


def test_stacked_layers_in_a_loop_are_certified():
    params = nets.draw({"k": (3, 4, 4)})
    network = lambda p, x: jax.lax.fori_loop(  # noqa: E731
        0, 3, lambda i, x: jax.nn.relu(x @ p["k"][i]), x
    )
    masks, info = prune(params, 1 / 48, score=sj.synflow(network, (4,)))
    assert info.certificate and int(info.kept[-1]) == 3


def test_an_index_that_is_traced_is_not_certified_and_not_an_error():
    params = nets.draw(SQUARES)

    @jax.jit
    def pruned(index):
        score = sj.synflow(lambda p, x: x @ p["k"][index] @ p["s"], (4,))
        return sj.prune(score, params, 0.5, rounds=2, prunable=everything)[1]

    info = pruned(jnp.asarray(INDEX))
    assert int(info.kept[-1]) == 16 and not info.certificate


def test_weights_that_carry_little_go_all_at_once():
    """All that is prunable is within the ratio: it goes, and the rest carries the flow."""

    def network(params, x):
        return 10 * x @ params["s"] + x @ params["k"]

    score = sj.synflow(network, (4,))
    masks, info = sj.prune(
        score,
        nets.draw(SQUARES),
        0.25,
        schedule=sj.certified(0.5),
        prunable=lambda path, leaf: path == "k",
    )
    assert info.kept.tolist() == [4] and info.certificate and not info.stopped[-1]


@pytest.mark.parametrize(
    "score", [sj.magnitude(), sj.synflow(chain, WIDTHS[:1], biases=True)]
)
def test_only_shares_of_the_flow_certify(score):
    with pytest.raises(ValueError, match="cannot certify.*not shares of the flow"):
        prune(nets.draw(SHAPES), 0.5, score=score)


# --- what a round reports -----------------------------------------------------------------


def test_every_round_reports_the_share_of_the_flow_that_it_removed():
    params = nets.draw(SHAPES)
    pruner = sj.iterative(SYNFLOW, prunable=everything)
    state, score, step = pruner.init(params), jax.jit(SYNFLOW), jax.jit(pruner.step)
    _, info = sj.prune(SYNFLOW, params, 0.1, rounds=6, prunable=everything)
    for i, k in enumerate(sj.counts_per_round(params, 0.1, 6, prunable=everything)):
        scores, before = score(params, state.masks), state.masks
        state, _ = step(state, params, k)
        gone = jax.tree.map(lambda old, new: old & ~new, before, state.masks)
        want = sum(
            np.asarray(s, np.float64)[np.asarray(g)].sum()
            for s, g in zip(jax.tree.leaves(scores), jax.tree.leaves(gone))
        )
        np.testing.assert_allclose(info.removed[i], want, rtol=1e-5)


def test_what_is_removed_counts_ties_and_not_what_was_gone():
    def equal(params, masks):
        return jax.tree.map(lambda p, m: jnp.where(m, 2.0, 7.0), params, masks)

    _, info = sj.prune(equal, nets.draw(SHAPES), 0.25, rounds=2, prunable=everything)
    removed = -np.diff([SIZE, *np.asarray(info.kept)])
    np.testing.assert_array_equal(info.removed, 2 * removed)


def test_layers_by_themselves_report_their_total():
    _, info = sj.prune(
        SYNFLOW, nets.draw(SHAPES), 0.5, rounds=1, scope="layer", prunable=everything
    )
    scores = SYNFLOW(nets.draw(SHAPES), sj.all_kept(nets.draw(SHAPES)))
    lower = [np.sort(np.ravel(s))[: s.size - -(-s.size // 2)] for s in scores.values()]
    np.testing.assert_allclose(info.removed[0], sum(x.sum() for x in lower), rtol=1e-5)


def test_a_hundred_rounds_certify_themselves_and_one_does_not():
    """The paper's Theorem 3 and Fig. 7, on a chain."""
    params = nets.draw(SHAPES)
    target = len(SHAPES) / SIZE
    masks, info = sj.prune(SYNFLOW, params, target, prunable=everything)
    assert info.certificate and np.isfinite(log_flow(sj.apply_masks(params, masks)))
    assert not np.asarray(info.stopped).any()
    at_once = dict(rounds=1, prunable=everything, keep_connected=False)
    masks, info = sj.prune(SYNFLOW, params, target, **at_once)
    assert info.removed[0] > 1 and not info.certificate


def test_a_network_that_was_cut_before_is_certified_by_nothing():
    params = nets.draw(SHAPES)
    params["1"] = jnp.zeros_like(params["1"])
    with pytest.raises(ValueError, match="no flow reaches a prunable leaf"):
        prune(params, 0.5)

    @jax.jit  # where no array can be looked at
    def reports(params):
        rounds = sj.prune(SYNFLOW, params, 0.5, rounds=2, prunable=everything)[1]
        return rounds, prune(params, 0.5)[1]

    rounds, found = reports(params)
    assert not rounds.certificate and (np.asarray(rounds.removed) == 0).all()
    assert int(found.kept[-1]) == SIZE and found.stopped[-1] and not found.certificate


# --- the schedule -------------------------------------------------------------------------


@hypothesis.given(seeds, st.sampled_from([0.02, 0.1, 0.5, 0.9]), st.floats(0.03, 0.9))
def test_certified_rounds_keep_to_their_ratio_and_reach_the_target(seed, ratio, density):
    params = nets.draw(SHAPES, seed)
    masks, info = prune(params, density, ratio)
    kept, removed = np.asarray(info.kept), np.asarray(info.removed)
    target = max(sj.num_kept(SIZE, density), len(SHAPES))
    assert kept[-1] == target and info.certificate
    assert (np.diff([SIZE, *kept]) < 0).all()
    alone = -np.diff([SIZE, *kept]) == 1
    assert ((removed <= ratio * (1 + 1e-5)) | alone).all() and (removed < 1).all()
    assert np.isfinite(log_flow(sj.apply_masks(params, masks)))


def test_a_round_takes_as_many_as_the_ratio_allows():
    """But for the last one, a weight more would have been too much."""
    params, ratio = nets.draw(SHAPES), 0.3
    masks, info = prune(params, 0.2, ratio)
    pruner, score = sj.iterative(SYNFLOW, prunable=everything), jax.jit(SYNFLOW)
    state, step = pruner.init(params), jax.jit(pruner.step)
    for k in np.asarray(info.kept)[:-1]:
        scores = score(params, state.masks)
        flat, alive = (
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
            for tree in (scores, state.masks)
        )
        costs = np.cumsum(np.sort(flat[alive].astype(np.float64)))
        assert k == alive.sum() - (costs <= ratio).sum()
        state, _ = step(state, params, k)


@pytest.mark.parametrize("seed", range(3))
def test_it_ends_above_a_target_that_would_cut_the_last_path(seed):
    params = nets.draw(SHAPES, seed)
    masks, info = prune(params, 1 / SIZE)
    assert [int(m.sum()) for m in masks.values()] == [1] * len(SHAPES)
    assert bool(info.stopped[-1]) and not np.asarray(info.stopped[:-1]).any()
    assert info.certificate and np.isfinite(log_flow(sj.apply_masks(params, masks)))


def test_with_a_shortcut_it_ends_with_one_path():
    params = nets.draw({"a": (3, 4), "b": (4, 4), "c": (4, 2)})

    def network(params, x):
        x = jax.nn.relu(x @ params["a"])
        return (x + jax.nn.relu(x @ params["b"])) @ params["c"]

    score = jax.jit(sj.synflow(network, (3,)))
    masks, info = prune(params, 1 / 36, score=score)
    assert int(info.kept[-1]) in (2, 3) and bool(info.stopped[-1])
    # Through the shortcut or not: all that is left is on one path, which carries the flow.
    for scores, mask in zip(score(params, masks).values(), masks.values()):
        np.testing.assert_allclose(scores[mask], 1, rtol=1e-6)


def test_one_trace_serves_all_ratios_and_densities():
    traces = 0

    def counted(params, x):
        nonlocal traces
        traces += 1
        return chain(params, x)

    score = sj.synflow(counted, WIDTHS[:1])
    prune(nets.draw(SHAPES), 0.5, score=score)
    before = traces
    for density, ratio in ((0.1, 0.5), (0.3, 0.05)):
        prune(nets.draw(SHAPES, 1), density, ratio, score=score)
    assert traces == before


def test_progress_is_reported_and_changes_nothing():
    seen, params = [], nets.draw(SHAPES)
    masks, info = prune(params, 0.1)
    again = prune(params, 0.1, on_round=lambda info: seen.append(int(info.kept)))
    nets.assert_equal((masks, info), again)
    assert seen == np.asarray(info.kept).tolist()


def test_inside_vmap_rounds_that_did_not_take_place_change_nothing():
    batch = jax.tree.map(lambda *xs: jnp.stack(xs), *(nets.draw(SHAPES, i) for i in (0, 1)))
    masks, info = jax.vmap(lambda params: prune(params, 0.1))(batch)
    assert info.kept.shape == (2, MAX_ROUNDS)
    for seed in (0, 1):
        want, one = prune(nets.draw(SHAPES, seed), 0.1)
        nets.assert_equal(nets.element(masks, seed), want)
        got = nets.element(info, seed)
        for field, found in zip(got, one):
            np.testing.assert_array_equal(field[: len(found)], found)
        assert (np.asarray(got.kept[len(one.kept) :]) == one.kept[-1]).all()
        assert not np.asarray(got.removed[len(one.kept) :]).any()
    assert info.certificate


def test_a_nan_is_an_error_here_too():
    params = nets.draw(SHAPES)
    params["1"] = params["1"].at[0, 0].set(jnp.nan)
    for on_round in (None, lambda info: None):
        with pytest.raises(FloatingPointError, match=r"round 1, .*: 1\."):
            prune(params, 0.5, on_round=on_round)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, float("nan")])
def test_ratios_outside_their_range_are_refused(ratio):
    with pytest.raises(ValueError, match="`max_ratio`"):
        sj.certified(ratio)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(density=0.0), "`density`"),
        (dict(density=0.5, scope="layer"), "`scope`"),
        (dict(density=0.5, regrow=True), "`regrow`"),
        (dict(density=0.5, allocation=sj.uniform), "`allocation`"),
        (
            dict(density=0.5, rounds=3, schedule=sj.certified),
            r"`schedule` is certified\(\)",
        ),
    ],
)
def test_what_does_not_go_with_certified_rounds_is_named(changes, message):
    changes = dict(schedule=sj.certified(), prunable=everything) | changes
    with pytest.raises(ValueError, match=message):
        sj.prune(SYNFLOW, nets.draw(SHAPES), **changes)


def test_leaves_without_entries_are_refused():
    score = sj.synflow(lambda p, x: x @ p["k"], (4,))
    with pytest.raises(ValueError, match="no entries"):
        sj.prune(
            score,
            {"k": jnp.ones((4, 3)), "empty": jnp.ones((0, 3))},
            0.5,
            schedule=sj.certified(),
            prunable=sj.matching("empty"),
        )


def test_no_weight_at_all_certifies_nothing_of_a_network_that_was_cut():
    params = nets.draw(SHAPES) | {"1": jnp.zeros(SHAPES["1"])}
    pruner = sj.iterative(SYNFLOW, prunable=everything)
    _, info = pruner.step(pruner.init(params), params, 0)
    assert not info.certified


def test_counts_are_not_known_beforehand():
    with pytest.raises(ValueError, match="finds its counts"):
        sj.counts_per_round({"kernel": jnp.ones((2, 2))}, 0.5, 3, schedule=sj.certified())

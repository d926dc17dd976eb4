"""Pruning that starts from masks, and leaves that have densities of their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from tests import nets

SHAPES = {"a": (4, 10), "b": (10, 10), "c": (10, 3)}
SIZES = {"a": 40, "b": 100, "c": 30}
SIZE = 170
PARAMS = {n: {"kernel": w} for n, w in nets.draw(SHAPES).items()}


def network(params, x):
    for name in "ab":
        x = jax.nn.relu(x @ params[name]["kernel"])
    return x @ params["c"]["kernel"]


def loss(params, batch):
    return jnp.mean((network(params, batch) - 1) ** 2)


BATCHES = nets.draw({"x": (2, 5, 4)})["x"]
CRITERIA = {
    "synflow": sj.synflow(network, (4,)),
    "magnitude": sj.magnitude(),
    "random": sj.random(jax.random.key(0)),
    "snip": sj.snip(loss, BATCHES),
    "grasp": sj.grasp(loss, BATCHES),  # signed
    # What is pruned would be wanted most.
    "contrary": lambda params, masks: jax.tree.map(
        lambda p, m: jnp.where(m, jnp.abs(p), 100.0), params, masks
    ),
}
START, _ = sj.prune(sj.random(jax.random.key(1)), PARAMS, 0.6, rounds=1)
KEPT = int(sj.count(START))  # 102


def count_of(masks, name):
    return int(masks[name]["kernel"].sum())


def is_within(masks, others):
    return all(
        not bool((m & ~o).any()) for m, o in zip(*map(jax.tree.leaves, (masks, others)))
    )


@pytest.mark.parametrize("name", CRITERIA)
def test_pruned_weights_stay_pruned_for(name):
    masks, info = sj.prune(CRITERIA[name], PARAMS, 0.2, rounds=3, masks=START)
    assert is_within(masks, START) and int(sj.count(masks)) == 34
    # d0 * schedule(d / d0), of all prunable weights.
    densities = KEPT / SIZE * sj.exponential(0.2 * SIZE / KEPT, 3)
    np.testing.assert_array_equal(info.kept, [sj.num_kept(SIZE, d) for d in densities])
    np.testing.assert_allclose(info.density, info.kept / SIZE, rtol=1e-6)
    assert info.kept[0] < KEPT


def test_the_masks_at_the_start_are_not_changed_and_stay_usable():
    before = jax.tree.map(np.array, START)
    for name in ("synflow", "magnitude"):
        for on_round in (None, lambda info: None):
            arguments = dict(rounds=2, masks=START, on_round=on_round)
            masks, _ = sj.prune(CRITERIA[name], PARAMS, 0.1, **arguments)
            assert is_within(masks, START)
    nets.assert_equal(before, START)


def test_all_kept_is_no_masks_and_pruning_twice_goes_on():
    score = CRITERIA["synflow"]
    want = sj.prune(score, PARAMS, 0.1, rounds=4)
    nets.assert_equal(sj.prune(score, PARAMS, 0.1, rounds=4, masks=want[0])[0], want[0])
    nets.assert_equal(
        sj.prune(score, PARAMS, 0.1, rounds=4, masks=sj.all_kept(PARAMS)), want
    )
    half, _ = sj.prune(score, PARAMS, 0.1**0.5, rounds=2)
    rest, _ = sj.prune(score, PARAMS, 0.1, rounds=2, masks=half)
    nets.assert_equal(rest, want[0])


def test_other_masks_and_densities_run_the_same_program():
    traces = 0

    def counted(params, x):
        nonlocal traces
        traces += 1
        return network(params, x)

    score = sj.synflow(counted, (4,))
    sj.prune(score, PARAMS, 0.2, rounds=3, masks=START)
    before = traces
    others = jax.tree.map(lambda m: ~m, START)
    sj.prune(score, PARAMS, 0.3, rounds=3, masks=others)
    assert traces == before


def test_scope_layer_starts_each_leaf_from_its_own_density():
    masks, _ = sj.prune(sj.magnitude(), PARAMS, 0.2, rounds=3, scope="layer", masks=START)
    assert [count_of(masks, n) for n in "abc"] == [8, 20, 6]
    assert is_within(masks, START)
    few = {**START, "c": {"kernel": START["c"]["kernel"].at[1:].set(False)}}
    with pytest.raises(ValueError, match=r"of 30 weights of `c/kernel`, but `masks` keep"):
        sj.prune(sj.magnitude(), PARAMS, 0.2, rounds=3, scope="layer", masks=few)


def test_an_allocation_leaves_no_leaf_more_than_its_masks_keep():
    start = {**sj.all_kept(PARAMS), "b": {"kernel": jnp.arange(100).reshape(10, 10) < 20}}
    arguments = dict(rounds=3, masks=start)
    masks, info = sj.prune(sj.magnitude(), PARAMS, 0.2, allocation=sj.balanced, **arguments)
    assert [count_of(masks, n) for n in "abc"] == [12, 11, 11]
    # Balanced would give 37 of the first round to `b`; the others share what it lacks.
    kept = sj.counts_per_round(PARAMS, 0.2, allocation=sj.balanced, **arguments)
    np.testing.assert_array_equal(kept.sum(1), info.kept)
    assert kept[:, 1].max() == 20 and (np.diff(kept.astype(int), axis=0) <= 0).all()
    with pytest.raises(ValueError, match="`allocation` gives `b/kernel` 29.*keep only 20"):
        sj.prune(sj.magnitude(), PARAMS, 0.29, allocation=sj.uniform, **arguments)


def test_certified_rounds_start_from_masks():
    masks, info = sj.prune(
        CRITERIA["synflow"], PARAMS, 0.1, masks=START, schedule=sj.certified()
    )
    assert is_within(masks, START) and int(sj.count(masks)) == 17 and info.certificate
    with pytest.raises(ValueError, match="`density` is 0.7, which keeps 119 of 170"):
        sj.prune(CRITERIA["synflow"], PARAMS, 0.7, masks=START, schedule=sj.certified())


def test_a_network_that_masks_have_cut_is_said_so():
    cut = {**START, "b": {"kernel": jnp.zeros((10, 10), bool)}}
    with pytest.raises(ValueError, match="Without `masks` flow reaches them"):
        sj.prune(CRITERIA["synflow"], PARAMS, 0.05, rounds=2, masks=cut)


def test_a_round_that_would_cut_the_network_is_undone_from_masks_too():
    """As it is in the network of the weights that the masks keep."""

    def chain(params, x):
        return x @ params["a"]["kernel"] @ params["b"]["kernel"]

    def network_of(width):
        first = jnp.maximum(4.0 - jnp.arange(width, dtype=jnp.float32), 1.0)[None]
        return {"a": {"kernel": first}, "b": {"kernel": jnp.ones((width, 4))}}

    small, large = network_of(3), network_of(40)
    start = jax.tree.map(jnp.zeros_like, sj.all_kept(large))
    start["a"]["kernel"] = start["a"]["kernel"].at[:, :3].set(True)
    start["b"]["kernel"] = start["b"]["kernel"].at[:3].set(True)
    score = sj.synflow(chain, (1,))
    for keep in (False, True):
        arguments = dict(rounds=1, keep_connected=keep)
        _, want = sj.prune(score, small, 3 / 15, **arguments)
        masks, info = sj.prune(score, large, 3 / 200, masks=start, **arguments)
        assert sj.connectivity(chain, large, masks, (1,)).connected is keep
        assert int(sj.count(masks)) == 3 and is_within(masks, start)
        assert int(info.retries[0]) == int(want.retries[0])
    assert int(info.retries[0]) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(density=0.7), "`density` is 0.7, which keeps 119 of 170.*at most 0.6"),
        (dict(regrow=True), "`masks` no pruned weight returns, and with `regrow`"),
        (dict(masks={"a": 1}), "`masks` must have the structure"),
        (dict(masks=PARAMS), r"`masks\['a'\]\['kernel'\]` has dtype float32"),
    ],
)
def test_starts_that_do_not_fit_are_refused(changes, message, no_typecheck):
    arguments = dict(density=0.2, rounds=2, masks=START) | changes
    with pytest.raises(ValueError, match=message):
        sj.prune(sj.magnitude(), PARAMS, **arguments)


def test_masks_that_are_traced_are_refused():
    with pytest.raises(ValueError, match="`masks` are traced.*`iterative`"):
        jax.jit(lambda m: sj.prune(sj.magnitude(), PARAMS, 0.2, masks=m))(START)


def test_rounds_of_ones_own_start_from_masks():
    pruner = sj.iterative(sj.magnitude())
    state, _ = pruner.step(sj.PruneState(START), PARAMS, 34)
    want, _ = sj.prune(sj.magnitude(), PARAMS, 0.2, rounds=1, masks=START)
    nets.assert_equal(state.masks, want)


# --- densities by patterns ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["synflow", "snip"])
@pytest.mark.parametrize("masks", [None, START])
def test_matched_leaves_have_their_density_and_the_others_share_the_rest(name, masks):
    allocation = {"a/*": 0.3, "c/kernel": 0.4}
    arguments = dict(rounds=4, allocation=allocation, masks=masks)
    got, info = sj.prune(CRITERIA[name], PARAMS, 0.25, **arguments)
    assert [count_of(got, n) for n in "abc"] == [12, 43 - 24, 12]
    counts = sj.counts_per_round(PARAMS, 0.25, **arguments)
    np.testing.assert_array_equal(counts.sum(1), info.kept)
    if masks is None:
        for column, (n, density) in {0: ("a", 0.3), 2: ("c", 0.4)}.items():
            want = [sj.num_kept(SIZES[n], d) for d in sj.exponential(density, 4)]
            np.testing.assert_array_equal(counts[:, column], want)


def test_the_others_are_ranked_together():
    """Among them the criterion decides, across the leaves."""
    params = {
        n: {"kernel": jnp.full(SHAPES[n], scale)}
        for n, scale in (("a", 1.0), ("b", 2.0), ("c", 3.0))
    }
    masks, _ = sj.prune(sj.magnitude(), params, 50 / 170, allocation={"b/*": 0.1})
    assert [count_of(masks, n) for n in "abc"] == [10, 10, 30]


def test_the_first_pattern_that_matches_counts():
    masks, _ = sj.prune(
        sj.magnitude(), PARAMS, 0.5, rounds=2, allocation={"a/*": 0.5, "[ab]/*": 0.6}
    )
    assert [count_of(masks, n) for n in "abc"] == [20, 60, 5]


def test_rounds_before_the_last_never_leave_a_leaf_more_than_it_has():
    """In the middle of the rounds the large leaf is below the share of the total."""
    allocation = {"b/*": 0.01}
    counts = sj.counts_per_round(PARAMS, 0.3, 10, allocation=allocation).astype(int)
    assert (counts[:, 0] <= 70).all() and (np.diff(counts, axis=0) <= 0).all()
    assert counts[-1].tolist() == [50, 1] and counts[5, 0] == 70
    masks, info = sj.prune(
        CRITERIA["synflow"], PARAMS, 0.3, rounds=10, allocation=allocation
    )
    np.testing.assert_array_equal(info.kept, counts.sum(1))


def test_steps_of_ones_own_take_a_row_of_the_counts():
    allocation = {"a/*": 0.3, "c/*": 0.4}
    pruner = sj.iterative(CRITERIA["synflow"], allocation=allocation)
    state, step = pruner.init(PARAMS), jax.jit(pruner.step)
    for k in sj.counts_per_round(PARAMS, 0.25, 4, allocation=allocation):
        state, _ = step(state, PARAMS, k)
    want, _ = sj.prune(
        CRITERIA["synflow"],
        PARAMS,
        0.25,
        rounds=4,
        allocation=allocation,
        keep_connected=False,
    )
    nets.assert_equal(state.masks, want)


def test_rounds_of_training_take_patterns():
    seen = []
    state, _ = sj.train_and_prune(
        lambda params, masks, round: params,
        PARAMS,
        0.25,
        rounds=2,
        allocation={"a/*": 0.3},
        on_round=lambda state, info: seen.append(state),
    )
    assert count_of(state.masks, "a") == 12 and int(sj.count(state.masks)) == 43
    again, _ = sj.train_and_prune(
        lambda params, masks, round: params,
        PARAMS,
        0.25,
        rounds=2,
        allocation={"a/*": 0.3},
        state=seen[0],
    )
    nets.assert_equal(again, state)


@pytest.mark.parametrize(
    ("allocation", "density", "message"),
    [
        ({"z/*": 0.5}, 0.5, r"pattern 'z/\*' of `allocation` matches no prunable leaf"),
        ({3: 0.5}, 0.5, "pattern of `allocation` is a string"),
        ({"a/*": 0.0}, 0.5, r"`allocation\['a/\*'\]` is the fraction kept, in \(0, 1\]"),
        ({"a/*": [0.1]}, 0.5, r"`allocation\['a/\*'\]` is one number.*got list"),
        ({"b/*": 1.0}, 0.5, "would keep -15 of their 70.*from 0.588235 to 1"),
        ({"b/*": 0.1}, 0.9, "would keep 143 of their 70.*from 0.0588235 to 0.470588"),
        ({"*": 0.5}, 0.4, "the 0 other prunable leaves would keep -17 of their 0"),
        ([0.1, 0.2, 0.3], 0.5, r"`allocation` is a function.*or \{pattern: density\}; got"),
    ],
)
def test_densities_that_do_not_fit_are_refused(allocation, density, message, no_typecheck):
    with pytest.raises(ValueError, match=message):
        sj.prune(sj.magnitude(), PARAMS, density, rounds=2, allocation=allocation)


def test_a_leaf_that_masks_leave_less_of_is_named():
    prune = functools.partial(sj.prune, sj.magnitude(), PARAMS, rounds=2, masks=START)
    kept = count_of(START, "a")
    with pytest.raises(ValueError, match=rf"of 40 weights of `a/kernel`.* only {kept}"):
        prune(0.3, allocation={"a/*": 0.95})

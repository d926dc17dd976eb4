"""How many weights each layer keeps: what is promised, and exact in total."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from synflow_jax.pruning.allocations import integer_counts
from tests import nets

SHAPES = {"a": (3, 3, 2, 8), "b": (16, 10), "c": (10, 3)}
SIZES = {"a": 144, "b": 160, "c": 30}
SIZE = sum(SIZES.values())


def everything(path, leaf):
    return True


def masks_keeping(counts):
    return {
        name: jnp.arange(size).reshape(SHAPES[name]) < count
        for (name, size), count in zip(SIZES.items(), counts)
    }


ALLOCATIONS = {
    "uniform": sj.uniform,
    "erk": sj.erk,
    "balanced": sj.balanced,
    "densities_of": sj.densities_of(masks_keeping([20, 3, 9])),
    "densities_of, one layer empty": sj.densities_of(masks_keeping([20, 0, 9])),
    "densities_of, one layer full": sj.densities_of(masks_keeping([20, 3, 30])),
}


@pytest.mark.parametrize("name", ALLOCATIONS)
@hypothesis.given(totals=st.lists(st.integers(0, SIZE), min_size=1, max_size=6))
def test_counts_are_exact_in_total_fit_the_leaves_and_never_grow(name, totals):
    totals = sorted(totals, reverse=True)
    counts = np.array(integer_counts(ALLOCATIONS[name], SHAPES, totals))
    np.testing.assert_array_equal(counts.sum(1), totals)
    assert (counts >= 0).all() and (counts <= list(SIZES.values())).all()
    assert (np.diff(counts, axis=0) <= 0).all()
    # Rounding up or down; more only where an earlier round may not have fewer.
    last = ALLOCATIONS[name](SHAPES, totals[-1])
    assert (abs(counts[-1] - last) < 1 + 1e-6).all()


def test_uniform_keeps_one_fraction():
    np.testing.assert_allclose(sj.uniform(SHAPES, 167), [72, 80, 15])


def test_erk_is_in_proportion_to_the_sum_of_the_dimensions():
    shares = sj.erk(SHAPES, 55)
    np.testing.assert_allclose(shares, 55 * np.array([16, 26, 13]) / 55)
    # The last layer is full; the others share the rest in their proportion.
    shares = sj.erk(SHAPES, 200)
    np.testing.assert_allclose(shares, [170 * 16 / 42, 170 * 26 / 42, 30])


def test_erk_counts_a_single_number_as_one_dimension():
    shapes = {"kernel": (2, 3), "scale": ()}
    np.testing.assert_allclose(sj.erk(shapes, 3), [2.5, 0.5])
    np.testing.assert_allclose(sj.erk(shapes, 7), [6, 1])


def test_balanced_keeps_one_number():
    np.testing.assert_allclose(sj.balanced(SHAPES, 60), [20, 20, 20])
    np.testing.assert_allclose(sj.balanced(SHAPES, 230), [100, 100, 30])


def test_densities_are_those_of_the_masks():
    allocation = sj.densities_of(masks_keeping([20, 3, 9]))
    np.testing.assert_allclose(allocation(SHAPES, 32), [20, 3, 9])
    np.testing.assert_allclose(allocation(SHAPES, 16), [10, 1.5, 4.5])
    np.testing.assert_allclose(allocation(SHAPES, SIZE), list(SIZES.values()))
    shares = allocation(SHAPES, 120)
    powers = np.log(shares / list(SIZES.values())) / np.log([20 / 144, 3 / 160, 9 / 30])
    np.testing.assert_allclose(powers, powers[0])


@pytest.mark.parametrize("rounds", [1, 7])
@pytest.mark.parametrize("name", ALLOCATIONS)
def test_prune_keeps_what_is_allocated(name, rounds):
    params, allocation = nets.draw(SHAPES), ALLOCATIONS[name]
    masks, info = sj.prune(
        sj.magnitude(),
        params,
        0.1,
        rounds=rounds,
        allocation=allocation,
        prunable=everything,
    )
    totals = [sj.num_kept(SIZE, d) for d in sj.exponential(0.1, rounds)]
    np.testing.assert_array_equal(info.kept, totals)
    want = integer_counts(allocation, SHAPES, totals)[-1]
    assert [int(m.sum()) for m in masks.values()] == want
    # The largest of each layer.
    for name, count in zip(SHAPES, want):
        sizes = np.abs(np.asarray(params[name]))
        if 0 < count < sizes.size:
            assert sizes[masks[name]].min() >= sizes[~masks[name]].max()


def test_densities_of_synflow_with_another_criterion_inside():
    """The paper's future work, and the control that Frankle et al. ask for."""

    def network(params, x):
        x = jax.nn.relu(x @ params["a"]["kernel"])
        return jax.nn.relu(x @ params["b"]["kernel"]) @ params["c"]["kernel"]

    shapes = {"a": (8, 30), "b": (30, 30), "c": (30, 4)}
    params = {name: {"kernel": w} for name, w in nets.draw(shapes).items()}
    found, _ = sj.prune(sj.synflow(network, (8,)), params, 0.05)
    inside, _ = sj.prune(
        sj.random(jax.random.key(0)), params, 0.05, allocation=sj.densities_of(found)
    )
    for name in shapes:
        first, second = (np.asarray(m[name]["kernel"]) for m in (found, inside))
        assert first.sum() == second.sum() and (first != second).any()


def test_leaves_that_are_not_prunable_take_no_part():
    params = nets.draw(SHAPES)
    masks, info = sj.prune(
        sj.magnitude(),
        params,
        0.5,
        rounds=1,
        allocation=sj.balanced,
        prunable=lambda path, leaf: path != "a",
    )
    assert masks["a"].all() and [int(masks[n].sum()) for n in "bc"] == [65, 30]


@pytest.mark.parametrize(
    ("allocation", "message"),
    [
        (lambda shapes, k: [k], r"3 prunable leaves.*\(1,\)"),
        (lambda shapes, k: [k, 0, 0], "`a`, which has 144 weights, 167"),
        (lambda shapes, k: [k + 1, -1, 0], "`a`|`b`"),
        (lambda shapes, k: [1, 1, 1], "asked to share out 167 weights.*sum to 3"),
        (lambda shapes, k: [float("nan")] * 3, "`a`.*nan"),
        (sj.densities_of({"a": np.ones((2, 2), bool)}), r"`a` the shape \(2, 2\)"),
        (sj.densities_of({"z": np.ones((2, 2), bool)}), "`a` the shape .no such leaf"),
    ],
)
def test_an_allocation_that_does_not_add_up_is_refused(allocation, message):
    with pytest.raises(ValueError, match=message):
        sj.prune(
            sj.magnitude(),
            nets.draw(SHAPES),
            0.5,
            rounds=1,
            allocation=allocation,
            prunable=everything,
        )


def test_no_leaf_gains_weights_from_round_to_round_whatever_the_allocation():
    def moved(shapes, k):  # 5 weights go to the second leaf, 4 to the first
        return [0, 5] if k == 5 else [4, 0]

    counts = integer_counts(moved, {"a": (6,), "b": (6,)}, [5, 4])
    assert counts == [[4, 1], [4, 0]]


def test_counts_that_rise_are_refused():
    with pytest.raises(ValueError, match="`totals` must not rise"):
        integer_counts(sj.uniform, SHAPES, [4, 5])
    with pytest.raises(ValueError, match="`schedule` must not rise"):
        sj.prune(
            sj.magnitude(),
            nets.draw(SHAPES),
            0.5,
            rounds=2,
            schedule=lambda density, rounds: np.array([0.2, density]),
            allocation=sj.uniform,
            prunable=everything,
        )


def test_a_scope_of_its_own_is_refused():
    with pytest.raises(ValueError, match="`scope`"):
        sj.prune(
            sj.magnitude(),
            nets.draw(SHAPES),
            0.5,
            scope="layer",
            allocation=sj.uniform,
            prunable=everything,
        )


def test_masks_must_be_boolean(no_typecheck):
    with pytest.raises(ValueError, match=r"masks\['a'\].*boolean"):
        sj.densities_of(nets.draw(SHAPES))


def test_masks_must_be_known_on_the_host():
    with pytest.raises(ValueError, match="`masks` are traced"):
        jax.jit(lambda masks: sj.densities_of(masks)(SHAPES, 3))(masks_keeping([1, 1, 1]))

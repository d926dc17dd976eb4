"""Exactly k, against the definition: a full stable sort."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from synflow_jax.selection import top_k
from synflow_jax.selection.groups import select_per_layer
from synflow_jax.selection.top_k import select
from synflow_jax.xla.backends import Backend
from tests import nets

# A few fixed trees: values are drawn freely, shapes are not, so that the suite compiles
# each shape once instead of once per example.
SHAPES = [
    {"w": (5,)},
    {"b": (4,), "w": (2, 3)},
    {"conv": (1, 2, 2), "none": (0,), "one": (), "wide": (40,)},
]
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, -1e-42, 3.4e38, -3.4e38]


def keep_top_by_sorting(scores, k, masks=None):
    """The definition, in Python: sort all (score, place) pairs, take k."""
    places = [(n, i) for n in sorted(scores) for i in range(scores[n].size)]
    if masks is not None:
        places = [(n, i) for n, i in places if masks[n].reshape(-1)[i]]

    def descending(place):
        score = float(scores[place[0]].reshape(-1)[place[1]])
        return (1, 0.0) if np.isnan(score) else (0, -score)

    kept = {n: np.zeros(scores[n].size, bool) for n in scores}
    for name, index in sorted(places, key=descending)[:k]:
        kept[name][index] = True
    return {n: kept[n].reshape(scores[n].shape) for n in scores}


@st.composite
def scored_trees(draw, elements):
    shapes = draw(st.sampled_from(SHAPES))
    arrays = {
        name: draw(hnp.arrays(np.float32, shape, elements=elements))
        for name, shape in shapes.items()
    }
    masks = {n: draw(hnp.arrays(bool, a.shape)) for n, a in arrays.items()}
    k = draw(st.integers(0, sum(a.size for a in arrays.values())))
    return arrays, masks, k


# Small integers make ties the rule; special values meet each other and ordinary ones.
few = st.integers(-2, 2).map(float)
special = st.sampled_from(SPECIAL) | st.floats(width=32)
keep = jax.jit(sj.keep_top)


@pytest.mark.parametrize("elements", [few, special], ids=["few", "special"])
def test_keep_top_agrees_with_sorting(elements):
    @hypothesis.given(scored_trees(elements))
    def check(drawn):
        scores, masks, k = drawn
        device = jax.tree.map(jnp.asarray, scores)
        for eligible in (None, masks):
            on_device = eligible and jax.tree.map(jnp.asarray, eligible)
            got = keep(device, jnp.int32(k), on_device)
            want = keep_top_by_sorting(scores, k, eligible)
            nets.assert_equal(got, want)

    check()


keep_near = jax.jit(lambda scores, k, near: select(scores, k, near=near).masks)


@hypothesis.given(scored_trees(special), special)
def test_where_the_threshold_is_expected_does_not_change_the_masks(drawn, near):
    scores, _, k = drawn
    device = jax.tree.map(jnp.asarray, scores)
    got = keep_near(device, jnp.int32(k), jnp.float32(near))
    nets.assert_equal(got, keep_top_by_sorting(scores, k))


def _large(name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 40, 50), "b": (300, 400), "c": (70_001,), "d": (7,)}
    draw = {
        "normal": lambda s: rng.standard_normal(s),
        "heavy": lambda s: rng.standard_normal(s) ** 9,
        "integers": lambda s: rng.integers(0, 4, s),
        "equal": lambda s: np.full(s, 2.5),
        "zero": lambda s: np.zeros(s),
        "mostly zero": lambda s: np.where(rng.random(s) < 0.999, 0, rng.random(s)),
    }[name]
    return {n: draw(s).astype(np.float32) for n, s in shapes.items()}


@pytest.mark.parametrize(
    "name", ["normal", "heavy", "integers", "equal", "zero", "mostly zero"]
)
def test_large_trees_agree_with_a_stable_sort(name):
    """Large enough for the sample to narrow the search and for counting in rows."""
    scores = _large(name)
    flat = np.concatenate([a.ravel() for a in scores.values()])
    order = np.argsort(-flat, kind="stable")
    device = jax.tree.map(jnp.asarray, scores)
    for k in (0, 1, 2, 77, flat.size // 100, flat.size // 2, flat.size - 1, flat.size):
        want = np.zeros(flat.size, bool)
        want[order[:k]] = True
        got = np.concatenate([np.ravel(m) for m in keep(device, jnp.int32(k)).values()])
        np.testing.assert_array_equal(got, want)


def test_one_compilation_serves_every_k():
    traces = 0

    @jax.jit
    def counted(scores, k):
        nonlocal traces
        traces += 1
        return sj.keep_top(scores, k)

    for k in range(4):
        counted({"w": jnp.arange(3.0)}, jnp.int32(k))
    assert traces == 1


def test_vmap_selects_in_each_tree_of_a_batch():
    rng = np.random.default_rng(0)
    scores = {"a": rng.integers(0, 3, (4, 30)), "b": rng.integers(0, 3, (4, 2, 5))}
    scores = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), scores)
    ks = jnp.array([0, 7, 30, 40])
    got = jax.jit(jax.vmap(sj.keep_top))(scores, ks)
    for i, k in enumerate(ks):
        one = keep(nets.element(scores, i), k)
        nets.assert_equal(nets.element(got, i), one)


def test_half_precision_scores_are_ranked():
    scores = {"w": jnp.array([0.5, 2.0, -1.0], jnp.bfloat16)}
    np.testing.assert_array_equal(sj.keep_top(scores, 1)["w"], [False, True, False])


def test_more_than_is_eligible_keeps_all_that_is():
    masks = {"w": jnp.array([True, False, True])}
    got = sj.keep_top({"w": jnp.array([1.0, 2.0, jnp.nan])}, 3, masks)
    np.testing.assert_array_equal(got["w"], masks["w"])


def test_minus_zero_is_zero():
    got = sj.keep_top({"w": jnp.array([-0.0, 0.0])}, 1)
    np.testing.assert_array_equal(got["w"], [True, False])


def test_minus_infinity_ranks_above_nan():
    scores = {"w": jnp.array([jnp.nan, -jnp.inf, jnp.nan])}
    for k, want in ((1, [False, True, False]), (2, [True, True, False])):
        np.testing.assert_array_equal(sj.keep_top(scores, k)["w"], want)


def test_k_is_an_integer(no_typecheck):
    with pytest.raises(ValueError, match="`k` must be an integer; got float 1.7"):
        sj.keep_top({"w": jnp.ones(3)}, 1.7)


def test_scores_of_numpy_are_scores_too():
    got = sj.keep_top({"w": np.array([0.1, 0.5])}, 1)
    np.testing.assert_array_equal(got["w"], [False, True])


@pytest.mark.parametrize("k", [-1, 4, jnp.int32(5)])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=f"between 0 and the 3 scores; got {k}"):
        sj.keep_top({"w": jnp.ones(3)}, k)


def test_integers_are_no_scores(no_typecheck):
    with pytest.raises(ValueError, match=r"scores\['w'\].*int32"):
        sj.keep_top({"w": jnp.arange(3)}, 1)


def test_a_leaf_that_is_too_long_to_count_is_refused(no_typecheck):
    huge = {"a": jax.ShapeDtypeStruct((2**32,), jnp.float32)}
    with pytest.raises(ValueError, match=r"`scores\['a'\]` has shape \(4294967296,\)"):
        jax.eval_shape(lambda s: sj.keep_top(s, 1), huge)


def test_trees_beyond_int32_are_traced(no_typecheck):
    for shape in ((2**30,), (2**31, 2)):
        large = [jax.ShapeDtypeStruct(shape, jnp.float32)] * 3
        masks = jax.eval_shape(sj.keep_top, large, jax.ShapeDtypeStruct((), jnp.uint32))
        assert [m.dtype for m in masks] == [jnp.bool_] * 3


def test_each_layer_keeps_its_own_count():
    scores = {"a": jnp.array([3.0, 1.0, 2.0]), "b": jnp.array([9.0, 8.0])}
    got = sj.keep_top_per_layer(scores, {"a": 2, "b": 0})
    np.testing.assert_array_equal(got["a"], [True, False, True])
    np.testing.assert_array_equal(got["b"], [False, False])
    masks = {"a": jnp.array([False, True, True]), "b": jnp.array([True, True])}
    got = sj.keep_top_per_layer(scores, {"a": 1, "b": 1}, masks)
    np.testing.assert_array_equal(got["a"], [False, False, True])
    np.testing.assert_array_equal(got["b"], [True, False])


def test_a_count_is_wanted_for_every_layer(no_typecheck):
    with pytest.raises(ValueError, match="one count for every leaf"):
        sj.keep_top_per_layer({"a": jnp.ones(2)}, [1])


def test_scores_that_are_not_finite_are_counted_where_they_could_be_kept():
    values = [jnp.nan, jnp.inf, -jnp.inf, 3.4e38, -3.4e38, 0.0, jnp.nan]
    scores = {"a": jnp.array(values), "b": jnp.full((3, 2), -jnp.inf)}
    masks = {"a": jnp.array([True] * 6 + [False]), "b": jnp.zeros((3, 2), bool)}
    ks = {"a": 1, "b": 1}

    @jax.jit
    def counted(scores, masks):
        found = select(scores, 2), select(scores, 2, masks)
        return [one.nonfinite for one in (*found, select_per_layer(scores, ks, masks))]

    assert [int(count) for count in counted(scores, masks)] == [4 + 6, 3, 3]


def test_the_total_of_what_is_removed_leaves_nan_out():
    scores = {"w": jnp.array([jnp.nan, 1.0, 2.0, jnp.nan])}
    removed = [float(select(scores, k).removed) for k in (0, 1, 2, 3, 4)]
    assert removed == [3.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("alive", [0.5, 0.01, 0.0])
def test_large_trees_with_little_left_agree_with_a_stable_sort(alive):
    """Most entries may not be kept, and many of the others tie."""
    rng = np.random.default_rng(0)
    scores = np.round(rng.standard_normal(60_000), 2).astype(np.float32)
    masks = rng.random(scores.size) < alive
    places = np.flatnonzero(masks)
    order = places[np.argsort(-scores[places], kind="stable")]
    for k in (0, 1, len(places) // 3, len(places), scores.size):
        got = keep({"w": jnp.asarray(scores)}, jnp.int32(k), {"w": jnp.asarray(masks)})
        np.testing.assert_array_equal(np.flatnonzero(got["w"]), np.sort(order[:k]))


@pytest.mark.parametrize("eligible", [False, True])
def test_large_leaves_among_small_ones_agree_with_a_stable_sort(eligible, monkeypatch):
    """Small leaves are concatenated if they come before, between and after large ones."""
    monkeypatch.setattr(top_k, "_LARGE", 2**16)
    monkeypatch.setattr(top_k, "_ENOUGH", 2**16)
    shapes = [(3, 2), (7,), (300, 220), (5,), (70_000,), (), (0,), (4, 4)]
    rng = np.random.default_rng(0)
    scores = [np.float32(np.round(rng.standard_normal(shape), 3)) for shape in shapes]
    flat = np.concatenate([np.ravel(s) for s in scores])
    order = np.argsort(-flat, kind="stable")
    masks = None
    if eligible:
        masks = [np.asarray(rng.random(shape) < 0.5) for shape in shapes]
        order = order[np.concatenate([np.ravel(m) for m in masks])[order]]
        masks = [jnp.asarray(m) for m in masks]
    for k in (0, 3, 1000, len(order) - 9, len(order), flat.size):
        got = keep([jnp.asarray(s) for s in scores], jnp.int32(k), masks)
        assert [mask.shape for mask in got] == shapes
        got = np.concatenate([np.ravel(mask) for mask in got])
        np.testing.assert_array_equal(got, np.isin(np.arange(flat.size), order[:k]))


def test_leaves_are_apart_if_all_of_their_size_are_worth_their_code():
    cpu, large = Backend(cpu=True, one_device=True), 2**18
    groups = functools.partial(top_k._leaf_groups, cpu)
    assert groups([9, large, 9]) == [slice(0, 3)]
    assert groups([large, 9, 9, large, large, large]) == [
        *(slice(0, 1), slice(1, 3), slice(3, 4), slice(4, 5), slice(5, 6))
    ]
    assert groups([9, 4 * large, 9, large]) == [slice(0, 1), slice(1, 2), slice(2, 4)]
    many = top_k._MANY
    assert len(groups([large] * many)) == many
    assert len(groups([2 * large + 1] * (many + 1))) == many + 1
    assert groups([2 * large] * (many + 1)) == [slice(0, many + 1)]


def test_a_small_leaf_more_makes_no_program_of_its_own():
    def lowered(leaves):
        return keep.lower([jnp.zeros((3, 3, 16, 16))] * leaves, jnp.int32(1))

    def length(leaves):
        return lowered(leaves).as_text().count("\n")

    # The loops over all leaves take hundreds of lines, the code of a single leaf takes few.
    assert length(100) - length(50) < 50 * 25
    if jax.default_backend() == "cpu":
        # Copied leaf by leaf, not entry by entry in a loop that also computes the scores.
        made = jax.jit(lambda parts, k: sj.keep_top(jax.tree.map(jnp.exp, parts), k))
        program = made.lower([jnp.zeros((3, 3, 16, 16))] * 5, jnp.int32(1)).compile()
        computations = program.as_text().split("\n}\n")
        copying = [text for text in computations if " concatenate(" in text]
        assert copying and not any(" exponential(" in text for text in copying)


def test_a_traced_k_beyond_the_scores_keeps_all():
    assert bool(keep({"w": jnp.arange(5.0)}, jnp.int32(7))["w"].all())
    assert not bool(keep({"w": jnp.arange(5.0)}, jnp.int32(-7))["w"].any())

"""Counts of two words: as Python's integers, with words so small that they overflow."""

import contextlib
import functools
import math
import random

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import synflow_jax as sj
from synflow_jax.selection import ties
from synflow_jax.selection.budget import within
from synflow_jax.selection.top_k import select
from synflow_jax.training import dynamic
from synflow_jax.xla import counts
from synflow_jax.xla.backends import Backend
from tests import nets


@pytest.fixture(scope="module", autouse=True)
def small_words():
    """Words of 16 bits, and places of 12; what was compiled before is forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "WORD", np.uint16)
        patch.setattr(ties, "_NUM_PLACES", 2**12)
        jax.clear_caches()
        yield
    jax.clear_caches()


SIZE = 2**20  # of a tree whose counts have two words
numbers = st.integers(0, 2**23 - 1)


@jax.jit
def calculated(one, other, both, number):
    high, low = counts.larger(one, other), counts.smaller(one, other)
    return {
        "sum": one + other,
        "difference": high - low,
        "compared": (one <= other, one > other, counts.equal(one, other)),
        "zero": counts.is_zero(one),
        "smaller": (low, counts.smallest(both)),
        "larger": (high, counts.largest(both)),
        "half": counts.halved(one),
        "float": counts.as_float(one),
        "of float": counts.from_float(counts.as_float(one), SIZE),
        "word": counts.in_one_word(one),
        "of number": counts.as_count(number, SIZE),
        "of small": counts.as_count(counts.Wide(one.high & 0xFF, one.low), 9),
    }


@hypothesis.given(numbers, numbers)
def test_counts_are_integers(a, b):
    one, other, both = (counts.as_count(n, SIZE) for n in (a, b, [a, b]))
    assert isinstance(one, counts.Wide) and one.low.dtype == np.uint16
    assert counts.on_host(one) == a and counts.on_host(both).tolist() == [a, b]
    got = jax.device_get(calculated(one, other, both, np.int32(a)))
    got = {
        name: tuple(int(counts.on_host(x)) for x in (xs if type(xs) is tuple else (xs,)))
        for name, xs in got.items()
    }
    assert got == {
        "sum": (a + b,),
        "difference": (abs(a - b),),
        "compared": (a <= b, a > b, a == b),
        "zero": (a == 0,),
        "smaller": (min(a, b),) * 2,
        "larger": (max(a, b),) * 2,
        "half": (a // 2,),
        "float": (a,),
        "of float": (a,),
        "word": (min(a, 2**16 - 1),),
        "of number": (a,),
        "of small": (a % 2**16,),
    }


# More entries than a word counts in two of the leaves, and in all others together.
SHAPES = {"a": (5, 70, 300), "b": (170, 390), "c": (40, 50, 30), "d": (7,)}


def scores_of(kind):
    rng = np.random.default_rng(0)
    draw = {
        "normal": lambda shape: rng.standard_normal(shape),
        "integers": lambda shape: rng.integers(0, 3, shape),
    }[kind]
    return {name: np.float32(draw(shape)) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("kind", ["normal", "integers"])
def test_exactly_k_are_kept_and_ties_go_in_order(kind):
    scores = scores_of(kind)
    flat = np.concatenate([a.ravel() for a in scores.values()])
    order = np.argsort(-flat, kind="stable")
    keep = jax.jit(lambda *args: select(*args).masks)
    for k in (0, 60_000, 65_536, 105_001, flat.size):
        want = np.isin(np.arange(flat.size), order[:k])
        got = keep(scores, counts.as_count(k, flat.size))
        got = np.concatenate([np.ravel(m) for m in got.values()])
        np.testing.assert_array_equal(got, want)


def test_a_budget_is_spent_exactly():
    scores = [a for a in scores_of("integers").values()]
    eligible = [np.ones(a.shape, bool) for a in scores]
    ascending = np.sort(np.concatenate([a.ravel() for a in scores]))
    one = Backend(cpu=True, one_device=True)
    affordable = jax.jit(functools.partial(within, one))
    for budget in (0, 70_000, 150_000, 10**6):
        removed = (np.cumsum(ascending) <= budget).sum()
        got = affordable(scores, eligible, jnp.float32(budget))
        assert counts.on_host(got.kept) == ascending.size - removed


# --- pruning ------------------------------------------------------------------------------


PARAMS = {
    name: {"kernel": kernel}
    for name, kernel in nets.draw(dict(a=(60, 900), b=(900, 90), c=(90, 3))).items()
}


def network(params, x):
    for name in "abc":
        x = jax.nn.relu(x @ params[name]["kernel"])
    return x


SCORE = sj.synflow(network, (60,))
CALLS = {
    "rounds": {},
    "letter": {"keep_connected": False},
    "layer": {"scope": "layer"},
    "patterns": {"allocation": {"b/*": 0.02}},
    "certified": {"schedule": sj.certified(0.5), "density": 0.1},
    "cuts": {"density": 2e-5, "rounds": 2},
    "again": {"masks": jax.tree.map(lambda p: np.asarray(p) > -1, PARAMS)},
    "reported": {"on_round": lambda info: None},
}


SHORT = ("cuts", "certified")


def prune(name):
    return sj.prune(SCORE, PARAMS, **({"density": 0.05, "rounds": 3} | CALLS[name]))


@contextlib.contextmanager
def words_of_32_bits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "WORD", np.uint32)
        patch.setattr(ties, "_NUM_PLACES", 2**32 - 2)
        jax.clear_caches()
        yield
    jax.clear_caches()


def assert_as_of_one_word(names):
    with words_of_32_bits():
        wanted = [prune(name) for name in names]
    for name, (want, of_want) in zip(names, wanted):
        masks, info = prune(name)
        nets.assert_equal(masks, want)
        assert info.kept.dtype == np.uint64, name
        assert info.kept.tolist() == of_want.kept.tolist(), name
        for got, other in zip(info[1:], of_want[1:]):
            np.testing.assert_allclose(got, other, rtol=1e-5)


def test_masks_and_reports_are_those_of_one_word():
    assert_as_of_one_word(SHORT)


@pytest.mark.long
def test_more_masks_and_reports_are_those_of_one_word():
    assert_as_of_one_word([name for name in CALLS if name not in SHORT])


@pytest.mark.long
def test_other_functions_count_so_too():
    masks = sj.prune(sj.magnitude(), PARAMS, 0.6, rounds=1)[0]
    size = sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    assert sj.count(masks) == sj.num_kept(size, 0.6) > 2**16
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(sj.count)(masks)
    state, info = sj.train_and_prune(lambda params, *_: params, PARAMS, 0.6, rounds=2)
    assert info.kept.tolist() == sj.counts_per_round(PARAMS, 0.6, 2).tolist()
    pruner = sj.iterative(sj.magnitude())
    state, _ = pruner.step(pruner.init(PARAMS), PARAMS, 80_000)
    assert sj.count(state.masks) == 80_000


# --- masks that change in training --------------------------------------------------------


@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(-1, 1))
def test_parts_of_counts_are_those_of_integers(seed, offset):
    draw = random.Random(seed)
    sizes = [draw.randrange(1, 2**23) for _ in range(32)]
    parts = [draw.randrange(2**64) for _ in sizes]
    # Of half of them the product is all but an integer, so that what is carried decides.
    for i in range(16):
        nearest = -(-(sizes[i] * parts[i] >> 64 << 64) // sizes[i])
        parts[i] = min(max(nearest + offset, 0), 2**64 - 1)
    words = np.array([divmod(part, 2**32) for part in parts], np.uint32)
    found = parts_of(counts.as_count(sizes, SIZE), words)
    assert found.low.dtype == np.uint16
    want = [size * part >> 64 for size, part in zip(sizes, parts)]
    assert counts.on_host(found).tolist() == want


parts_of = jax.jit(jax.vmap(dynamic._part_of))


def in_training(optimizer):
    """Masks after two updates by constant gradients."""
    state = optimizer.init(PARAMS)
    gradients = jax.tree.map(lambda p: jnp.sin(100 * p), PARAMS)
    update = jax.jit(optimizer.update)
    for _ in range(2):
        _, state = update(gradients, state, PARAMS)
    return sj.masks_of(state)


def test_masks_in_training_are_those_of_one_word():
    most = jax.tree.map(lambda p: np.asarray(p) > -1, PARAMS)
    made = (
        sj.gradual_pruning(optax.sgd(0.1), sj.magnitude(), 0.6, begin=2, end=2),
        sj.dynamic_sparsity(optax.sgd(0.1), most, sj.grow_by_gradient(), every=2, until=9),
    )
    with words_of_32_bits():
        wanted = [*map(in_training, made)]
    for optimizer, want in zip(made, wanted):
        nets.assert_equal(in_training(optimizer), want)


# --- shapes -------------------------------------------------------------------------------


def shapes_of(**shapes):
    return {n: {"kernel": jax.ShapeDtypeStruct(s, jnp.float32)} for n, s in shapes.items()}


def test_networks_of_any_size_are_traced(monkeypatch):
    monkeypatch.setattr(counts, "WORD", np.uint32)
    monkeypatch.setattr(ties, "_NUM_PLACES", 2**32 - 2)
    params = shapes_of(experts=(128, 8192, 28672), embed=(262_144, 8192), head=(99_999, 2))
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    kept = sj.counts_per_round(params, 0.5, 3)
    assert kept.dtype == np.uint64 and kept[-1] == sj.num_kept(size, 0.5) > 2**33
    for options in ({}, {"scope": "layer"}):
        masks, info = jax.eval_shape(
            lambda p, o=options: sj.prune(sj.magnitude(), p, 0.5, rounds=3, **o), params
        )
        assert [m.shape for m in jax.tree.leaves(masks)] == [
            p.shape for p in jax.tree.leaves(params)
        ]
        assert isinstance(info.kept, counts.Wide) and info.kept.low.shape == (3,)
    optimizer = sj.gradual_pruning(optax.sgd(0.1), sj.magnitude(), 0.5, begin=1, end=3)
    state = jax.eval_shape(optimizer.init, params)
    assert isinstance(state.counts, counts.Wide) and state.counts.low.shape == (3,)
    jax.eval_shape(optimizer.update, params, state, params)
    with pytest.raises(ValueError, match=r"scores\['kernel'\]` has shape \(8589934592,\)"):
        jax.eval_shape(
            lambda s: sj.keep_top(s, 3),
            {"kernel": jax.ShapeDtypeStruct((2**33,), "float32")},
        )

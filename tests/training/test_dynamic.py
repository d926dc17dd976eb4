"""Dynamic sparsity against its definition, and what only it promises."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import synflow_jax as sj
from synflow_jax.training import dynamic
from tests import nets

pytestmark = pytest.mark.usefixtures("standard_promotion")

SHAPES = {"a": (4, 5), "b": (5, 3)}
SIZE, LAST = 35, 7
PARAMS = {name: {"kernel": leaf} for name, leaf in nets.draw(SHAPES).items()}


def masks_from(seed, share=0.5):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.random(p.shape) < share), PARAMS)


MASKS = masks_from(0)
KEPT = [int(m.sum()) for m in jax.tree.leaves(MASKS)]
RIGL = sj.grow_by_gradient()


def made(grow=RIGL, optimizer=optax.sgd(1.0), masks=MASKS, **options):
    options = {"every": 2, "until": LAST, "fraction": 0.6} | options
    return sj.dynamic_sparsity(optimizer, masks, grow, **options)


# --- how many -----------------------------------------------------------------------------

# 0.15 * (1 + cos(pi * t / 1000)) is 0.256066, 0.15 and 0.043934 at 250, 500 and 750; with
# 0.5 in the place of 0.15 it is 0.853553, 0.5 and 0.146447.
BY_HAND = {
    (0.3, 10): [2, 1, 0],
    (0.3, 100): [25, 15, 4],
    (0.3, 23_520): [6022, 3528, 1033],
    (1.0, 8): [6, 4, 1],
    (1.0, 1_000_000): [853_553, 500_000, 146_446],
}


@pytest.mark.parametrize(("fraction", "size"), BY_HAND)
def test_drop_counts_are_those_of_rigl_with_a_cosine(fraction, size):
    """Evci et al. 2020: f(t) = alpha / 2 * (1 + cos(pi * t / T_end)) of the weights kept,
    truncated as in their code."""
    options = {"fraction": fraction, "every": 250, "until": 1000}
    state = made(**options).init(PARAMS)
    assert state.steps.tolist() == [250, 500, 750]
    counts = [dynamic._part_of(jnp.uint32(size), p).item() for p in state.portions]
    assert counts == BY_HAND[fraction, size]


def test_without_annealing_the_count_is_that_of_set():
    """Mocanu et al. 2018 drop 30 % of the connections: of 10, 23 and 1000 these."""
    portion = jnp.asarray(dynamic._portions(np.array([0.3]))[0])
    sizes = jnp.array([10, 23, 1000], jnp.uint32)
    counts = jax.vmap(dynamic._part_of, (0, None))(sizes, portion)
    assert counts.tolist() == [3, 6, 300]


part_of = jax.jit(dynamic._part_of)


@hypothesis.given(st.integers(0, 2**32 - 1), st.floats(0, 1, exclude_max=True))
def test_the_count_on_the_device_is_that_of_the_rounding_rule(size, fraction):
    portion = dynamic._portions(np.array([fraction]))[0]
    got = int(part_of(jnp.uint32(size), jnp.asarray(portion)))
    assert got == size - sj.num_kept(size, 1.0 - fraction)


# --- against the definition ---------------------------------------------------------------


def by_definition(params, gradients, masks):
    """SGD of step size 1; every second update before `LAST` drops and grows instead."""
    w = {n: np.array(p["kernel"], np.float64).ravel() for n, p in params.items()}
    alive = {n: np.array(m["kernel"]).ravel() for n, m in masks.items()}
    history = []
    for update, grads in enumerate(gradients, 1):
        moves = update % 2 == 0 and update < LAST
        fraction = 0.3 * (1 + math.cos(math.pi * update / LAST))
        for name in w:
            g, old = grads[name].ravel(), alive[name]
            if not moves:
                w[name] = np.where(old, w[name] - g, 0)
                continue
            kept = int(old.sum())
            number = math.floor(fraction * kept)
            best = sorted(np.flatnonzero(old), key=lambda i, n=name: -abs(w[n][i]))
            stay = np.isin(np.arange(g.size), best[: kept - number])
            grown = sorted(np.flatnonzero(~stay), key=lambda i, g=g: -abs(g[i]))[:number]
            alive[name] = stay | np.isin(np.arange(g.size), grown)
            w[name] = np.where(alive[name] & old, w[name], 0)
        history.append({n: (w[n], alive[n]) for n in w})
    return history


optimizer = made()


@jax.jit
def run(params, state, gradients):
    def step(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state.masks)

    return jax.lax.scan(step, (params, state), gradients)


@hypothesis.given(st.integers(0, 10**6))
@hypothesis.settings(max_examples=15)
def test_training_is_the_definition(seed):
    """Small integers, so that ties are the rule and nothing is rounded."""
    rng = np.random.default_rng(seed)
    masks = masks_from(seed, rng.random())
    draw = lambda lead: {  # noqa: E731
        n: {"kernel": jnp.asarray(rng.integers(-2, 3, (*lead, *s)), jnp.float32)}
        for n, s in SHAPES.items()
    }
    params, gradients = sj.apply_masks(draw(()), masks), draw((LAST,))
    state = sj.replace_masks(START, masks)
    (_, state), history = run(params, state, gradients)
    each = [
        {n: np.asarray(g["kernel"][i]) for n, g in gradients.items()} for i in range(LAST)
    ]
    for i, want in enumerate(by_definition(params, each, masks)):
        for name, (w, alive) in want.items():
            got, mask = (np.asarray(tree[name]["kernel"][i]).ravel() for tree in history)
            np.testing.assert_array_equal(got, w)
            np.testing.assert_array_equal(mask, alive)
    assert run._cache_size() == 1


START = optimizer.init(PARAMS)


# --- the step that drops and grows --------------------------------------------------------


def moved(optimizer, updates=2, gradients=None, masks=MASKS):
    """(params, state) before and after each update."""
    params = sj.apply_masks(PARAMS, masks)
    seen = [(params, optimizer.init(params))]
    for i in range(updates):
        params, state = seen[-1]
        grads = {n: {"kernel": g} for n, g in nets.draw(SHAPES, 10 + i).items()}
        changes, state = optimizer.update(
            grads if gradients is None else gradients, state, params
        )
        seen.append((optax.apply_updates(params, changes), state))
    return seen


def test_the_gradient_step_is_left_out_and_new_weights_and_moments_are_zero():
    optimizer = made(optimizer=optax.adamw(0.1))
    seen = moved(optimizer, 3)
    (params, state), (after, new) = seen[1], seen[2]
    adam, moments = state.inner[0], new.inner[0]
    assert int(adam.count) == int(moments.count) == 1
    for name in SHAPES:
        old, mask = state.masks[name]["kernel"], new.masks[name]["kernel"]
        assert bool((old & ~mask).any()) and int(old.sum()) == int(mask.sum())
        stay = old & mask
        for got, before in (
            (after, params),
            (moments.mu, adam.mu),
            (moments.nu, adam.nu),
        ):
            want = jnp.where(stay, before[name]["kernel"], 0)
            np.testing.assert_array_equal(got[name]["kernel"], want)
    # What came learns from the next update on.
    last, final = seen[3]
    for leaf, mask in zip(jax.tree.leaves(last), jax.tree.leaves(final.masks)):
        np.testing.assert_array_equal(leaf != 0, mask)


def test_grown_weights_start_at_zero_even_where_the_parameters_were_not_masked():
    optimizer = made(every=1)
    updates, state = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    after = optax.apply_updates(PARAMS, updates)
    for name in SHAPES:
        stay = MASKS[name]["kernel"] & state.masks[name]["kernel"]
        assert bool((state.masks[name]["kernel"] & ~stay).any())
        want = jnp.where(stay, PARAMS[name]["kernel"], 0)
        np.testing.assert_array_equal(after[name]["kernel"], want)


def test_statistics_of_rows_stay_and_accumulated_gradients_of_what_left_go():
    inner = optax.adafactor(0.1, min_dim_size_to_factor=2)
    (_, before), (_, after) = moved(made(optimizer=inner), 2)[1:]
    rows = [x for x in jax.tree.leaves(before.inner) if x.shape in ((4,), (5,))]
    assert rows
    nets.assert_equal(
        [x for x in jax.tree.leaves(after.inner) if x.shape in ((4,), (5,))], rows
    )
    seen = moved(made(optimizer=optax.MultiSteps(optax.sgd(0.1), 3)), 2)
    (_, before), (_, after) = seen[1:]
    for name in SHAPES:
        stay = before.masks[name]["kernel"] & after.masks[name]["kernel"]
        was = before.inner.acc_grads[name]["kernel"]
        got = after.inner.acc_grads[name]["kernel"]
        np.testing.assert_array_equal(got, jnp.where(stay, was, 0))
    assert int(after.inner.mini_step) == 1  # the second update accumulated nothing


@pytest.mark.parametrize("start", ["synflow", "erk"])
def test_it_starts_from_any_masks(start):
    score = {
        "synflow": lambda: sj.synflow(
            lambda p, x: x @ p["a"]["kernel"] @ p["b"]["kernel"], (4,)
        ),
        "erk": lambda: sj.random(jax.random.key(0)),
    }[start]()
    allocation = sj.erk if start == "erk" else None
    masks, _ = sj.prune(score, PARAMS, 0.5, rounds=1, allocation=allocation)
    (_, state), *_, (_, last) = moved(made(masks=masks), 6, masks=masks)
    assert sum(int(m.sum()) for m in jax.tree.leaves(masks)) == 18
    counts = [int(m.sum()) for m in jax.tree.leaves(masks)]
    assert [int(m.sum()) for m in jax.tree.leaves(last.masks)] == counts
    assert any(
        bool((a != b).any()) for a, b in zip(*map(jax.tree.leaves, (masks, last.masks)))
    )


def test_leaves_of_one_shape_are_moved_each_by_itself():
    """They share code, and neither counts nor scores."""
    params = {n: {"kernel": p} for n, p in nets.draw(dict.fromkeys("abc", (4, 5))).items()}
    masks = {
        n: {"kernel": MASKS["a"]["kernel"].ravel()[::s].reshape(4, 5)}
        for n, s in zip("abc", (1, -1, 1))
    }
    masks["c"]["kernel"] = masks["c"]["kernel"].at[0].set(True)

    def moved_by(names):
        own, start = ({n: tree[n] for n in names} for tree in (params, masks))
        optimizer = made(every=1, masks=start)
        return optimizer.update(own, optimizer.init(own), own)[1].masks

    together = moved_by("abc")
    for name in "abc":
        nets.assert_equal(together[name], moved_by(name)[name])
        assert bool((together[name]["kernel"] != masks[name]["kernel"]).any())


def test_leaves_that_are_not_prunable_keep_their_masks():
    optimizer = made(prunable=sj.matching("a/*"))
    (_, state), (_, new) = moved(optimizer, 2)[1:]
    nets.assert_equal(state.masks["b"], new.masks["b"])
    assert bool((state.masks["a"]["kernel"] != new.masks["a"]["kernel"]).any())


def test_weights_grown_at_random_depend_on_the_key_and_the_update():
    params = {"kernel": jnp.ones((20, 50))}
    masks = {"kernel": jnp.arange(1000).reshape(20, 50) < 500}
    options = {"fraction": 1.0, "every": 1, "until": 1000}

    def grown(key, updates=1):
        optimizer = sj.dynamic_sparsity(
            optax.sgd(0.1), masks, sj.grow_at_random(), key=jax.random.key(key), **options
        )
        state = optimizer.init(params)
        for _ in range(updates):
            _, state = optimizer.update(params, state, params)
        return np.asarray(state.masks["kernel"]).ravel()

    first, other, second = grown(0), grown(1), grown(0, 2)
    # Nearly all go, so half of those that come lie in each half: 250 +- 4 * 8.
    for places in (first, other):
        assert places.sum() == 500 and 218 <= places[:500].sum() <= 282
    assert (first != other).sum() > 300 and (first != second).sum() > 300


# --- errors -------------------------------------------------------------------------------

WRONG = {
    "fraction": ({"fraction": 0.0}, r"`fraction` is in \(0, 1\]"),
    "array": ({"fraction": jnp.float32(0.3)}, "`fraction` is an array of JAX"),
    "every": ({"every": 0}, "`every` counts updates"),
    "until": ({"until": 2}, "`every` is 2 and `until` 2: no update would"),
    "key": ({"key": 3}, "`key` must be a single typed key"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_out_of_range_are_refused_at_once(name, no_typecheck):
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_what_does_not_fit_is_refused_by_init(no_typecheck):
    with pytest.raises(ValueError, match="`grow_at_random` needs a `key`"):
        made(sj.grow_at_random()).init(PARAMS)
    with pytest.raises(ValueError, match=r"`masks\['a'\]\['kernel'\]` has shape \(2,\)"):
        made(masks=MASKS | {"a": {"kernel": jnp.ones(2, bool)}}).init(PARAMS)
    with pytest.raises(ValueError, match=r"`grow\(...\)` must have the structure"):
        made(lambda params, masks, grads, key: grads["a"]).init(PARAMS)
    with pytest.raises(ValueError, match=r"`drop\(...\)` must have the structure"):
        made(drop=lambda params, masks: params["a"]).init(PARAMS)
    with pytest.raises(ValueError, match="needs the parameters"):
        made().update(PARAMS, START)

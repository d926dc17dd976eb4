"""Gradual pruning against its definition, and what only it promises."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import synflow_jax as sj
from tests import nets

pytestmark = pytest.mark.usefixtures("standard_promotion")

SHAPES = {"a": (4, 5), "b": (5, 3)}
SIZE = 35
LAST = 9  # the updates of a run


def kernels(tree):
    return {name: {"kernel": leaf} for name, leaf in tree.items()}


PARAMS = kernels(nets.draw(SHAPES))
SGD = optax.sgd(1.0)


def made(score_fn=sj.magnitude(), density=0.2, optimizer=SGD, **times):
    times = {"begin": 1, "end": LAST, "every": 1} | times
    return sj.gradual_pruning(optimizer, score_fn, density, **times)


def kept(masks):
    return int(sj.count(masks))


# --- when, and how many -------------------------------------------------------------------


def test_counts_are_those_of_the_formula_of_zhu_and_gupta():
    """Their equation 1 by hand, for 90 % sparsity in n = 4 steps: 1000 * (0.1 + 0.9 * x**3)
    with x = 3/4, 1/2, 1/4, 0."""
    params = {"kernel": jnp.ones((10, 100))}
    state = made(density=0.1, begin=200, end=500, every=100).init(params)
    assert state.steps.tolist() == [200, 300, 400, 500]
    assert state.counts.tolist() == [480, 213, 115, 100]


def test_the_last_step_at_or_before_the_end_reaches_the_density():
    state = made(density=0.2, begin=2, end=9, every=3).init(PARAMS)
    assert state.steps.tolist() == [2, 5, 8] and state.counts[-1] == 7
    state = made(density=0.2, begin=4, end=4).init(PARAMS)
    assert state.steps.tolist() == [4] and state.counts.tolist() == [7]


def test_periodic_steps_of_one_size_are_a_schedule():
    halved = lambda density, rounds: np.maximum(0.5 ** np.arange(1, rounds + 1), density)  # noqa: E731
    state = made(density=0.125, begin=1, end=9, every=2, schedule=halved).init(PARAMS)
    assert state.counts.tolist() == [18, 9, 5, 5, 5]


def test_allocations_and_scopes_are_those_of_prune():
    for options in (
        {"scope": "layer"},
        {"allocation": sj.erk},
        {"allocation": {"a/*": 1.0}},
    ):
        options = {"density": 0.6} | options
        state = made(**options, end=3).init(PARAMS)
        want = sj.counts_per_round(PARAMS, rounds=3, schedule=sj.cubic, **options)
        np.testing.assert_array_equal(state.counts, want)
    optimizer = made(density=0.6, allocation={"a/*": 1.0}, begin=1, end=1)
    _, state = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    assert bool(state.masks["a"]["kernel"].all()) and kept(state.masks) == 21


# --- against the definition ---------------------------------------------------------------


def by_definition(params, gradients, begin, end, every, density):
    """SGD of step size 1 on kept weights; then, of those, the k largest stay."""
    w = np.concatenate([np.ravel(p["kernel"]) for p in params.values()])
    alive, done = np.ones(SIZE, bool), []
    steps = list(range(begin, end + 1, every))
    counts = [sj.num_kept(SIZE, d) for d in sj.cubic(density, len(steps))]
    for update, g in enumerate(gradients, 1):
        w = w - g * alive
        if update in steps:
            k = counts[steps.index(update)]
            order = sorted(np.flatnonzero(alive), key=lambda i: -abs(w[i]))
            alive = np.isin(np.arange(SIZE), order[:k])
            w = w * alive
        done.append(w)
    return np.array(done)


optimizer = made()


@jax.jit
def run(params, state, gradients):
    def step(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    (_, state), history = jax.lax.scan(step, (params, state), gradients)
    return state, history


integers = st.integers(-2, 2)


@hypothesis.given(
    st.lists(
        st.lists(integers, min_size=SIZE, max_size=SIZE), min_size=LAST, max_size=LAST
    ),
    st.integers(1, LAST),
    st.integers(0, LAST),
    st.integers(1, SIZE),
)
@hypothesis.settings(max_examples=20)
def test_training_is_the_definition(gradients, begin, more, k):
    """Weights and gradients are small integers, so that ties are the rule and nothing is
    rounded; another schedule is another state of the same compiled program."""
    weights = np.arange(SIZE) % 5 - 2.0
    ends = np.cumsum([np.prod(s) for s in SHAPES.values()])

    def tree(flat):
        parts = np.split(flat, ends[:-1], axis=-1)
        lead = flat.shape[:-1]
        leaves = [p.reshape(*lead, *s) for p, s in zip(parts, SHAPES.values())]
        return kernels(dict(zip(SHAPES, [jnp.asarray(x, jnp.float32) for x in leaves])))

    end = min(begin + more, LAST)
    params, grads = tree(weights), np.array(gradients, np.float64)
    state = sj.replace_schedule(START, density=k / SIZE, begin=begin, end=end)
    state, history = run(params, state, tree(grads))
    want = by_definition(params, grads, begin, end, 1, k / SIZE)
    got = np.concatenate(
        [np.reshape(h["kernel"], (LAST, -1)) for h in history.values()], axis=1
    )
    np.testing.assert_array_equal(got, want)
    assert kept(sj.masks_of(state)) == k and run._cache_size() == 1


START = optimizer.init(PARAMS)


# --- exactly zero -------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["float32", "bfloat16"])
@pytest.mark.parametrize("param", ["float32", "bfloat16"])
def test_pruned_weights_are_exactly_zero_in_every_precision(param, update):
    """In two steps of one program too, where XLA may keep the first step's parameters in
    more precision than their type has."""
    optimizer = made(density=0.3, end=2, optimizer=optax.sgd(0.1))
    params = jax.tree.map(lambda p: p.astype(param), PARAMS)
    grads = [kernels(nets.draw(SHAPES, seed)) for seed in (1, 2)]
    grads = jax.tree.map(lambda g: g.astype(update), grads)

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        wanted = {jnp.promote_types(param, update)}
        assert {u.dtype for u in jax.tree.leaves(updates)} == wanted
        return optax.apply_updates(params, updates), state

    @jax.jit
    def twice(params, state, grads):
        first = step(params, state, grads[0])
        return first, step(*first, grads[1])

    for params, state in twice(params, optimizer.init(params), grads):
        for leaf, mask in zip(jax.tree.leaves(params), jax.tree.leaves(state.masks)):
            assert leaf.dtype == jnp.dtype(param)
            np.testing.assert_array_equal(leaf != 0, mask)
    assert kept(state.masks) == sj.num_kept(SIZE, 0.3)


def test_masks_in_one_step_are_those_of_jaxpruner_where_its_counts_are_integers():
    """Its definition: of each leaf the round(size * (1 - sparsity)) largest by a stable
    argsort, so that of equal weights the first stay. docs/from_jaxpruner.md."""
    params = jax.tree.map(jnp.round, PARAMS)  # many are equal
    optimizer = made(density=0.4, scope="layer", end=1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = optimizer.update(zeros, optimizer.init(params), params)
    for name in SHAPES:
        w = np.asarray(params[name]["kernel"])
        order = np.argsort(-np.abs(w).ravel(), kind="stable")
        want = np.zeros(w.size, bool)
        want[order[: round(w.size * 0.4)]] = True
        np.testing.assert_array_equal(state.masks[name]["kernel"], want.reshape(w.shape))


def test_infinite_and_nan_weights_become_nan_when_they_go():
    """Adding cannot make them zero. An infinite weight is the last to go, NaN the first."""
    params = {"kernel": jnp.array([[jnp.inf, jnp.nan, 2.0, 1.0]])}
    optimizer, zeros = made(density=0.5, end=1), {"kernel": jnp.zeros((1, 4))}
    updates, state = optimizer.update(zeros, optimizer.init(params), params)
    assert state.masks["kernel"].tolist() == [[True, False, True, False]]
    after = optax.apply_updates(params, updates)["kernel"]
    np.testing.assert_array_equal(after, [[jnp.inf, jnp.nan, 2.0, 0.0]])


def test_weights_that_were_not_masked_are_zero_after_the_first_update():
    masks = kernels(
        {
            n: jnp.asarray(np.arange(np.prod(s)).reshape(s) % 2 == 0)
            for n, s in SHAPES.items()
        }
    )
    optimizer = made(density=0.2, begin=5, masks=masks)
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    after = optax.apply_updates(kernels(nets.draw(SHAPES)), updates)
    assert all(
        bool((a[~m] == 0).all()) for a, m in zip(*map(jax.tree.leaves, (after, masks)))
    )


# --- criteria -----------------------------------------------------------------------------


def network(params, x):
    return jax.nn.relu(x @ params["a"]["kernel"]) @ params["b"]["kernel"]


def after(optimizer, updates, gradients=None):
    """The state after some updates of weights that stay."""
    gradients = jax.tree.map(jnp.zeros_like, PARAMS) if gradients is None else gradients
    state = optimizer.init(PARAMS)
    params = PARAMS
    for _ in range(updates):
        steps, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, steps)
    return state


@pytest.mark.parametrize("name", ["synflow", "random"])
def test_each_step_is_a_round_of_prune(name):
    """Of a network whose weights do not train."""
    score = {
        "synflow": lambda: sj.synflow(network, (4,)),
        "random": lambda: sj.random(jax.random.key(7)),
    }[name]()
    options = {"schedule": sj.exponential}
    state = after(made(score, 0.3, begin=2, end=4, **options), 4)
    masks, _ = sj.prune(score, PARAMS, 0.3, rounds=3, keep_connected=False, **options)
    nets.assert_equal(sj.masks_of(state), masks)


def test_the_criterion_sees_the_parameters_after_the_update():
    """The weight that the step makes small goes."""
    params = {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
    grads = {"kernel": jnp.array([[0.0, 0.0, 0.0, 4.0]])}
    optimizer = made(density=0.75, end=1)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    assert state.masks["kernel"].tolist() == [[True, True, True, False]]


def test_a_gradient_criterion_sees_all_gradients_and_the_parameters_before():
    seen = []

    def fn(params, masks, grads):
        seen.append((params, masks, grads))
        return jax.tree.map(lambda p, g: jnp.abs(p * g), params, grads)

    optimizer = made(sj.gradient_criterion(fn), 0.5, begin=1, end=2, schedule=sj.linear)
    params = {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
    grads = {"kernel": jnp.array([[4.0, 3.0, 1.0, 3.0]])}
    state = optimizer.init(params)
    updates, state = optimizer.update(grads, state, params)
    assert state.averages is None
    assert state.masks["kernel"].tolist() == [[True, True, False, True]]
    params = optax.apply_updates(params, updates)
    _, state = optimizer.update(grads, state, params)
    assert state.masks["kernel"].tolist() == [[True, True, False, False]]
    nets.assert_equal(seen[-1][0]["kernel"], jnp.array([[-3.0, -1.0, 0.0, 1.0]]))
    nets.assert_equal(seen[-1][2], grads)


def test_an_average_of_scores_goes_on_between_pruning_steps():
    """Weight times gradient is 8, 1 in the first update and 1, 2 in the second."""
    params = {"kernel": jnp.array([[1.0, 1.0]])}
    grads = [{"kernel": jnp.array([[8.0, 1.0]])}, {"kernel": jnp.array([[1.0, 2.0]])}]
    still = optax.set_to_zero()
    for decay, stays in ((0.5, 0), (0.0, 1)):
        score = sj.weight_times_gradient(decay)
        optimizer = made(score, 0.5, begin=2, end=2, optimizer=still)
        state = optimizer.init(params)
        for each in grads:
            _, state = optimizer.update(each, state, params)
        assert state.masks["kernel"].tolist() == [[stays == 0, stays == 1]]
        if decay:  # 0.5 * (0.5 * 8) + 0.5 * 1, and so on
            np.testing.assert_array_equal(state.averages["kernel"], [[2.5, 1.25]])


def test_scores_of_ones_own_are_checked_before_training(no_typecheck):
    with pytest.raises(ValueError, match=r"`scores\['a'\]\['kernel'\]` has shape \(\)"):
        made(lambda params, masks: jax.tree.map(jnp.sum, params)).init(PARAMS)
    wrong = sj.gradient_criterion(lambda params, masks, grads: grads["a"], decay=0.5)
    with pytest.raises(ValueError, match="`scores` must have the structure"):
        made(wrong).init(PARAMS)
    with pytest.raises(ValueError, match="give it to `gradual_pruning`"):
        sj.prune(sj.weight_times_gradient(), PARAMS, 0.5)


# --- replace_schedule ---------------------------------------------------------------------


def test_a_new_schedule_is_that_of_another_transformation():
    state = made(density=0.3, begin=2, end=8, every=2).init(PARAMS)
    for new in ({"density": 0.11}, {"begin": 4}, {"end": 5}, {"end": 12, "density": 0.01}):
        state = sj.replace_schedule(state, **new)
        asked = {"density": 0.11, "begin": 2, "end": 8} | new
        if "density" not in new or len(new) > 1:
            asked = CHAIN[str(new)]
        want = made(**asked, every=2).init(PARAMS)
        rounds = len(want.steps)
        np.testing.assert_array_equal(state.steps[:rounds], want.steps)
        np.testing.assert_array_equal(state.counts[:rounds], want.counts)
        assert (np.asarray(state.steps[rounds:]) == 2**31 - 1).all()
        assert len(state.steps) >= 4
        nets.assert_equal(state.asked, want.asked)


# What is asked for after each replacement in turn.
CHAIN = {
    "{'begin': 4}": {"density": 0.11, "begin": 4, "end": 8},
    "{'end': 5}": {"density": 0.11, "begin": 4, "end": 5},
    "{'end': 12, 'density': 0.01}": {"density": 0.01, "begin": 4, "end": 12},
}


def test_a_schedule_is_replaced_wherever_it_is_nested_and_inside_jit():
    inner = made(density=0.3, end=4)
    for around in (
        optax.chain(inner),
        optax.MultiSteps(inner, 2),
        optax.apply_if_finite(inner, 3),
    ):
        state = sj.replace_schedule(around.init(PARAMS), density=0.1)
        found = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.uint32]
        assert any(leaf.shape == (4,) and int(leaf[-1]) == 4 for leaf in found)
    whole = jax.jit(functools.partial(sj.replace_schedule, density=0.1, begin=1, end=4))
    assert int(whole(inner.init(PARAMS)).counts[-1]) == 4


def test_a_schedule_that_cannot_be_replaced_is_an_error():
    state = made().init(PARAMS)
    with pytest.raises(ValueError, match="`opt_state` holds no schedule"):
        sj.replace_schedule(SGD.init(PARAMS), density=0.1)
    with pytest.raises(ValueError, match="`density` of the state is traced"):
        jax.jit(functools.partial(sj.replace_schedule, begin=1, end=1))(state)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    with pytest.raises(ValueError, match="batch of states"):
        sj.replace_schedule(two, density=0.1)
    with pytest.raises(ValueError, match="`begin` is 9 and `end` 2"):
        sj.replace_schedule(state, begin=9, end=2)


# --- errors -------------------------------------------------------------------------------

WRONG = {
    "begin after end": ({"begin": 5, "end": 4}, "`begin` is 5 and `end` 4"),
    "every": ({"every": 0}, "`every` counts updates.*got 0"),
    "begin": ({"begin": 0}, "`begin` counts updates.*got 0"),
    "end": ({"end": 2.5}, r"`end` counts updates.*got 2\.5"),
    "density": ({"density": 0}, "`density` is the fraction kept"),
    "array": ({"density": jnp.float32(0.1)}, "`density` is an array of JAX.*static_args"),
    "scope": ({"scope": "leaf"}, '`scope` is "global" or "layer"'),
    "score_fn": ({"score_fn": "magnitude"}, "`score_fn` is a criterion"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_out_of_range_are_refused_at_once(name, no_typecheck):
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_what_does_not_fit_the_parameters_is_refused_by_init(no_typecheck):
    few = jax.tree.map(lambda p: jnp.zeros(p.shape, bool), PARAMS)
    with pytest.raises(ValueError, match="`density` is 0.2.*`masks` keep only 0"):
        made(masks=few).init(PARAMS)
    rising = lambda density, rounds: np.array([0.5, 0.6, density])  # noqa: E731
    with pytest.raises(ValueError, match="`schedule` must not rise"):
        made(schedule=rising, end=3).init(PARAMS)
    with pytest.raises(ValueError, match="`prunable` chose no leaf"):
        made().init({"bias": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"`masks\['a'\]\['kernel'\]` has shape \(2,\)"):
        made(masks=PARAMS | {"a": {"kernel": jnp.ones(2, bool)}}).init(PARAMS)
    with pytest.raises(ValueError, match="needs the parameters"):
        made().update(PARAMS, START)
    with pytest.raises(ValueError, match="`decay` is in"):
        sj.gradient_criterion(lambda *_: None, decay=1.0)
    with pytest.raises(ValueError, match="`fn` is a function"):
        sj.gradient_criterion(3)


@pytest.mark.parametrize("static", [(), ("density", "begin", "end", "every")])
def test_injected_hyperparameters_must_name_the_schedule_as_static(static, no_typecheck):
    def factory(learning_rate, density, begin, end, every):
        times = {"begin": begin, "end": end, "every": every}
        return made(density=density, optimizer=optax.sgd(learning_rate), **times)

    injected = optax.inject_hyperparams(factory, static_args=static)
    optimizer = injected(0.5, density=0.2, begin=1, end=2, every=1)
    if not static:
        with pytest.raises(ValueError, match="`density` is an array of JAX.*`static_args`"):
            optimizer.init(PARAMS)
        return
    state = after(optimizer, 2)
    assert kept(sj.masks_of(state)) == 7 and state.hyperparams["learning_rate"] == 0.5

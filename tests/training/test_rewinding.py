"""Rounds of training: exact counts, weights rewound bit for bit, runs taken up again."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import synflow_jax as sj
from tests import nets

SHAPES = {
    "a": {"kernel": (6, 20), "bias": (20,)},
    "b": {"kernel": (20, 20), "scale": (20,)},
    "c": {"kernel": (20, 3)},
}
SIZES = [120, 400, 60]


def params_of(seed=0):
    return {layer: nets.draw(shapes, seed) for layer, shapes in SHAPES.items()}


def restless(params, masks, round):
    """A training that leaves nothing where it was: every round draws new weights."""
    drawn = params_of(seed=100 + round)
    return sj.apply_masks(jax.tree.map(lambda p, d: p + d, params, drawn), masks)


def identity(params, masks, round):
    return params


def fine_tuned(params, trained):
    return trained


def forbidden(params, masks, round):
    raise AssertionError("trained for hours, then refused")


def kernels(tree):
    return [np.asarray(tree[layer]["kernel"]) for layer in "abc"]


def states_of(train, params, density, **arguments):
    """The state and the info after every round."""
    seen = []
    on_round = lambda state, info: seen.append((state, info))  # noqa: E731
    last, info = sj.train_and_prune(train, params, density, on_round=on_round, **arguments)
    nets.assert_equal(last, seen[-1][0])
    for i, (state, one) in enumerate(seen):
        assert state.round == i + 1
        nets.assert_equal(one, nets.element(info, i))
    return [state for state, _ in seen], info


def check_rounds(states, info):
    """The counts are those reported, and what is pruned stays so."""
    masks = [kernels(state.masks) for state in states]
    np.testing.assert_array_equal([sum(m.sum() for m in ms) for ms in masks], info.kept)
    for before, after in zip(masks, masks[1:]):
        assert not any((m & ~old).any() for old, m in zip(before, after))


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("schedule", [sj.exponential, sj.linear])
@pytest.mark.parametrize("density", [1.0, 0.3, 0.02])
def test_every_round_keeps_the_scheduled_count_and_nothing_returns(
    density, schedule, scope
):
    arguments = dict(rounds=4, schedule=schedule, scope=scope)
    states, info = states_of(restless, params_of(), density, **arguments)
    check_rounds(states, info)
    for state, d in zip(states, schedule(density, 4), strict=True):
        kept = [int(m.sum()) for m in kernels(state.masks)]
        if scope == "layer":
            assert kept == [sj.num_kept(size, d) for size in SIZES]
        else:
            assert sum(kept) == sj.num_kept(sum(SIZES), d)
    assert states[-1].masks["a"]["bias"].all() and states[-1].masks["b"]["scale"].all()


def test_weights_are_rewound_bit_for_bit_and_pruned_ones_are_zero():
    params = jax.tree.map(np.array, params_of())
    params["a"]["kernel"][:2] = [[-0.0], [1e-40]]  # a sum or product would change them
    for state in states_of(restless, params, 0.2)[0]:
        got, want, masks = map(jax.tree.leaves, (state.params, params, state.masks))
        for g, w, m in zip(got, want, masks):
            m = np.asarray(m)
            assert np.asarray(g)[m].tobytes() == np.asarray(w)[m].tobytes()
            assert not np.asarray(g)[~m].any()


def test_the_masks_are_those_of_the_definition():
    """Train, sort the sizes of what is left, drop the smallest, go back: in numpy."""
    params, alive = params_of(), np.ones(sum(SIZES), bool)
    states, _ = states_of(restless, params, 0.05, rounds=5)
    for i, (state, density) in enumerate(zip(states, sj.exponential(0.05, 5))):
        start = np.concatenate([w.reshape(-1) for w in kernels(params)])
        drawn = np.concatenate([w.reshape(-1) for w in kernels(params_of(100 + i))])
        sizes = np.where(alive, np.abs(start + drawn), -1)
        alive = np.zeros_like(alive)
        alive[np.argsort(-sizes, kind="stable")[: sj.num_kept(sum(SIZES), density)]] = True
        got = np.concatenate([m.reshape(-1) for m in kernels(state.masks)])
        np.testing.assert_array_equal(got, alive)


@pytest.mark.parametrize("rewind", [None, fine_tuned])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_without_training_it_is_pruning_by_magnitude(scope, rewind):
    params, arguments = params_of(), dict(rounds=4, schedule=sj.linear, scope=scope)
    masks, info = sj.prune(sj.magnitude(), params, 0.1, **arguments)
    arguments |= dict(rewind=rewind) if rewind else {}
    state, again = sj.train_and_prune(identity, params, 0.1, **arguments)
    np.testing.assert_array_equal(info.kept, again.kept)
    nets.assert_equal(state, sj.RewindState(sj.apply_masks(params, masks), masks, 4))


def test_training_gets_rewound_weights_the_masks_and_the_rounds_done():
    params, calls = params_of(), []

    def train(*call):
        calls.append(call)
        return restless(*call)

    states, _ = states_of(train, params, 0.1)
    starts = [(params, sj.all_kept(params), 0), *states[:-1]]
    for call, start in zip(calls, starts, strict=True):
        nets.assert_equal(call, tuple(start))
        assert type(call[2]) is int


def mixed(given, trained):
    """One layer is rewound, the others go on."""
    return trained | {"b": given["b"]}


@pytest.mark.parametrize("rewind", [fine_tuned, mixed])
def test_the_next_round_starts_where_rewind_says(rewind):
    """With `fine_tuned`: without rewinding, as the authors' runs for Fig. 5a."""
    params, starts, given = params_of(), [], []

    def train(params, masks, round):
        starts.append(params)
        return restless(params, masks, round)

    def recorded(params, trained):
        given.append(params)
        return rewind(params, trained)

    states, _ = states_of(train, params, 0.1, rewind=recorded)
    nets.assert_equal(given, [params] * 3)
    for i, state in enumerate(states):
        want = rewind(params, restless(starts[i], state.masks, i))
        nets.assert_equal(state.params, sj.apply_masks(want, state.masks))
    nets.assert_equal(starts[1:], [state.params for state in states[:-1]])


def test_training_may_donate_its_weights():
    double = lambda params, masks, round: jax.tree.map(lambda p: 2 * p, params)  # noqa: E731
    donating = jax.jit(double, donate_argnums=0)
    for rewind in (fine_tuned, lambda params, trained: params):
        params = params_of()
        states, _ = states_of(donating, params, 0.1, rewind=rewind)
        assert not any(
            x.is_deleted() for x in jax.tree.leaves([params, [s[:2] for s in states]])
        )


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("done", [1, 2, 3, 4])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_an_interrupted_run_goes_on_from_saved_masks(done, scope, tmp_path):
    params, arguments = params_of(), dict(rounds=4, scope=scope)
    want, infos = sj.train_and_prune(restless, params, 0.1, **arguments)
    path = tmp_path / "masks.safetensors"

    def save(state, info):
        sj.save_masks(path, state.masks)
        if state.round == done:
            raise Interrupted

    with pytest.raises(Interrupted):
        sj.train_and_prune(restless, params, 0.1, on_round=save, **arguments)
    masks, rounds = sj.load_masks(path), []
    state = sj.RewindState(params, masks, done)

    def train(params, masks, round):
        rounds.append(round)
        return restless(params, masks, round)

    got, info = sj.train_and_prune(train, params, 0.1, state=state, **arguments)
    assert rounds == list(range(done, 4))
    nets.assert_equal(got, want)
    nets.assert_equal(info, jax.tree.map(lambda x: x[done:], infos))


def test_a_run_without_rewinding_goes_on_from_a_saved_state():
    params, arguments = params_of(), dict(rewind=fine_tuned)
    states, _ = states_of(restless, params, 0.1, **arguments)
    for state in states:
        saved = flax.serialization.to_bytes(state)
        empty = sj.RewindState(*jax.tree.map(jnp.zeros_like, state[:2]), 0)
        loaded = flax.serialization.from_bytes(empty, saved)
        got, _ = sj.train_and_prune(restless, params, 0.1, state=loaded, **arguments)
        nets.assert_equal(got, states[-1])


# A real training, of a network with one hidden layer on two of eight inputs.
RNG = np.random.default_rng(0)
INPUTS = jnp.asarray(RNG.standard_normal((256, 8)), jnp.float32)
TARGETS = jnp.tanh(INPUTS[:, :1] - 2 * INPUTS[:, 1:2])
MLP = {"a": {"kernel": (8, 16), "bias": (16,)}, "b": {"kernel": (16, 1)}}
STEPS = 200


def mlp_params(seed=0):
    drawn = {layer: nets.draw(shapes, seed) for layer, shapes in MLP.items()}
    return jax.tree.map(lambda w: 0.3 * w, drawn)


def loss_of(params):
    hidden = jax.nn.relu(INPUTS @ params["a"]["kernel"] + params["a"]["bias"][None])
    return jnp.mean((hidden @ params["b"]["kernel"] - TARGETS) ** 2)


def steps(params, masks, first, last):
    """Steps of training with momentum and a rate that depends on the step."""
    optimizer = optax.chain(
        optax.add_decayed_weights(1e-3), optax.trace(0.9), sj.freeze_pruned(masks)
    )

    def step(carry, i):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss_of)(params), state, params)
        rate = 0.05 * (1 - i / STEPS)
        return (jax.tree.map(lambda p, u: p - rate * u, params, updates), state), None

    carry = (params, optimizer.init(params))
    return lax.scan(step, carry, jnp.arange(first, last, dtype=jnp.float32))[0][0]


def test_a_jitted_training_compiles_once_and_finds_a_ticket(standard_promotion):
    traces = 0

    @jax.jit
    def train(params, masks, round):
        nonlocal traces
        traces += 1
        return steps(params, masks, 0, STEPS)

    params = mlp_params()
    state, info = sj.train_and_prune(train, params, 0.25)
    assert traces == 1
    np.testing.assert_array_equal(info.kept, sj.counts_per_round(params, 0.25, 3))
    nets.assert_equal(state.params, sj.apply_masks(params, state.masks))
    ticket = train(*state)
    nets.assert_equal(ticket, sj.apply_masks(ticket, state.masks))
    # The same number of weights, chosen by their sizes before training.
    masks, _ = sj.prune(sj.magnitude(), params, 0.25, rounds=1)
    other = train(sj.apply_masks(params, masks), masks, 0)
    assert loss_of(ticket) < 0.1 < 0.5 < loss_of(other)
    assert traces == 1


def test_rewinding_to_step_t(standard_promotion):
    """The weights after t steps are given, and training starts at step t."""
    start, t = mlp_params(), 40
    late = steps(start, sj.all_kept(start), 0, t)
    train = jax.jit(lambda params, masks, round: steps(params, masks, t, STEPS))
    states, _ = states_of(train, late, 0.25)
    for state in states:
        nets.assert_equal(state.params, sj.apply_masks(late, state.masks))
    assert loss_of(train(*states[-1])) < 0.1


def test_any_criterion_scores_the_trained_weights_and_is_traced_once():
    traces = 0

    def smallness(params, masks):
        nonlocal traces
        traces += 1
        return jax.tree.map(lambda p: -jnp.abs(p), params)

    states, info = states_of(restless, params_of(), 0.2, rounds=4, score_fn=smallness)
    assert traces == 1
    check_rounds(states, info)  # although what is pruned, a zero, scores highest
    trained = restless(params_of(), sj.all_kept(params_of()), 0)
    sizes = np.concatenate([np.abs(w).reshape(-1) for w in kernels(trained)])
    kept = np.concatenate([m.reshape(-1) for m in kernels(states[0].masks)])
    assert sizes[kept].max() < sizes[~kept].min()


def test_parameters_may_be_arrays_of_numpy_and_hold_other_types():
    params = jax.tree.map(np.asarray, params_of())
    want, _ = sj.train_and_prune(restless, params_of(), 0.1)
    trained = lambda *call: jax.tree.map(np.asarray, restless(*call))  # noqa: E731
    got, _ = sj.train_and_prune(trained, params, 0.1)
    nets.assert_equal(got, want)

    others = {"table": jnp.arange(3), "on": jnp.array([True, False])}
    others["causal"] = jnp.array([0.0, -jnp.inf])  # there from the start: no divergence
    key = jax.random.key(0)
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "key": key, **others}
    is_w = lambda path, leaf: path == "w"  # noqa: E731
    state, _ = sj.train_and_prune(identity, params, 0.5, prunable=is_w)
    assert state.params["w"].dtype == jnp.bfloat16 and state.masks["w"].sum() == 3
    nets.assert_equal({name: state.params[name] for name in others}, others)


def test_a_finished_run_trains_no_more():
    want, infos = sj.train_and_prune(restless, params_of(), 0.1)
    got, info = sj.train_and_prune(forbidden, params_of(), 0.1, state=want)
    nets.assert_equal(got, want)
    nets.assert_equal(info, jax.tree.map(lambda x: x[:0], infos))


def test_a_training_that_moves_pruned_weights_is_told_to_freeze_them():
    states = []
    on_round = lambda state, info: states.append(state)  # noqa: E731

    def careless(params, masks, round):
        moved = {"a": params["a"], "b": params_of(1)["b"], "c": params["c"]}
        return jax.tree.map(lambda m, w: w, masks, moved)

    message = r"round 2 of 3, .*not zero: b/kernel\. .*static_pruning"
    with pytest.raises(ValueError, match=message):
        sj.train_and_prune(careless, params_of(), 0.1, on_round=on_round)
    assert [state.round for state in states] == [1]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("leaf", [("b", "kernel"), ("a", "bias")])
def test_a_training_that_diverges_is_told_with_its_round_and_leaf(bad, leaf):
    layer, name = leaf

    def train(params, masks, round):
        if round == 1:
            broken = jnp.where(masks[layer][name], bad, params[layer][name])
            params[layer] = params[layer] | {name: broken}
        return params

    message = f"round 2 of 3, .*NaN or infinite.*finite: {layer}/{name}"
    with pytest.raises(FloatingPointError, match=message + r"\.$"):
        sj.train_and_prune(train, params_of(), 0.1)


def test_a_criterion_that_makes_nans_is_told_with_its_round():
    def late(params, masks):
        few = ~masks["b"]["kernel"].all()
        return jax.tree.map(lambda p: jnp.where(few, jnp.nan, jnp.abs(p)), params)

    with pytest.raises(FloatingPointError, match="round 2 of 3, `score_fn` gives 270 "):
        sj.train_and_prune(identity, params_of(), 0.1, score_fn=late)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(density=0.0), "`density`"),
        (dict(rounds=0), "`rounds`"),
        (dict(scope="local"), "`scope`.*'local'"),
        (dict(schedule=lambda d, n: np.ones(2)), "`schedule`"),
        (dict(prunable=lambda path, leaf: False), "`prunable` chose no leaf"),
        (dict(score_fn=lambda p, m: p["a"]), "`scores`"),
    ],
)
def test_what_cannot_work_is_refused_before_any_training(changes, message, no_typecheck):
    arguments = dict(density=0.1) | changes
    with pytest.raises(ValueError, match=f"(?s){message}"):
        sj.train_and_prune(forbidden, params_of(), **arguments)


WHOLE = sj.all_kept(params_of())
FLOATS = jax.tree.map(jnp.ones_like, params_of())


@pytest.mark.parametrize(
    ("replaced", "changes", "message"),
    [
        (dict(params={}), {}, "`state.params`"),
        (dict(masks=WHOLE["a"]), {}, "`state.masks`"),
        (dict(masks=FLOATS), {}, "dtype float32; masks are boolean"),
        (dict(round=4), {}, "`state.round`.*= 3; got 4"),
        (dict(round=-1), {}, "`state.round`.*got -1"),
        (dict(round=0.5), {}, "`state.round`.*got 0.5"),
        (dict(round=2), {}, "keeps 270 .*after 2 of its 3 rounds.*keeps 125"),
        (dict(round=0), {}, "keeps 270 .*after 0 of its 3 rounds.*keeps 580"),
        (dict(masks=WHOLE), {}, "keeps 580 .*after 1 of its 3 rounds.*keeps 270"),
        ({}, dict(density=0.2), "`density`.*the run that is continued"),
        ({}, dict(scope="layer"), r"keeps \[\d+, \d+, \d+\] .* keeps \[56, 186, 28\]"),
    ],
)
def test_a_state_of_another_run_is_refused(replaced, changes, message, no_typecheck):
    state = states_of(identity, params_of(), 0.1)[0][0]
    arguments = dict(density=0.1, state=state._replace(**replaced)) | changes
    with pytest.raises(ValueError, match=f"(?s){message}"):
        sj.train_and_prune(forbidden, params_of(), **arguments)


@pytest.mark.parametrize("name", ["train", "rewind"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda tree: (tree, 0.1), "must have the structure of the parameters"),
        (lambda tree: None, "must have the structure of the parameters"),
        (lambda tree: jax.tree.map(lambda x: x[:2], tree), r"\['a'\]\['bias'\]` has shape"),
    ],
)
def test_what_train_and_rewind_return_must_mirror_the_parameters(
    name, wrong, message, no_typecheck
):
    arguments = dict(train=identity, rewind=fine_tuned)
    right = arguments[name]
    arguments[name] = lambda *call: wrong(right(*call))
    with pytest.raises(ValueError, match=rf"^`{name}\(\.\.\.\).*{message}"):
        sj.train_and_prune(params=params_of(), density=0.1, **arguments)


@pytest.mark.parametrize("score_fn", [sj.magnitude(), sj.random(jax.random.key(0))])
def test_training_may_return_another_precision(score_fn):
    params = {"kernel": jnp.arange(1.0, 13.0).reshape(3, 4)}

    def train(params, masks, round):
        return jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)

    state, info = sj.train_and_prune(train, params, 0.5, rounds=2, score_fn=score_fn)
    assert int(sj.count(state.masks)) == 6 and info.kept.tolist() == [9, 6]

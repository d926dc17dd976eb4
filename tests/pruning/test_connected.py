"""Rounds that would cut the network are undone, and lost flow is named."""

import math
import warnings

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from synflow_jax.pruning import progress

WIDTHS = (20, 16, 16, 16, 10)
SIZE, LAYERS = sum(a * b for a, b in zip(WIDTHS, WIDTHS[1:])), len(WIDTHS) - 1


def chain(params, x):
    for layer in params:
        x = jax.nn.relu(x @ layer["kernel"])
    return x


def initialise(seed, widths=WIDTHS):
    rng = np.random.default_rng(seed)
    shapes = zip(widths, widths[1:])
    return [{"kernel": jnp.asarray(rng.standard_normal(s), jnp.float32)} for s in shapes]


score = sj.synflow(chain, (WIDTHS[0],))


def connected(masks, params, apply_fn=chain, shape=(WIDTHS[0],)):
    masked = sj.apply_masks(params, masks)
    return bool(sj.log_flow(apply_fn, masked, shape) > -np.inf)


# Initialisations of which five rounds of Algorithm 1 cut the network at one weight a layer.
CUT = (1, 3, 4)


@pytest.mark.parametrize("seed", CUT)
def test_one_weight_a_layer_is_reached_in_five_rounds(seed):
    params = initialise(seed)
    as_published, _ = sj.prune(score, params, LAYERS / SIZE, rounds=5, keep_connected=False)
    assert not connected(as_published, params)
    masks, info = sj.prune(score, params, LAYERS / SIZE, rounds=5)
    assert connected(masks, params)
    assert sj.count(masks) == info.kept[-1] == LAYERS
    np.testing.assert_array_equal(
        info.kept, sj.counts_per_round(params, LAYERS / SIZE, rounds=5)
    )
    assert info.retries.sum() > 0 and info.retries[0] == 0
    assert (info.removed <= 1).all() or (info.retries[info.removed > 1] == 0).all()


def by_hand(params, counts):
    """The rule of `keep_connected`, written as it is said."""
    masks, retries = sj.all_kept(params), []
    scores_of = jax.jit(score)

    def flows(masks):
        return any(bool((s > 0).any()) for s in jax.tree.leaves(scores_of(params, masks)))

    def smaller(masks, k):
        return sj.keep_top(scores_of(params, masks), k, masks)

    for count in map(int, counts):
        retries.append(0)
        alive, step = flows(masks), int(sj.count(masks)) - count
        while int(sj.count(masks)) > count:
            tried = smaller(masks, int(sj.count(masks)) - step)
            if alive and not flows(tried):
                retries[-1] += 1
                alive, step = step > 1, step // 2
                step = step or int(sj.count(masks)) - count
                continue
            masks, step = tried, int(sj.count(tried)) - count
    return masks, retries


@pytest.mark.parametrize("seed", CUT)
@pytest.mark.parametrize("kept", [LAYERS, LAYERS + 3, LAYERS - 1])
def test_it_is_the_rule_that_is_described(seed, kept):
    params = initialise(seed)
    masks, info = sj.prune(score, params, kept / SIZE, rounds=5)
    want, retries = by_hand(params, info.kept)
    jax.tree.map(np.testing.assert_array_equal, masks, want)
    np.testing.assert_array_equal(info.retries, retries)


def beside_a_branch(params, x):
    """A branch that is not pruned carries flow when the chain is cut."""
    return chain(params["chain"], x) + x @ params["branch"]


@pytest.mark.parametrize(
    ("apply_fn", "kept"), [(chain, LAYERS + 6), (beside_a_branch, LAYERS - 1)]
)
@pytest.mark.parametrize("seed", range(4))
def test_leaves_that_a_first_try_cuts_were_reached_at_the_start(seed, apply_fn, kept):
    """All are reached before the first round, whatever its tries leave."""
    params, layers = initialise(seed), initialise(seed)
    if apply_fn is beside_a_branch:
        params = {"chain": layers, "branch": jnp.ones((WIDTHS[0], WIDTHS[-1]))}
    of = sj.synflow(apply_fn, (WIDTHS[0],))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks, info = sj.prune(of, params, kept / SIZE, rounds=1)
    assert info.retries[0] > 0 and info.unreached[0] == 0
    assert connected(masks, params, apply_fn)


def test_the_count_wins_where_no_network_is_connected():
    params = initialise(0)
    masks, info = sj.prune(score, params, (LAYERS - 1) / SIZE, rounds=10)
    assert sj.count(masks) == LAYERS - 1
    assert not connected(masks, params) and not info.certificate


@hypothesis.given(st.integers(0, 10**6))
@hypothesis.settings(max_examples=10)
def test_a_run_that_is_not_cut_is_the_published_one(seed):
    params = initialise(seed)
    published, before = sj.prune(score, params, 0.05, rounds=20, keep_connected=False)
    masks, info = sj.prune(score, params, 0.05, rounds=20)
    jax.tree.map(np.testing.assert_array_equal, masks, published)
    jax.tree.map(np.testing.assert_array_equal, info, before)
    assert (info.retries == 0).all()


def test_on_round_reports_each_round_once():
    params, seen = initialise(CUT[0]), []
    masks, info = sj.prune(score, params, LAYERS / SIZE, rounds=5)
    again, infos = sj.prune(score, params, LAYERS / SIZE, rounds=5, on_round=seen.append)
    jax.tree.map(np.testing.assert_array_equal, again, masks)
    jax.tree.map(np.testing.assert_array_equal, infos, info)
    assert [int(report.kept) for report in seen] == info.kept.tolist()
    assert [int(report.retries) for report in seen] == info.retries.tolist()


def test_under_vmap_each_network_has_its_own_steps():
    batch = jax.tree.map(lambda *xs: jnp.stack(xs), *map(initialise, CUT))

    def prune(params):
        return sj.prune(score, params, LAYERS / SIZE, rounds=5)

    masks, info = jax.jit(jax.vmap(prune))(batch)
    for i, seed in enumerate(CUT):
        want, report = prune(initialise(seed))
        jax.tree.map(lambda m, w, i=i: np.testing.assert_array_equal(m[i], w), masks, want)
        np.testing.assert_array_equal(info.retries[i], report.retries)


@pytest.mark.parametrize("how", [{"scope": "layer"}, {"allocation": sj.uniform}])
def test_with_a_count_for_each_leaf_half_of_each_is_tried(how):
    """One of eight weights of each of two layers: the one cut in a hundred is avoided."""
    cut = saved = 0
    of = sj.synflow(chain, (4,))
    for seed in range(20):
        params = initialise(seed, (4, 4, 4))
        masks, _ = sj.prune(of, params, 1 / 16, rounds=1, keep_connected=False, **how)
        if connected(masks, params, shape=(4,)):
            continue
        cut += 1
        masks, info = sj.prune(of, params, 1 / 16, rounds=1, **how)
        assert [int(m["kernel"].sum()) for m in masks] == [1, 1] and info.retries[0] > 0
        saved += connected(masks, params, shape=(4,))
    assert cut >= 3 and saved >= cut - 1


@pytest.mark.parametrize(
    "criterion",
    [
        sj.synflow_l2(chain, (WIDTHS[0],)),
        jax.jit(score),
        sj.synflow(sj.on_input(chain, jnp.full((1, 20), 0.5)), (WIDTHS[0],)),
    ],
    ids=["l2", "jitted", "of another input"],
)
def test_every_criterion_with_a_flow_keeps_it(criterion):
    for seed in range(6):
        masks, _ = sj.prune(criterion, initialise(seed), LAYERS / SIZE, rounds=4)
        assert connected(masks, initialise(seed))


def test_a_criterion_without_flow_is_the_same_with_and_without():
    params = initialise(0)
    for criterion in (sj.magnitude(), lambda params, masks: score(params, masks)):
        pair = [
            sj.prune(criterion, params, LAYERS / SIZE, rounds=3, keep_connected=keep)
            for keep in (True, False)
        ]
        jax.tree.map(np.testing.assert_array_equal, *pair)


def test_a_last_round_that_is_certified_needs_no_further_scoring():
    params = initialise(0)

    def scorings(keep_connected):
        seen = []

        def spied(backend, params, masks):
            jax.debug.callback(lambda: seen.append(1))
            return score.score(backend, params, masks)

        record = type(score)(spied, score.why_not_certifiable, score.where_not_finite)
        _, info = sj.prune(record, params, 0.5, rounds=20, keep_connected=keep_connected)
        jax.effects_barrier()
        assert info.certificate
        return len(seen)

    assert scorings(True) == scorings(False) == 20


def test_the_loop_is_compiled_once_for_all_densities():
    params = initialise(1)
    fresh = sj.synflow(chain, (WIDTHS[0],))
    sj.prune(fresh, params, 0.5, rounds=4)
    before = progress.all_rounds._cache_size()
    for density in (0.1, LAYERS / SIZE, 1.0):
        sj.prune(fresh, params, density, rounds=4)
    assert progress.all_rounds._cache_size() == before


# --- flow that is lost before the first round ---------------------------------------------


def zero_head(params, x):
    return jax.nn.relu(x @ params["body"]["kernel"]) @ params["head"]["kernel"]


HEADLESS = {"body": {"kernel": jnp.ones((4, 4))}, "head": {"kernel": jnp.zeros((4, 2))}}


@pytest.mark.parametrize("how", [{}, {"on_round": lambda info: None}, {"scope": "layer"}])
def test_a_network_without_flow_is_not_pruned_by_position(how):
    of = sj.synflow(zero_head, (4,))
    with pytest.raises(ValueError, match=r"R is 0.*head/kernel.*filled") as error:
        sj.prune(of, HEADLESS, 0.5, rounds=2, **how)
    assert "body" not in str(error.value)
    masks, info = sj.prune(of, sj.filled(HEADLESS, {"head/*": 1.0}), 0.5, rounds=2)
    assert sj.count(masks) == 12 and info.certificate


def test_denormal_weights_count_as_zero():
    params = {**HEADLESS, "head": {"kernel": jnp.full((4, 2), 1e-40)}}
    with pytest.raises(ValueError, match=r"R is 0.*head/kernel"):
        sj.prune(sj.synflow(zero_head, (4,)), params, 0.5, rounds=2)


class ZeroScale(nn.Module):
    """A residual block whose last norm starts at zero, as in Flax's ImageNet example."""

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.LayerNorm(name="first")(nn.Dense(4, name="a")(x)))
        zeros = nn.initializers.zeros_init()
        y = nn.LayerNorm(scale_init=zeros, name="last")(nn.Dense(4, name="b")(y))
        return nn.Dense(2, name="head")(x + y)


class ZeroScaleResNet(nn.Module):
    """A convolutional block whose last batch norm starts at zero, as haiku's all do."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 3), name="stem")(x)
        y = nn.relu(nn.BatchNorm(True, name="bn")(nn.Conv(3, (3, 3), name="first")(x)))
        y = nn.Conv(3, (3, 3), name="second")(y)
        zeros = nn.initializers.zeros_init()
        x = x + nn.BatchNorm(True, scale_init=zeros, name="last")(y)
        return nn.Dense(2, name="head")(x.mean((1, 2)))


class ReZero(nn.Module):
    """A residual block behind a learned number that starts at zero."""

    @nn.compact
    def __call__(self, x):
        gate = self.param("gate", nn.initializers.zeros_init(), (1, 1))
        return nn.Dense(2, name="head")(x + gate * nn.relu(nn.Dense(4, name="inside")(x)))


class LoRA(nn.Module):
    """A layer with an addition of low rank, of which B starts at zero."""

    @nn.compact
    def __call__(self, x):
        down = nn.Dense(2, use_bias=False, name="A")(x)
        zeros = nn.initializers.zeros_init()
        return nn.Dense(4, name="base")(x) + nn.Dense(
            4, use_bias=False, kernel_init=zeros, name="B"
        )(down)


# The network, its input, the leaves that no flow reaches and what is zero.
STARTED_AT_ZERO = {
    "a block's last norm": (ZeroScale(), (4,), ["a", "b"], "last/scale"),
    "a ResNet's last norms": (
        ZeroScaleResNet(),
        (4, 4, 2),
        ["first", "second"],
        "last/scale",
    ),
    "ReZero": (ReZero(), (4,), ["inside"], "gate"),
    "LoRA": (LoRA(), (4,), ["A", "B"], "B/kernel"),
}


def started(name):
    """A score, the parameters, those that no flow reaches and a pattern of what is zero."""
    model, shape, unreached, zero = STARTED_AT_ZERO[name]
    variables = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, *shape)))
    params = variables.pop("params")
    of = sj.synflow(lambda p, x: model.apply({"params": p, **variables}, x), shape)
    return of, params, [f"{leaf}/kernel" for leaf in unreached], zero


@pytest.mark.parametrize("name", STARTED_AT_ZERO)
def test_leaves_that_no_flow_reaches_are_named_and_nothing_is_certified(name):
    of, params, unreached, zero = started(name)
    with pytest.warns(UserWarning, match="are 0 before the first round") as warned:
        _, info = sj.prune(of, params, 0.5, rounds=3)
    assert ", ".join(unreached) in str(warned[0].message)
    assert zero in str(warned[0].message)
    assert info.unreached[0] == len(unreached) and not info.certified.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, info = sj.prune(of, sj.filled(params, {zero: 1.0}), 0.5, rounds=3)
    assert info.unreached.tolist() == [0, 0, 0] and info.certificate


def test_a_network_of_zero_norms_and_a_zero_head_is_refused_by_its_head():
    """Haiku's ResNet as it comes: its head makes R 0, and then its blocks are warned of."""
    of, params, unreached, zero = started("a ResNet's last norms")
    params = sj.filled(params, {"head/kernel": 0.0})
    with pytest.raises(ValueError, match=r"R is 0.*head/kernel.*filled"):
        sj.prune(of, params, 0.5, rounds=2)
    with pytest.warns(UserWarning, match=", ".join(unreached)):
        sj.prune(of, sj.filled(params, {"head/kernel": 1.0}), 0.5, rounds=2)
    _, info = sj.prune(of, sj.filled(params, {"head/kernel": 1.0, zero: 1.0}), 0.5)
    assert info.certificate


def with_class_token(p, x, read):
    """An attention whose query at the class token, a parameter, carries no flow."""
    tokens = jnp.concatenate([p["token"], x @ p["patch"]["kernel"]])
    q, k, v = jnp.split(tokens @ p["attention"]["kernel"], 3, axis=-1)
    return (tokens + jax.nn.softmax(q @ k.T) @ v)[read] @ p["head"]["kernel"]


def test_an_output_at_a_class_token_alone_is_refused_and_all_tokens_are_pruned():
    shapes = {"patch": (3, 4), "attention": (4, 12), "head": (4, 2)}
    params = {name: {"kernel": jnp.ones(shape)} for name, shape in shapes.items()}
    params["token"], shape = jnp.ones((1, 4)), jax.ShapeDtypeStruct((5, 3), jnp.float32)
    at_it, at_all = (
        sj.synflow(lambda p, x, read=read: with_class_token(p, x, read), shape)
        for read in (0, slice(None))
    )
    with pytest.raises(ValueError, match="R is 0.*a class token, score with the output of"):
        sj.prune(at_it, params, 0.5, rounds=1)
    _, info = sj.prune(at_all, params, 0.5, rounds=1)
    assert info.unreached.tolist() == [0] and info.kept[-1] == 34


def test_gradients_that_are_all_zero_are_named():
    def loss(params, batch):
        return (zero_head(params, batch) ** 2).sum()

    params = {**HEADLESS, "head": {"kernel": jnp.ones((4, 2))}}
    dead = {**params, "body": {"kernel": -params["body"]["kernel"]}}
    with pytest.warns(UserWarning, match="all scores of 2 of 2 prunable leaves"):
        sj.prune(sj.snip(loss, jnp.ones((1, 3, 4))), dead, 0.5, rounds=1)

    def of_the_head_alone(params, batch):
        return (batch @ params["head"]["kernel"]).sum()

    with pytest.warns(UserWarning, match=r"1 of 2 prunable leaves.*body/kernel"):
        sj.prune(sj.snip(of_the_head_alone, jnp.ones((1, 3, 4))), params, 0.5, rounds=1)


def test_under_jit_unreached_leaves_are_counted():
    of = sj.synflow(zero_head, (4,))
    _, info = jax.jit(lambda p: sj.prune(of, p, 0.5, rounds=2))(HEADLESS)
    assert info.unreached[0] == 2


NOT_FINITE = {
    "large weights": (
        lambda p, x: x @ p["kernel"],
        {"kernel": jnp.full((4, 4), 3e38)},
        r"`dot_general`, called at .*test_connected\.py:\d+.*becomes NaN or infinite",
    ),
    "a negative variance": (
        lambda p, x: (x @ p["kernel"]) * jax.lax.rsqrt(p["var"] + 1e-5),
        {"kernel": jnp.ones((4, 4)), "var": jnp.full((1, 4), -1.0)},
        r"`mul`, called at .*test_connected\.py:\d+.*holds NaN",
    ),
    "a variance of zero": (
        lambda p, x: (x @ p["kernel"]) / jnp.sqrt(p["var"]),
        {"kernel": jnp.ones((4, 4)), "var": jnp.zeros((1, 4))},
        r"`div`, called at .*test_connected\.py:\d+.*a divisor is 0",
    ),
    "a constant": (
        lambda p, x: (x @ p["kernel"]) * jnp.array([[1.0, np.nan, 1.0, 1.0]]),
        {"kernel": jnp.ones((4, 4))},
        r"`mul`, called at .*test_connected\.py:\d+.*holds NaN",
    ),
    "a parameter": (
        lambda p, x: x @ p["kernel"],
        {"kernel": jnp.full((4, 4), jnp.nan)},
        r"Parameters that hold NaN or infinity: kernel",
    ),
}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_what_is_not_finite_is_named_where_it_is(name):
    network, params, message = NOT_FINITE[name]
    with pytest.raises(FloatingPointError, match=message):
        sj.prune(sj.synflow(network, (4,)), params, 0.5, rounds=2)


def test_statistics_that_a_loss_closes_over_are_named_by_their_shape():
    statistics = jnp.full((1, 4), jnp.nan)

    def criterion(params, masks):
        return jax.tree.map(lambda w: w * statistics, params)

    with pytest.raises(FloatingPointError, match=r"closes over.*float32\[1, 4\]"):
        sj.prune(criterion, {"kernel": jnp.ones((4, 4))}, 0.5, rounds=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"tail": 1.0}, "the pattern 'tail' of `values` matches no leaf"), ({}, None)],
)
def test_filling_names_a_pattern_that_matches_nothing(values, message):
    if message is None:
        assert jax.tree.all(
            jax.tree.map(lambda a, b: a is b, sj.filled(HEADLESS, values), HEADLESS)
        )
        return
    with pytest.raises(ValueError, match=message):
        sj.filled(HEADLESS, values)


def test_filled_leaves_keep_shape_and_dtype_and_the_first_pattern_counts():
    params = {"a": jnp.zeros((2, 3), jnp.bfloat16), "n": jnp.arange(3)}
    got = sj.filled(params, {"a": 0.5, "*a": 2.0})
    assert got["a"].dtype == jnp.bfloat16 and (got["a"] == 0.5).all()
    with pytest.raises(ValueError, match="matches `n`, which has dtype int32"):
        sj.filled(params, {"n": 1.0})
    by_name = sj.filled({"layers[1]": jnp.zeros(2)}, {"layers[1]": 1.0})
    assert (by_name["layers[1]"] == 1).all()
    assert math.isclose(float(got["a"].sum()), 3.0)


def test_a_value_that_is_no_number_is_named(no_typecheck):
    with pytest.raises(ValueError, match=r"`values\['a'\]` is a number; got 'x'"):
        sj.filled({"a": jnp.zeros(2)}, {"a": "x"})

"""Calls that users make: the right result, or one error that names the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from tests import nets

PARAMS = {
    "a": {"kernel": jnp.linspace(-1, 2, 20).reshape(4, 5)},
    "b": {"kernel": jnp.linspace(-2, 1, 10).reshape(5, 2)},
}
SIZE = 30


def network(params, x):
    return jax.nn.relu(x @ params["a"]["kernel"]) @ params["b"]["kernel"]


def loss(params, batch):
    return jnp.mean((network(params, batch["x"]) - batch["y"]) ** 2)


SYNFLOW, MAGNITUDE = sj.synflow(network, (4,)), sj.magnitude()
PRUNER = sj.iterative(MAGNITUDE)

ONE_NUMBER = r"`density` is one number, the fraction kept, in \(0, 1\]; got"


@pytest.mark.parametrize(
    ("density", "message"),
    [
        ([0.1, 0.2], rf"{ONE_NUMBER} list \[0.1, 0.2\]"),
        ({"a/*": 0.1}, rf"{ONE_NUMBER} dict .*`allocation=\{{pattern: density\}}`"),
        (np.array([0.1]), f"{ONE_NUMBER} ndarray"),
        ("0.1", f"{ONE_NUMBER} str '0.1'"),
        (None, f"{ONE_NUMBER} NoneType None"),
        (True, f"{ONE_NUMBER} bool True"),
        (0.1j, f"{ONE_NUMBER} complex"),
        (float("nan"), r"`density` is the fraction kept, in \(0, 1\]; got nan"),
    ],
)
def test_a_density_is_one_number(density, message, no_typecheck):
    for call in (
        lambda: sj.prune(MAGNITUDE, PARAMS, density),
        lambda: sj.prune(SYNFLOW, PARAMS, density, schedule=sj.certified()),
        lambda: sj.counts_per_round(PARAMS, density, 3),
        lambda: sj.exponential(density, 3),
        lambda: sj.linear(density, 3),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("density", [np.float32(0.5), jnp.float32(0.5), np.array(0.5), 1])
def test_a_number_of_another_library_is_a_density(density, no_typecheck):
    _, info = sj.prune(MAGNITUDE, PARAMS, density, rounds=1)
    assert int(info.kept[-1]) == sj.num_kept(SIZE, float(density))


def test_a_traced_density_points_to_the_counts(no_typecheck):
    with pytest.raises(ValueError, match="`density` is traced.*`counts_per_round`"):
        jax.jit(lambda d: sj.prune(MAGNITUDE, PARAMS, d)[0])(0.5)


@pytest.mark.parametrize("rounds", [None, float("nan"), float("inf"), "3", True, [3], 2.5])
def test_rounds_are_an_integer(rounds, no_typecheck):
    for call in (
        lambda: sj.prune(MAGNITUDE, PARAMS, 0.5, rounds=rounds),
        lambda: sj.exponential(0.5, rounds),
        lambda: sj.linear(0.5, rounds),
        lambda: sj.train_and_prune(lambda p, m, r: p, PARAMS, 0.5, rounds=rounds),
    ):
        with pytest.raises(ValueError, match="`rounds` is an integer of at least 1; got"):
            call()


@pytest.mark.parametrize(
    ("size", "density", "message"),
    [
        ("10", 0.5, "`size` is a number of weights, .*got str '10'"),
        (10.5, 0.5, "`size` is a number of weights, an integer .*got float 10.5"),
        (10, [0.5], r"`density` is the fraction kept, in \[0, 1\]; got list"),
        (10, None, r"`density` is the fraction kept, in \[0, 1\]; got NoneType"),
    ],
)
def test_the_rounding_rule_takes_numbers(size, density, message, no_typecheck):
    with pytest.raises(ValueError, match=message):
        sj.num_kept(size, density)


@pytest.mark.parametrize(
    ("k", "message"),
    [
        ("3", "`k` must be an integer; got str '3'"),
        (None, "`k` must be an integer; got NoneType None"),
        (3.0, "`k` must be an integer; got float 3.0"),
        ([[1], [2, 3]], "`k` must be an integer; got list"),
        ([1, 2], r"`k` must be one integer; got an array of shape \(2,\).*scope=\"layer\""),
        (np.array([3]), r"`k` must be one integer; got an array of shape \(1,\)"),
        (jnp.ones(3, int), r"`k` must be one integer; got an array of shape \(3,\)"),
    ],
)
def test_a_count_is_one_integer(k, message, no_typecheck):
    with pytest.raises(ValueError, match=message):
        sj.keep_top(PARAMS, k)
    with pytest.raises(ValueError, match=message):
        PRUNER.step(PRUNER.init(PARAMS), PARAMS, k)


def test_a_list_of_counts_serves_the_layers(no_typecheck):
    pruner = sj.iterative(MAGNITUDE, scope="layer")
    state, _ = pruner.step(pruner.init(PARAMS), PARAMS, [3, 2])
    assert [row.kept for row in sj.summarize(PARAMS, state.masks)] == [3, 2]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda d, n: np.array([0.5, 0.2, d]), "must not rise.*after round 2 it keeps 0.2"),
        (lambda d, n: np.array([0.9, 0.8, 0.7]), "must end at the density .*0.5; its last"),
        (
            lambda d, n: np.array([0.9, np.nan, d]),
            "must return fractions kept.*round 2 it returned nan",
        ),
        (lambda d, n: None, "must return one density for each of the 3 rounds"),
        ([0.9, 0.8, 0.5], r"is a function \(density, rounds\) .*got \[0.9, 0.8, 0.5\]"),
        ("linear", "is a function .*got 'linear'"),
    ],
)
def test_a_schedule_falls_to_the_density(schedule, message, no_typecheck):
    with pytest.raises(ValueError, match=f"`schedule` {message}"):
        sj.prune(MAGNITUDE, PARAMS, 0.5, rounds=3, schedule=schedule)


# --- losses and batches -------------------------------------------------------------------

BATCH = [nets.draw({"x": (3, 4), "y": (3, 2)}, seed) for seed in range(2)]
BATCHES = jax.tree.map(lambda *xs: jnp.stack(xs), *BATCH)
DENSE = sj.all_kept(PARAMS)
OF_A_LOSS = [sj.snip, sj.grasp, sj.fisher, sj.gradient_norm]


@pytest.mark.parametrize("criterion", OF_A_LOSS)
def test_a_loss_with_something_beside_it_is_refused(criterion):
    score = criterion(lambda params, batch: (loss(params, batch), {"n": 1}), BATCHES)
    with pytest.raises(ValueError, match=r"`loss_fn` returned a tuple of 2 .*batch\)\[0\]"):
        score(PARAMS, DENSE)


def test_a_list_of_batches_is_stacked():
    want = sj.snip(loss, BATCHES)(PARAMS, DENSE)
    nets.assert_equal(sj.snip(loss, BATCH)(PARAMS, DENSE), want)
    pairs = [(np.asarray(b["x"]), np.asarray(b["y"])) for b in BATCH]
    of_pair = lambda params, b: loss(params, {"x": b[0], "y": b[1]})  # noqa: E731
    nets.assert_equal(sj.snip(of_pair, pairs)(PARAMS, DENSE), want)
    # Two arrays are one batch's parts, as they were.
    arrays = [BATCHES["x"], BATCHES["y"]]
    nets.assert_equal(sj.snip(of_pair, arrays)(PARAMS, DENSE), want)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([BATCH[0], {"x": jnp.ones((1, 4)), "y": jnp.ones((1, 2))}], "number 2 has.*drop_"),
        ([BATCH[0], (jnp.ones((3, 4)),)], "must have one structure and equal shapes"),
        (iter(BATCH), r"`batches` is an iterator.*give list\(batches\)"),
        (object(), r"such as list\(loader\); got object"),
        (BATCH[0], "looks like one batch, not like 3 .*x: x\\[None\\], batches"),
        (dict(x=jnp.ones((8, 4)), y=jnp.ones(8, int)), "looks like one batch, not like 8"),
    ],
)
def test_batches_that_are_none_are_named(batches, message, no_typecheck):
    with pytest.raises(ValueError, match=message):
        sj.snip(loss, batches)


def test_keys_and_single_arrays_are_batches():
    keys = jax.random.split(jax.random.key(0), 2)
    sj.snip(loss, {**BATCHES, "key": keys})
    sj.snip(loss, jnp.ones((8, 4)))
    sj.snip(loss, jax.tree.map(lambda x: x[:1, 0], BATCHES))  # one batch of one


# --- networks and leaves ------------------------------------------------------------------


def with_state(params, x):
    y = network(params, x)
    return y, {"batch_stats": {"mean": y.mean(0)}}


@pytest.mark.parametrize(
    "call",
    [
        lambda: sj.log_flow(with_state, PARAMS, (4,)),
        lambda: sj.prune(sj.synflow(with_state, (4,)), PARAMS, 0.5),
        lambda: sj.synflow_as_written(with_state, (4,))(PARAMS, DENSE),
        lambda: sj.effective_masks(with_state, PARAMS, DENSE, (4,)),
    ],
)
def test_a_state_beside_the_output_is_no_output(call):
    with pytest.raises(ValueError, match=r"dict with 'batch_stats'.*`mutable`.*\)\[0\]"):
        call()


def test_several_outputs_still_are():
    two = lambda params, x: (network(params, x), 2 * network(params, x))  # noqa: E731
    of_one = sj.log_flow(network, PARAMS, (4,))
    assert jnp.isclose(sj.log_flow(two, PARAMS, (4,)), of_one + jnp.log(3.0))
    with_none = lambda params, x: (network(params, x), {})  # noqa: E731
    assert jnp.isclose(sj.log_flow(with_none, PARAMS, (4,)), of_one)


def test_kernels_of_integers_alone_are_said_to_be_that():
    params = jax.tree.map(lambda x: x.astype(jnp.int8), PARAMS)
    message = r"only floating leaves.*a/kernel \(int8\), b/kernel \(int8\)\. Convert them"
    for prunable in (sj.is_kernel, sj.matching(without="b/*")):
        with pytest.raises(
            ValueError, match=message.replace(", b/kernel \\(int8\\)", ".*")
        ):
            sj.prune(MAGNITUDE, params, 0.5, prunable=prunable)
    assert "b/kernel" in str(pytest.raises(ValueError, sj.collapsed, params, DENSE).value)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.complex64])
def test_kernels_that_stay_whole_for_their_dtype_are_said_once(dtype):
    params = {**PARAMS, "q": {"kernel": jnp.ones((3, 3), dtype)}}
    with pytest.warns(UserWarning, match=r"q/kernel \(.*stay whole") as said:
        masks, info = sj.prune(MAGNITUDE, params, 0.5, rounds=2)
    assert len(said) == 1
    assert masks["q"]["kernel"].all() and int(info.kept[-1]) == 15
    sj.prune(MAGNITUDE, params, 0.5, rounds=2, prunable=sj.matching(without="q/*"))


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_statistics_that_are_negative_or_nan_are_named_with_their_line(bad):
    variance = jnp.array([1.0, bad, 1.0, 1.0, 1.0])

    def normed(params, x):
        hidden = x @ params["a"]["kernel"] * jax.lax.rsqrt(variance)[None]
        return hidden @ params["b"]["kernel"]

    message = (
        r"test_calls\.py:\d+ \(normed\).*statistics.*holds NaN here.*negative variance"
    )
    with pytest.raises(FloatingPointError, match=message):
        sj.prune(sj.synflow(normed, (4,)), PARAMS, 0.5)


def test_leaves_that_are_python_numbers_are_parameters(no_typecheck):
    params = {**PARAMS, "scale": 2.0, "steps": 3}
    dense = sj.all_kept(params)
    scaled = lambda params, x: params["scale"] * network(params, x)  # noqa: E731
    for score in (
        sj.synflow(scaled, (4,)),
        MAGNITUDE,
        sj.random(jax.random.key(0)),
        sj.snip(lambda p, b: p["scale"] * loss(p, b), BATCHES),
    ):
        assert score(params, dense)["scale"].shape == ()
        masks, _ = sj.prune(score, params, 0.5, rounds=1)
        assert bool(masks["scale"]) and int(sj.count(masks)) == 15 + 2
        assert sj.apply_masks(params, masks)["scale"] == 2.0
    assert sj.summarize(params, dense)[2].size == 1
    assert not sj.is_kernel("kernel", 2.0)


def test_explicit_transfers_only():
    """Under `jax.transfer_guard`, as users set it to find their own."""
    dense, starts = sj.all_kept(PARAMS), sj.all_kept(PARAMS)
    key, steps, k = jax.random.key(0), jax.jit(PRUNER.step), jnp.uint32(3)
    score = sj.random(key)
    # The first call compiles, and constants of a program are no transfer of its calls.
    calls = [
        lambda: sj.prune(SYNFLOW, PARAMS, 0.3, rounds=2),
        lambda: sj.prune(SYNFLOW, PARAMS, 0.3, rounds=2, on_round=lambda info: None),
        lambda: sj.prune(SYNFLOW, PARAMS, 0.3, schedule=sj.certified()),
        lambda: sj.prune(MAGNITUDE, PARAMS, 0.3, rounds=2, scope="layer"),
        lambda: sj.prune(MAGNITUDE, PARAMS, 0.3, rounds=2, masks=starts),
        lambda: sj.prune(score, PARAMS, 0.3, rounds=2),
        lambda: sj.keep_top(PARAMS, 3),
        lambda: sj.log_flow(network, PARAMS, (4,)),
        lambda: sj.apply_masks(PARAMS, dense),
        lambda: steps(PRUNER.init(PARAMS), PARAMS, k),
    ]
    for call in calls:
        with jax.transfer_guard("disallow"):
            call()

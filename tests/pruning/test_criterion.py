"""What the loop knows of a criterion: its certificate, and its data as arguments."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from synflow_jax.pruning import progress
from synflow_jax.pruning.criterion import FlowCriterion, without_constants
from synflow_jax.pruning.loop import COUNTS
from synflow_jax.pruning.rounds import method_of
from synflow_jax.transform import Rule, Scaled
from synflow_jax.xla.backends import Backend
from tests import nets

# Some networks do not read all of their parameters, or let no flow reach them.
pytestmark = pytest.mark.filterwarnings("ignore:all scores of .* leaves are 0")

PARAMS = {"a": {"kernel": None}, "b": {"kernel": None}}
PARAMS = {n: {"kernel": w} for n, w in nets.draw({"a": (4, 6), "b": (6, 3)}).items()}


def network(params, x):
    return jax.nn.relu(x @ params["a"]["kernel"]) @ params["b"]["kernel"]


CPU = Backend(cpu=True, one_device=True)
SYNFLOW = sj.synflow(network, (4,))


def certificate(score_fn):
    """Whether two rounds of a half each are certified."""
    _, info = sj.prune(score_fn, PARAMS, 0.5, rounds=2)
    assert (np.asarray(info.removed) < 1).all()
    return bool(info.certificate)


# --- to whom a certificate belongs --------------------------------------------------------


@functools.wraps(SYNFLOW)
def wrapped(params, masks):
    return jax.tree.map(lambda s: s / 2, SYNFLOW(params, masks))


class Halved(FlowCriterion):
    def __call__(self, params, masks):
        return jax.tree.map(lambda s: s / 2, super().__call__(params, masks))


WITHOUT = {
    "functools.wraps": wrapped,
    "jit of functools.wraps": jax.jit(wrapped),
    "partial": functools.partial(SYNFLOW),
    "lambda": lambda params, masks: SYNFLOW(params, masks),
    "subclass": Halved(SYNFLOW.score, SYNFLOW.why_not_certifiable),
    "jit of a lambda": jax.jit(lambda params, masks: SYNFLOW(params, masks)),
    "with biases": sj.synflow(network, (4,), biases=True),
}


@pytest.mark.parametrize(
    "score_fn",
    [SYNFLOW, jax.jit(SYNFLOW), jax.jit(jax.jit(SYNFLOW)), sj.synflow_l2(network, (4,))],
    ids=["synflow", "jit", "jit of jit", "synflow_l2"],
)
def test_a_certificate_belongs_to_what_synflow_returns(score_fn):
    assert certificate(score_fn)


@pytest.mark.parametrize("name", WITHOUT)
def test_a_function_around_a_criterion_has_no_certificate(name):
    assert not certificate(WITHOUT[name])
    with pytest.raises(ValueError, match="`schedule` cannot certify rounds"):
        sj.prune(WITHOUT[name], PARAMS, 0.5, schedule=sj.certified())


# --- rules that keep paths, and rules that do not -----------------------------------------


def geometric_mean(equation, flow):
    """Over the last axis: positive and of degree one, and no sum over paths."""
    mean = jnp.exp(jnp.mean(jnp.log(flow.mantissa + 1e-30), axis=-1, keepdims=True))
    return [Scaled(jnp.broadcast_to(mean, flow.mantissa.shape), flow.exponent)]


def sorting(params, x):
    return jnp.sort(x @ params["a"]["kernel"]) @ params["b"]["kernel"]


def test_a_rule_that_is_no_sum_over_paths_certifies_nothing():
    """A round that removes less than the flow may cut such a network."""
    rules = {**sj.flow_rules, "sort": geometric_mean}
    score_fn = sj.synflow(sorting, (4,), rules=rules)
    assert not certificate(score_fn)
    with pytest.raises(ValueError, match=r"cannot certify.*`sort`.*test_criterion"):
        sj.prune(score_fn, PARAMS, 0.5, schedule=sj.certified())
    # One hidden unit without its 4 weights: 1 / 6 of the flow goes, and then all of it.
    masks = sj.all_kept(PARAMS)
    masks["a"]["kernel"] = masks["a"]["kernel"].at[:, 0].set(False)
    cut = sj.log_flow(sorting, sj.apply_masks(PARAMS, masks), (4,), rules=rules)
    assert cut < sj.log_flow(sorting, PARAMS, (4,), rules=rules) - 5


@pytest.mark.parametrize("keeps_paths", [True, False, lambda equation, flow: True])
def test_a_rule_says_whether_it_keeps_paths(keeps_paths):
    rule = Rule(lambda equation, flow: [flow], keeps_paths=keeps_paths)
    rules = {**sj.flow_rules, "sort": rule}
    assert certificate(sj.synflow(sorting, (4,), rules=rules)) == bool(keeps_paths)


def least(params, x):
    x = x[..., None] @ jnp.ones((1, 2)) @ params["pair"]["kernel"]
    return jnp.minimum(x[..., 0], 1.0) @ params["a"]["kernel"] @ params["b"]["kernel"]


def convolved(params, x):
    kernel = params["pair"]["kernel"].reshape(2, 2, 1)
    x = jnp.stack([x, x], axis=-1)
    dimensions = ("NWC", "WIO", "NWC")
    x = jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=dimensions)
    return x[..., 0] @ params["a"]["kernel"] @ params["b"]["kernel"]


@pytest.mark.parametrize(
    "name, function",
    [("dot_general", network), ("min", least), ("conv_general_dilated", convolved)],
)
def test_a_rule_in_the_place_of_a_known_one_is_asked(name, function):
    params = PARAMS
    if function is not network:
        params = PARAMS | {"pair": {"kernel": jnp.ones((2, 2))}}
    given = sj.flow_rules[name]
    seen = []

    def same(equation, *operands):
        seen.append(equation.name)
        return given.apply(equation, *operands)

    for rule, certifies in (
        (given, True),
        (dataclasses.replace(given, apply=same), True),
        (dataclasses.replace(given, apply=same, keeps_paths=False), False),
    ):
        score_fn = sj.synflow(function, (4,), rules={**sj.flow_rules, name: rule})
        _, info = sj.prune(score_fn, params, 0.9, rounds=1)
        assert bool(info.certificate) == certifies
    assert name in seen


def test_a_table_is_copied_when_the_criterion_is_made():
    rules = {**sj.flow_rules, "sort": sj.flow_rules["tanh"]}
    score_fn = sj.synflow(sorting, (4,), rules=rules)
    rules["sort"] = Rule(lambda equation, flow: [Scaled(flow.mantissa * 0, flow.exponent)])
    scores = score_fn(PARAMS, sj.all_kept(PARAMS))
    assert float(scores["a"]["kernel"].sum()) == pytest.approx(1)


# --- arrays that a criterion needs are arguments of the loop ------------------------------

TRACES = []
X = jax.random.normal(jax.random.key(0), (2, 3, 8, 4))
Y = jax.random.normal(jax.random.key(1), (2, 3, 8, 3))


def loss_fn(params, batch):
    TRACES.append("loss")
    return jnp.mean((network(params, batch["x"]) - batch["y"]) ** 2)


def traced_network(params, x):
    TRACES.append("network")
    return network(params, x)


def batches(i):
    return {"x": X[i], "y": Y[i]}


WITH_DATA = {
    "snip": lambda i: sj.snip(loss_fn, batches(i)),
    "grasp": lambda i: sj.grasp(loss_fn, batches(i)),
    "fisher": lambda i: sj.fisher(loss_fn, batches(i)),
    "gradient_norm": lambda i: sj.gradient_norm(loss_fn, batches(i)),
    "ntk_sap": lambda i: sj.ntk_sap(traced_network, X[i], jax.random.key(i)),
    "random": lambda i: sj.random(jax.random.key(i)),
}


@pytest.mark.parametrize("name", WITH_DATA)
def test_other_data_of_equal_shapes_compiles_nothing(name):
    make = WITH_DATA[name]
    first, _ = sj.prune(make(0), PARAMS, 0.3, rounds=3)
    TRACES.clear()
    programs = progress.all_rounds._cache_size()
    second, _ = sj.prune(make(1), PARAMS, 0.3, rounds=3)
    assert progress.all_rounds._cache_size() == programs
    assert len(TRACES) <= 2  # of the new criterion by itself, and not in the loop
    # It is the other data that counts: as with a criterion that is compiled by itself.
    criterion = make(1)
    closure = lambda params, masks: criterion(params, masks)  # noqa: E731
    alone, _ = sj.prune(closure, PARAMS, 0.3, rounds=3)
    nets.assert_equal(second, alone)
    same = [bool((a == b).all()) for a, b in zip(*map(jax.tree.leaves, (first, second)))]
    assert not all(same)


@pytest.mark.parametrize("name", WITH_DATA)
def test_scores_under_jit_are_of_the_criterion_s_own_data(name):
    """Criteria of one formula and other data are not one function to `jax.jit`."""
    masks = sj.all_kept(PARAMS)
    for i in (0, 1):
        criterion = WITH_DATA[name](i)
        got, want = jax.jit(criterion)(PARAMS, masks), criterion(PARAMS, masks)
        nets.assert_close(got, want, rtol=1e-4)


def normalised(statistics, jit):
    """A network that closes over arrays, as over batch statistics, perhaps under jit."""
    inner = lambda x: (x @ statistics) / 64  # noqa: E731
    inner = jax.jit(inner) if jit else inner

    def apply_fn(params, x):
        return network(params, inner(x)[..., :4])

    return apply_fn


CLOSURES = {
    "synflow": lambda s, jit: sj.synflow(normalised(s, jit), (64,)),
    "snip": lambda s, jit: sj.snip(
        lambda params, x: normalised(s, jit)(params, x).sum(), jnp.ones((2, 8, 64))
    ),
    "a user's": lambda s, jit: (
        lambda params, masks: jax.tree.map(
            lambda w: abs(w) * (jax.jit(jnp.sum)(s) if jit else s.sum()), params
        )
    ),
    "random": lambda s, jit: sj.random(jax.random.key(0)),
}


def constant_bytes(text):
    """Sizes of the constants in a program's text that are not one number repeated."""
    sizes = {"i1": 1, "i8": 1, "ui8": 1, "f32": 4, "i32": 4, "ui32": 4, "f64": 8, "i64": 8}
    found = re.findall(r"stablehlo\.constant dense<(.*?)> : tensor<([^>]*)>", text)
    for value, shape in found:
        *extent, dtype = shape.split("x")
        if value.startswith(("[", '"')):
            yield int(np.prod([int(n) for n in extent])) * sizes[dtype]


@pytest.mark.parametrize("jit", [False, True], ids=["plain", "jit"])
@pytest.mark.parametrize("name", CLOSURES)
def test_the_compiled_loop_holds_no_large_constant(name, jit):
    statistics = jax.random.uniform(jax.random.key(0), (64, 64))
    score_fn = CLOSURES[name](statistics, jit)
    method, constants = method_of(
        score_fn, CPU, PARAMS, sj.all_kept(PARAMS), is_prunable=(True, True)
    )
    counts = np.array([20, 10], np.uint32)
    lowered = progress.all_rounds.lower(method, COUNTS, 2, True, constants, PARAMS, counts)
    assert max(constant_bytes(lowered.as_text()), default=0) <= 1024
    held = [x.nbytes for x in jax.tree.leaves(constants) if hasattr(x, "nbytes")]
    assert name == "random" or max(held) >= statistics.nbytes


def test_constants_are_seen_in_a_text():
    large = jnp.asarray(np.arange(1000.0, dtype=np.float32))
    text = jax.jit(lambda x: x * large).lower(1.0).as_text()
    assert [*constant_bytes(text)] == [4000]


def test_a_criterion_is_split_once_and_found_again():
    masks = sj.all_kept(PARAMS)
    one, _ = without_constants(SYNFLOW, CPU, PARAMS, masks)
    other, _ = without_constants(SYNFLOW, CPU, PARAMS, masks)
    assert one == other and hash(one) == hash(other)
    assert one != without_constants(sj.synflow(network, (4,)), CPU, PARAMS, masks)[0]


# --- functions that read other values later, or that cannot be hashed ---------------------


def same_masks(criterion, masks):
    """Whether a round of one half kept what the criterion says when it is called."""
    size = sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    k, whole = sj.num_kept(size, 0.5), sj.all_kept(PARAMS)
    want = jax.jit(lambda params: sj.keep_top(criterion(params, whole), k))(PARAMS)
    return all(bool((a == b).all()) for a, b in zip(*map(jax.tree.leaves, (masks, want))))


@pytest.mark.parametrize("kind", ["array", "number"])
def test_a_new_criterion_reads_the_values_of_today(kind):
    """As of a loss that uses the batch statistics of the last epoch."""
    statistics = {"x": jnp.ones(4) if kind == "array" else 1.0}

    def loss(params, batch):
        x = (batch["x"] * jnp.broadcast_to(statistics["x"], batch["x"].shape)) ** 2
        return jnp.sum(network(params, x))

    for today in (jnp.array([5.0, 0.1, 3.0, 0.01]), jnp.array([0.01, 5.0, 0.1, 3.0])):
        statistics["x"] = today if kind == "array" else float(today[0])
        criterion = sj.snip(loss, batches(0))
        masks, _ = sj.prune(criterion, PARAMS, 0.5, rounds=1)
        assert same_masks(criterion, masks)


def test_a_step_of_a_loop_of_one_s_own_calls_the_criterion_itself():
    latest = {}

    def criterion(params, masks):
        return latest["scores"]

    pruner = sj.iterative(criterion)
    for i in (0, 1):
        latest["scores"] = jax.tree.map(lambda w, i=i: w * (-1) ** i, PARAMS)
        state, _ = pruner.step(pruner.init(PARAMS), PARAMS, 21)
        assert same_masks(criterion, state.masks)


class Unhashable:
    """A loss such as an Equinox module: it has arrays, and so no hash."""

    __hash__ = None

    def __call__(self, params, batch):
        return loss_fn(params, batch)


@pytest.mark.parametrize("make", [sj.snip, sj.grasp, sj.fisher, sj.gradient_norm])
def test_a_loss_need_not_be_hashable(make):
    got, _ = sj.prune(make(Unhashable(), batches(0)), PARAMS, 0.3, rounds=2)
    want, _ = sj.prune(make(loss_fn, batches(0)), PARAMS, 0.3, rounds=2)
    nets.assert_equal(got, want)


@pytest.mark.parametrize("bad", ["abc", 3.0, {}, {"x": X[0], "y": Y[0][:1]}])
def test_batches_that_are_none_are_named(bad, no_typecheck):
    with pytest.raises(ValueError, match="`batches` must be a pytree of arrays"):
        sj.snip(loss_fn, bad)


# --- networks that are cut although the flow is not ---------------------------------------

PRODUCTS = {
    "and": lambda a, b: ((a > 0) & (b > 0)).astype(jnp.float32),
    "divided by an inverse": lambda a, b: a / (1 / b),
    "divided by an inverse of relu": lambda a, b: a / (1 / jax.nn.relu(b)),
    "inverses multiplied": lambda a, b: 1 / ((1 / a) * (1 / b)),
    "compared": lambda a, b: (a > b).astype(jnp.float32),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_two_flows_certify_nothing_however_they_are_written(name):
    def gated(params, x):
        return PRODUCTS[name](x @ params["a"]["kernel"], x @ params["b"]["kernel"])

    params = {n: {"kernel": w} for n, w in nets.draw({"a": (4, 4), "b": (4, 4)}).items()}
    _, info = sj.prune(sj.synflow(gated, (4,)), params, 0.9, rounds=1)
    assert not info.certificate


NORMS = {
    "rsqrt": lambda x: x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6),
    "divided": lambda x: x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6),
    "a factor": lambda x: x * (2.0 / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalisations_are_certified(name):
    def normed(params, x):
        return NORMS[name](x @ params["a"]["kernel"]) @ params["b"]["kernel"]

    _, info = sj.prune(sj.synflow(normed, (4,)), PARAMS, 0.9, rounds=1)
    assert info.certificate


@pytest.mark.parametrize("fields", [3, (None,), (network, "no")])
def test_a_rule_that_is_none_is_named(fields, no_typecheck):
    rule = Rule(*fields) if isinstance(fields, tuple) else fields
    with pytest.raises(ValueError, match=r"`rules\['sort'\]`"):
        sj.synflow(sorting, (4,), rules={**sj.flow_rules, "sort": rule})

"""The fewest weights that keep a network connected, and what pruning leaves connected."""

import math

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import synflow_jax as sj
from synflow_jax import models
from synflow_jax.analysis import collapse as collapse
from synflow_jax.analysis.collapse import (
    connectivity,
    critical_compression,
    largest_compression,
)
from synflow_jax.paths.fewest import fewest_weights
from synflow_jax.transform.scaled import Scaled
from tests import nets


def anything(path, leaf):
    return True


def kernels(weights):
    return [{"kernel": jnp.asarray(w)} for w in weights]


def mlp(params, x):
    return nets.mlp([layer["kernel"] for layer in params], x)


# --- the fewest weights -------------------------------------------------------------------

UNITS, STAGES = 2, 4
PAIRS = [(i, j) for j in range(STAGES) for i in range(j)]


def stages(params, x):
    """Every stage reads all stages before it: through weights, and through gains, which are
    no weights. Which of both are zero makes the graph."""
    values = [x]
    for j in range(1, STAGES):
        into = [
            jax.nn.relu(values[i] @ params[f"{i}{j}"]["kernel"])
            + values[i] * params[f"{i}{j}"]["gain"][None]
            for i in range(j)
        ]
        values.append(sum(into[1:], into[0]))
    return values[-1]


def fewest_by_paths(params):
    """The definition: of all paths, the smallest number of weights."""

    def onward(stage, unit):
        if stage == STAGES - 1:
            return 0
        found = [math.inf]
        for after in range(stage + 1, STAGES):
            layer = params[f"{stage}{after}"]
            if layer["gain"][unit]:
                found.append(onward(after, unit))
            for other in np.flatnonzero(layer["kernel"][unit]):
                found.append(1 + onward(after, other))
        return min(found)

    return min(onward(0, unit) for unit in range(UNITS))


# Sizes that no product of floats survives, and mostly nothing.
sizes = st.sampled_from([0, 0, 0, 1e-37, -1e30]).map(np.float32)
graphs = st.fixed_dictionaries(
    {
        f"{i}{j}": st.fixed_dictionaries(
            {
                "kernel": hnp.arrays(np.float32, (UNITS, UNITS), elements=sizes),
                "gain": hnp.arrays(np.float32, UNITS, elements=sizes),
            }
        )
        for i, j in PAIRS
    }
)


@hypothesis.given(graphs)
@hypothesis.settings(max_examples=100)
def test_the_fewest_weights_are_those_of_the_shortest_path(params):
    want = fewest_by_paths(params)
    if want == math.inf:
        with pytest.raises(ValueError, match="no path leads from the input to the output"):
            fewest_weights(stages, params, (UNITS,))
    else:
        assert fewest_weights(stages, params, (UNITS,)) == want


# Weights, prunable leaves and fewest weights, as counted by hand: of ResNet-20 the first
# layer, two shortcuts and the last; of ResNet-18 three shortcuts.
PAPER = {
    "mlp": (119_400, 6, 6),
    "conv": (337_760, 3, 3),
    "resnet20": (270_896, 22, 4),
    "resnet18": (11_164_352, 21, 5),
}


@pytest.mark.parametrize(
    "name",
    ["mlp", "conv", "resnet20", pytest.param("resnet18", marks=pytest.mark.long)],
)
def test_the_largest_compressions_of_the_papers_networks(name, standard_promotion):
    network = models.NETWORKS[name]
    module = network.make(num_classes=network.num_classes)
    images = jnp.ones((1, *network.input_shape))
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables)
    apply_fn, params = sj.from_linen(module, ones)
    size, layers, fewest = PAPER[name]
    kernels = [
        p for n, p in zip(sj.leaf_names(params), jax.tree.leaves(params)) if "kernel" in n
    ]
    assert (sum(p.size for p in kernels), len(kernels)) == (size, layers)
    assert fewest_weights(apply_fn, params, network.input_shape) == fewest
    largest = largest_compression(apply_fn, params, network.input_shape)
    assert largest == pytest.approx(math.log10(size / fewest), abs=1e-12)


@pytest.mark.parametrize("depth", [1, 16])
def test_chains_of_layers(depth):
    params = kernels([np.ones((1, 1), np.float32)] * depth)
    assert fewest_weights(mlp, params, (1,)) == depth


def layers_in_a_scan(params, x):
    return lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, params["kernel"])[0]


def test_chains_in_a_scan():
    stack = {"kernel": jnp.ones((100, 2, 2))}
    assert fewest_weights(layers_in_a_scan, stack, (2,)) == 100


def test_a_number_is_not_lost_beside_others_in_one_array():
    """Values reached through 1 to 6 weights are stacked, and the shortest ends there."""

    def apply_fn(params, x):
        step = lambda x, w: (x @ w, x @ w)  # noqa: E731
        _, steps = lax.scan(step, x, params["steps"]["kernel"])
        return (steps * params["gain"]).sum(0) @ params["last"]["kernel"]

    params = {
        "steps": {"kernel": jnp.ones((6, 2, 2))},
        "gain": jnp.ones((6, 1, 1)),
        "last": {"kernel": jnp.ones((2, 2))},
    }
    for first in range(6):
        gain = jnp.zeros((6, 1, 1)).at[first:].set(1e-30)
        assert fewest_weights(apply_fn, params | {"gain": gain}, (2,)) == first + 2


def test_only_prunable_weights_are_counted():
    params = {
        "embedding": jnp.ones((3, 2)),
        "a": {"kernel": jnp.ones((2, 2), jnp.bfloat16)},
        "scale": jnp.ones(2),
    }

    def apply_fn(params, ids):
        rows = params["embedding"][ids] * params["scale"][None, None]
        return rows @ params["a"]["kernel"].astype(jnp.float32)

    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    assert fewest_weights(apply_fn, params, tokens) == 1
    assert fewest_weights(apply_fn, params, tokens, prunable=anything) == 3
    scale = lambda path, leaf: path == "scale"  # noqa: E731
    assert largest_compression(apply_fn, params, tokens, prunable=scale) == math.log10(2)


def test_a_path_around_all_weights_needs_none():
    apply_fn = lambda params, x: x + jax.nn.relu(x @ params["kernel"])  # noqa: E731
    params = {"kernel": jnp.ones((2, 2))}
    assert fewest_weights(apply_fn, params, (2,)) == 0
    assert largest_compression(apply_fn, params, (2,)) == math.inf
    assert critical_compression(sj.magnitude(), apply_fn, params, (2,)) == math.inf
    nothing = {"kernel": jnp.zeros((2, 2), bool)}
    got = connectivity(apply_fn, params, nothing, (2,))
    assert got.connected and got.log_flow == pytest.approx(math.log(2))
    assert got.starved == got.empty == ["kernel"]


USES = {
    # What the docstring says of products, of weights met twice and of computed weights.
    "gate": (lambda a, b, c, x: (x @ a) * jax.nn.sigmoid(x @ b @ c), 2),
    "attention": (lambda a, b, c, x: jax.nn.softmax(x @ a @ b) @ (x @ c).T, 2),
    "gate beside a shortcut": (lambda a, b, c, x: x @ a + (x @ a) * (x @ b @ c), 1),
    "tied": (lambda a, b, c, x: x @ a @ a.T @ a, 3),
    "low rank": (lambda a, b, c, x: x @ (a @ b) @ c, 2),
    "standardised": (lambda a, b, c, x: x @ _standardised(a) @ _standardised(b), 2),
    "signs": (lambda a, b, c, x: x @ jnp.sign(a) @ jnp.maximum(b, 0), 2),
    "on ones": (lambda a, b, c, x: jnp.hstack([x @ a, x]) @ _on_ones(b), 0),
    "on ones that come later": (
        lambda a, b, c, x: jnp.hstack([x, x @ a @ c]) @ _on_ones(b),
        1,
    ),
    # Of pooling, of either sort, the way that is shorter.
    "maximum": (lambda a, b, c, x: jnp.maximum(x @ a @ b, x @ c), 1),
    "max": (lambda a, b, c, x: jnp.hstack([x @ a @ b, x @ c]).max(axis=1), 1),
    "sum": (lambda a, b, c, x: jnp.hstack([x @ a @ b, x @ c]).sum(axis=1), 1),
    # Normalising and centring.
    "norm": (lambda a, b, c, x: _normed(x @ a) @ b, 2),
    "norm of another": (
        lambda a, b, c, x: (x @ a) * lax.rsqrt(((x @ b @ c) ** 2).sum(1, keepdims=True)),
        1,
    ),
    "bias": (lambda a, b, c, x: x @ a + b[:1], 1),
    "mean": (lambda a, b, c, x: (x @ a).mean(axis=1, keepdims=True) @ b[:1], 2),
}


def _standardised(w, epsilon=1e-6):
    return (w - w.mean(0, keepdims=True)) / jnp.sqrt(w.var(0, keepdims=True) + epsilon)


def _on_ones(w):
    return jnp.vstack([w, jnp.ones_like(w)])


def _normed(x):
    x = x - x.mean(1, keepdims=True)
    return x * lax.rsqrt((x**2).mean(1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("use", USES)
def test_what_counts_as_a_weight_on_a_path(use):
    apply_fn, want = USES[use]
    shapes = dict.fromkeys("abc", (2, 2))
    params = {n: {"kernel": w} for n, w in nets.draw(shapes).items()}
    network = lambda p, x: apply_fn(*(p[n]["kernel"] for n in "abc"), x)  # noqa: E731
    assert fewest_weights(network, params, (2,)) == want


def test_computed_kernels_are_told_from_constants():
    """With fewer digits than floats have, as many are alike by chance as of millions."""

    def apply_fn(params, x):
        return x @ lax.reduce_precision(_standardised(params["kernel"]), 8, 10)

    kernel = np.random.default_rng(0).standard_normal((100, 4000), np.float32)
    assert fewest_weights(apply_fn, {"kernel": jnp.asarray(kernel)}, (100,)) == 1


def test_a_kernel_that_is_nan_connects_nothing():
    apply_fn = lambda params, x: x @ _standardised(params["kernel"], 0.0)  # noqa: E731
    params = {"kernel": jnp.ones((2, 2)).at[0, 0].set(0)}
    assert fewest_weights(apply_fn, params, (2,)) == 1  # the second column is 0 / 0
    got = critical_compression(sj.magnitude(), apply_fn, params, (2,), rounds=1)
    assert got == math.log10(4 / 1)


def test_what_misses_zero_a_little_reaches_nothing():
    """Convolutions by transforms do. The second unit is the shorter way, but for zeros."""
    exact = sj.flow_rules["dot_general"]

    def noisy(equation, left, right):
        ((mantissa, exponent),) = exact.apply(equation, left, right)
        return [Scaled(mantissa + 1e-7 * mantissa.max(), exponent)]

    def apply_fn(params, x):
        x = x @ params["filter"] @ params["a"]["kernel"]
        b = params["b"]["kernel"]
        return x[:, :1] @ b @ b + x[:, 1:]

    params = {
        "filter": jnp.array([[1.0, 0.0], [1.0, 0.0]]),
        "a": {"kernel": jnp.eye(2)},
        "b": {"kernel": jnp.ones((1, 1))},
    }
    rules = {**sj.flow_rules, "dot_general": noisy}
    assert fewest_weights(apply_fn, params, (2,), rules=rules) == 3


# --- what is left of a network ------------------------------------------------------------


def residual(params, x):
    x = x @ params["stem"]["kernel"]
    branch = jax.nn.relu(x @ params["first"]["kernel"]) @ params["second"]["kernel"]
    return (branch + x @ params["shortcut"]["kernel"]) @ params["last"]["kernel"]


# Made once: another criterion would be compiled anew.
SYNFLOW = sj.synflow(residual, (16,))


def residual_params(seed=0, shortcut=1e-3):
    """He's initialisation; the branch of two layers carries nearly all of the flow."""
    shapes = dict.fromkeys(("first", "last", "second", "shortcut", "stem"), (16, 16))
    drawn = {n: w * (2 / 16) ** 0.5 for n, w in nets.draw(shapes, seed).items()}
    return {
        n: {"kernel": w * (shortcut if n == "shortcut" else 1)} for n, w in drawn.items()
    }


def test_a_starved_shortcut_is_no_collapse():
    params = residual_params()
    masks, _ = sj.prune(SYNFLOW, params, 0.1)
    assert sj.collapsed(params, masks) == ["shortcut/kernel"]
    got = connectivity(residual, params, masks, (16,))
    assert got.connected and math.isfinite(got.log_flow)
    flow = sj.log_flow(residual, sj.apply_masks(params, masks), (16,))
    assert got.log_flow == pytest.approx(float(flow))
    assert got.kept == sj.num_kept(5 * 256, 0.1)
    assert got.starved == got.empty == ["shortcut/kernel"]
    assert str(got) == (
        f"connected: 128 weights kept, {got.effective} of them on a path; "
        "starved: shortcut/kernel"
    )


def test_a_layer_may_be_starved_that_is_not_empty():
    params = residual_params()
    masks = sj.all_kept(params)
    first, second = (np.zeros((16, 16), bool) for _ in range(2))
    first[:, 0] = second[1] = True  # they do not meet
    masks |= {"first": {"kernel": first}, "second": {"kernel": second}}
    got = connectivity(residual, params, masks, (16,))
    assert got.connected and got.empty == []
    assert got.starved == ["first/kernel", "second/kernel"]
    assert (got.kept, got.effective) == (3 * 256 + 32, 3 * 256)


def test_what_is_cut_has_no_starved_layers_but_empty_ones():
    params = residual_params()
    nothing = {"kernel": np.zeros((16, 16), bool)}
    masks = sj.all_kept(params) | {"stem": nothing}
    got = connectivity(residual, params, masks, (16,))
    want = (False, -math.inf, 4 * 256, 0, ["stem/kernel"], [])
    assert tuple(got) == want
    assert (
        str(got)
        == "disconnected: 1024 weights kept, 0 of them on a path; empty: stem/kernel"
    )
    masks |= {"shortcut": nothing}
    both = connectivity(residual, params, masks, (16,)).empty
    assert both == ["shortcut/kernel", "stem/kernel"]


def test_a_weight_in_every_layer_need_not_connect():
    params = kernels([np.ones((2, 2))] * 2)
    masks = kernels([np.array([[True, False]] * 2), np.array([[False] * 2, [True] * 2])])
    got = connectivity(mlp, params, masks, (2,))
    assert not got.connected and got.empty == [] and got.kept == 4
    assert str(got) == "disconnected: 4 weights kept, 0 of them on a path; empty: none"


def test_a_thin_path_that_the_flow_loses_connects():
    """The last of 30 layers reads one unit, to which one path leads beside 63**29."""
    depth, width = 30, 64
    mask = np.ones((depth, width, width), bool)
    mask[:, 0, 1:] = mask[:, 1:, 0] = mask[-1] = False
    mask[-1, 0, 0] = True
    params = {"kernel": np.ones(mask.shape, np.float32)}
    got = connectivity(layers_in_a_scan, params, {"kernel": mask}, (width,))
    assert got.connected and got.effective == depth and got.log_flow == -math.inf


def test_only_prunable_leaves_with_entries_are_reported():
    params = {"kernel": jnp.ones((2, 2)), "gain": jnp.ones(2), "none": jnp.ones((0, 2))}
    apply_fn = lambda params, x: x @ params["kernel"] * params["gain"][None]  # noqa: E731
    left = jnp.array([[True, False], [True, False]])
    masks = sj.all_kept(params) | {"kernel": left}
    got = connectivity(apply_fn, params, masks, (2,))
    assert (got.kept, got.effective, got.starved) == (2, 2, [])
    got = connectivity(apply_fn, params, masks, (2,), prunable=anything)
    assert (got.kept, got.effective, got.starved) == (4, 3, [])
    masks |= {"gain": jnp.zeros(2, bool)}
    got = connectivity(apply_fn, params, masks, (2,))
    assert (got.connected, got.kept, got.empty) == (False, 2, [])
    got = connectivity(apply_fn, params, masks, (2,), prunable=anything)
    assert (got.connected, got.kept, got.empty) == (False, 2, ["gain"])


# --- critical compressions ----------------------------------------------------------------

WIDTHS = (3, 4, 4, 2)
SMALL = kernels(nets.draw(dict(enumerate(zip(WIDTHS, WIDTHS[1:])))).values())
SIZE = sum(a * b for a, b in zip(WIDTHS, WIDTHS[1:]))


def connected_by_matrices(masks):
    ways = np.ones((1, WIDTHS[0]))
    for mask in masks:
        ways = ways @ np.asarray(mask["kernel"])
    return bool(ways.any())


def connected_at(score_fn, **settings):
    """For each number of weights kept, whether they make a path."""
    return [
        connected_by_matrices(sj.prune(score_fn, SMALL, k / SIZE, **settings)[0])
        for k in range(1, SIZE + 1)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_the_critical_compression_of_a_fixed_order_of_weights(seed):
    """All counts are tried: below the critical none connects, from it on all do."""
    score_fn = sj.random(jax.random.key(seed)) if seed else sj.magnitude()
    connected = connected_at(score_fn, rounds=1)
    k = 1 + connected.index(True)
    assert all(connected[k - 1 :]) and 3 < k < SIZE
    got = critical_compression(score_fn, mlp, SMALL, WIDTHS[:1], rounds=1)
    assert got == math.log10(SIZE / k)


def test_the_critical_compression_in_every_layer():
    score_fn = sj.random(jax.random.key(3))
    settings = {"rounds": 2, "schedule": sj.linear, "scope": "layer"}
    connected = connected_at(score_fn, **settings)
    k = 1 + connected.index(True)
    assert all(connected[k - 1 :]) and k > 3
    kept = sj.prune(score_fn, SMALL, k / SIZE, **settings)[1].kept[-1]
    assert int(kept) > k  # every layer rounds up
    got = critical_compression(score_fn, mlp, SMALL, WIDTHS[:1], **settings)
    assert got == math.log10(SIZE / int(kept))


def test_a_criterion_is_compiled_once_for_all_counts():
    traced = []

    def score_fn(params, masks):
        traced.append(1)
        return sj.magnitude()(params, masks)

    sj.prune(score_fn, SMALL, 0.5, rounds=3)
    once = len(traced)
    critical_compression(score_fn, mlp, SMALL, WIDTHS[:1], rounds=3)
    assert len(traced) == once


def test_the_settings_are_those_of_prune(monkeypatch):
    given = dict(
        rounds=2, schedule=sj.linear, scope="layer", prunable=anything, regrow=True
    )
    called = []

    def prune(*args, **settings):
        called.append(settings)
        return sj.prune(*args, **settings)

    monkeypatch.setattr(collapse, "prune", prune)
    critical_compression(sj.magnitude(), mlp, SMALL, WIDTHS[:1], **given)
    # The published algorithm is what the axiom is about.
    given |= {"keep_connected": False}
    assert called and all(settings == given for settings in called)


def papers_mlp(seed):
    module = models.MLP(width=0.3)
    variables = module.init(jax.random.key(seed), jnp.ones((1, 28, 28, 1)))
    return *sj.from_linen(module, variables), (28, 28, 1)


def test_synflow_reaches_the_largest_compression_and_others_do_not():
    """The paper's axiom: 100 rounds keep a path until there is one weight a layer."""
    apply_fn, params, input_shape = papers_mlp(0)
    largest = largest_compression(apply_fn, params, input_shape)
    assert largest == pytest.approx(math.log10(27_420 / 6))

    def critical(score_fn, rounds):
        return critical_compression(score_fn, apply_fn, params, input_shape, rounds=rounds)

    synflow = sj.synflow(apply_fn, input_shape)
    assert critical(synflow, 100) == largest
    assert critical(synflow, 1) < 1 and critical(sj.magnitude(), 1) < 1


def test_synflow_goes_beyond_a_weight_a_layer_where_there_are_shortcuts():
    params = residual_params(shortcut=1.0)
    largest = largest_compression(residual, params, (16,))
    assert largest == math.log10(5 * 256 / 3)
    got = critical_compression(SYNFLOW, residual, params, (16,))
    assert math.log10(5 * 256 / 5) <= got <= largest


# --- what is refused ----------------------------------------------------------------------


def test_networks_without_a_path_are_refused():
    params = kernels([np.ones((2, 2)), np.zeros((2, 2))])
    for function in (fewest_weights, largest_compression):
        with pytest.raises(ValueError, match="no path leads from the input to the output"):
            function(mlp, params, (2,))
    with pytest.raises(ValueError, match="no path leads from the input to the output"):
        critical_compression(sj.magnitude(), mlp, params, (2,))


def test_errors_are_those_of_masks_leaves_and_flow(no_typecheck):
    params = kernels([np.ones((2, 2))])
    masks = sj.all_kept(params)
    with pytest.raises(ValueError, match="`masks` must have the structure"):
        connectivity(mlp, params, masks[0], (2,))
    none = {"prunable": lambda path, leaf: False}
    unknown = lambda params, x: nets.trigamma(mlp(params, x))  # noqa: E731
    for call in (
        lambda f, **more: fewest_weights(f, params, (2,), **more),
        lambda f, **more: largest_compression(f, params, (2,), **more),
        lambda f, **more: connectivity(f, params, masks, (2,), **more),
        lambda f, **more: critical_compression(sj.magnitude(), f, params, (2,), **more),
    ):
        with pytest.raises(ValueError, match="`prunable` chose no leaf"):
            call(mlp, **none)
        with pytest.raises(sj.FlowError, match=r"`polygamma`, called at .*nets.py"):
            call(unknown)

"""Facts about masks and networks."""

import itertools

import flax.linen as nn
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
from tests import nets

PARAMS = {
    "a": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)},
    "b": {"kernel": jnp.ones((4, 1))},
    "none": jnp.ones((0, 3)),
}
MASKS = {
    "a": {"kernel": jnp.zeros((2, 4), bool).at[0, 1].set(True), "bias": jnp.ones(4, bool)},
    "b": {"kernel": jnp.zeros((4, 1), bool)},
    "none": jnp.ones((0, 3), bool),
}


def test_a_row_for_every_leaf():
    rows = [tuple(row) for row in sj.summarize(PARAMS, MASKS)]
    assert rows == [
        ("a/bias", (4,), 4, 4, 1.0),
        ("a/kernel", (2, 4), 8, 1, 0.125),
        ("b/kernel", (4, 1), 4, 0, 0.0),
        ("none", (0, 3), 0, 0, 1.0),
    ]


def test_collapsed_names_prunable_leaves_with_nothing_left():
    assert sj.collapsed(PARAMS, MASKS) == ["b/kernel"]
    assert sj.collapsed(PARAMS, sj.all_kept(PARAMS)) == []
    empty = {"kernel": jnp.ones((0, 3))}
    assert sj.collapsed(empty, sj.all_kept(empty)) == []
    only_a = lambda path, leaf: path == "a/kernel"  # noqa: E731
    assert sj.collapsed(PARAMS, MASKS, prunable=only_a) == []


def test_masks_that_do_not_fit_are_refused(no_typecheck):
    for function in (sj.summarize, sj.collapsed):
        with pytest.raises(ValueError, match="`masks` must have the structure"):
            function(PARAMS, {"a": MASKS["a"]})


# --- unreached ----------------------------------------------------------------------------


def two_heads(params, x):
    features = x @ params["body"]["kernel"]
    _ = features @ params["other head"]["kernel"]
    return params["gain"] * (features @ params["head"]["kernel"]) + params["bias"]


HEADS = {
    "bias": jnp.ones((1, 2)),
    "body": {"kernel": jnp.ones((3, 4))},
    "empty": {"kernel": jnp.ones((0, 4))},
    "gain": jnp.ones(()),
    "head": {"kernel": jnp.ones((4, 2))},
    "other head": {"kernel": jnp.ones((4, 2))},
    "unused": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
}


def test_unreached_names_the_prunable_leaves_that_the_output_does_not_depend_on():
    assert sj.unreached(two_heads, HEADS, (3,)) == ["other head/kernel", "unused/kernel"]
    anything = lambda path, leaf: True  # noqa: E731
    assert sj.unreached(two_heads, HEADS, (3,), prunable=anything) == [
        *("bias", "other head/kernel", "unused/bias", "unused/kernel")
    ]
    used = {name: HEADS[name] for name in HEADS if name not in ("other head", "unused")}
    apply_fn = lambda params, x: two_heads({**HEADS, **params}, x)  # noqa: E731
    assert sj.unreached(apply_fn, used, (3,)) == []


def test_behind_a_zero_everything_is_unreached():
    stopped = {**HEADS, "gain": jnp.zeros(())}
    names = ["body/kernel", "head/kernel", "other head/kernel", "unused/kernel"]
    assert sj.unreached(two_heads, stopped, (3,)) == names
    one_zero = {**HEADS, "body": {"kernel": HEADS["body"]["kernel"].at[0, 0].set(0)}}
    assert "body/kernel" not in sj.unreached(two_heads, one_zero, (3,))


# --- effective masks ----------------------------------------------------------------------


def kernels(weights):
    return [{"kernel": jnp.asarray(w)} for w in weights]


def mlp(params, x):
    return nets.mlp([layer["kernel"] for layer in params], x)


def mlp_with_shortcuts(params, x):
    """The second layer may be stepped over, and the input reaches the output."""
    a, b, c = (layer["kernel"] for layer in params)
    x = jax.nn.relu(x @ a)
    return jax.nn.relu(x + jax.nn.relu(x @ b)) @ c


def live_by_paths(masks, shortcut=False):
    """The definition: whether some path of kept weights runs through the weight."""
    widths = [len(masks[0])] + [m.shape[1] for m in masks]
    live = [np.zeros(m.shape, bool) for m in masks]
    for path in itertools.product(*map(range, widths)):
        edges = list(enumerate(zip(path, path[1:])))
        routes = [edges]
        if shortcut and path[1] == path[2]:
            routes.append([edges[0], edges[2]])
        for route in routes:
            if all(masks[layer][edge] for layer, edge in route):
                for layer, edge in route:
                    live[layer][edge] = True
    return live


def masks_of(*shapes):
    return st.tuples(*(hnp.arrays(bool, shape) for shape in shapes))


CHAIN, SQUARE = ((2, 3), (3, 4), (4, 2)), ((2, 3), (3, 3), (3, 2))
# Sizes that no product of floats survives, in both signs.
TINY_AND_HUGE = [
    {
        "kernel": jnp.asarray(
            np.random.default_rng(i).choice([1e-37, -1e-30, 1, -1e35], shape)
        )
    }
    for i, shape in enumerate(CHAIN)
]
effective = jax.jit(
    lambda apply_fn, *args: sj.effective_masks(apply_fn, *args, (2,)), static_argnums=0
)


@hypothesis.given(masks_of(*CHAIN))
def test_effective_masks_keep_what_lies_on_a_path_whatever_the_sizes(masks):
    want = kernels(live_by_paths(masks))
    nets.assert_equal(effective(mlp, TINY_AND_HUGE, kernels(masks)), want)


@hypothesis.given(masks_of(*SQUARE))
def test_effective_masks_follow_shortcuts(masks):
    params = kernels(nets.draw(dict(zip("abc", SQUARE))).values())
    got = effective(mlp_with_shortcuts, params, kernels(masks))
    nets.assert_equal(got, kernels(live_by_paths(masks, shortcut=True)))
    nets.assert_equal(effective(mlp_with_shortcuts, params, got), got)


def test_effective_masks_of_a_batch_of_masks():
    params = kernels(nets.draw(dict(zip("abc", CHAIN))).values())
    drawn = np.random.default_rng(0)
    batch = [{"kernel": jnp.asarray(drawn.random((5, *shape)) < 0.5)} for shape in CHAIN]
    got = jax.vmap(lambda masks: sj.effective_masks(mlp, params, masks, (2,)))(batch)
    for i in range(5):
        want = sj.effective_masks(mlp, params, nets.element(batch, i), (2,))
        nets.assert_equal(nets.element(got, i), want)


def test_a_thin_path_beside_thick_ones_is_not_lost():
    depth, width = 30, 64
    params = kernels([np.ones((width, width), np.float32)] * depth)
    mask = np.ones((width, width), bool)
    mask[0, 1:] = mask[1:, 0] = False  # one path beside 63**31 others
    masks = kernels([mask] * depth)
    score = sj.synflow(mlp, (width,))(params, masks)
    assert not np.any(score[15]["kernel"][0, 0])
    nets.assert_equal(sj.effective_masks(mlp, params, masks, (width,)), masks)
    cut = [*masks[:7], {"kernel": masks[7]["kernel"].at[0, 0].set(False)}, *masks[8:]]
    got = sj.effective_masks(mlp, params, cut, (width,))
    assert [bool(layer["kernel"][0, 0]) for layer in got] == [False] * depth
    assert all(bool(jnp.all(layer["kernel"][1:, 1:])) for layer in got)


def test_effective_masks_of_the_papers_mlp():
    apply_fn, params, input_shape = models.build("mlp", jax.random.key(0))
    masks, _ = sj.prune(sj.random(jax.random.key(1)), params, 0.01, rounds=1)
    got = sj.effective_masks(apply_fn, params, masks, input_shape)
    names, leaves = sj.leaf_names(masks), jax.tree.leaves(masks)
    kept = [np.asarray(m) for name, m in zip(names, leaves) if name.endswith("kernel")]
    into = [np.ones(len(kept[0]), bool)]  # what the input reaches, layer by layer
    for mask in kept:
        into.append((into[-1][:, None] & mask).any(axis=0))
    onward = [np.ones(kept[-1].shape[1], bool)]
    for mask in reversed(kept):
        onward.insert(0, (mask & onward[0]).any(axis=1))
    want = [m & i[:, None] & o for m, i, o in zip(kept, into, onward[1:])]
    assert 0 < sum(m.sum() for m in want) < sum(m.sum() for m in kept)
    found = [m for name, m in zip(names, jax.tree.leaves(got)) if name.endswith("kernel")]
    nets.assert_equal(found, want)
    biases = [m for name, m in zip(names, jax.tree.leaves(got)) if name.endswith("bias")]
    assert biases and all(np.all(m) for m in biases)


EXTREME = jnp.array([1e-37, -1.0, 1e35])
USES = {
    "times": lambda w, x: x * w[None],
    "divided by": lambda w, x: x / w[None],
    "convolution": lambda w, x: lax.conv_general_dilated(
        x[..., None],
        w.reshape(1, 1, 3),
        (1,),
        "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
    ).sum(1),
    "large convolution": lambda w, x: lax.conv_general_dilated(
        jnp.broadcast_to(x[..., None], (1, 3, 2000)).transpose(0, 2, 1),
        jnp.diag(w)[None],
        (1,),
        "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
    ).sum(1),
    "in a scan": lambda w, x: lax.scan(lambda x, w: (x * w[None], None), x, w[None])[0],
}


@pytest.mark.parametrize("use", USES)
def test_sizes_do_not_count_however_parameters_are_used(use):
    params = {"w": EXTREME, "kernel": jnp.ones((3, 2))}
    apply_fn = lambda params, x: USES[use](params["w"], x) @ params["kernel"]  # noqa: E731
    masks = sj.all_kept(params)
    anything = lambda path, leaf: True  # noqa: E731
    # A pruned divisor divides by zero.
    for keep in ([True] * 3, [False, True, False])[: 1 if use == "divided by" else 2]:
        masks = {**masks, "w": jnp.array(keep)}
        got = sj.effective_masks(apply_fn, params, masks, (3,), prunable=anything)
        want = {"w": jnp.array(keep), "kernel": jnp.ones((3, 2), bool)}
        if use != "convolution":
            want["kernel"] = want["kernel"] & want["w"][:, None]
        elif not keep[0]:
            want["kernel"] = jnp.array([[False] * 2, [True] * 2, [False] * 2])
        nets.assert_equal(got, want)


def test_uses_of_a_weight_with_either_sign_do_not_cancel():
    params = {"kernel": jnp.array([[1.0, -2.0], [3.0, 4.0]])}
    apply_fn = lambda params, x: x @ params["kernel"] @ -params["kernel"]  # noqa: E731
    masks = sj.all_kept(params)
    nets.assert_equal(sj.effective_masks(apply_fn, params, masks, (2,)), masks)


def test_a_parameter_that_is_zero_is_on_no_path_even_if_a_weight_made_of_it_is():
    params = {"kernel": jnp.array([[0.0, 1.0], [2.0, 3.0]])}
    apply_fn = lambda params, x: x @ (params["kernel"] - 0.5)  # noqa: E731
    got = sj.effective_masks(apply_fn, params, sj.all_kept(params), (2,))
    assert got["kernel"].tolist() == [[False, True], [True, True]]


def test_the_flow_is_the_same_under_effective_masks(no_typecheck):
    params = nets.draw(nets.CONVNET_SHAPES)
    anything = lambda path, leaf: True  # noqa: E731
    score = jax.jit(sj.synflow(nets.convnet, nets.CONVNET_INPUT))
    masks, _ = sj.prune(sj.random(jax.random.key(0)), params, 0.5, prunable=anything)
    masks["a"] = masks["a"].at[..., 1].set(False)  # so what b reads of channel 1 is dead
    live = sj.effective_masks(
        nets.convnet, params, masks, nets.CONVNET_INPUT, prunable=anything
    )
    assert 0 < int(sj.count(live)) < int(sj.count(masks))
    nets.assert_close(score(params, live), score(params, masks))
    for alive, scores in zip(live.values(), score(params, masks).values()):
        assert np.all(np.asarray(alive)[np.asarray(scores) > 0])


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(2)(x.reshape(len(x), -1))


def normed(scale, mean):
    variables = jax.jit(Normed().init)(jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    variables["params"]["BatchNorm_0"]["scale"] = jnp.array(scale)
    variables["batch_stats"]["BatchNorm_0"]["mean"] = jnp.array(mean)
    return sj.from_linen(Normed(), variables)


def test_norms_connect_by_their_scale_and_stay_whole():
    apply_fn, params = normed([1e-36, 0.0, -2.0], [0.0, 5.0, -5.0])
    got = sj.effective_masks(apply_fn, params, sj.all_kept(params), (4, 4, 1))
    by_channel = [True, False, True]
    assert np.all(got["Conv_0"]["kernel"], axis=(0, 1, 2)).tolist() == by_channel
    assert np.any(got["Conv_0"]["kernel"], axis=(0, 1, 2)).tolist() == by_channel
    dense = np.asarray(got["Dense_0"]["kernel"]).reshape(4, 3, 2)
    assert dense.all(axis=(0, 2)).tolist() == dense.any(axis=(0, 2)).tolist() == by_channel
    for name in ("BatchNorm_0", "Conv_0", "Dense_0"):
        assert all(np.all(m) for key, m in got[name].items() if key != "kernel")


def pooled(pool):
    return lambda params, x: pool(x @ params["kernel"])


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: nn.max_pool(x[..., None], (3,), (3,)),
        lambda x: x.max(axis=1),
        lambda x: jnp.maximum(x[:, :3], x[:, 3:]),
        lambda x: nn.avg_pool(x[..., None], (3,), (3,), count_include_pad=True),
    ],
    ids=["max_pool", "max", "maximum", "avg_pool"],
)
def test_every_entry_of_a_pool_counts(pool, standard_promotion):
    params = {"kernel": jnp.ones((2, 6)).at[1, 2].set(3.0)}
    masks = {"kernel": jnp.ones((2, 6), bool).at[0, 1].set(False)}
    nets.assert_equal(sj.effective_masks(pooled(pool), params, masks, (2,)), masks)


def test_effective_masks_go_inside_scans_branches_and_jitted_functions():
    def apply_fn(params, x):
        def layer(x, w):
            return jax.checkpoint(lambda x: jax.nn.silu(x @ (w - 1.0)))(x), None

        x, _ = lax.scan(layer, x, params["stack"]["kernel"])
        branches = [lambda x: x, lambda x: x @ params["b"]["kernel"]]
        return lax.switch(params["which"], branches, x)

    params = {
        "stack": {"kernel": jnp.full((3, 2, 2), 3.0)},
        "b": {"kernel": jnp.ones((2, 2))},
        "which": jnp.int32(1),
    }
    masks = sj.all_kept(params)
    nets.assert_equal(sj.effective_masks(apply_fn, params, masks, (2,)), masks)
    first = {**params, "which": jnp.int32(0)}
    got = sj.effective_masks(apply_fn, first, masks, (2,))
    assert np.all(got["stack"]["kernel"]) and not np.any(got["b"]["kernel"])


def test_effective_masks_of_nothing_left_and_of_weights_that_are_zero():
    params = kernels(nets.draw(dict(zip("abc", CHAIN))).values())
    masks = sj.all_kept(params)
    nothing = [masks[0], {"kernel": jnp.zeros((3, 4), bool)}, masks[2]]
    got = sj.effective_masks(mlp, params, nothing, (2,))
    assert int(sj.count(got)) == 0
    zero = [{"kernel": params[0]["kernel"].at[:, 1].set(0)}, *params[1:]]
    got = sj.effective_masks(mlp, zero, masks, (2,))
    want = live_by_paths([np.asarray(layer["kernel"]) != 0 for layer in zero])
    nets.assert_equal(got, kernels(want))


def test_effective_masks_leave_unprunable_leaves_as_they_are():
    params = {"a": jnp.ones((2, 2)), "kernel": jnp.ones((2, 2)), "step": jnp.int32(3)}
    masks = {
        "a": jnp.array([[True, False], [False, False]]),
        "kernel": jnp.ones((2, 2), bool),
        "step": jnp.array(True),
    }
    apply_fn = lambda params, x: x @ params["a"] @ params["kernel"]  # noqa: E731
    got = sj.effective_masks(apply_fn, params, masks, (2,))
    want = {**masks, "kernel": jnp.array([[True, True], [False, False]])}
    nets.assert_equal(got, want)
    only_a = lambda path, leaf: path == "a"  # noqa: E731
    all_kept = sj.all_kept(params)
    cut = {**all_kept, "kernel": jnp.array([[True, True], [False, False]])}
    got = sj.effective_masks(apply_fn, params, cut, (2,), prunable=only_a)
    nets.assert_equal(got, {**cut, "a": jnp.array([[True, False], [True, False]])})


def test_effective_masks_report_what_the_flow_reports(no_typecheck):
    params = kernels([np.ones((2, 2), np.float32)])
    masks = sj.all_kept(params)
    with pytest.raises(ValueError, match="`masks` must have the structure"):
        sj.effective_masks(mlp, params, masks[0], (2,))
    with pytest.raises(sj.FlowError, match=r"`polygamma`, called at .*nets.py"):
        sj.effective_masks(lambda p, x: nets.trigamma(mlp(p, x)), params, masks, (2,))

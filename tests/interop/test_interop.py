"""Modules of JAX libraries as (apply_fn, params) and back; parameter trees of any kind."""

import dataclasses
import sys

import equinox as eqx
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import synflow_jax as sj
from tests import nets

IMAGE = (6, 6, 1)
BATCH = jnp.asarray(np.random.default_rng(0).standard_normal((3, *IMAGE)), jnp.float32)


def pruned_to_zero(params, masks):
    """The pruned parameters, after a check that something was pruned and something not."""
    assert 0 < int(sj.count(masks)) < sum(leaf.size for leaf in jax.tree.leaves(masks))
    return sj.apply_masks(params, masks)


# --- linen --------------------------------------------------------------------------------


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x).reshape(len(x), -1))


def test_linen_there_and_back():
    module = LinenNet()
    variables = module.init(jax.random.key(0), BATCH)
    apply_fn, params = sj.from_linen(module, variables)
    masks, info = sj.prune(sj.synflow(apply_fn, IMAGE), params, 0.1, rounds=3)
    params = pruned_to_zero(params, masks)
    back = sj.to_linen(variables, params)
    assert sorted(back) == ["batch_stats", "params"] and back["params"] is params
    nets.assert_close(module.apply(back, BATCH), apply_fn(params, BATCH))
    assert variables["params"] is not params


def test_linen_refuses_what_does_not_fit():
    variables = {"params": {"kernel": jnp.ones((2, 3))}}
    with pytest.raises(ValueError, match=r"key 'params'; its keys are \['kernel'\]"):
        sj.from_linen(LinenNet(), variables["params"])
    with pytest.raises(ValueError, match=r"its keys are \['kernel'\]"):
        sj.to_linen(variables["params"], variables["params"])
    with pytest.raises(ValueError, match=r"`params\['kernel'\]` has shape \(3, 2\)"):
        sj.to_linen(variables, {"kernel": jnp.ones((3, 2))})


# --- nnx ----------------------------------------------------------------------------------


class NnxNet(nnx.Module):
    """Normalisation, dropout, a list of layers, a count of its calls, a shared layer."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.repeated = self.layers[0]
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x, scale=1.0):
        self.calls[...] += 1
        x = nnx.relu(self.drop(self.norm(self.conv(x)))).sum(axis=(1, 2))
        for layer in (*self.layers, self.repeated):
            x = layer(x)
        return scale * x


@pytest.fixture
def nnx_net(standard_promotion):
    net = NnxNet(nnx.Rngs(0))
    net(BATCH)  # moves the running averages off their start
    return net


def test_nnx_there_and_back_in_evaluation_mode(nnx_net):
    before = jax.tree.map(jnp.copy, nnx.state(nnx_net))
    apply_fn, params = sj.from_nnx(nnx_net)
    assert sj.leaf_names(params) == [
        *("conv/bias", "conv/kernel", "layers/0/bias", "layers/0/kernel"),
        *("layers/1/bias", "layers/1/kernel", "norm/bias", "norm/scale"),
    ]
    masks, info = sj.prune(sj.synflow(apply_fn, IMAGE), params, 0.3, rounds=3)
    assert int(info.kept[-1]) == sj.num_kept(36 + 16 + 16, 0.3)
    params = pruned_to_zero(params, masks)
    back = sj.to_nnx(nnx_net, params)

    # The module is as it was: its values, its random state, its training mode.
    nets.assert_equal(nnx.state(nnx_net), before)
    assert not nnx_net.norm.use_running_average and not nnx_net.drop.deterministic

    # The new one is in the mode of the given one, shares nothing with it, keeps sharing.
    assert not back.norm.use_running_average and not back.drop.deterministic
    assert back.repeated is back.layers[0] and back.norm is not nnx_net.norm
    nets.assert_equal(nnx.to_pure_dict(nnx.state(back, nnx.Param)), params)
    back.eval()
    nets.assert_close(back(BATCH), apply_fn(params, BATCH))
    nets.assert_equal(nnx.state(nnx_net), before)


def test_nnx_apply_is_pure_and_passes_arguments_on(nnx_net):
    apply_fn, params = sj.from_nnx(nnx_net, scale=2.0)
    plain_fn, _ = sj.from_nnx(nnx_net)
    got = [apply_fn(params, BATCH), jax.jit(apply_fn)(params, BATCH)]
    nets.assert_equal(apply_fn(params, BATCH), got[0])
    nets.assert_close(got[1], got[0])
    nets.assert_close(got[0], 2 * plain_fn(params, BATCH))
    assert int(nnx_net.calls[...]) == 1
    jax.grad(lambda p: apply_fn(p, BATCH).sum())(params)


def test_parameters_that_nnx_layers_share_are_one_leaf_with_the_sum_of_flows():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.encode = nnx.Linear(3, 2, use_bias=False, rngs=rngs)
            self.decode = nnx.Linear(3, 2, use_bias=False, rngs=rngs)
            self.decode.kernel = self.encode.kernel

        def __call__(self, x):
            return self.encode(x) @ self.decode.kernel[...].T

    module = Tied(nnx.Rngs(0))
    apply_fn, params = sj.from_nnx(module)
    (name,) = sj.leaf_names(params)
    masks, _ = sj.prune(sj.synflow(apply_fn, (3,)), params, 0.5, rounds=1)
    (leaf,) = jax.tree.leaves(params)
    assert name.endswith("/kernel") and leaf.shape == (3, 2)
    (score,) = jax.tree.leaves(sj.synflow(apply_fn, (3,))(params, sj.all_kept(params)))
    np.testing.assert_allclose(score, tied_scores_by_paths(np.asarray(leaf)), rtol=1e-5)
    back = sj.to_nnx(module, sj.apply_masks(params, masks))
    assert back.decode.kernel is back.encode.kernel
    assert int((back.decode.kernel[...] == 0).sum()) == 3


def test_masks_for_nnx_optimizer(nnx_net):
    apply_fn, params = sj.from_nnx(nnx_net)
    masks, _ = sj.prune(sj.magnitude(), params, 0.3, rounds=1)
    module = sj.to_nnx(nnx_net, pruned_to_zero(params, masks))
    frozen = sj.freeze_pruned(nnx.state(sj.to_nnx(module, masks), nnx.Param))
    optimizer = nnx.Optimizer(
        module, optax.chain(optax.sgd(0.1, momentum=0.9), frozen), wrt=nnx.Param
    )
    for _ in range(2):
        gradients = nnx.grad(lambda module: (module(BATCH) ** 2).sum())(module)
        optimizer.update(module, gradients)
    after = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    for mask, new, old in zip(*map(jax.tree.leaves, (masks, after, params))):
        assert not np.any(np.asarray(new)[~np.asarray(mask)])
        assert np.any(np.asarray(new) != np.asarray(old))


def test_masks_of_numbered_layers_come_back_from_a_file(nnx_net, tmp_path):
    _, params = sj.from_nnx(nnx_net)
    masks, _ = sj.prune(sj.magnitude(), params, 0.3, rounds=1)
    sj.save_masks(tmp_path / "m", masks)
    nets.assert_equal(sj.load_masks(tmp_path / "m"), masks)


def test_nnx_refuses_what_does_not_fit():
    module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    _, params = sj.from_nnx(module)
    for refused in (sj.from_nnx, lambda module: sj.to_nnx(module, params)):
        with pytest.raises(ValueError, match="`module` must be an nnx.Module; got Dense"):
            refused(nn.Dense(3))
    with pytest.raises(ValueError, match=r"`params\['kernel'\]` has shape \(3, 2\)"):
        sj.to_nnx(module, {**params, "kernel": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match="`params` must have the structure"):
        sj.to_nnx(module, {"kernel": params["kernel"]})


# --- equinox ------------------------------------------------------------------------------


class EqxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    pool: eqx.nn.MaxPool2d
    out: eqx.nn.MLP
    name: str = eqx.field(static=True)

    def __init__(self, key):
        keys = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 4, 3, key=keys[0])
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="ema")
        self.drop = eqx.nn.Dropout(0.5)
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.out = eqx.nn.MLP(16, 2, 5, 1, key=keys[1])
        self.name = "net"

    def __call__(self, x, state, key=None, scale=1.0):
        x, state = self.norm(self.conv(x), state)
        x = self.pool(jax.nn.relu(self.drop(x, key=key)))
        return scale * self.out(x.reshape(-1)), state


@pytest.fixture
def eqx_net(standard_promotion):
    with jax.numpy_rank_promotion("allow"):  # Equinox itself promotes ranks
        module, state = eqx.nn.make_with_state(EqxNet)(jax.random.key(0))
        batched = jax.vmap(
            module, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None)
        )
        images = BATCH.reshape(3, 1, 6, 6)
        _, state = batched(images, state, jax.random.split(jax.random.key(1), 3))
        yield module, state, images


def test_equinox_there_and_back_in_inference_mode(eqx_net, tmp_path):
    module, state, images = eqx_net
    apply_fn, params = sj.from_equinox(module, state=state)
    kernels = ["conv/weight", "out/layers/0/weight", "out/layers/1/weight"]
    masks, info = sj.prune(sj.synflow(apply_fn, (1, 6, 6)), params, 0.2, rounds=3)
    rows = sj.summarize(params, masks)
    assert [row.name for row in rows if row.kept < row.size] == kernels
    assert int(info.kept[-1]) == sj.num_kept(36 + 80 + 10, 0.2)

    # Masks are modules, fit Equinox's own gradients, and come back from a file.
    assert isinstance(masks, EqxNet)
    sj.save_masks(tmp_path / "m", masks)
    nets.assert_equal(sj.load_masks(tmp_path / "m", like=params), masks)
    assert sorted(sj.load_masks(tmp_path / "m")) == sorted(sj.leaf_names(params))

    outputs = apply_fn(params, images)
    assert not jnp.allclose(outputs[0], outputs[1])
    params = pruned_to_zero(params, masks)
    back = sj.to_equinox(module, params)
    assert not back.drop.inference and back.name == "net"
    assert bool(jnp.all(module.conv.weight != 0))
    on_one = lambda x: eqx.nn.inference_mode(back)(x, state)[0]  # noqa: E731
    nets.assert_close(jax.vmap(on_one)(images), apply_fn(params, images))


def test_equinox_training_under_masks(eqx_net):
    module, state, images = eqx_net
    apply_fn, params = sj.from_equinox(module, state=state)
    masks, _ = sj.prune(sj.magnitude(), params, 0.3, rounds=1)
    model = eqx.nn.inference_mode(sj.to_equinox(module, pruned_to_zero(params, masks)))
    optimizer = optax.chain(optax.sgd(0.1, momentum=0.9), sj.freeze_pruned(masks))
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_grad
    def gradient(model):
        return (jax.vmap(lambda x: model(x, state)[0])(images) ** 2).sum()

    for _ in range(2):
        updates, opt_state = optimizer.update(gradient(model), opt_state)
        model = eqx.apply_updates(model, updates)
    after = eqx.filter(model, eqx.is_inexact_array)
    for mask, new in zip(*map(jax.tree.leaves, (masks, after))):
        assert not np.any(np.asarray(new)[~np.asarray(mask)])
    assert not jnp.array_equal(after.conv.weight, module.conv.weight)


def test_equinox_passes_arguments_on_and_maps_over_all_inputs(eqx_net):
    module, state, images = eqx_net
    twice_fn, params = sj.from_equinox(module, state=state, scale=2.0)
    apply_fn, _ = sj.from_equinox(module, state=state)
    nets.assert_close(twice_fn(params, images), 2 * apply_fn(params, images))

    class Times(eqx.Module):
        weight: jax.Array

        def __call__(self, x, scale=1.0):
            return scale * x * self.weight

    three_times, params = sj.from_equinox(Times(jnp.full(2, 5.0)), scale=3.0)
    nets.assert_equal(three_times(params, jnp.ones((4, 2))), jnp.full((4, 2), 15.0))
    cell, params = sj.from_equinox(eqx.nn.GRUCell(2, 3, key=jax.random.key(0)))
    assert cell(params, jnp.ones((5, 2)), jnp.ones((5, 3))).shape == (5, 3)


def test_a_state_that_the_module_sets_stays_usable():
    class Counting(eqx.Module):
        index: eqx.nn.StateIndex
        linear: eqx.nn.Linear

        def __init__(self):
            self.index = eqx.nn.StateIndex(jnp.zeros(()))
            self.linear = eqx.nn.Linear(2, 2, key=jax.random.key(0))

        def __call__(self, x, state):
            return self.linear(x), state.set(self.index, state.get(self.index) + 1)

    module, state = eqx.nn.make_with_state(Counting)()
    apply_fn, params = sj.from_equinox(module, state=state)
    nets.assert_equal(*(apply_fn(params, jnp.ones((3, 2))) for _ in range(2)))
    assert float(state.get(module.index)) == 0
    masks, _ = sj.prune(sj.synflow(apply_fn, (2,)), params, 0.5, rounds=1)
    assert int(sj.count([masks.linear.weight])) == 2


def test_leaves_that_equinox_shares_are_one_leaf():
    class Tied(eqx.Module):
        shared: eqx.nn.Shared

        def __init__(self, key):
            encode = eqx.nn.Linear(3, 2, use_bias=False, key=key)
            decode = eqx.nn.Linear(2, 3, use_bias=False, key=key)
            where, get = (lambda pair: pair[1].weight), (lambda pair: pair[0].weight.T)
            self.shared = eqx.nn.Shared((encode, decode), where, get)

        def __call__(self, x):
            encode, decode = self.shared()
            return decode(encode(x))

    apply_fn, params = sj.from_equinox(Tied(jax.random.key(0)))
    (leaf,) = jax.tree.leaves(params)
    (score,) = jax.tree.leaves(sj.synflow(apply_fn, (3,))(params, sj.all_kept(params)))
    np.testing.assert_allclose(score.T, tied_scores_by_paths(np.asarray(leaf).T), rtol=1e-5)


def test_which_equinox_leaves_are_prunable_by_default():
    key = jax.random.key(0)
    layers = {
        "embedding": eqx.nn.Embedding(5, 3, key=key),
        "norm": eqx.nn.LayerNorm(3),
        "norm over two axes": eqx.nn.LayerNorm((2, 3)),
        "cell": eqx.nn.GRUCell(2, 3, key=key),
        "linear": eqx.nn.Linear(2, 3, key=key),
        "conv": eqx.nn.Conv1d(2, 3, 3, key=key),
    }
    params = {name: sj.from_equinox(layer)[1] for name, layer in layers.items()}
    names, leaves = sj.leaf_names(params), jax.tree.leaves(params)
    assert [name for name, leaf in zip(names, leaves) if sj.is_kernel(name, leaf)] == [
        *("conv/weight", "embedding/weight", "linear/weight", "norm over two axes/weight")
    ]


def test_equinox_refuses_what_does_not_fit(eqx_net):
    module, _, _ = eqx_net
    with pytest.raises(ValueError, match="`state` is needed too"):
        sj.from_equinox(module)
    linear = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    _, params = sj.from_equinox(linear)
    for refused in (sj.from_equinox, lambda module: sj.to_equinox(module, params)):
        with pytest.raises(ValueError, match="`module` must be an eqx.Module; got Dense"):
            refused(nn.Dense(3))
    with pytest.raises(ValueError, match=r"`params.weight` has shape \(2, 3\)"):
        wrong = eqx.tree_at(lambda m: m.weight, params, jnp.ones((2, 3)))
        sj.to_equinox(linear, wrong)
    with pytest.raises(ValueError, match="`params` must have the structure"):
        sj.to_equinox(linear, {"weight": params.weight})


def test_without_equinox_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "equinox", None)
    for function in (sj.from_equinox, lambda module: sj.to_equinox(module, {})):
        with pytest.raises(ImportError, match="pip install equinox"):
            function(nn.Dense(3))


# --- any other tree -----------------------------------------------------------------------


@flax.struct.dataclass
class Struct:
    kernel: jax.Array
    rest: tuple
    name: str = flax.struct.field(pytree_node=False, default="struct")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    weight: jax.Array
    rest: list


DRAWN = nets.draw({"a": (3, 4), "b": (4, 4), "c": (4, 2)})
A, B, C = DRAWN.values()
# Each: the three matrices in a container, how to read them back, their leaves' names.
TREES = {
    "list": ([A, B, C], lambda p: p, ["0", "1", "2"]),
    "tuples": ((A, (B, [C])), lambda p: (p[0], p[1][0], p[1][1][0]), ["0", "1/0", "1/1/0"]),
    "flax.struct": (
        Struct(A, (B, C)),
        lambda p: (p.kernel, *p.rest),
        ["kernel", "rest/0", "rest/1"],
    ),
    "registered dataclass": (
        Registered(A, [B, None, C]),
        lambda p: (p.weight, p.rest[0], p.rest[2]),
        ["weight", "rest/0", "rest/2"],
    ),
    "Haiku": (
        {"mlp/~/linear_0": {"w": A}, "mlp/~/linear_1": {"w": B}, "out": {"w": C}},
        lambda p: [module["w"] for module in p.values()],
        ["mlp/~/linear_0/w", "mlp/~/linear_1/w", "out/w"],
    ),
}


@pytest.mark.parametrize("kind", TREES)
def test_trees_of_any_kind_are_scored_pruned_summarised_and_saved_alike(kind, tmp_path):
    params, matrices, names = TREES[kind]
    assert sj.leaf_names(params) == names
    score = sj.synflow(lambda p, x: nets.mlp(matrices(p), x), (3,))
    by_list = sj.synflow(nets.mlp, (3,))
    everything = dict(rounds=3, prunable=lambda path, leaf: leaf.ndim >= 2)
    want, _ = sj.prune(by_list, [A, B, C], 0.4, **everything)
    masks, info = sj.prune(score, params, 0.4, **everything)

    nets.assert_equal(list(matrices(score(params, masks))), by_list([A, B, C], want))
    nets.assert_equal(list(matrices(masks)), want)
    assert [row.name for row in sj.summarize(params, masks)] == names
    assert sum(row.kept for row in sj.summarize(params, masks)) == int(info.kept[-1])
    sj.save_masks(tmp_path / "m", masks)
    nets.assert_equal(sj.load_masks(tmp_path / "m", like=params), masks)


def test_the_name_of_haikus_kernels_has_to_be_said():
    params, matrices, _ = TREES["Haiku"]
    score = sj.synflow(lambda p, x: nets.mlp(matrices(p), x), (3,))
    with pytest.raises(ValueError, match="chose no leaf"):
        sj.prune(score, params, 0.4)
    masks, _ = sj.prune(score, params, 0.4, prunable=lambda path, leaf: path[-2:] == "/w")
    assert int(sj.count(masks)) == sj.num_kept(36, 0.4)


# --- parameters used twice ----------------------------------------------------------------


def tied_scores_by_paths(w):
    """Of x @ w @ w.T, as fractions of R: a path i, h, j uses w[i, h] and w[j, h]."""
    scores, size = np.zeros(w.shape), abs(w)
    for i in range(len(w)):
        for h in range(w.shape[1]):
            for j in range(len(w)):
                scores[i, h] += size[i, h] * size[j, h]
                scores[j, h] += size[i, h] * size[j, h]
    return 2 * scores / scores.sum()


def test_a_tied_autoencoder_scores_the_sum_of_both_uses():
    score = sj.synflow(lambda params, x: x @ params["w"] @ params["w"].T, (3,))
    w = DRAWN["a"]
    got = score({"w": w}, sj.all_kept({"w": w}))["w"]
    np.testing.assert_allclose(got, tied_scores_by_paths(np.asarray(w)), rtol=1e-5)


def test_a_layer_applied_twice_scores_the_sum_over_two_layers():
    w, out = DRAWN["b"], DRAWN["c"]
    twice = sj.synflow(lambda p, x: nets.mlp([p[0], p[0], p[1]], x), (4,))
    got = twice([w, out], sj.all_kept([w, out]))
    total, (first, second, last) = nets.flow_by_paths([np.asarray(x) for x in (w, w, out)])
    nets.assert_close(got, [(first + second) / total, last / total])

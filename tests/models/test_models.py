"""The networks of the paper: sizes to the weight, and a flow through each."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from synflow_jax.models import (
    MLP,
    NETWORKS,
    VGG,
    CifarResNet,
    ConvNet,
    ResNet,
    build,
    init,
    initial,
)
from synflow_jax.trees import prunable_leaves

pytestmark = pytest.mark.usefixtures("standard_promotion")


# (network, classes): prunable weights, prunable tensors, all parameters. The totals of
# networks with shortcuts are the reference's less its untrained identity shortcuts.
COUNTS = {
    ("mlp", 10): (119_400, 6, 119_910),
    ("conv", 10): (337_760, 3, 337_834),
    ("vgg11_cifar", 10): (9_222_848, 9, 9_231_114),
    ("vgg13_cifar", 10): (9_407_168, 11, 9_416_010),
    ("vgg16_cifar", 10): (14_715_584, 14, 14_728_266),
    ("vgg16_cifar", 100): (14_761_664, 14, 14_774_436),
    ("vgg19_cifar", 10): (20_024_000, 17, 20_040_522),
    ("vgg11_tiny", 200): (12_568_256, 11, 12_578_760),
    ("vgg13_tiny", 200): (12_752_576, 13, 12_763_656),
    ("vgg16_tiny", 200): (18_060_992, 16, 18_075_912),
    ("vgg19_tiny", 200): (23_369_408, 19, 23_388_168),
    ("vgg11_imagenet", 1000): (132_851_392, 11, 132_863_336),
    ("vgg16_imagenet", 1000): (138_344_128, 16, 138_357_544),
    ("vgg19_imagenet", 1000): (143_652_544, 19, 143_667_240),
    ("vgg19_bn_imagenet", 1000): (143_652_544, 19, 143_678_248),
    ("resnet20", 10): (270_896, 22, 272_714 - 240),
    ("resnet20", 100): (276_656, 22, None),
    ("resnet32", 10): (464_432, 34, 467_370 - 464),
    ("resnet56", 10): (851_504, 58, 856_682 - 912),
    ("resnet110", 10): (1_722_416, 112, 1_732_634 - 1_920),
    ("wide_resnet20", 10): (1_081_440, 22, 1_085_066 - 480),
    ("resnet18", 10): (11_164_352, 21, 11_174_986 - 1_024),
    ("resnet18", 100): (11_210_432, 21, 11_221_156 - 1_024),
    ("resnet18_tiny", 200): (11_261_632, 21, 11_272_456 - 1_024),
    ("resnet34", 10): (21_265_088, 37, 21_285_002 - 2_880),
    ("resnet50", 10): (23_467_712, 54, 23_532_106 - 11_264),
    ("wide_resnet50", 10): (66_778_816, 54, None),
    ("resnet18_imagenet", 1000): (11_678_912, 21, 11_689_512),
    ("resnet50_imagenet", 1000): (25_502_912, 54, 25_557_032),
    ("resnet152_imagenet", 1000): (60_040_384, 156, 60_192_808),
    ("wide_resnet50_imagenet", 1000): (68_814_016, 54, 68_883_240),
}


def shapes_of(name, classes):
    network = NETWORKS[name]
    module = network.make(num_classes=classes)
    images = jax.ShapeDtypeStruct((1, *network.input_shape), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), images)["params"]


@pytest.mark.parametrize(("name", "classes"), COUNTS)
def test_sizes_are_those_of_the_paper(name, classes):
    params = shapes_of(name, classes)
    leaves = jax.tree.leaves(params)
    chosen = [p for p, yes in zip(leaves, prunable_leaves(params, sj.is_kernel)) if yes]
    weights, tensors, everything = COUNTS[name, classes]
    assert sum(p.size for p in chosen) == weights
    assert len(chosen) == tensors
    if everything is not None:
        assert sum(p.size for p in leaves) == everything


def test_wide_resnet18_has_twice_the_channels():
    """The released reference ignores its width: its "WideResNet-18" is ResNet-18."""
    narrow, wide = shapes_of("resnet18", 10), shapes_of("wide_resnet18", 10)
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide)):
        for small, large in zip(a.shape, b.shape):
            assert large in (small, 2 * small)
    kernel = "group4_block2", "conv2", "kernel"
    assert narrow[kernel[0]][kernel[1]][kernel[2]].shape == (3, 3, 512, 512)
    assert wide[kernel[0]][kernel[1]][kernel[2]].shape == (3, 3, 1024, 1024)


@pytest.mark.parametrize("module", [ConvNet(10), CifarResNet(8, 10)])
def test_variables_are_those_of_one_program_to_the_bit(module):
    key, shape = jax.random.key(3), (8, 8, 3)
    got, want = init(module, key, shape), jax.jit(module.init)(key, jnp.ones((1, *shape)))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def by_leaf(module, key, shape):
    return module.lazy_init(key, jax.ShapeDtypeStruct((1, *shape), jnp.float32))


def same_to_the_bit(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert (a.dtype, a.weak_type) == (b.dtype, b.weak_type)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["mlp", "vgg11_tiny", "vgg11_imagenet", "resnet18"])
def test_one_program_draws_what_the_initialisers_of_all_leaves_draw(name):
    module, shape, _ = SMALL[name]
    key = jax.random.key(5)
    want = by_leaf(module, key, shape)
    same_to_the_bit(init(module, key, shape), want)
    assert initial.initialised(lambda key: by_leaf(module, key, shape), key) is not None


class OtherInitialisers(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, kernel_init=nn.initializers.lecun_normal())(x)


@pytest.mark.parametrize("case", ["another initialiser", "another generator"])
def test_what_the_one_program_cannot_draw_is_drawn_by_leaf(case):
    is_other = case == "another initialiser"
    module = OtherInitialisers() if is_other else MLP(width=0.1)
    key = jax.random.key(5, impl=None if is_other else "rbg")
    shape = (4,) if is_other else (28, 28, 1)
    assert initial.initialised(lambda key: by_leaf(module, key, shape), key) is None
    same_to_the_bit(init(module, key, shape), by_leaf(module, key, shape))


def test_networks_are_initialised_under_vmap():
    keys = jax.random.split(jax.random.key(0), 2)
    many = jax.vmap(lambda key: build("mlp", key)[1])(keys)
    for i in range(2):
        one = build("mlp", keys[i])[1]
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), many, one)


def test_prunable_leaves_come_in_the_order_of_depth():
    names = [n for n in sj.leaf_names(shapes_of("vgg16_cifar", 10)) if "kernel" in n]
    assert names == [f"conv{i:02d}/kernel" for i in range(1, 14)] + ["linear/kernel"]
    names = [n for n in sj.leaf_names(shapes_of("resnet110", 10)) if "kernel" in n]
    blocks = [n.split("/")[0] for n in names[1:-1]]
    assert (names[0], names[-1]) == ("conv/kernel", "linear/kernel")
    assert blocks == sorted(blocks) and blocks[0] == "group1_block01"


SMALL = {
    "mlp": (MLP(width=0.1), (28, 28, 1), 6),
    "conv": (ConvNet(width=0.1), (8, 8, 3), 3),
    "vgg16": (VGG(16, 10, width=0.05), (32, 32, 3), 14),
    "vgg11_tiny": (VGG(11, 10, "tiny_imagenet", width=0.05), (32, 32, 3), 11),
    "vgg11_imagenet": (VGG(11, 10, "imagenet", norm=False, width=0.02), (32, 32, 3), 11),
    "resnet14": (CifarResNet(14, 10, width=0.25), (16, 16, 3), 16),
    "resnet18": (ResNet(18, 10, width=0.1), (8, 8, 3), 21),
    "resnet50": (ResNet(50, 10, "imagenet", width=0.1), (32, 32, 3), 54),
}


def variables_of(module, shape):
    """Variables without compiling an initialiser: small normal draws, variances one."""
    images = jnp.ones((1, *shape))
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
    drawn = jax.tree.map(draw, shapes)
    return drawn | {"batch_stats": jax.tree.map(jnp.abs, drawn.get("batch_stats", {}))}


LARGE = {"vgg16", "resnet18"}  # vgg11_tiny and resnet50 are of the same forms


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long) if n in LARGE else n for n in SMALL],
)
def test_every_form_can_be_trained_and_has_a_flow(name):
    module, shape, layers = SMALL[name]
    x = jnp.ones((4, *shape))
    variables = variables_of(module, shape)
    apply_fn, params = sj.from_linen(module, variables)
    assert jax.eval_shape(apply_fn, params, x).shape == (4, 10)
    out, new = jax.eval_shape(
        lambda v: module.apply(
            v, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)}
        ),
        variables,
    )
    assert out.shape == (4, 10)
    assert jax.tree.structure(new.get("batch_stats", {})) == jax.tree.structure(
        variables["batch_stats"]
    )
    assert len([n for n in sj.leaf_names(params) if n.endswith("kernel")]) == layers
    assert np.isfinite(jax.jit(lambda p: sj.log_flow(apply_fn, p, shape))(params))


@pytest.mark.parametrize(
    "name",
    ["mlp", "conv", pytest.param("vgg16", marks=pytest.mark.long), "vgg11_tiny"],
)
def test_every_layer_of_a_chain_is_a_cut(name):
    module, shape, layers = SMALL[name]
    apply_fn, params = sj.from_linen(module, variables_of(module, shape))
    scores = jax.jit(sj.synflow(apply_fn, shape))(params, sj.all_kept(params))
    np.testing.assert_allclose(kernel_totals(scores), [1] * layers, rtol=1e-5)


def test_stem_and_classifier_are_cuts_and_so_are_branch_and_shortcut_together():
    module, shape, _ = SMALL["resnet14"]
    apply_fn, params = sj.from_linen(module, variables_of(module, shape))
    scores = jax.jit(sj.synflow(apply_fn, shape))(params, sj.all_kept(params))
    totals = kernel_totals(scores)
    np.testing.assert_allclose([totals[0], totals[-1]], 1, rtol=1e-5)
    block = scores["group2_block1"]
    for branch in ("conv1", "conv2"):
        cut = block[branch]["kernel"].sum() + block["shortcut"]["kernel"].sum()
        np.testing.assert_allclose(cut, 1, rtol=1e-5)


def kernel_totals(scores):
    named = zip(sj.leaf_names(scores), jax.tree.leaves(scores))
    return [float(score.sum()) for path, score in named if path.endswith("kernel")]


def test_initialisations_are_those_of_the_reference():
    """He by fan-in for the CIFAR forms, by fan-out for the others, PyTorch's for dense."""
    key = jax.random.key(0)
    vgg = init(VGG(11, 100, width=0.5), key, (32, 32, 3))["params"]
    std = lambda *path: float(functools.reduce(dict.get, path).std())  # noqa: E731
    np.testing.assert_allclose(std(vgg, "conv04", "kernel"), (2 / 1152) ** 0.5, rtol=0.02)
    np.testing.assert_allclose(std(vgg, "linear", "kernel"), (2 / 256) ** 0.5, rtol=0.02)
    resnet = init(ResNet(18, 100, width=0.5), key, (8, 8, 3))["params"]
    np.testing.assert_allclose(std(resnet, "conv", "kernel"), (2 / 288) ** 0.5, rtol=0.05)
    dense = resnet["linear"]
    for leaf in dense.values():
        assert float(abs(leaf).max()) <= 256**-0.5 and float(leaf.std()) > 0.5 * 256**-0.5
    mlp = init(MLP(), key, (28, 28, 1))["params"]["linear2"]
    np.testing.assert_allclose(abs(mlp["bias"]).max(), 0.1, rtol=0.1)


@pytest.mark.long  # test_reference holds other total flows, and the counts of vgg16
def test_the_flow_of_vgg16_has_the_size_that_the_paper_found():
    """log10 R = 23.48 there at initialisation, dense, for CIFAR-100."""
    apply_fn, params, shape = build("vgg16_cifar", jax.random.key(0), num_classes=100)
    got = jax.jit(lambda p: sj.log_flow(apply_fn, p, shape))(params) / np.log(10)
    assert abs(float(got) - 23.48) < 0.1


def test_an_unknown_network_is_answered_with_the_list():
    with pytest.raises(ValueError, match="no network 'vgg'; there are .*vgg16_cifar"):
        build("vgg", jax.random.key(0))


def test_depths_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="`depth` is 6 n \\+ 2.*21"):
        CifarResNet(21, 10).init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))

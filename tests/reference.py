"""The authors' code on known weights: draws the weights, reads the stored results."""

import functools
import hashlib
import json
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from synflow_jax import is_kernel, leaf_names, synflow
from synflow_jax.models import MLP, VGG, CifarResNet, ConvNet

DATA = pathlib.Path(__file__).parent / "data"
MODULES = {
    "fc_mnist": MLP(),
    "conv_cifar10": ConvNet(),
    "resnet20_c10": CifarResNet(depth=20, num_classes=10),
    "vgg16bn_c10": VGG(depth=16, num_classes=10),
}


@functools.cache
def read(case: str) -> dict:
    return json.loads((DATA / f"{case}.json").read_text())


def arrays() -> np.lib.npyio.NpzFile:
    return np.load(DATA / "reference.npz")


def kernels(case: str) -> list[np.ndarray]:
    """The weights of the case in Flax layout, float32, in the order of the network."""
    spec = read(case)["spec"]
    rng = np.random.default_rng(spec["seed"])
    drawn = []
    for layer in spec["layers"]:
        if layer["kind"] not in ("conv", "linear"):
            continue
        w = rng.standard_normal(layer["torch_shape"]) * np.sqrt(2 / layer["fan_in"])
        w = w.astype(np.float32)
        if w.ndim == 4:
            w = w.transpose(2, 3, 1, 0)
        else:
            if "chw" in layer:  # the input was a flattened image, channels first
                w = w.reshape(len(w), *layer["chw"]).transpose(0, 2, 3, 1)
            w = w.reshape(len(w), -1).T
        drawn.append(np.ascontiguousarray(w))
    return drawn


def network(case: str, dtype=jnp.float32):
    """``(apply_fn, params, input_shape)`` with the weights of the case."""
    module = MODULES[case]
    channels, *image = read(case)["spec"]["input_shape"]
    shape = (*image, channels)
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, *shape)))
    weights = iter(kernels(case))

    def fill(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if is_kernel(name, leaf):
            kernel = next(weights)
            assert kernel.shape == leaf.shape, name
            return jnp.asarray(kernel, dtype)
        whole = name.endswith(("/scale", "/var"))
        return (jnp.ones if whole else jnp.zeros)(leaf.shape, dtype)

    variables = nn.meta.unbox(dict(variables))
    filled = {
        name: jax.tree_util.tree_map_with_path(fill, variables[name])
        for name in sorted(variables, reverse=True)  # params first
    }
    assert next(weights, None) is None

    def apply_fn(params, x):
        return module.apply({**filled, "params": params}, x)

    return apply_fn, filled["params"], shape


@functools.cache
def score(case: str, dtype=jnp.float32):
    """The criterion, one object a case so that it compiles once, and the parameters."""
    apply_fn, params, shape = network(case, dtype)
    return synflow(apply_fn, shape), params


def kernels_of(tree) -> list:
    """The leaves named kernel, in the order of the network."""
    named = zip(leaf_names(tree), jax.tree.leaves(tree))
    return [leaf for name, leaf in named if name.endswith("kernel")]


def digest(masks) -> str:
    """What the reference stores of a set of masks."""
    bits = np.concatenate([np.asarray(m).ravel() for m in kernels_of(masks)])
    return hashlib.sha256(np.packbits(bits).tobytes()).hexdigest()


def stored_masks(case: str, name: str, params):
    """Masks of the reference as a tree like ``params``."""
    bits = np.unpackbits(arrays()[f"{case}/mask/{name}"]).astype(bool)
    start = 0

    def take(path, leaf):
        nonlocal start
        if not jax.tree_util.keystr(path).endswith("['kernel']"):
            return jnp.ones(leaf.shape, bool)
        size = math.prod(leaf.shape)
        start += size
        return jnp.asarray(bits[start - size : start].reshape(leaf.shape))

    return jax.tree_util.tree_map_with_path(take, params)


def assert_differ_only_in_the_band(score, ours, theirs, band=1e-5):
    """Masks of one round may differ only where the score is the threshold but for it."""
    scores = np.concatenate([np.ravel(s) for s in kernels_of(score)])
    ours = np.concatenate([np.ravel(m) for m in kernels_of(ours)])
    theirs = np.concatenate([np.ravel(m) for m in kernels_of(theirs)])
    threshold = scores[ours].min()
    assert (abs(scores[ours != theirs] / threshold - 1) <= band).all()

"""The authors' code on known weights: draws the weights, reads the stored results."""

import collections
import functools
import hashlib
import json
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from synflow_jax import grasp, leaf_names, snip, synflow
from synflow_jax.models import MLP, VGG, CifarResNet, ConvNet

DATA = pathlib.Path(__file__).parent / "data"
MODULES = {
    "fc_mnist": MLP(),
    "conv_cifar10": ConvNet(),
    "resnet20_c10": CifarResNet(depth=20, num_classes=10),
    "vgg16bn_c10": VGG(depth=16, num_classes=10),
}
MODULES |= {
    "fc_mnist_bias": MODULES["fc_mnist"],  # biases drawn from N(0, 0.1)
    "resnet20_c10_bn": MODULES["resnet20_c10"],  # random scales, shifts and statistics
}


SHIFTED = ("fc_mnist_bias", "resnet20_c10_bn")  # cases with shifts that are not zero


@functools.cache
def read(case: str) -> dict:
    return json.loads((DATA / f"{case}.json").read_text())


def arrays() -> np.lib.npyio.NpzFile:
    return np.load(DATA / "reference.npz")


def weights(case: str) -> dict[str, list[np.ndarray]]:
    """The numbers of the case, float32, in Flax layout and in the order of the network."""
    spec = read(case)["spec"]
    rng = np.random.default_rng(spec["seed"])
    drawn: dict[str, list[np.ndarray]] = collections.defaultdict(list)

    def add(name, array):
        drawn[name].append(np.ascontiguousarray(array.astype(np.float32)))

    for layer in spec["layers"]:
        if layer["kind"] in ("conv", "linear"):
            w = rng.standard_normal(layer["torch_shape"]) * np.sqrt(2 / layer["fan_in"])
            if w.ndim == 4:
                w = w.transpose(2, 3, 1, 0)
            else:
                if "chw" in layer:  # the input was a flattened image, channels first
                    w = w.reshape(len(w), *layer["chw"]).transpose(0, 2, 3, 1)
                w = w.reshape(len(w), -1).T
            add("kernel", w)
            if layer["bias"]:
                std = spec["bias_std"]
                shape = layer["torch_shape"][:1]
                add("bias", rng.standard_normal(shape) * std if std else np.zeros(shape))
        if layer["kind"] == "bn":
            random = spec["bn"] == "random"
            normal = rng.standard_normal if random else np.zeros
            shape = layer["torch_shape"]
            add("bn scale", 1 + 0.5 * normal(shape))
            add("bn bias", 0.1 * normal(shape))
            add("bn mean", 0.1 * normal(shape))
            add("bn var", rng.uniform(0.5, 1.5, shape) if random else np.ones(shape))
    return drawn


def network(case: str, dtype=jnp.float32):
    """``(apply_fn, params, input_shape)`` with the weights of the case."""
    module = MODULES[case]
    channels, *image = read(case)["spec"]["input_shape"]
    shape = (*image, channels)
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, *shape)))
    drawn = {name: iter(arrays) for name, arrays in weights(case).items()}

    def fill(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        *_, layer, kind = name.split("/")
        array = next(drawn[f"bn {kind}" if "bn" in layer else kind])
        assert array.shape == leaf.shape, name
        return jnp.asarray(array, dtype)

    variables = nn.meta.unbox(dict(variables))
    filled = {
        name: jax.tree_util.tree_map_with_path(fill, variables[name])
        for name in sorted(variables, reverse=True)  # params first
    }
    assert all(next(rest, None) is None for rest in drawn.values())

    def apply_fn(params, x):
        return module.apply({**filled, "params": params}, x)

    return apply_fn, filled["params"], shape


@functools.cache
def score(case: str, dtype=jnp.float32):
    """The criterion, one object a case so that it compiles once, and the parameters."""
    apply_fn, params, shape = network(case, dtype)
    return synflow(apply_fn, shape, biases=case in SHIFTED), params


def batch(case: str) -> dict[str, np.ndarray]:
    """The one batch of noise on which the reference scored SNIP and GraSP."""
    spec = read(case)["spec"]
    rng = np.random.default_rng(10_000 + spec["seed"])
    images = rng.standard_normal([64, *spec["input_shape"]]).astype(np.float32)
    labels = rng.integers(0, spec["num_classes"], 64)
    return {"image": images.transpose(0, 2, 3, 1), "label": labels.astype(np.int32)}


# The reference's GraSP divides logits by 200; both it and SNIP are divided by a total.
SALIENCIES = {"snip": (snip, 1.0), "grasp": (grasp, 200.0)}


def saliency(name: str, case: str, dtype=jnp.float32):
    """The criterion on the reference's batch, and the parameters."""
    make, temperature = SALIENCIES[name]
    apply_fn, params, _ = network(case, dtype)

    def loss_fn(params, batch):
        logits = apply_fn(params, batch["image"]) / temperature
        losses = optax.losses.softmax_cross_entropy_with_integer_labels
        return jnp.mean(losses(logits, batch["label"]))

    drawn = batch(case)
    batches = {"image": drawn["image"][None].astype(dtype), "label": drawn["label"][None]}
    return make(loss_fn, batches), params


def sampled(scores, stored: np.ndarray) -> np.ndarray:
    """Of a layer's scores those of which the reference's are stored."""
    places = np.linspace(0, scores.size - 1, len(stored)).astype(int)
    return np.ravel(scores)[places]


def assert_saliencies_agree(name: str, case: str, scores: list, tolerance: float):
    """Scores over their total, within a tolerance relative to the largest."""
    total = abs(sum(float(np.asarray(s, np.float64).sum()) for s in scores))
    results = arrays()
    stored = [results[f"{case}/{name}/{i}"] for i in range(len(scores))]
    largest = max(abs(want).max() for want in stored)
    for got, want in zip(scores, stored):
        got = sampled(got, want) / total
        np.testing.assert_allclose(got, want, atol=tolerance * largest)


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

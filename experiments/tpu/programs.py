"""The programs that are compiled for TPUs: pruning and masked training at real sizes.

`experiments.tpu.compiled` compiles them. Networks of images that are pruned are divided
over all chips along the longest axis of each leaf; the decoders as in Megatron along one
axis of the mesh, and over the other along the other side.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

import synflow_jax as sj
from experiments import ablation
from experiments.tpu import decoders
from experiments.training import networks, steps
from synflow_jax import models

# Tokens that a decoder is scored with, and images of a batch for snip and for training.
LENGTH, IMAGES = 128, 1024

# The training images of Fashion-MNIST.
IMAGES_OF_MNIST, CLASSES = (60_000, 28, 28, 1), 10


class Program(NamedTuple):
    """A program to compile.

    Attributes:
      name: in the table.
      topology: the chips, as `jax.experimental.topologies` names them.
      lower: ``lower(mesh) -> Lowered``.
      axes: sizes of the mesh's axes "data" and "model".
      of_flow: whether all of its products are of the flow.
    """

    name: str
    topology: str
    lower: Callable[[Mesh], "Lowered"]
    axes: tuple[int, int]
    of_flow: bool = True


class Lowered(NamedTuple):
    """What is compiled, and what its memory is compared with.

    Attributes:
      program: lowered.
      params: the shapes of the weights, with their shardings.
      activations: bytes on each chip that are no copy of the weights.
    """

    program: jax.stages.Lowered
    params: PyTree
    activations: int = 0


def divided(shapes: PyTree, mesh: Mesh) -> PyTree:
    """The shapes, each divided over all chips along its longest axis that they share."""

    def leaf(x):
        even = [n if n % mesh.size == 0 else 0 for n in x.shape]
        places: list[Any] = [None] * len(x.shape)
        if any(even):
            places[int(np.argmax(even))] = ("data", "model")
        return described(x, mesh, *places)

    return jax.tree.map(leaf, shapes)


def described(x: Any, mesh: Mesh, *places: Any) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(mesh, P(*places))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def network_of(name: str) -> tuple[Callable[..., Any], PyTree, tuple[int, ...]]:
    """``apply_fn``, the shapes of its parameters, and that of its input."""
    network = models.NETWORKS[name]
    module, shape = network.make(num_classes=network.num_classes), network.input_shape
    variables = jax.eval_shape(lambda: models.init(module, jax.random.key(0), shape))
    statistics = {k: v for k, v in variables.items() if k != "params"}

    def apply_fn(params, x):
        ones = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), statistics)
        return module.apply({"params": params, **ones}, x)

    return apply_fn, variables["params"], shape


def images(name: str) -> Callable[[Mesh], Lowered]:
    """A hundred rounds of SynFlow on a network of images."""

    def lower(mesh):
        apply_fn, shapes, shape = network_of(name)
        params = divided(shapes, mesh)
        return Lowered(sj.lower_prune(sj.synflow(apply_fn, shape), params, 0.01), params)

    return lower


def text(name: str) -> Callable[[Mesh], Lowered]:
    """A hundred rounds of SynFlow on a decoder."""

    def lower(mesh):
        decoder = decoders.DECODERS[name]
        params = decoders.shapes(decoder, mesh)
        tokens = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
        return Lowered(sj.lower_prune(sj.synflow(decoder, tokens), params, 0.01), params)

    return lower


def loss_of(name: str) -> tuple[Callable[..., Any], PyTree, PyTree]:
    """A loss, the shapes of the parameters, and those of a batch."""
    apply_fn, shapes, shape = network_of(name)

    def loss(params, batch):
        logits = apply_fn(params, batch["images"])
        labels = batch["labels"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    batch = {
        "images": jax.ShapeDtypeStruct((IMAGES, *shape), jnp.float32),
        "labels": jax.ShapeDtypeStruct((IMAGES,), jnp.int32),
    }
    return loss, shapes, batch


def kept(name: str, images: int) -> int:
    """Bytes that a gradient keeps for some images: the output of each convolution twice,
    before and after the normalisation."""
    apply_fn, shapes, shape = network_of(name)
    one = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return 2 * 4 * images * outputs(jax.jit(apply_fn).lower(shapes, one).as_text())


def outputs(text: str) -> int:
    """The entries of the outputs of all convolutions of a lowered program."""
    found = re.findall(r"stablehlo\.convolution.*-> tensor<([0-9x]+)x[a-z]", text)
    return sum(math.prod(map(int, shape.split("x"))) for shape in found)


def snip(name: str) -> Callable[[Mesh], Lowered]:
    """A round of snip on a batch of images that is divided over the chips."""

    def lower(mesh):
        loss, shapes, batch = loss_of(name)
        params = jax.tree.map(lambda x: described(x, mesh), shapes)
        batches = jax.tree.map(
            lambda x: described(
                jax.ShapeDtypeStruct((1, *x.shape), x.dtype), mesh, None, ("data", "model")
            ),
            batch,
        )
        program = sj.lower_prune(sj.snip(loss, batches), params, 0.01, rounds=1)
        return Lowered(program, params, kept(name, IMAGES // mesh.size))

    return lower


def training(name: str) -> Callable[[Mesh], Lowered]:
    """A step of training under masks, on a batch that is divided over the chips."""

    def lower(mesh):
        loss, shapes, batch = loss_of(name)
        params = jax.tree.map(lambda x: described(x, mesh), shapes)
        batch = jax.tree.map(lambda x: described(x, mesh, ("data", "model")), batch)
        masks = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, bool), shapes)
        masks = jax.tree.map(lambda x: described(x, mesh), masks)
        optimizer = optax.sgd(0.1, momentum=0.9)

        def start(params, masks):
            return sj.static_pruning(optimizer, masks).init(params)

        state = jax.eval_shape(start, params, masks)
        state = jax.tree.map(lambda x: described(x, mesh), state)

        def step(params, state, masks, batch):
            gradients = jax.grad(loss)(params, batch)
            under = sj.static_pruning(optimizer, masks)
            updates, state = under.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        jitted = jax.jit(step, donate_argnums=(0, 1))
        program = jitted.lower(params, state, masks, batch)
        return Lowered(program, params, kept(name, IMAGES // mesh.size))

    return lower


def seeds(mesh: Mesh) -> Lowered:
    """Seeds by densities of a small network, pruned and trained, a share on each chip."""
    (run,) = ablation.runs("cpu")
    chips = Mesh(mesh.devices.ravel(), ("batch",), axis_types=(AxisType.Auto,))
    module = networks.module_of(run.network, CLASSES)
    plan = steps.plan_for(module, run.training, run.dataset, IMAGES_OF_MNIST[0])
    plan = dataclasses.replace(plan, devices=NamedSharding(chips, P("batch")))
    split = steps.Split(
        jax.ShapeDtypeStruct(IMAGES_OF_MNIST, jnp.uint8),
        jax.ShapeDtypeStruct(IMAGES_OF_MNIST[:1], jnp.int32),
    )
    densities = [10.0**-compression for compression in run.compressions]
    counts = ablation.counts_of(plan, split, densities, run.rounds)
    split, of_seeds, counts = jax.tree.map(
        lambda x: described(x, chips), (split, jnp.asarray(run.seeds), counts)
    )
    lowered = ablation.together.lower(plan, split, of_seeds, counts, run.criteria)
    image = jnp.zeros((1, *IMAGES_OF_MNIST[1:]))
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    share = -(-len(run.seeds) * len(counts) // mesh.size) * mesh.size
    params = jax.tree.map(
        lambda x: described(
            jax.ShapeDtypeStruct((share, *x.shape), x.dtype), chips, "batch"
        ),
        shapes,
    )
    return Lowered(lowered, params)


PROGRAMS = (
    Program("VGG-16, prune", "v5e:2x2", images("vgg16_cifar"), (4, 1)),
    Program("ResNet-50, prune", "v5e:2x2", images("resnet50_imagenet"), (4, 1)),
    Program("VGG-16, snip", "v5e:2x2", snip("vgg16_cifar"), (4, 1), False),
    Program("VGG-16, masked step", "v5e:2x2", training("vgg16_cifar"), (4, 1), False),
    Program("MLP, seeds by densities", "v5e:4x4", seeds, (16, 1), False),
    Program("1.3B decoder, prune", "v5e:4x4", text("1.3B"), (4, 4)),
    Program("7B decoder, prune", "v5p:2x2x4", text("7B"), (8, 2)),
)

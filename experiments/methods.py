"""The pruning methods that the experiments compare, by the names that tables use, and the
images that their criteria see.

All start from the same initial weights and keep exactly the same number of them. As in the
paper, SynFlow takes a hundred rounds and its baselines one.

What SynFlow's masks are made of:

- erk: random weights, with the densities of layers of Erdos-Renyi kernels;
- synflow_densities: as many random weights in each layer as SynFlow keeps there;
- shuffled_synflow: SynFlow's masks, shuffled within each layer;
- reinitialised_synflow: SynFlow's masks on weights that are drawn again;
- inverted_synflow: as many weights in each layer, but those of least flow.

What else is iterated, or keeps the flow in another way:

- synflow_l2: the flow of squared weights;
- certified_synflow: rounds that cannot cut the network, as many as that takes;
- iterative_snip, iterative_grasp, ntk_sap: criteria of data or noise, in as many rounds.

What the data add:

- synflow_on_images, synflow_on_noise: the flow of the mean of some training images'
  absolute values, or of normal noise, instead of ones;
- synflow_in_training: absolute weights, real images, and batch norm that centres and
  scales by their statistics, so that nothing is conserved;
- snip_random_labels, grasp_random_labels: the labels are drawn at random.
"""

import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

import synflow_jax as sj
from experiments.datasets import stream
from experiments.datasets.load import Data, cached, source
from experiments.training import images
from synflow_jax import models

ROUNDS = 100

# Algorithm 1 of the paper to the letter.
_as_published = functools.partial(sj.prune, keep_connected=False)

# GraSP divides the outputs by it before the loss, in its authors' code as in the paper's.
GRASP_TEMPERATURE = 200.0

# In the order of the paper's legends.
PAPER = ("random", "magnitude", "snip", "grasp", "synflow")
CONTROLS = (
    *("erk", "synflow_densities", "shuffled_synflow"),
    *("reinitialised_synflow", "inverted_synflow"),
    *("synflow_l2", "certified_synflow", "iterative_snip", "iterative_grasp", "ntk_sap"),
)
DATA = (
    *("synflow_on_images", "synflow_on_noise", "synflow_in_training"),
    *("snip_random_labels", "grasp_random_labels"),
)

LABELS = {
    "random": "Random",
    "magnitude": "Magnitude",
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
    "erk": "Random, ERK",
    "synflow_densities": "SynFlow's layers, random",
    "shuffled_synflow": "SynFlow, shuffled",
    "reinitialised_synflow": "SynFlow, reinitialised",
    "inverted_synflow": "SynFlow's layers, inverted",
    "synflow_l2": "SynFlow-L2",
    "certified_synflow": "SynFlow, certified",
    "iterative_snip": "SNIP, iterative",
    "iterative_grasp": "GraSP, iterative",
    "ntk_sap": "NTK-SAP",
    "synflow_on_images": "SynFlow on images",
    "synflow_on_noise": "SynFlow on noise",
    "synflow_in_training": "SynFlow, training mode",
    "snip_random_labels": "SNIP, random labels",
    "grasp_random_labels": "GraSP, random labels",
}

# They take one round, as published; all others as many as SynFlow.
_ONE_ROUND = {
    *("random", "magnitude", "snip", "grasp", "erk", "synflow_densities"),
    *("inverted_synflow", "snip_random_labels", "grasp_random_labels"),
}


def grid(first: float, last: float, step: float) -> tuple[float, ...]:
    """Compressions from the first to the last, in equal steps."""
    count = round((last - first) / step) + 1
    return tuple(round(first + i * step, 4) for i in range(count))


class Problem(NamedTuple):
    """A network at initialisation, and what the criteria may look at.

    Attributes:
      apply_fn: ``apply_fn(params, images) -> logits``, in evaluation mode.
      params: the weights.
      input_shape: of one image.
      logits_fn: ``logits_fn(params, images) -> logits`` for the criteria of the loss; in
        training mode, batch norm using the batch, as the published SNIP and GraSP do.
      batches: of training images, for the loss.
      variables: what ``module.init`` returned.
      initial: ``initial(key) -> variables``, drawn again.
    """

    apply_fn: Callable[..., Array]
    params: PyTree
    input_shape: tuple[int, ...]
    logits_fn: Callable[..., Array]
    batches: PyTree
    variables: PyTree
    initial: Callable[[Key[Array, ""]], PyTree]


def problem(
    module: nn.Module, key: Key[Array, ""], input_shape: tuple[int, ...], batches: PyTree
) -> Problem:
    """A network of Flax, initialised.

    Args:
      module: called as ``module(images, train=...)``.
      key: of the weights.
      input_shape: of one image.
      batches: what `batches` returns; anything, if only data-free methods are used.
    """
    initial = functools.partial(models.init, module, input_shape=input_shape)
    variables = initial(key)
    apply_fn, params = sj.from_linen(module, variables)
    rest = {name: value for name, value in variables.items() if name != "params"}

    def logits_fn(params: PyTree, images: Array) -> Array:
        logits, _ = module.apply(
            {"params": params, **rest},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return logits

    return Problem(apply_fn, params, input_shape, logits_fn, batches, variables, initial)


def cross_entropy(
    logits_fn: Callable[..., Array], temperature: float = 1.0
) -> Callable[..., Float[Array, ""]]:
    """The mean cross-entropy of the outputs divided by a temperature.

    Args:
      logits_fn: ``logits_fn(params, images) -> logits``.
      temperature: 1 for a training loss.

    Returns:
      ``loss_fn(params, batch) -> scalar``; a batch has images and integer labels.
    """

    def loss_fn(params: PyTree, batch: PyTree) -> Float[Array, ""]:
        logits = logits_fn(params, batch["images"]) / temperature
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return losses.mean()

    return loss_fn


def batches(
    data: Data, seed: int, *, each: int = 10, size: int = 256, classes: int | None = None
) -> dict[str, Float[Array, "batches size ..."] | Int[Array, "batches size"]]:
    """Training images for the criteria that need them, as many of every class.

    As in the paper's code, ten for each class and up to 256 in a batch; but exactly ten of
    each class and no other split, and every batch of one size.

    Args:
      data: the images.
      seed: of the choice of images.
      each: images of every class.
      size: the largest number of images in a batch.
      classes: number of classes that the images are of, chosen at random; None for all.

    Returns:
      Scaled images and labels with a leading axis of batches.
    """
    generator = np.random.default_rng(seed)
    labels = np.arange(data.num_classes)
    if classes is not None:
        labels = generator.choice(labels, classes, replace=False)
    drawn = [
        generator.choice(np.flatnonzero(data.train_labels == label), each, replace=False)
        for label in labels
    ]
    chosen = generator.permutation(np.concatenate(drawn))
    parts = -(-len(chosen) // size)
    while len(chosen) % parts:
        parts += 1
    scaled = images.normalise(
        images.recipe(data.name), jnp.asarray(data.train_images[chosen])
    )
    return {
        "images": scaled.reshape(parts, -1, *scaled.shape[1:]),
        "labels": jnp.asarray(data.train_labels[chosen]).reshape(parts, -1),
    }


class Images(NamedTuple):
    """The images with which a criterion of the loss scores weights.

    Attributes:
      data: the data set.
      each: images of every class.
      classes: number of classes that the images are of; None for all.
      batch: the largest number of images in a batch.
    """

    data: str
    each: int
    classes: int | None = None
    batch: int = 250


def scored_images(run: Any, data_dir: pathlib.Path | None = None) -> PyTree:
    """The images with which the criterion of a run scores weights, as `batches` has them,
    but resized to the network's input.

    Those of imagenet2012 are the first of a shuffled and augmented epoch, as many as
    ``each`` of every class would be; all others are as many of every class.

    Args:
      run: has the fields of `Images`, all None for criteria that need none, and ``seed``,
        ``input_shape`` and ``num_classes``.
      data_dir: where to look for the data set.

    Returns:
      Scaled images and labels with a leading axis of batches; None if ``run.data`` is.

    Raises:
      FileNotFoundError: if the data set is not there.
    """
    if run.data is None:
        return None
    if run.data == "imagenet2012":
        return _streamed(run, data_dir)
    drawn = batches(
        cached(run.data, data_dir),
        run.seed,
        each=run.each,
        size=run.batch,
        classes=run.classes,
    )
    shape = (*drawn["images"].shape[:2], *run.input_shape)
    return drawn | {"images": jax.image.resize(drawn["images"], shape, "bilinear")}


def _streamed(run: Any, data_dir: pathlib.Path | None) -> PyTree:
    examples = source(run.data, "train", data_dir)
    size = run.input_shape[0]
    epoch = stream.training(examples, run.seed, epochs=1, batch=run.batch, size=size)
    parts = run.each * (run.classes or run.num_classes) // run.batch
    some, labels = zip(*itertools.islice(epoch, parts))
    recipe = images.recipe(run.data)
    scaled = jnp.stack([images.normalise(recipe, jnp.asarray(batch)) for batch in some])
    return {"images": scaled, "labels": jnp.asarray(np.stack(labels))}


def score_fn(method: str, problem: Problem, key: Key[Array, ""]) -> Callable[..., PyTree]:
    """The criterion of a method. Make it once: another one is compiled anew.

    Args:
      method: a name of ``LABELS``.
      problem: the network.
      key: of random scores.

    Raises:
      ValueError: if there is no such method.
    """
    if method not in LABELS:
        raise ValueError(f"`method` is {method!r}; there are {', '.join(LABELS)}.")
    apply_fn, shape, batches = problem.apply_fn, problem.input_shape, problem.batches
    if method in ("random", "erk", "synflow_densities"):
        return sj.random(key)
    if method == "magnitude":
        return sj.magnitude()
    if method == "synflow_l2":
        return sj.synflow_l2(apply_fn, shape)
    if method == "synflow_on_images":
        mean = jnp.abs(batches["images"]).mean((0, 1))
        return sj.synflow(sj.on_input(apply_fn, mean), shape)
    if method == "synflow_on_noise":
        return sj.synflow(sj.on_input(apply_fn, jax.random.normal(key, shape)), shape)
    if method == "synflow_in_training":
        seen = batches["images"][0]
        return sj.synflow_as_written(
            lambda p, ones: problem.logits_fn(p, ones * seen), shape
        )
    if method == "inverted_synflow":
        return sj.inverted(sj.synflow(apply_fn, shape))
    if "synflow" in method:
        return sj.synflow(apply_fn, shape)
    if method == "ntk_sap":
        return _ntk_sap(problem, key)
    if method.endswith("random_labels"):
        batches = batches | {
            "labels": jax.random.permutation(key, batches["labels"], axis=1)
        }
    if "snip" in method:
        return sj.snip(cross_entropy(problem.logits_fn), batches)
    return sj.grasp(cross_entropy(problem.logits_fn, GRASP_TEMPERATURE), batches)


def _ntk_sap(problem: Problem, key: Key[Array, ""]) -> Callable[..., PyTree]:
    """NTK-SAP, as published: new noise and new directions in every round, as many inputs as
    the other criteria have images, and batch norm that uses the statistics of the noise."""
    parts, size = problem.batches["labels"].shape

    def score(params: PyTree, masks: PyTree) -> PyTree:
        # No two rounds keep as many.
        own, directions = jax.random.split(jax.random.fold_in(key, sj.count(masks)))
        noise = jax.random.normal(own, (parts, size, *problem.input_shape))
        return sj.ntk_sap(problem.logits_fn, noise, directions)(params, masks)

    return score


def pruner(
    method: str, problem: Problem, key: Key[Array, ""], *, rounds: int = ROUNDS
) -> Callable[[float], PyTree]:
    """A method, ready to prune a network to any density.

    Args:
      method: a name of ``LABELS``.
      problem: the network.
      key: decides what is random in the method.
      rounds: of SynFlow and of what is iterative; all others take one, certified rounds as
        many as they need.

    Returns:
      ``masks_at(density) -> masks``.
    """
    score = score_fn(method, problem, key)
    own = 1 if method in _ONE_ROUND else rounds
    pruned = functools.partial(_as_published, score, problem.params, rounds=own)

    def masks_at(density: float) -> PyTree:
        if method == "shuffled_synflow":
            return sj.shuffled(key, pruned(density)[0])
        if method == "certified_synflow":
            return pruned(density, schedule=sj.certified())[0]
        if method == "erk":
            return pruned(density, allocation=sj.erk)[0]
        if method in ("synflow_densities", "inverted_synflow"):
            synflow = pruner("synflow", problem, key, rounds=rounds)(density)
            return pruned(density, allocation=sj.densities_of(synflow))[0]
        return pruned(density)[0]

    return masks_at

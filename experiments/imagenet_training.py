"""ResNet-50 on ImageNet, trained under the masks of every criterion.

  python -m experiments imagenet_training --scale paper --data-dir FOLDER

needs imagenet2012 as `experiments.datasets prepare` makes it, grain, and accelerators;
every host decodes its own share of each batch. The two densities are those to which Wang
et al. 2023 (NTK-SAP) trained, whose accuracies the report quotes. At the other scales a
network of seconds is trained through the same code on scikit-learn's digits, as PNG files
in memory.
"""

import dataclasses
import functools
import io
import itertools
import math
import os
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import PyTree

import synflow_jax as sj
from experiments import methods
from experiments.datasets import stream
from experiments.datasets.load import load, source
from experiments.figures import imagenet_training as figures
from experiments.harness import command
from experiments.harness.sweeps import Context, Row
from experiments.training import images, loop, networks, steps
from experiments.training.settings import Settings

# As He et al. 2016 train it, on batches four times as large and with the learning rate that
# goes with them.
SETTINGS = Settings(
    epochs=90,
    batch=1024,
    learning_rate=0.4,
    drops=(30, 60, 80),
    precision="bfloat16",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One criterion at one density, trained."""

    network: str
    """A name that `networks.module_of` takes."""
    dataset: str
    """imagenet2012, or digits."""
    size: int
    """Height and width to which images are brought."""
    method: str
    """A name of `experiments.methods`, or dense."""
    density: float
    """Fraction of the weights that is kept."""
    seed: int
    """Of the weights, the criterion and the order of the images."""
    training: Settings
    """How."""
    scored: int = 10
    """Batches of training images for the criteria that need them."""
    score_batch: int = 128
    """Images in each of these."""

    @property
    def name(self) -> str:
        return f"{self.network}-{self.method}-{self.density:.4g}-s{self.seed}"


def runs(scale: command.Scale) -> list[Run]:
    """The runs of a scale; there is nothing between seconds and an accelerator."""
    if scale == "paper":
        network = ("resnet50_imagenet", "imagenet2012", 224)
        densities, compared, training, more = (
            (0.8**10, 0.8**14),
            methods.PAPER,
            SETTINGS,
            {},
        )
    else:
        network = ("lenet", "digits", 16)
        densities, compared = (0.1,), ("magnitude", "snip", "synflow")
        training = Settings(epochs=2, batch=64, learning_rate=0.02, drops=())
        more = {"scored": 1, "score_batch": 32}
    return [
        Run(*network, "dense", 1.0, 0, training, **more),
        *(
            Run(*network, method, density, 0, training, **more)
            for density, method in itertools.product(densities, compared)
        ),
    ]


def execute(run: Run, context: Context) -> Iterator[Row]:
    """Prunes and trains one network."""
    examples, held_out, classes = _examples(run.dataset, context.data_dir)
    module = networks.module_of(run.network, classes)
    # The recipe of digits has one channel; the stream makes three, as of all images.
    plan = steps.plan_for(module, run.training, "imagenet2012", len(examples))
    part = jax.process_index(), jax.process_count()
    batch, shape = run.training.batch, (run.size, run.size, 3)
    workers = 0 if run.dataset == "digits" else max(1, (os.cpu_count() or 1) - 1)
    feed = {"size": run.size, "workers": workers, "part": part}

    scored = _scored(run, examples, plan)
    problem = methods.problem(module, jax.random.key(run.seed), shape, scored)
    if run.method == "dense":
        masks = sj.all_kept(problem.params)
    else:
        key = jax.random.fold_in(jax.random.key(run.seed), 1)
        masks = methods.pruner(run.method, problem, key)(run.density)
    flow = sj.log_flow(problem.apply_fn, sj.apply_masks(problem.params, masks), shape)

    def batches(number):
        # One epoch of its own seed, so that a training that goes on needs no place in it.
        seed = run.seed * 10_000 + number
        return stream.training(examples, seed, epochs=1, batch=batch, **feed)

    rows = []
    state, history = loop.train_streamed(
        plan,
        steps.start(plan, problem.variables, masks),
        batches,
        lambda: stream.held_out(held_out, batch=batch, **feed),
        run.seed,
        folder=context.folder if run.training.epochs > 10 else None,
        on_epoch=rows.append,
        advance=context.advance,
    )
    for epoch in history:
        yield {"kind": "epoch", **epoch._asdict()}
    kept, revived = steps.num_nonzero(state.params, masks)
    accuracies = [epoch.accuracy for epoch in history]
    yield {
        "kind": "trained",
        "network": run.network,
        "dataset": run.dataset,
        "method": run.method,
        "density": run.density,
        "seed": run.seed,
        "kept": kept,
        "revived": revived,
        "best": max(accuracies),
        "last": accuracies[-1],
        "log10_flow": float(flow) / math.log(10) if math.isfinite(flow) else None,
    }


def _scored(run: Run, examples: stream.Examples, plan: steps.Plan) -> PyTree:
    """What the criteria see: the first batches of an epoch that training does not have."""
    if run.method not in ("snip", "grasp", "iterative_snip", "iterative_grasp"):
        return None
    seed = run.seed * 10_000
    drawn = stream.training(examples, seed, epochs=1, batch=run.score_batch, size=run.size)
    pictures, labels = zip(*itertools.islice(drawn, run.scored))
    scaled = [images.normalise(plan.recipe, jnp.asarray(x)) for x in pictures]
    return {"images": jnp.stack(scaled), "labels": jnp.asarray(np.stack(labels))}


def _examples(
    dataset: str, data_dir: pathlib.Path | None
) -> tuple[stream.Examples, stream.Examples, int]:
    """Training and held-out examples, their images encoded, and the number of classes."""
    if dataset == "digits":
        return (*_digits(), 10)
    parts = (source(dataset, split, data_dir) for split in ("train", "validation"))
    return (*parts, 1000)


@functools.cache
def _digits() -> tuple[stream.Examples, stream.Examples]:
    digits = load("digits")

    def encoded(pictures, labels):
        examples = []
        for picture, label in zip(pictures, labels):
            file = io.BytesIO()
            PIL.Image.fromarray(picture[..., 0]).save(file, "PNG")
            examples.append({"image": file.getvalue(), "label": int(label)})
        return examples

    return (
        encoded(digits.train_images, digits.train_labels),
        encoded(digits.test_images, digits.test_labels),
    )


EXPERIMENT = command.Experiment(
    name="imagenet_training",
    about="ResNet-50 on ImageNet, trained under the masks of every criterion.",
    runs=runs,
    execute=execute,
    figures={"imagenet_training.png": figures.draw},
    tables=figures.tables,
)


if __name__ == "__main__":
    command.main(EXPERIMENT)

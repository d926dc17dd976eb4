"""Accuracy after training against compression, for every criterion: Fig. 6 of the paper.

  python -m experiments.accuracy --scale cpu     # MLP and LeNet on Fashion-MNIST, a ResNet
  python -m experiments.accuracy --scale paper   # four networks, three data sets, 3 seeds

Every network is pruned at initialisation by each method to each compression and trained
under its masks; beside the paper's five methods stand the controls of
`experiments.methods`. Both the best and the last epoch's accuracy on the held-out images
are recorded; the paper reports the best one.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

import synflow_jax as sj
from experiments import methods
from experiments.datasets.load import Data, first, load
from experiments.figures import accuracy as figures
from experiments.harness import command
from experiments.harness.sweeps import Context, Row
from experiments.training import loop, networks, steps
from experiments.training.settings import Settings, paper_settings


@dataclasses.dataclass(frozen=True)
class Run:
    """One method at one compression on one network, trained from one or several seeds."""

    network: str
    """A name that `networks.module_of` takes."""
    dataset: str
    """A name that `experiments.datasets.load.load` takes."""
    method: str
    """A name of `experiments.methods`, or dense."""
    compression: float
    """log10 of (weights / weights kept)."""
    seeds: tuple[int, ...]
    """Of the weights, the criterion and the order of the images; trained as one program."""
    training: Settings
    """How."""
    train_images: int | None = None
    """Number of the shuffled training images that are used; None for all."""
    test_images: int | None = None
    """The same of the held-out images."""
    rounds: int = 100
    """Of SynFlow."""
    iterations: int = 100
    """Rounds of the iterative forms of SNIP and GraSP."""
    each: int = 10
    """Training images of each class for the criteria that need data."""

    @property
    def name(self) -> str:
        seeds = "-".join(map(str, self.seeds))
        return f"{self.network}-{self.dataset}-{self.method}-{self.compression:g}-s{seeds}"


def sweep(
    network: str,
    dataset: str,
    compressions: tuple[float, ...],
    seeds: tuple[tuple[int, ...], ...],
    training: Settings,
    compared: tuple[str, ...] = methods.PAPER + methods.CONTROLS,
    **more,
) -> list[Run]:
    """All methods at all compressions, one group of seeds after the other."""
    runs = []
    for group in seeds:
        common = {"seeds": group, "training": training, **more}
        runs.append(Run(network, dataset, "dense", 0.0, **common))
        for compression, method in itertools.product(compressions, compared):
            runs.append(Run(network, dataset, method, compression, **common))
    return runs


def runs(scale: command.Scale) -> list[Run]:
    """The sweep of a scale."""
    short = Settings(
        epochs=2, learning_rate=0.05, decay="cosine", weight_decay=5e-4, augment=False
    )
    if scale == "smoke":
        one = dataclasses.replace(short, epochs=1, batch=64)
        return sweep(
            "mlp", "digits", (1.0, 3.0), ((0, 1),), one, rounds=5, iterations=3, each=2
        )
    if scale == "cpu":
        five = dataclasses.replace(short, epochs=5, learning_rate=0.1)
        small = dataclasses.replace(short, batch=64, learning_rate=0.1)
        fashion, apart = "fashion_mnist", ((0,), (1,), (2,))
        return [
            *sweep("mlp", fashion, methods.grid(0.5, 4, 0.5), ((0, 1, 2, 3, 4),), five),
            *sweep(
                "lenet",
                fashion,
                methods.grid(0.5, 3.5, 0.5),
                apart,
                short,
                train_images=8000,
                test_images=2500,
                iterations=20,
            ),
            *sweep(
                "resnet8_half",
                "cifar10_20k",
                methods.grid(0.5, 3, 0.5),
                apart[:2],
                small,
                train_images=8000,
                test_images=2500,
                iterations=20,
            ),
        ]
    pairs = itertools.product(("cifar10", "cifar100", "tiny_imagenet"), range(4))
    sweeps = []
    for dataset, i in pairs:
        form = "_tiny" if dataset == "tiny_imagenet" else ""
        base = ("vgg11", "vgg16", "resnet18", "wide_resnet18")[i]
        name = base + (form or ("_cifar" if base.startswith("vgg") else ""))
        training = paper_settings(name, dataset)
        sweeps += sweep(
            name, dataset, methods.grid(0.25, 3, 0.25), ((0,), (1,), (2,)), training
        )
    return sweeps


def execute(run: Run, context: Context) -> Iterator[Row]:
    """Prunes and trains; rows of every epoch and of the trained networks."""
    loaded = _images(run.dataset, run.train_images, run.test_images, context.data_dir)
    module = networks.module_of(run.network, loaded.num_classes)
    plan = steps.plan(module, run.training, loaded)
    settings = [_setting(run, seed, context.data_dir) for seed in run.seeds]
    problems = [_problem(setting) for setting in settings]
    masks = [_masks(run, seed, context.data_dir) for seed in run.seeds]
    states = [steps.start(plan, p.variables, m) for p, m in zip(problems, masks)]
    splits = steps.on_device(plan, loaded)
    # A checkpoint costs more than a short training.
    folder = context.folder if run.training.epochs > 10 else None
    options = {"folder": folder, "every": 10, "advance": context.advance}
    if len(run.seeds) == 1:
        state, history = loop.train(plan, states[0], splits, run.seeds[0], **options)
        states = [state]
        history = [e._replace(loss=[e.loss], accuracy=[e.accuracy]) for e in history]
    else:
        many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        seeds = jnp.array(run.seeds)
        many, history = loop.train_many(plan, many, splits, seeds, **options)
        states = [jax.tree.map(lambda x, i=i: x[i], many) for i in range(len(run.seeds))]
    for i, seed in enumerate(run.seeds):
        accuracies = [epoch.accuracy[i] for epoch in history]
        for epoch in history:
            yield {
                "kind": "epoch",
                "seed": seed,
                "epoch": epoch.epoch,
                "loss": _number(epoch.loss[i]),
                "accuracy": epoch.accuracy[i],
            }
        before = sj.apply_masks(problems[i].params, masks[i])
        flow = float(_flow(settings[i])(before)) / math.log(10)
        kept, revived = steps.num_nonzero(states[i].params, masks[i])
        size = steps.num_nonzero(problems[i].params, sj.all_kept(before))[0]
        k = sj.num_kept(size, 10.0**-run.compression)
        if (kept, revived) != (k, 0):
            raise RuntimeError(
                f"{run.name}: after training {kept} kept and {revived} pruned weights are "
                f"not zero; it should be {k} and 0."
            )
        yield {
            "kind": "trained",
            "network": run.network,
            "dataset": loaded.name,
            "method": run.method,
            "compression": run.compression,
            "seed": seed,
            "size": size,
            "kept": kept,
            "best": max(accuracies),
            "last": accuracies[-1],
            "log10_flow": round(flow, 4) if math.isfinite(flow) else None,
        }


# --- what runs share ----------------------------------------------------------------------


def _masks(run: Run, seed: int, data_dir: pathlib.Path | None) -> PyTree:
    if run.method == "dense":
        return sj.all_kept(_problem(_setting(run, seed, data_dir)).params)
    rounds = run.iterations if run.method.startswith("iterative") else run.rounds
    masks_at = _pruner(run.method, _setting(run, seed, data_dir), rounds)
    return masks_at(10.0**-run.compression)


class _Setting(NamedTuple):
    """What decides a network and what the criteria see of it."""

    network: str
    dataset: str
    train_images: int | None
    test_images: int | None
    data_dir: pathlib.Path | None
    each: int
    seed: int


def _setting(run: Run, seed: int, data_dir: pathlib.Path | None) -> _Setting:
    parts = run.network, run.dataset, run.train_images, run.test_images
    return _Setting(*parts, data_dir, run.each, seed)


# Made once, as every score function is compiled anew.
@functools.lru_cache(maxsize=64)
def _pruner(method: str, setting: _Setting, rounds: int) -> Callable[[float], PyTree]:
    key = jax.random.fold_in(jax.random.key(setting.seed), 1)
    return methods.pruner(method, _problem(setting), key, rounds=rounds)


@functools.lru_cache(maxsize=16)
def _problem(setting: _Setting) -> methods.Problem:
    loaded = _images(*setting[1:5])
    module = networks.module_of(setting.network, loaded.num_classes)
    batches = methods.batches(loaded, setting.seed, each=setting.each)
    shape = loaded.train_images.shape[1:]
    return methods.problem(module, jax.random.key(setting.seed), shape, batches)


@functools.lru_cache(maxsize=2)
def _images(dataset, train_images, test_images, data_dir) -> Data:
    return first(load(dataset, data_dir), train_images, test_images)


@functools.lru_cache(maxsize=8)
def _flow(setting: _Setting) -> Callable[[PyTree], Array]:
    problem = _problem(setting)
    return jax.jit(
        lambda params: sj.log_flow(problem.apply_fn, params, problem.input_shape)
    )


def _number(loss: float) -> float | None:
    return round(loss, 5) if math.isfinite(loss) else None


def cost(run: Run) -> float:
    """Seconds on one core, roughly; only for the estimate of the time left."""
    per_image = {"mlp": 3e-5, "lenet": 8e-4, "resnet8_half": 1.4e-3}.get(run.network, 1e-2)
    seen = (run.train_images or 60_000) * run.training.epochs * len(run.seeds)
    return 3.0 + seen * per_image


EXPERIMENT = command.Experiment(
    name="accuracy",
    about="Accuracy after training against compression, for every method: Fig. 6.",
    runs=runs,
    execute=execute,
    figures={"accuracy.png": figures.draw},
    sentences=figures.sentences,
    caption=figures.caption,
    tables=figures.tables,
    cost=cost,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the experiment from the command line."""
    command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    main()

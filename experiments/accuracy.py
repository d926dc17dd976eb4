"""Accuracy after training against compression, for every criterion: Fig. 6 of the paper.

  python -m experiments accuracy --scale cpu     # an MLP and a convolutional network
  python -m experiments accuracy --scale paper   # four networks, three data sets, 3 seeds

Every network is pruned at initialisation by each method to each compression and trained
under its masks; beside the paper's five methods stand the controls of
`experiments.methods`. Both the best and the last epoch's accuracy on the held-out images
are recorded; the paper reports the best one.

Methods are compared on networks with batch norm. Without normalisation, pruning shrinks
what a deep network puts out, and whether training starts at all then depends on the scale
of the weights that are kept and not on which they are; scale cpu has the paper's MLP as
such a case, trained in three ways.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

import synflow_jax as sj
from experiments import methods
from experiments.datasets.load import cached
from experiments.figures import accuracy as figures
from experiments.harness import command
from experiments.harness.sweeps import Context, Row
from experiments.training import loop, networks, steps
from experiments.training.settings import SHORT, Settings, cpu_settings, paper_settings


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
    rescaled: bool = False
    """Whether the kept weights are rescaled before training, by `sj.rescaled`."""
    rounds: int = 100
    """Of every method that is iterated."""
    each: int = 10
    """Training images of each class for the criteria that need data."""

    @property
    def name(self) -> str:
        how = "" if self.training.optimizer == "sgd" else f"-{self.training.optimizer}"
        how += "-rescaled" if self.rescaled else ""
        seeds = "-".join(map(str, self.seeds))
        what = f"{self.network}-{self.dataset}-{self.method}-{self.compression:g}"
        return f"{what}{how}-s{seeds}"


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
        for method, compression in itertools.product(compared, compressions):
            runs.append(Run(network, dataset, method, compression, **common))
    return runs


def runs(scale: command.Scale) -> list[Run]:
    """The sweep of a scale."""
    if scale == "smoke":
        one = dataclasses.replace(SHORT, epochs=1, batch=64)
        return sweep("mlp_bn", "digits", (1.0, 3.0), ((0, 1),), one, rounds=5, each=2)
    if scale == "cpu":
        return [*_scale_matters(), *_convolutional(), *_dense_layers()]
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


_TOGETHER = ((0, 1, 2, 3, 4),)


def _dense_layers() -> list[Run]:
    """Every method on the MLP with batch norm, until nothing is above chance; and what the
    data are worth."""
    training = cpu_settings("mlp_bn")
    each = functools.partial(
        sweep, "mlp_bn", "fashion_mnist", seeds=_TOGETHER, training=training
    )
    compared = each(methods.grid(0.5, 4, 0.5))
    data = each((1.0, 2.0), compared=methods.DATA)
    return compared + data[1:]  # dense is there once


def _convolutional() -> list[Run]:
    """The paper's methods and four controls on a convolutional network."""
    controls = ("erk", "synflow_densities", "shuffled_synflow", "iterative_snip")
    return sweep(
        "convnet_bn",
        "cifar10_20k",
        methods.grid(0.5, 2.5, 0.5),
        ((0,), (1,), (2,)),
        cpu_settings("convnet_bn"),
        (*methods.PAPER, *controls),
    )


def _scale_matters() -> list[Run]:
    """Some methods on the MLP without normalisation, trained as the paper trains, with kept
    weights rescaled, and by an optimiser that does not mind the scale of gradients."""
    some = (
        "random",
        "magnitude",
        "snip",
        "synflow",
        "synflow_densities",
        "shuffled_synflow",
    )
    by_adam = dataclasses.replace(
        SHORT, optimizer="adam", learning_rate=1e-3, weight_decay=0.0
    )
    trainings = ((SHORT, False), (SHORT, True), (by_adam, False))
    found = []
    for training, rescaled in trainings:
        options = {"training": training, "rescaled": rescaled, "compared": some}
        compressions = (1.0, 1.5, 2.0)
        found += sweep("mlp", "fashion_mnist", compressions, _TOGETHER, **options)
    return found


def execute(run: Run, context: Context) -> Iterator[Row]:
    """Prunes and trains; rows of every epoch and of the trained networks."""
    loaded = cached(run.dataset, context.data_dir)
    module = networks.module_of(run.network, loaded.num_classes)
    plan = steps.plan(module, run.training, loaded)
    settings = [_setting(run, seed, context.data_dir) for seed in run.seeds]
    masks = [_masks(run, setting) for setting in settings]
    starts = [_start(run, setting, m) for setting, m in zip(settings, masks)]
    states = [steps.start(plan, variables, m) for variables, m in zip(starts, masks)]
    splits = steps.on_device(plan, loaded)
    # A checkpoint costs more than a short training.
    folder = context.folder if run.training.epochs > 20 else None
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
        losses = [_number(epoch.loss[i]) for epoch in history]
        for epoch, loss, accuracy in zip(history, losses, accuracies):
            measured = {"epoch": epoch.epoch, "loss": loss, "accuracy": accuracy}
            yield {"kind": "epoch", "seed": seed, **measured}
        yield {
            "kind": "trained",
            "network": run.network,
            "dataset": loaded.name,
            "method": run.method,
            "compression": run.compression,
            "optimizer": run.training.optimizer,
            "rescaled": run.rescaled,
            "seed": seed,
            **_counts(run, settings[i], masks[i], starts[i]["params"], states[i].params),
            "best": max(accuracies),
            "last": accuracies[-1],
            "first_loss": losses[0],
        }


def _counts(run: Run, setting: "_Setting", masks, before, after) -> dict[str, Any]:
    """How many weights there are, are kept and are on a path; the flow before training.

    Raises:
      RuntimeError: if a weight that was pruned is not zero after training, or another
        number was kept than the compression says.
    """
    problem = _problem(setting)
    size = steps.num_nonzero(problem.params, sj.all_kept(before))[0]
    kept, revived = steps.num_nonzero(after, masks)
    wanted = sj.num_kept(size, 10.0**-run.compression)
    # Certified rounds may end above their target.
    if revived or not (kept == wanted or run.method == "certified_synflow"):
        raise RuntimeError(
            f"{run.name}: after training {kept} kept and {revived} pruned weights are not "
            f"zero; it should be {wanted} and 0."
        )
    flow, reached = _flow(setting)(sj.apply_masks(before, masks), masks)
    log10 = float(flow) / math.log(10)
    return {
        "size": size,
        "kept": kept,
        "reached": int(reached),
        "log10_flow": round(log10, 4) if math.isfinite(log10) else None,
    }


# --- what runs share ----------------------------------------------------------------------


class _Setting(NamedTuple):
    """What decides a network and what the criteria see of it."""

    network: str
    dataset: str
    data_dir: pathlib.Path | None
    each: int
    seed: int


def _setting(run: Run, seed: int, data_dir: pathlib.Path | None) -> _Setting:
    return _Setting(run.network, run.dataset, data_dir, run.each, seed)


def _key(setting: _Setting, number: int) -> Array:
    return jax.random.fold_in(jax.random.key(setting.seed), number)


def _masks(run: Run, setting: _Setting) -> PyTree:
    if run.method == "dense":
        return sj.all_kept(_problem(setting).params)
    return _pruner(run.method, setting, run.rounds)(10.0**-run.compression)


def _start(run: Run, setting: _Setting, masks: PyTree) -> PyTree:
    """The variables before training."""
    problem = _problem(setting)
    variables = problem.variables
    if run.method.startswith("reinitialised"):
        variables = problem.initial(_key(setting, 2))
    if run.rescaled:
        variables = {**variables, "params": sj.rescaled(variables["params"], masks)}
    return variables


# Made once, as every score function is compiled anew.
@functools.lru_cache(maxsize=64)
def _pruner(method: str, setting: _Setting, rounds: int) -> Callable[[float], PyTree]:
    return methods.pruner(method, _problem(setting), _key(setting, 1), rounds=rounds)


@functools.lru_cache(maxsize=16)
def _problem(setting: _Setting) -> methods.Problem:
    loaded = cached(setting.dataset, setting.data_dir)
    module = networks.module_of(setting.network, loaded.num_classes)
    batches = methods.batches(loaded, setting.seed, each=setting.each)
    shape = loaded.train_images.shape[1:]
    return methods.problem(module, jax.random.key(setting.seed), shape, batches)


@functools.lru_cache(maxsize=16)
def _flow(setting: _Setting) -> Callable[[PyTree, PyTree], tuple[Array, Array]]:
    problem = _problem(setting)
    apply_fn, shape = problem.apply_fn, problem.input_shape

    @jax.jit
    def measured(params: PyTree, masks: PyTree) -> tuple[Array, Array]:
        effective = sj.effective_masks(apply_fn, params, masks, shape)
        return sj.log_flow(apply_fn, params, shape), sj.count(
            steps.kernels(params, effective)
        )

    return measured


def _number(loss: float) -> float | None:
    return round(loss, 5) if math.isfinite(loss) else None


def cost(run: Run) -> float:
    """Seconds on two cores, roughly; only for the estimate of the time left."""
    per_epoch = {"mlp": 1.5, "mlp_bn": 3.0, "convnet_bn": 3.3}
    return 3.0 + per_epoch.get(run.network, 100.0) * run.training.epochs


EXPERIMENT = command.Experiment(
    name="accuracy",
    about="Accuracy after training against compression, for every method: Fig. 6.",
    runs=runs,
    execute=execute,
    figures={
        "accuracy.png": figures.draw,
        "controls.png": figures.draw_controls,
        "scale.png": figures.draw_scale,
    },
    tables=figures.tables,
    cost=cost,
)


if __name__ == "__main__":
    command.main(EXPERIMENT)

"""Magnitude pruning after training, in rounds, and why it works: Fig. 5 of the paper.

  python -m experiments magnitude_training --scale smoke|cpu|paper

Left: a network is trained, pruned by magnitude and rewound to its initial weights, once,
twice or three times, and trained at last (`sj.train_and_prune`). One round empties layers
at compressions at which three do not.

Right: under gradient descent with a small step, the squared weights of every layer grow by
the same amount (their growth is a synaptic saliency, so it is conserved, section 6 of the
paper): training itself brings the average squared weight of a layer towards one over the
layer's size, as SynFlow's scores are.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

import synflow_jax as sj
from experiments import methods
from experiments.datasets.load import cached
from experiments.figures import magnitude_training as figures
from experiments.harness import command
from experiments.harness.sweeps import Context, Row
from experiments.training import loop, networks, steps
from experiments.training.settings import Settings
from synflow_jax import models

ROUNDS = (1, 2, 3)


@dataclasses.dataclass(frozen=True)
class Ticket:
    """One pruning by magnitude after training, and the training of what is left."""

    network: str
    """A name that `networks.module_of` takes."""
    dataset: str
    """A name that `experiments.datasets.load.load` takes."""
    rounds: int
    """Of training, pruning and rewinding."""
    compression: float
    """log10 of (weights / weights kept) in the end."""
    seed: int
    """Of the weights and of the order of the images."""
    training: Settings
    """Of every round, and of the end."""

    @property
    def name(self) -> str:
        return f"{self.network}-{self.rounds}-rounds-{self.compression:g}-s{self.seed}"


@dataclasses.dataclass(frozen=True)
class Growth:
    """One dense training in which the squared weights of each layer are watched."""

    network: str
    """A name that `networks.module_of` takes, or deep: an MLP with layers of six sizes."""
    dataset: str
    """A name that `experiments.datasets.load.load` takes."""
    seed: int
    """Of the weights and of the order of the images."""
    training: Settings
    """Without weight decay, which shrinks the weights."""

    @property
    def name(self) -> str:
        return f"growth-{self.network}-s{self.seed}"


def runs(scale: command.Scale) -> list[Ticket | Growth]:
    """The sweep of a scale."""
    short = Settings(
        epochs=5, learning_rate=0.1, decay="cosine", weight_decay=5e-4, augment=False
    )
    slow = dataclasses.replace(
        short,
        epochs=100,
        learning_rate=0.001,
        decay="drops",
        drops=(),
        weight_decay=0.0,
        momentum=0.9,
    )
    if scale == "smoke":
        one = dataclasses.replace(short, epochs=1, batch=64)
        return [
            *tickets("mlp", "digits", (1, 2), (1.0, 3.0), (0,), one),
            Growth("deep", "digits", 0, dataclasses.replace(slow, epochs=3, batch=64)),
        ]
    if scale == "cpu":
        compressions = methods.grid(0.5, 3.5, 0.5)
        return [
            *tickets("mlp_bn", "fashion_mnist", ROUNDS, compressions, range(5), short),
            *(Growth("deep", "fashion_mnist", seed, slow) for seed in range(3)),
            *(Growth("mlp_bn", "fashion_mnist", seed, slow) for seed in range(3)),
        ]
    paper = Settings(epochs=50, learning_rate=0.01, drops=())
    return [
        *tickets(
            "vgg11_cifar", "cifar10", ROUNDS, methods.grid(0.1, 3.7, 0.2), (0, 1, 2), paper
        ),
        Growth("vgg19_cifar", "cifar10", 0, slow),
    ]


def tickets(
    network: str,
    dataset: str,
    rounds: Sequence[int],
    compressions: Sequence[float],
    seeds: Sequence[int],
    training: Settings,
) -> list[Ticket]:
    """All numbers of rounds at all compressions, seed by seed."""
    cells = itertools.product(seeds, compressions, rounds)
    return [Ticket(network, dataset, n, c, seed, training) for seed, c, n in cells]


def execute(run: Ticket | Growth, context: Context) -> Iterator[Row]:
    """Does one run of either kind."""
    loaded = cached(run.dataset, context.data_dir)
    if run.network == "deep":
        module = models.MLP(loaded.num_classes, hidden=(300, 200, 100, 50, 25))
    else:
        module = networks.module_of(run.network, loaded.num_classes)
    shape = loaded.train_images.shape[1:]
    variables = models.init(module, jax.random.key(run.seed), shape)
    plan = steps.plan(module, run.training, loaded)
    splits = steps.on_device(plan, loaded)
    if isinstance(run, Growth):
        yield from _grow(run, plan, variables, splits, context)
    else:
        yield _ticket(run, plan, variables, splits, context)


def _ticket(
    run: Ticket,
    plan: steps.Plan,
    variables: PyTree,
    splits: tuple[steps.Split, steps.Split],
    context: Context,
) -> Row:
    """Rounds of training, pruning and rewinding, and a last training."""

    def trained(params, masks, round_):
        state = steps.start(plan, {**variables, "params": params}, masks)
        kind = context.folder / f"round{round_}" if run.training.epochs > 10 else None

        def advance(fraction):
            context.advance((round_ + fraction) / (run.rounds + 1))

        options = {"folder": kind, "every": 10, "advance": advance}
        return loop.train(plan, state, splits, run.seed, **options)

    state, _ = sj.train_and_prune(
        lambda params, masks, round_: trained(params, masks, round_)[0].params,
        variables["params"],
        10.0**-run.compression,
        rounds=run.rounds,
    )
    last, history = trained(state.params, state.masks, run.rounds)
    layers = _layers(state.params, state.masks)
    kept, revived = steps.num_nonzero(last.params, state.masks)
    if (kept, revived) != (sum(row.kept for row in layers), 0):
        raise RuntimeError(f"{run.name}: {revived} pruned weights moved in training.")
    accuracies = [epoch.accuracy for epoch in history]
    return {
        "kind": "ticket",
        "network": run.network,
        "dataset": run.dataset,
        "rounds": run.rounds,
        "compression": run.compression,
        "seed": run.seed,
        "layers": [[row.name, row.kept, row.size] for row in layers],
        "best": max(accuracies),
        "last": accuracies[-1],
    }


def _grow(
    run: Growth,
    plan: steps.Plan,
    variables: PyTree,
    splits: tuple[steps.Split, steps.Split],
    context: Context,
) -> Iterator[Row]:
    """A dense training; a row of squared norms before it and after every epoch."""
    state = steps.start(plan, variables, sj.all_kept(variables["params"]))
    yield _norms(0, state.params)
    for number in range(1, run.training.epochs + 1):
        # One epoch at a time, as the weights of each are wanted.
        state, loss = steps.one_epoch(plan, state, splits[0], run.seed, number)
        context.advance(number / run.training.epochs)
        yield {**_norms(number, state.params), "loss": float(loss)}


def _norms(number: int, params: PyTree) -> Row:
    layers = []
    for name, leaf in zip(sj.leaf_names(params), jax.tree.leaves(params)):
        squares = float(jnp.sum(jnp.square(leaf)))
        layers.append([name, leaf.size, float(f"{squares:.7g}")])
    return {"kind": "norms", "epoch": number, "leaves": layers}


def _layers(params: PyTree, masks: PyTree) -> list[Any]:
    leaves = zip(sj.summarize(params, masks), jax.tree.leaves(params))
    return [row for row, leaf in leaves if sj.is_kernel(row.name, leaf)]


EXPERIMENT = command.Experiment(
    name="magnitude_training",
    about="Magnitude pruning after training, in rounds, and why it works: Fig. 5.",
    runs=runs,
    execute=execute,
    figures={"magnitude_training.png": figures.draw},
    tables=figures.tables,
    cost=lambda run: run.rounds + 1 if isinstance(run, Ticket) else 20,
)


if __name__ == "__main__":
    command.main(EXPERIMENT)

"""Masks are chaotic; are accuracies? Masks of weights that were changed a little.

  python -m experiments chaos --scale smoke|cpu|paper

A hundred rounds build on each other, so that one weight that goes a round sooner changes
what later rounds score. How many weights do the masks share of two networks whose weights
differ by a unit in the last place, by a millionth, by a tenth? And where masks differ, does
one network train to other accuracies under the two, more different than under one mask when
its images come in another order?
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

import synflow_jax as sj
from experiments import methods
from experiments.datasets.load import cached
from experiments.figures import chaos as figures
from experiments.harness import command
from experiments.harness.sweeps import Context, Row
from experiments.training import loop, networks, steps
from experiments.training.settings import Settings
from synflow_jax import models


@dataclasses.dataclass(frozen=True)
class Masks:
    """What the masks of changed weights share with those of the weights as they are.

    Attributes:
      network: a name that `networks.module_of` takes.
      dataset: a name that `experiments.datasets.load.load` takes.
      seed: of the weights, and of their changes.
      compressions: log10 of (weights / weights kept).
      changes: sizes, relative to each weight; 0 is one unit in the last place.
      rounds: of SynFlow.
    """

    network: str
    dataset: str
    seed: int
    compressions: tuple[float, ...]
    changes: tuple[float, ...]
    rounds: int = methods.ROUNDS

    @property
    def name(self) -> str:
        return f"masks-{self.network}-s{self.seed}"


@dataclasses.dataclass(frozen=True)
class Pair:
    """One network trained under the masks of its weights and of changed ones.

    Attributes:
      network: a name that `networks.module_of` takes.
      dataset: a name that `experiments.datasets.load.load` takes.
      seed: of the weights, of their change, and of the order of images.
      compression: log10 of (weights / weights kept).
      change: its size, relative to each weight.
      training: how.
      rounds: of SynFlow.
    """

    network: str
    dataset: str
    seed: int
    compression: float
    change: float
    training: Settings
    rounds: int = methods.ROUNDS

    @property
    def name(self) -> str:
        return f"pair-{self.network}-{self.compression:g}-s{self.seed}"


def runs(scale: command.Scale) -> list[Masks | Pair]:
    """The runs of a scale; cpu is all there is to do."""
    training = Settings(
        epochs=10, learning_rate=0.1, decay="cosine", weight_decay=5e-4, augment=False
    )
    if scale == "smoke":
        one = dataclasses.replace(training, epochs=1, batch=64)
        return [
            Masks("mlp_bn", "digits", 0, (1.0,), (0.0, 0.1), rounds=5),
            Pair("mlp_bn", "digits", 0, 1.0, 0.1, one, rounds=5),
        ]
    changes = 0.0, 1e-6, 1e-4, 1e-2, 1e-1
    compressions = {
        ("mlp_bn", "fashion_mnist"): (1.0, 2.0, 3.0),
        ("convnet_bn", "cifar10_20k"): (1.0, 2.0, 3.0),
        ("vgg16_cifar", "cifar10_20k"): (1.0, 2.0, 3.0, 4.0),
    }
    return [
        *(
            Pair("mlp_bn", "fashion_mnist", seed, c, 1e-6, training)
            for c in (1.5, 2.0, 2.5)
            for seed in range(5)
        ),
        *(
            Masks(*net, seed, own, changes)
            for net, own in compressions.items()
            for seed in range(3)
        ),
    ]


def execute(run: Masks | Pair, context: Context) -> Iterator[Row]:
    """A row for each change and compression, or one on the masks and one a training."""
    loaded = cached(run.dataset, context.data_dir)
    module = networks.module_of(run.network, loaded.num_classes)
    shape = loaded.train_images.shape[1:]
    variables = models.init(module, jax.random.key(run.seed), shape)
    apply_fn, params = sj.from_linen(module, variables)
    score = sj.synflow(apply_fn, shape)

    def pruned(params: PyTree, compression: float) -> PyTree:
        density = 10.0**-compression
        return sj.prune(score, params, density, rounds=run.rounds, keep_connected=False)[0]

    if isinstance(run, Pair):
        one = pruned(params, run.compression)
        other = pruned(moved(params, run.change, run.seed), run.compression)
        yield {"kind": "pair", "shared": round(shared(params, one, other), 4)}
        plan = steps.plan(module, run.training, loaded)
        yield from _trained(plan, loaded, variables, (one, other), run.seed, context)
        return
    for number, compression in enumerate(run.compressions):
        one = pruned(params, compression)
        for change in run.changes:
            other = pruned(moved(params, change, run.seed), compression)
            yield {
                "kind": "masks",
                "compression": compression,
                "change": change,
                "shared": round(shared(params, one, other), 4),
            }
        context.advance((number + 1) / len(run.compressions))


def _trained(plan, loaded, variables, masks, seed, context) -> Iterator[Row]:
    """A row on each training: first the masks change while weights and order stay, then the
    order alone."""
    one, other = masks
    splits = steps.on_device(plan, loaded)
    trained = {"first": (one, 0), "other masks": (other, 0), "other order": (one, 1000)}
    for number, (what, (own, added)) in enumerate(trained.items()):

        def advance(fraction, number=number):
            context.advance((number + fraction) / len(trained))

        state = steps.start(plan, variables, own)
        _, history = loop.train(plan, state, splits, seed + added, advance=advance)
        accuracies = [epoch.accuracy for epoch in history]
        best, last = max(accuracies), accuracies[-1]
        yield {"kind": "trained", "what": what, "best": best, "last": last}


def moved(params: PyTree, change: float, seed: int) -> PyTree:
    """Weights changed by chance.

    Args:
      params: floating leaves.
      change: the standard deviation of the change, relative to each weight. 0: each goes to
        the next float above or below.
      seed: of the draws.
    """
    draw = np.random.default_rng(seed)

    def one(leaf):
        leaf = np.asarray(leaf)
        if change:
            return jnp.asarray(
                leaf * (1 + change * draw.standard_normal(leaf.shape)), leaf.dtype
            )
        towards = np.where(draw.random(leaf.shape) < 0.5, np.inf, -np.inf)
        return jnp.asarray(np.nextafter(leaf, towards.astype(leaf.dtype)))

    return jax.tree.map(one, params)


def shared(params: PyTree, one: PyTree, other: PyTree) -> float:
    """The fraction of the prunable weights that one keeps which the other keeps too."""
    pairs = [*zip(steps.kernels(params, one), steps.kernels(params, other))]
    return sum(int((a & b).sum()) for a, b in pairs) / sum(int(a.sum()) for a, _ in pairs)


EXPERIMENT = command.Experiment(
    name="chaos",
    about="Masks and accuracies of weights that were changed a little.",
    runs=runs,
    execute=execute,
    figures={"chaos.png": figures.draw},
    tables=figures.tables,
    cost=lambda run: 60 if isinstance(run, Pair) else 30,
)


if __name__ == "__main__":
    command.main(EXPERIMENT)

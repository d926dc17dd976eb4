"""Masks are chaotic; are accuracies? Pairs of weights that differ in their last bits.

  python -m experiments chaos --scale smoke|cpu|paper

A hundred rounds build on each other, and where scores tie rounding decides, so weights that
differ by half a unit in the last place of a float32 end in other masks. How many weights do
the two masks share, and do the two networks train to different accuracies, more different
than those of one network whose images come in another order?
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
class Run:
    """Two masks of nearly the same weights, and what they train to.

    Attributes:
      network: a name that `networks.module_of` takes.
      dataset: a name that `experiments.datasets.load.load` takes.
      compression: log10 of (weights / weights kept).
      seed: of the weights, of what is done to their last bits, and of the order of images.
      training: how; None to compare masks only.
      rounds: of SynFlow.
    """

    network: str
    dataset: str
    compression: float
    seed: int
    training: Settings | None = None
    rounds: int = methods.ROUNDS

    @property
    def name(self) -> str:
        what = f"{self.network}-{self.compression:g}-s{self.seed}"
        return what + ("-trained" if self.training else "")


def runs(scale: command.Scale) -> list[Run]:
    """The runs of a scale."""
    short = Settings(
        epochs=8, learning_rate=0.1, decay="cosine", weight_decay=5e-4, augment=True
    )
    if scale == "smoke":
        one = dataclasses.replace(short, epochs=1, batch=64)
        return [Run("mlp_bn", "digits", 1.0, 0, one, rounds=5)]
    small = "vgg16_eighth", "cifar10_20k"
    return [
        *(Run(*small, 2.5, seed, short) for seed in range(3)),
        *(Run(*small, c, seed) for c in (1.0, 2.0, 3.0) for seed in range(3)),
        *(
            Run("vgg16_cifar", "cifar10_20k", c, seed)
            for c in (1.0, 2.0, 3.0, 4.0)
            for seed in range(3)
        ),
    ]


def execute(run: Run, context: Context) -> Iterator[Row]:
    """A row on the two masks, and one on each training."""
    loaded = cached(run.dataset, context.data_dir)
    module = networks.module_of(run.network, loaded.num_classes)
    shape = loaded.train_images.shape[1:]
    variables = models.init(module, jax.random.key(run.seed), shape)
    apply_fn, params = sj.from_linen(module, variables)
    score = sj.synflow(apply_fn, shape)

    def pruned(params: PyTree) -> PyTree:
        density = 10.0**-run.compression
        return sj.prune(score, params, density, rounds=run.rounds, keep_connected=False)[0]

    near = last_bits_changed(params, run.seed)
    one, other = pruned(params), pruned(near)
    yield {"kind": "masks", "shared": round(shared(params, one, other), 4)}
    if run.training is None:
        return
    plan = steps.plan(module, run.training, loaded)
    splits = steps.on_device(plan, loaded)
    # The masks change while weights and order stay; then the order alone.
    trained = {"first": (one, 0), "other masks": (other, 0), "other order": (one, 1000)}
    for number, (what, (masks, added)) in enumerate(trained.items()):

        def advance(fraction, number=number):
            context.advance((number + fraction) / len(trained))

        state = steps.start(plan, variables, masks)
        order = run.seed + added
        _, history = loop.train(plan, state, splits, order, advance=advance)
        accuracies = [epoch.accuracy for epoch in history]
        best, last = max(accuracies), accuracies[-1]
        yield {"kind": "trained", "what": what, "best": best, "last": last}


def last_bits_changed(params: PyTree, seed: int) -> PyTree:
    """Each number moved to the next float above or below, by chance."""
    draw = np.random.default_rng(seed)

    def moved(leaf):
        leaf = np.asarray(leaf)
        towards = np.where(draw.random(leaf.shape) < 0.5, np.inf, -np.inf)
        return jnp.asarray(np.nextafter(leaf, towards.astype(leaf.dtype)))

    return jax.tree.map(moved, params)


def shared(params: PyTree, one: PyTree, other: PyTree) -> float:
    """The fraction of the prunable weights that one keeps which the other keeps too."""
    pairs = [*zip(steps.kernels(params, one), steps.kernels(params, other))]
    return sum(int((a & b).sum()) for a, b in pairs) / sum(int(a.sum()) for a, _ in pairs)


EXPERIMENT = command.Experiment(
    name="chaos",
    about="Masks and accuracies of weights that differ in their last bits.",
    runs=runs,
    execute=execute,
    figures={"chaos.png": figures.draw},
    tables=figures.tables,
    cost=lambda run: 450 if run.training else 15,
)


if __name__ == "__main__":
    command.main(EXPERIMENT)

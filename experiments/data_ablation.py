"""What data add to a criterion: other inputs for SynFlow, other labels for SNIP and GraSP.

  python -m experiments data_ablation --scale smoke|cpu|paper

SynFlow looks at an image of ones. It is set beside itself on real images, on noise, and
with batch norm in training mode; SNIP and GraSP beside themselves with labels drawn at
random, and with other images of the same classes. How many of the kept weights do two masks
share, and do they have the same layers? What these masks are worth in training is in
`accuracy`.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import PyTree

from experiments import methods
from experiments.datasets.load import Data, cached
from experiments.figures import data_ablation as figures
from experiments.harness import command
from experiments.harness.sweeps import Context, Row
from experiments.training import networks, steps

OTHER = "other_images"
PAIRS = {
    "synflow": ("synflow_on_images", "synflow_on_noise", "synflow_in_training"),
    "snip": ("snip_random_labels", OTHER),
    "grasp": ("grasp_random_labels", OTHER),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A criterion beside its variants on one network.

    Attributes:
      network: a name that `networks.module_of` takes.
      dataset: a name that `experiments.datasets.load.load` takes.
      criterion: a key of ``PAIRS``.
      seed: of the weights and of what the criteria see.
      compressions: log10 of (weights / weights kept).
      rounds: of SynFlow.
      each: images of every class.
    """

    network: str
    dataset: str
    criterion: str
    seed: int
    compressions: tuple[float, ...]
    rounds: int = methods.ROUNDS
    each: int = 10

    @property
    def name(self) -> str:
        return f"{self.network}-{self.dataset}-{self.criterion}-s{self.seed}"


def runs(scale: command.Scale) -> list[Run]:
    """The runs of a scale; none trains. VGG-16 on images is for an accelerator."""
    if scale == "smoke":
        return [Run("mlp_bn", "digits", c, 0, (1.0,), rounds=5, each=2) for c in PAIRS]
    grid = (0.5, 1.0, 1.5, 2.0)
    small = ("mlp_bn", "fashion_mnist"), ("convnet_bn", "cifar10_20k")
    todo = [Run(*net, c, seed, grid) for net in small for c in PAIRS for seed in range(5)]
    if scale == "paper":
        vgg16 = "vgg16_cifar", "cifar100_10k"
        todo += [
            Run(*vgg16, c, seed, (1.0, 2.0), each=1) for c in PAIRS for seed in range(3)
        ]
    return todo


def execute(run: Run, context: Context) -> Iterator[Row]:
    """A row for each variant at each compression."""
    loaded = cached(run.dataset, context.data_dir)
    problem = _problem(run, loaded, run.seed)
    key = jax.random.fold_in(jax.random.key(run.seed), 1)
    masks_at = methods.pruner(run.criterion, problem, key, rounds=run.rounds)
    base = {c: masks_at(10.0**-c) for c in run.compressions}
    for number, variant in enumerate(PAIRS[run.criterion], 1):
        method, own = variant, problem
        if variant == OTHER:
            method, own = run.criterion, _problem(run, loaded, run.seed + 1000)
            own = own._replace(apply_fn=problem.apply_fn, params=problem.params)
        masks_at = methods.pruner(method, own, key, rounds=run.rounds)
        for compression in run.compressions:
            yield {
                "kind": "pair",
                "network": run.network,
                "criterion": run.criterion,
                "variant": variant,
                "seed": run.seed,
                "compression": compression,
                **compared(problem.params, base[compression], masks_at(10.0**-compression)),
            }
        context.advance(number / len(PAIRS[run.criterion]))


def compared(params: PyTree, one: PyTree, other: PyTree) -> Row:
    """Two masks that keep equally many weights.

    Returns:
      ``shared``: the fraction of the weights kept by one that the other keeps; ``chance``:
      what it would be if each layer's weights were chosen at random, as many as they are;
      ``moved``: half the sum of what the layers' shares of the kept weights differ by.
    """
    a, b = ([*map(np.asarray, steps.kernels(params, m))] for m in (one, other))
    kept_a, kept_b = (np.array([m.sum() for m in masks], float) for masks in (a, b))
    sizes = np.array([m.size for m in a])
    whole = kept_a.sum()
    return {
        "shared": round(sum(int((x & y).sum()) for x, y in zip(a, b)) / whole, 4),
        "chance": round(float((kept_a * kept_b / sizes).sum() / whole), 4),
        "moved": round(float(abs(kept_a - kept_b).sum() / (2 * whole)), 4),
    }


def _problem(run: Run, loaded: Data, seed: int) -> methods.Problem:
    """The network of the run's seed, and images that another seed draws."""
    module = networks.module_of(run.network, loaded.num_classes)
    batches = methods.batches(loaded, seed, each=run.each)
    shape = loaded.train_images.shape[1:]
    return methods.problem(module, jax.random.key(run.seed), shape, batches)


EXPERIMENT = command.Experiment(
    name="data_ablation",
    about="How much of a criterion's masks is decided by its data.",
    runs=runs,
    execute=execute,
    figures={"data_ablation.png": figures.draw},
    tables=figures.tables,
    cost=lambda run: 60 if run.network.startswith("vgg") else 6,
)


if __name__ == "__main__":
    command.main(EXPERIMENT)

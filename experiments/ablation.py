"""Seeds, densities and criteria of a small network, pruned and trained as one program.

  python -m experiments ablation --scale cpu     # MLP on Fashion-MNIST, 5 seeds by 6
  python -m experiments ablation --scale paper   # 20 seeds by 13 densities, longer

The paper repeats each of its experiments for a few seeds and many compressions. Here one
compiled program initialises, prunes and trains all of these networks. This is
possible since a density reaches compiled code as numbers of weights to keep after each
round (`sj.counts_per_round`), which are an array as any other: `jax.vmap` maps over
them as over the seeds. Several devices share the networks by `jax.shard_map`, and exchange
nothing. Each network is the same as if it were alone, to rounding.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

import synflow_jax as sj
from experiments import methods
from experiments.datasets.load import load
from experiments.figures import ablation as figures
from experiments.harness import command
from experiments.harness.sweeps import Context, Row
from experiments.training import networks, steps
from experiments.training.settings import Settings


@dataclasses.dataclass(frozen=True)
class Run:
    """All seeds and densities of one network, together and one by one."""

    network: str
    """A name that `networks.module_of` takes."""
    dataset: str
    """A name that `experiments.datasets.load.load` takes."""
    seeds: tuple[int, ...]
    """Of the weights and of the order of the images."""
    compressions: tuple[float, ...]
    """log10 of (weights / weights kept)."""
    training: Settings
    """How."""
    criteria: tuple[str, ...] = ("synflow",)
    """Names of `CRITERIA`."""
    rounds: int = 100
    """Of pruning."""
    timed: int = 3
    """How often the one program and the separate ones are timed, in turn."""
    timed_epochs: int = 1
    """The length of the trainings that are timed."""

    @property
    def name(self) -> str:
        shape = f"{len(self.seeds)}x{len(self.compressions)}"
        names = "" if self.criteria == ("synflow",) else "-" + "-".join(self.criteria)
        return f"{self.network}-{self.dataset}-{shape}{names}"


def runs(scale: command.Scale) -> list[Run]:
    """One run in every scale."""
    short = Settings(
        epochs=3, learning_rate=0.1, decay="cosine", weight_decay=5e-4, augment=False
    )
    if scale == "smoke":
        one = dataclasses.replace(short, epochs=10, batch=32)
        names = ("synflow", "magnitude")
        grid = (0.0, 1.0)
        return [Run("mlp", "digits", (0, 1), grid, one, names, rounds=10, timed=1)]
    if scale == "cpu":
        grid = methods.grid(0, 2, 0.4)
        return [Run("mlp", "fashion_mnist", tuple(range(5)), grid, short)]
    long = dataclasses.replace(short, epochs=60)
    grid = methods.grid(0, 3, 0.25)
    seeds = tuple(range(20))
    return [Run("mlp", "fashion_mnist", seeds, grid, long, tuple(CRITERIA), timed_epochs=5)]


def execute(run: Run, context: Context) -> Iterator[Row]:
    """Rows of every network, of the time, and of what differs from separate networks."""
    loaded = load(run.dataset, context.data_dir)
    module = networks.module_of(run.network, loaded.num_classes)
    plan = steps.plan(module, run.training, loaded)
    splits = steps.on_device(plan, loaded)
    densities = [10.0**-compression for compression in run.compressions]
    found, trained = ablation(plan, splits, run.seeds, densities, run.rounds, run.criteria)
    for place in np.ndindex(found.shape):
        params, masks = _network(trained, place)
        kept, revived = steps.num_nonzero(params, masks)
        axes = (run.criteria, run.seeds, run.compressions)
        criterion, seed, compression = (axis[i] for axis, i in zip(axes, place))
        yield {
            "kind": "trained",
            "criterion": criterion,
            "seed": seed,
            "compression": compression,
            "kept": kept,
            "revived": revived,
            "accuracy": float(found[place]),
        }
    context.advance(0.3)
    short = dataclasses.replace(run.training, epochs=run.timed_epochs)
    plan = steps.plan(module, short, loaded)
    counts = counts_of(plan, splits[0], densities, run.rounds)
    yield {"kind": "separate", **_beside_separate(run, plan, splits, counts, context)}


# --- the program --------------------------------------------------------------------------


class Trained(NamedTuple):
    """A pruned and trained network; of several, all leaves have their leading axes.

    Attributes:
      masks: True = kept.
      state: after the last step.
      losses: the mean over each epoch.
    """

    masks: PyTree
    state: steps.State
    losses: Float[Array, "*networks epochs"]


CRITERIA = {
    "synflow": lambda apply_fn, shape, key: sj.synflow(apply_fn, shape),
    "magnitude": lambda apply_fn, shape, key: sj.magnitude(),
    "random": lambda apply_fn, shape, key: sj.random(key),
}

# A child of the seed's key that neither the weights nor the images draw from.
_CRITERION = 0x5EED


@functools.partial(jax.jit, static_argnames=("plan", "criterion"))
def alone(
    plan: steps.Plan,
    split: steps.Split,
    seed: int | Int[Array, ""],
    counts: Int[Array, " rounds"],
    criterion: str = "synflow",
) -> Trained:
    """One network: initialised, pruned and trained, from nothing but arrays.

    Args:
      plan: the training.
      split: the training images.
      seed: of the weights, of the order of the images and of random scores.
      counts: how many weights each round of pruning leaves.
      criterion: a name of `CRITERIA`.
    """
    shape = split.images.shape[1:]
    key = jax.random.key(seed)
    variables = plan.module.init(key, jnp.zeros((1, *shape)))
    apply_fn, params = sj.from_linen(plan.module, variables)
    key = jax.random.fold_in(key, _CRITERION)
    pruner = sj.iterative(CRITERIA[criterion](apply_fn, shape, key))

    def one_round(state, k):
        return pruner.step(state, params, k)

    def one_epoch(state, number):
        return steps.epoch(plan, state, split, seed, number)

    (masks,), _ = jax.lax.scan(one_round, pruner.init(params), counts)
    state = steps.start(plan, variables, masks)
    numbers = jnp.arange(1, plan.settings.epochs + 1)
    state, losses = jax.lax.scan(one_epoch, state, numbers)
    return Trained(masks, state, losses)


@functools.partial(jax.jit, static_argnames=("plan", "criteria"))
def together(
    plan: steps.Plan,
    split: steps.Split,
    seeds: Int[Array, " seeds"],
    counts: Int[Array, "densities rounds"],
    criteria: tuple[str, ...] = ("synflow",),
) -> Trained:
    """`alone` for every criterion, seed and density, in one program.

    The leaves of the result have three leading axes, in this order. If the plan names
    several devices, each has its share of the networks: nothing is exchanged, and no batch
    is divided.
    """
    shape = (len(seeds), len(counts))
    of_seed, of_density = (index.ravel() for index in np.indices(shape))
    count, run_alone = of_seed.size, dataclasses.replace(plan, devices=None)
    if plan.devices is not None:  # as many for each device: some networks twice
        share = -(-count // plan.devices.mesh.size) * plan.devices.mesh.size
        of_seed, of_density = (np.resize(index, share) for index in (of_seed, of_density))

    def of_criterion(criterion):
        def many(split, seeds, counts):
            one = functools.partial(alone, run_alone, split, criterion=criterion)
            return jax.vmap(one)(seeds, counts)

        if plan.devices is not None:
            mesh, each = plan.devices.mesh, plan.devices.spec
            # Not checked what varies: nothing is communicated.
            many = jax.shard_map(
                many,
                mesh=mesh,
                in_specs=(PartitionSpec(), each, each),
                out_specs=each,
                check_vma=False,
            )
        found = many(split, seeds[of_seed], counts[of_density])
        return jax.tree.map(lambda x: x[:count].reshape(*shape, *x.shape[1:]), found)

    return jax.tree.map(lambda *xs: jnp.stack(xs), *map(of_criterion, criteria))


def counts_of(
    plan: steps.Plan, split: steps.Split, densities: Sequence[float], rounds: int = 100
) -> Int[Array, "densities rounds"]:
    """How many weights each round leaves, for each density, exactly as in `sj.prune`."""
    image = jnp.zeros((1, *split.images.shape[1:]))
    shapes = jax.eval_shape(plan.module.init, jax.random.key(0), image)["params"]
    counts = [sj.counts_per_round(shapes, density, rounds) for density in densities]
    return jnp.asarray(np.stack(counts))


def ablation(
    plan: steps.Plan,
    splits: tuple[steps.Split, steps.Split],
    seeds: Sequence[int],
    densities: Sequence[float],
    rounds: int = 100,
    criteria: tuple[str, ...] = ("synflow",),
) -> tuple[Float[np.ndarray, "criteria seeds densities"], Trained]:
    """Prunes and trains a network for every criterion, seed and density, in one program.

    On a CPU it is for networks without convolutions: within a program's loop XLA runs
    these without its fast kernels.

    Args:
      plan: from `steps.plan`.
      splits: the training and the held-out images, from `steps.on_device`.
      seeds: of the weights and of the order of the images.
      densities: fractions of the weights to keep.
      rounds: of pruning.
      criteria: names of `CRITERIA`.

    Returns:
      The accuracies on the held-out images, and the networks, their leaves with leading
      axes of criteria, seeds and densities.
    """
    counts = counts_of(plan, splits[0], densities, rounds)
    trained = together(plan, splits[0], jnp.asarray(seeds), counts, criteria)
    return accuracies(plan, trained, splits[1]), trained


def accuracies(
    plan: steps.Plan, trained: Trained, split: steps.Split
) -> Float[np.ndarray, "criteria seeds densities"]:
    """The accuracy of each of the networks."""
    axes = trained.losses.shape[:-1]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(axes) :]), trained.state)
    return np.reshape(steps.accuracy(plan, flat, split, many=True), axes)


# --- beside separate runs -----------------------------------------------------------------


def _beside_separate(
    run: Run,
    plan: steps.Plan,
    splits: tuple[steps.Split, steps.Split],
    counts: Int[Array, "densities rounds"],
    context: Context,
) -> Row:
    """How the one program differs from a call for each network, in time and in results.

    Both are compiled before, once each: that is not in the time. They take turns, since
    other work on the machine slows both.
    """
    seeds = jnp.asarray(run.seeds)
    every = [(seed, k, name) for name in run.criteria for seed in seeds for k in counts]
    all_at_once = functools.partial(together, plan, splits[0], seeds, counts, run.criteria)
    one = functools.partial(alone, dataclasses.replace(plan, devices=None), splits[0])
    first = [one(seeds[0], counts[0], name) for name in run.criteria]
    jax.block_until_ready((all_at_once(), first))
    times: dict[str, list[float]] = {"together": [], "alone": []}
    for turn in range(run.timed):
        began = time.perf_counter()
        many = jax.block_until_ready(all_at_once())
        between = time.perf_counter()
        each = [jax.block_until_ready(one(*network)) for network in every]
        times["together"].append(round(between - began, 3))
        times["alone"].append(round(time.perf_counter() - between, 3))
        context.advance(0.3 + 0.7 * (turn + 1) / run.timed)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    separate = jax.tree.map(lambda x, y: x.reshape(y.shape), stacked, many)
    differ = jax.tree.map(lambda x, y: jnp.sum(x != y), separate.masks, many.masks)
    found, alone_found = (accuracies(plan, x, splits[1]) for x in (many, separate))
    return {
        "networks": len(every),
        "seconds_together": times["together"],
        "seconds_alone": times["alone"],
        "masks_differ": sum(map(int, jax.tree.leaves(differ))),
        "accuracies_differ": float(np.abs(found - alone_found).max()),
    }


def _network(trained: Trained, place: tuple[int, ...]) -> tuple[PyTree, PyTree]:
    """The parameters and the masks of one of the networks."""
    return jax.tree.map(lambda x: x[place], (trained.state.params, trained.masks))


EXPERIMENT = command.Experiment(
    name="ablation",
    about="Seeds, densities and criteria in one program, beside separate runs.",
    runs=runs,
    execute=execute,
    figures={"ablation.png": figures.draw},
    tables=figures.tables,
)


if __name__ == "__main__":
    command.main(EXPERIMENT)

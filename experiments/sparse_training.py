"""Accuracy of networks whose masks change while they train, beside pruning before it.

  python -m experiments sparse_training --scale cpu   # an MLP and a convolutional network

Gradual magnitude pruning, RigL and SET (from random masks with ERK densities, and from
SynFlow's), and iterative magnitude pruning with rewinding, on the networks and with the
recipe of `experiments.accuracy`. Of dense training and of SynFlow, SNIP and ERK at
initialisation the figures and tables read the rows of that experiment. Beside the accuracy
stand the multiply-adds of the training.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

import synflow_jax as sj
from experiments import methods
from experiments.datasets.load import cached
from experiments.figures import sparse_training as figures
from experiments.harness import command
from experiments.harness.sweeps import Context, Row
from experiments.training import networks, steps
from experiments.training.settings import SHORT, Settings, cpu_settings, learning_rates
from synflow_jax import models

ROUNDS = 3  # of iterative magnitude pruning
EVERY = 100  # steps from one change of the masks to the next


@dataclasses.dataclass(frozen=True)
class Run:
    """One method at one compression on one network, from one seed."""

    network: str
    """A name that `networks.module_of` takes."""
    dataset: str
    """A name that `experiments.datasets.load.load` takes."""
    method: str
    """A name of `experiments.figures.sparse_training.LABELS`."""
    compression: float
    """log10 of (weights / weights kept) in the end."""
    seed: int
    """Of the weights, of masks at random and of the order of the images."""
    training: Settings
    """How; of iterative magnitude pruning, every round."""
    every: int = EVERY
    """Steps from one change of the masks to the next."""

    @property
    def name(self) -> str:
        what = f"{self.network}-{self.dataset}-{self.method}"
        return f"{what}-{self.compression:g}-s{self.seed}"


def runs(scale: command.Scale) -> list[Run]:
    """The sweep of a scale; paper is that of cpu."""
    if scale == "smoke":
        one = dataclasses.replace(SHORT, epochs=2, batch=64)
        return sweep("mlp_bn", "digits", (1.0,), (0,), one, every=4)
    compressions = methods.grid(0.5, 2, 0.5)
    pairs = (("mlp_bn", "fashion_mnist"), ("convnet_bn", "cifar10_20k"))
    return [
        run
        for network, dataset in pairs
        for run in sweep(network, dataset, compressions, range(3), cpu_settings(network))
    ]


def sweep(
    network: str,
    dataset: str,
    compressions: Sequence[float],
    seeds: Sequence[int],
    training: Settings,
    every: int = EVERY,
) -> list[Run]:
    """All methods at all compressions, seed by seed."""
    cells = itertools.product(seeds, compressions, figures.LABELS)
    return [Run(network, dataset, m, c, s, training, every) for s, c, m in cells]


def execute(run: Run, context: Context) -> Iterator[Row]:
    """Trains once, or in rounds; a row of every epoch and one of the trained network."""
    loaded = cached(run.dataset, context.data_dir)
    module = networks.module_of(run.network, loaded.num_classes)
    shape = loaded.train_images.shape[1:]
    variables = models.init(module, jax.random.key(run.seed), shape)
    plan = steps.plan(module, run.training, loaded)
    splits = steps.on_device(plan, loaded)
    macs = multiply_adds(module, variables, shape)
    trainings = ROUNDS + 1 if run.method == "imp" else 1
    rows: list[Row] = []

    def trained(plan: steps.Plan, params: PyTree, masks: PyTree, number: int):
        """The state after all epochs, each of which leaves a row."""
        state = steps.start(plan, {**variables, "params": params}, masks)
        for epoch in range(1, run.training.epochs + 1):
            before = used(macs, sj.masks_of(state.opt_state))
            state, loss = steps.one_epoch(plan, state, splits[0], run.seed, epoch)
            after = used(macs, sj.masks_of(state.opt_state))
            row = {"kind": "epoch", "training": number, "epoch": epoch}
            accuracy = steps.accuracy(plan, state, splits[1])
            loss = float(loss) if math.isfinite(loss) else None
            rows.append(
                row | {"loss": loss, "accuracy": accuracy, "used": (before + after) / 2}
            )
            done = number + epoch / run.training.epochs
            context.advance(done / trainings)
        return state

    density = 10.0**-run.compression
    if run.method == "imp":
        found, _ = sj.train_and_prune(
            lambda params, masks, n: trained(plan, params, masks, n).params,
            variables["params"],
            density,
            rounds=ROUNDS,
        )
        state = trained(plan, found.params, found.masks, ROUNDS)
    else:
        masks = _start(run, module, variables, shape, density)
        own = dataclasses.replace(plan, optimizer=_optimizer(run, plan, density))
        state = trained(own, variables["params"], masks, 0)
    masks = sj.masks_of(state.opt_state)
    kept, revived = steps.num_nonzero(state.params, masks)
    size = steps.num_nonzero(variables["params"], sj.all_kept(variables["params"]))[0]
    wanted = sj.num_kept(size, density)
    in_masks = int(sj.count(steps.kernels(state.params, masks)))
    # A weight that is not a number is still none after minus itself was added.
    diverged = rows[-1]["loss"] is None
    if (revived and not diverged) or in_masks != wanted:
        raise RuntimeError(
            f"{run.name}: {in_masks} weights are kept and {revived} pruned ones are not "
            f"zero; it should be {wanted} and 0."
        )
    yield from rows
    last = [row["accuracy"] for row in rows[-run.training.epochs :]]
    yield {
        "kind": "trained",
        "network": run.network,
        "dataset": loaded.name,
        "method": run.method,
        "compression": run.compression,
        "seed": run.seed,
        "size": size,
        "kept": kept,
        "best": max(last),
        "last": last[-1],
        "diverged": diverged,
        # Of all trainings together, in units of one dense training.
        "multiply_adds": round(sum(r["used"] for r in rows) / run.training.epochs, 4),
    }


def _start(run: Run, module, variables: PyTree, shape, density: float) -> PyTree:
    """The masks with which training starts."""
    if run.method == "gradual":
        return sj.all_kept(variables["params"])
    problem = methods.problem(module, jax.random.key(run.seed), shape, None)
    method = run.method.partition("_")[2]
    key = jax.random.fold_in(jax.random.key(run.seed), 1)  # as in `experiments.accuracy`
    return methods.pruner(method, problem, key)(density)


def _optimizer(run: Run, plan: steps.Plan, density: float):
    """The optimizer of a method, as a plan has it; one object, for one compilation."""
    whole = run.training.epochs * plan.steps
    every = min(run.every, max(whole // 8, 1))

    @functools.cache
    def inner(settings: Settings, count: int) -> optax.GradientTransformation:
        rate = learning_rates(settings, count)
        return optax.chain(
            optax.add_decayed_weights(settings.weight_decay),
            optax.sgd(rate, settings.momentum, nesterov=True),
        )

    def optimizer(settings: Settings, count: int, masks: PyTree):
        own = inner(settings, count)
        if run.method == "gradual":
            # From the end of the warm-up to three quarters, as the moves below.
            times = {"begin": 1 + whole // 10, "end": 3 * whole // 4, "every": every}
            return sj.gradual_pruning(own, sj.magnitude(), density, **times)
        grow = sj.grow_by_gradient if run.method.startswith("rigl") else sj.grow_at_random
        key = jax.random.fold_in(jax.random.key(run.seed), 4)
        until = 3 * whole // 4
        return sj.dynamic_sparsity(own, masks, grow(), every=every, until=until, key=key)

    return optimizer


def multiply_adds(module: Any, variables: PyTree, shape: tuple[int, ...]) -> dict[str, int]:
    """Multiply-adds of one image in each layer, by the name of its kernel.

    A kernel meets each position of its layer's output once.
    """
    _, seen = jax.eval_shape(
        lambda v, x: module.apply(v, x, capture_intermediates=True, mutable=True),
        variables,
        jnp.ones((1, *shape)),
    )
    outputs = dict(
        zip(
            sj.leaf_names(seen["intermediates"]),
            (leaf.shape for leaf in jax.tree.leaves(seen["intermediates"])),
        )
    )
    found = {}
    params = variables["params"]
    for name, leaf in zip(sj.leaf_names(params), jax.tree.leaves(params)):
        if sj.is_kernel(name, leaf):
            layer = name.removesuffix("/kernel")
            positions = outputs[f"{layer}/__call__/0"][1:-1]
            found[name] = int(np.prod(positions, dtype=np.int64)) * leaf.size
    return found


def used(macs: dict[str, int], masks: PyTree) -> float:
    """The share of all multiply-adds that masks leave."""
    kept = {
        name: float(jnp.mean(mask))
        for name, mask in zip(sj.leaf_names(masks), jax.tree.leaves(masks))
    }
    return sum(kept[name] * own for name, own in macs.items()) / sum(macs.values())


def cost(run: Run) -> float:
    """Seconds on two cores, roughly; only for the estimate of the time left."""
    each = {"mlp_bn": 1.5, "convnet_bn": 3.3}.get(run.network, 1.0) * run.training.epochs
    return 3.0 + each * (ROUNDS + 1 if run.method == "imp" else 1)


EXPERIMENT = command.Experiment(
    name="sparse_training",
    about="Accuracy and multiply-adds of networks whose masks change while they train.",
    runs=runs,
    execute=execute,
    figures={"sparse_training.png": figures.draw},
    tables=figures.tables,
    cost=cost,
)


if __name__ == "__main__":
    command.main(EXPERIMENT)

"""Which rounds leave a path at the largest compression: one weight for each layer.

  python -m experiments connected --scale smoke|cpu|paper

The paper's algorithm takes a hundred rounds. A round that removes more than the whole flow
can cut the network (Theorem 3 asks that none does). Here networks are pruned to exactly
N / L from many initialisations: in one round, as published, with the rounds that would cut
undone (``keep_connected``, what `sj.prune` does unless told otherwise), and in certified
rounds.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax

import synflow_jax as sj
from experiments import methods
from experiments.figures import connected as figures
from experiments.harness import command
from experiments.harness.sweeps import Context, Row
from synflow_jax import models

# Arguments of `sj.prune`.
WAYS: dict[str, dict[str, Any]] = {
    "one_shot": {"rounds": 1, "keep_connected": False},
    "published": {"keep_connected": False},
    "keep_connected": {"keep_connected": True},
    "certified": {"schedule": sj.certified(), "keep_connected": False},
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A network pruned to one weight for each layer, from many initialisations.

    Attributes:
      network: a key of ``synflow_jax.models.NETWORKS``.
      way: a key of ``WAYS``.
      seeds: of the weights, from 0.
      rounds: of the ways that do not say how many.
    """

    network: str
    way: str
    seeds: int = 20
    rounds: int = methods.ROUNDS

    @property
    def name(self) -> str:
        return f"{self.network}-{self.way}"


def runs(scale: command.Scale) -> list[Run]:
    """The runs of a scale; they need no training, so cpu is all there is to do."""
    if scale == "smoke":
        return [Run("mlp", way, seeds=2, rounds=5) for way in WAYS]
    return [Run(name, way) for name in ("mlp", "resnet20", "vgg16_cifar") for way in WAYS]


def execute(run: Run, context: Context) -> Iterator[Row]:
    """A row for each initialisation: what was kept, and which flow is left."""
    score = None
    for seed in range(run.seeds):
        apply_fn, params, shape = models.build(run.network, jax.random.key(seed))
        if score is None:  # the statistics of batch norm are those of all initialisations
            score, network = sj.synflow(apply_fn, shape), apply_fn
        named = zip(sj.leaf_names(params), jax.tree.leaves(params))
        sizes = [leaf.size for path, leaf in named if sj.is_kernel(path, leaf)]
        options = {"rounds": run.rounds} | WAYS[run.way]
        masks, info = sj.prune(score, params, len(sizes) / sum(sizes), **options)
        flow = float(sj.log_flow(network, sj.apply_masks(params, masks), shape))
        yield {
            "kind": "pruned",
            "network": run.network,
            "way": run.way,
            "seed": seed,
            "layers": len(sizes),
            "kept": int(info.kept[-1]),
            "rounds": len(info.kept),
            "retries": int(info.retries.sum()),
            "log10_flow": round(flow / math.log(10), 4) if math.isfinite(flow) else None,
        }
        context.advance((seed + 1) / run.seeds)


EXPERIMENT = command.Experiment(
    name="connected",
    about="The share of initialisations with a path left at one weight for each layer.",
    runs=runs,
    execute=execute,
    figures={"connected.png": figures.draw},
    tables=figures.tables,
    cost=lambda run: {"mlp": 1, "resnet20": 4}.get(run.network, 20),
)


if __name__ == "__main__":
    command.main(EXPERIMENT)

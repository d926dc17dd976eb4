"""ResNet-50 for ImageNet, pruned at its full size: what is kept of each layer.

  python -m experiments imagenet --scale smoke|cpu|paper

SynFlow's hundred rounds on 25.5 million weights at 224 pixels, beside random and magnitude,
to densities of 0.1 and 0.05 and to the two that Wang et al. 2023 (NTK-SAP) trained to.
SynFlow looks at no images, so this needs none; nothing is trained here.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Key, PyTree

import synflow_jax as sj
from experiments import methods
from experiments.figures import imagenet as figures
from experiments.harness import command
from experiments.harness.sweeps import Context, Row
from synflow_jax import models
from synflow_jax.trees import ScoreFn, prunable_leaves


class TinyResNet(nn.Module):
    """A stem, one residual block and a dense layer: what the smoke form prunes.

    Attributes:
      num_classes: outputs.
    """

    num_classes: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        x = nn.relu(nn.Conv(8, (3, 3), name="conv")(x))
        y = nn.relu(nn.Conv(8, (3, 3), strides=2, name="group1_block1_conv1")(x))
        y = nn.Conv(16, (3, 3), name="group1_block1_conv2")(y)
        x = nn.Conv(16, (1, 1), strides=2, name="group1_block1_shortcut")(x)
        return nn.Dense(self.num_classes, name="linear")(nn.relu(x + y).mean((1, 2)))


@dataclasses.dataclass(frozen=True)
class Run:
    """One criterion at one density, on a network at initialisation.

    Attributes:
      network: a key of ``synflow_jax.models.NETWORKS``, or tiny_resnet.
      num_classes: its outputs.
      input_shape: of an image.
      method: a name of ``experiments.methods.LABELS`` that needs no images.
      density: the fraction of the weights that is kept.
      rounds: of SynFlow; all others take one.
      seed: of the weights and of random scores.
    """

    network: str
    num_classes: int
    input_shape: tuple[int, int, int]
    method: str
    density: float
    rounds: int = methods.ROUNDS
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.network}-{self.method}-{self.density:g}-s{self.seed}"


def the_runs(scale: command.Scale) -> list[Run]:
    """All densities of one criterion after the other: the cheap ones first."""
    network: tuple[Any, ...] = ("resnet50_imagenet", 1000, (224, 224, 3))
    densities, rounds, seeds = (0.8**10, 0.1, 0.05, 0.8**14), methods.ROUNDS, 1
    if scale == "smoke":
        network, densities, rounds = ("tiny_resnet", 10, (8, 8, 3)), (0.1,), 5
    if scale == "paper":
        seeds = 3
    return [
        Run(*network, method, density, rounds if method == "synflow" else 1, seed)
        for method in figures.COMPARED
        for seed in range(seeds)
        for density in densities
    ]


def cost(run: Run) -> float:
    """Roughly its rounds, and what is done once."""
    return run.rounds + 5.0


def execute(run: Run, context: Context) -> Iterator[Row]:
    """Prunes once.

    In the row ``layers`` has name, weights kept and size of each layer, in order of depth;
    ``log10_flow`` is the decimal logarithm of R after pruning, None where no path is left;
    ``on_paths`` counts the kept weights that lie on one; ``round_seconds`` is the median
    over the rounds, and ``seconds`` is all of them with compiling.
    """
    network = run.network, run.num_classes, run.input_shape, run.seed
    alive, problem, _ = _network(*network)
    score = _score(run.method, *network)
    began, ended = time.perf_counter(), []

    def on_round(info):
        ended.append(time.perf_counter())
        context.advance(len(ended) / run.rounds)

    masks, _ = sj.prune(
        score,
        problem.params,
        run.density,
        rounds=run.rounds,
        keep_connected=False,
        on_round=on_round,
    )
    masks = jax.block_until_ready(masks)
    seconds = time.perf_counter() - began
    each = [after - before for before, after in zip(ended, ended[1:])] or [seconds]
    layers = _kept(problem.params, masks)
    on_paths, flow = alive(problem.params, masks)
    flow = float(flow) / math.log(10)
    yield {
        "kind": "layers",
        "method": run.method,
        "density": run.density,
        "seed": run.seed,
        "size": sum(size for *_, size in layers),
        "kept": sum(kept for _, kept, _ in layers),
        "on_paths": sum(kept for _, kept, _ in _kept(problem.params, on_paths)),
        "log10_flow": round(flow, 4) if math.isfinite(flow) else None,
        "seconds": round(seconds, 2),
        "round_seconds": round(statistics.median(each), 3),
        "layers": layers,
    }


class _Network(NamedTuple):
    """A network, and ``alive(params, masks)``: the kept weights that lie on a path, and the
    natural logarithm of R."""

    alive: Callable[..., tuple[PyTree, jax.Array]]
    problem: methods.Problem
    score_key: Key[Array, ""]


# Both are made once, as every function is compiled anew.
@functools.lru_cache(maxsize=1)
def _network(
    network: str, num_classes: int, input_shape: tuple[int, int, int], seed: int
) -> _Network:
    weights_key, score_key = jax.random.split(jax.random.key(seed))
    make = TinyResNet if network == "tiny_resnet" else models.NETWORKS[network].make
    problem = methods.problem(make(num_classes=num_classes), weights_key, input_shape, None)
    apply_fn = problem.apply_fn

    @jax.jit
    def alive(params: PyTree, masks: PyTree) -> tuple[PyTree, jax.Array]:
        pruned = sj.apply_masks(params, masks)
        return (
            sj.effective_masks(apply_fn, params, masks, input_shape),
            sj.log_flow(apply_fn, pruned, input_shape),
        )

    return _Network(alive, problem, score_key)


@functools.lru_cache(maxsize=1)
def _score(method: str, *network: Any) -> ScoreFn:
    _, problem, score_key = _network(*network)
    return methods.score_fn(method, problem, score_key)


def _kept(params: PyTree, masks: PyTree) -> list[tuple[str, int, int]]:
    rows = zip(sj.summarize(params, masks), prunable_leaves(params, sj.is_kernel))
    return [
        (row.name.removesuffix("/kernel"), row.kept, row.size) for row, yes in rows if yes
    ]


EXPERIMENT = command.Experiment(
    name="imagenet",
    about="ResNet-50 for ImageNet pruned at its full size: what is kept of each layer.",
    runs=the_runs,
    execute=execute,
    figures={"layers.png": figures.draw},
    tables=figures.tables,
    cost=cost,
)


if __name__ == "__main__":
    command.main(EXPERIMENT)

"""How far each criterion can prune a network before it empties a layer, without training.

  python -m experiments layer_collapse --scale smoke|cpu|paper

The fraction of each layer's weights that is kept, against compression: Fig. 2 of Tanaka et
al. 2020 on VGG-19 for ImageNet, and the densities behind its Fig. 1 on VGG-16 for
CIFAR-100, beside those that the authors published with their code. A criterion's critical
compression is the largest of the grid at which no layer is empty; since a network can be
cut without that, the largest at which a path leads from input to output stands beside it.
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

import synflow_jax as sj
from experiments import methods
from experiments.figures import layer_collapse as figures
from experiments.harness import command, runs
from experiments.harness.sweeps import Context, Row
from experiments.methods import Images
from synflow_jax import models
from synflow_jax.trees import ScoreFn, prunable_leaves

RATIO = 0.9  # of certified rounds: as few of them as leave the network connected


@dataclasses.dataclass(frozen=True)
class Run:
    """One criterion on one network at initialisation, at every compression.

    Attributes:
      part: "cifar", Fig. 1 of the paper, or "imagenet", Fig. 2; at scale smoke small
        networks stand in for those of the paper.
      network: a key of ``synflow_jax.models.NETWORKS``.
      num_classes: its outputs.
      input_shape: of an image; those of the data are resized to it.
      method: a name of ``experiments.methods.PAPER``; of snip and grasp also with
        "_evaluated": batch norm and dropout in evaluation mode, as in the first version of
        the authors' code, of which their published densities are; or "certified": SynFlow
        in rounds that cannot cut the network.
      seed: of the weights, of random scores and of the choice of images.
      compressions: log10 of one over the density.
      rounds: of SynFlow; all others take one.
      data: where SNIP and GraSP get their images; None for criteria that need none.
      each: images of every class.
      classes: number of classes that the images are of; None for all.
      batch: the largest number of images in a batch.
      ratio: the largest share of the flow that a certified round removes.
    """

    part: str
    network: str
    num_classes: int
    input_shape: tuple[int, int, int]
    method: str
    seed: int
    compressions: tuple[float, ...]
    rounds: int
    data: str | None = None
    each: int | None = None
    classes: int | None = None
    batch: int | None = None
    ratio: float | None = None

    @property
    def name(self) -> str:
        return f"{self.network}-{self.method}-s{self.seed}"


# 10^0 to 10^6 in steps of 10^0.25, as published; 4^0 to 4^11.
_QUARTERS = tuple(step / 4 for step in range(25))
_FOURFOLD = tuple(power * math.log10(4) for power in range(12))


def the_runs(scale: command.Scale) -> list[Run]:
    """The runs of a scale: the network of Fig. 1 first, the cheap criteria before SynFlow,
    and GraSP last; then SynFlow in certified rounds at the largest compressions of Fig. 1,
    where the paper's hundred rounds can be too few.

    On a processor GraSP's convolutions are slow, so it sees fewer images there, and so do
    SNIP and GraSP on VGG-19. It has dropout and no batch norm, so evaluation mode decides
    little there, and only SNIP, the faster one, has it.
    """
    if scale == "smoke":
        digits = {"snip": Images("digits", 2), "grasp": Images("digits", 2)}
        tenfold, fourfold = (0.0, 1.0, 2.0, 3.0), _FOURFOLD[:4]
        mlp, conv = ("mlp", 10, (8, 8, 1)), ("conv", 10, (8, 8, 1))
        return [
            *_part(
                "cifar", *mlp, seeds=2, compressions=tenfold, rounds=10, looks_at=digits
            ),
            *_certified("cifar", *mlp, seeds=1, weights=(48, 6), of=47_400),
            *_part("imagenet", *conv, compressions=fourfold, rounds=10, looks_at=digits),
        ]
    if scale == "cpu":
        cifar = {
            "snip": Images("cifar100_10k", 10),
            "grasp": Images("cifar100_10k", 1),
        }
        imagenet = {
            "snip": Images("tiny_imagenet_10k", 1, batch=4),
            "grasp": Images("tiny_imagenet_10k", 1, classes=16, batch=4),
        }
    else:
        cifar = dict.fromkeys(("snip", "grasp"), Images("cifar100", 10))
        imagenet = dict.fromkeys(("snip", "grasp"), Images("imagenet2012", 10, batch=50))
    vgg16 = ("vgg16_cifar", 100, (32, 32, 3))
    vgg19 = ("vgg19_imagenet", 1000, (224, 224, 3))
    return [
        *_part(
            *("cifar", *vgg16),
            seeds=5,
            compressions=_QUARTERS,
            looks_at=cifar,
            also=("snip_evaluated", "grasp_evaluated"),
        ),
        *_certified("cifar", *vgg16, seeds=5, weights=(15, 14), of=14_761_664),
        *_part(
            *("imagenet", *vgg19),
            compressions=_FOURFOLD,
            looks_at=imagenet,
            also=("snip_evaluated",),
        ),
        *(
            Run("imagenet", *vgg19, "synflow", seed, _FOURFOLD[9:], methods.ROUNDS)
            for seed in (1, 2)
        ),
    ]


def _part(
    part: str,
    network: str,
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    seeds: int = 1,
    compressions: tuple[float, ...],
    rounds: int = methods.ROUNDS,
    looks_at: Mapping[str, Images],
    also: Sequence[str] = (),
) -> list[Run]:
    settings = {name: looks._asdict() for name, looks in looks_at.items()}
    return [
        Run(
            *(part, network, num_classes, input_shape, method, seed, compressions),
            rounds if method == "synflow" else 1,
            **settings.get(method.removesuffix("_evaluated"), {}),
        )
        for method in ("random", "magnitude", "synflow", "snip", "grasp", *also)
        for seed in range(seeds)
    ]


def _certified(
    part: str,
    network: str,
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    seeds: int,
    weights: Sequence[int],
    of: int,
) -> list[Run]:
    """Down to each number of weights, of so many."""
    compressions = tuple(math.log10(of / kept) for kept in weights)
    return [
        Run(
            *(part, network, num_classes, input_shape, "certified", seed, compressions),
            rounds=0,
            ratio=RATIO,
        )
        for seed in range(seeds)
    ]


def cost(run: Run) -> float:
    """Roughly its seconds on one core, at scale cpu."""
    if run.network not in ("vgg16_cifar", "vgg19_imagenet"):
        return 1.0
    seconds = {"random": 10, "magnitude": 10, "snip": 120, "grasp": 180}
    seconds |= {"synflow": 10 * len(run.compressions), "certified": 200}
    return seconds[run.method.removesuffix("_evaluated")] * (
        10 if run.part == "imagenet" else 1
    )


# --- one run ------------------------------------------------------------------------------


def execute(run: Run, context: Context) -> Iterator[Row]:
    """A row for each compression.

    In it ``layers`` has name, weights kept and size of each layer, in order of depth;
    ``log10_flow`` is the decimal logarithm of R, None where no path is left from input to
    output, which ``connected`` says too; ``whole`` says whether each layer keeps a weight.
    SynFlow's rows have its ``rounds`` and ``largest_ratio``, the paper's prune-size ratio:
    the largest share of the flow that a round removed. Below 1 a path survives them all.

    An interrupted run goes on after the last compression that it finished.
    """
    weights_key, score_key = jax.random.split(jax.random.key(run.seed))
    part = context.folder / "part.json"
    rows = json.loads(part.read_text()) if part.exists() else []
    yield from rows
    if len(rows) == len(run.compressions):
        return
    problem = methods.problem(
        models.NETWORKS[run.network].make(num_classes=run.num_classes),
        weights_key,
        run.input_shape,
        methods.scored_images(run, context.data_dir),
    )
    log_flow = jax.jit(
        lambda params, masks: sj.log_flow(
            problem.apply_fn, sj.apply_masks(params, masks), run.input_shape
        )
    )
    prune = _pruner(run, problem, score_key)
    for compression in run.compressions[len(rows) :]:
        began = time.perf_counter()
        masks, about = prune(10.0**-compression)
        seconds = time.perf_counter() - began
        layers = [
            [row.name.removesuffix("/kernel"), row.kept, row.size]
            for row, leaf in zip(
                sj.summarize(problem.params, masks), jax.tree.leaves(problem.params)
            )
            if sj.is_kernel(row.name, leaf)
        ]
        flow = float(log_flow(problem.params, masks)) / math.log(10)
        rows.append(
            {
                "kind": "layers",
                "compression": round(compression, 6),
                "k": sj.num_kept(sum(size for *_, size in layers), 10.0**-compression),
                "kept": sum(kept for _, kept, _ in layers),
                "whole": all(kept for _, kept, _ in layers),
                "connected": math.isfinite(flow),
                "log10_flow": round(flow, 4) if math.isfinite(flow) else None,
                **about,
                "seconds": round(seconds, 3),
                "layers": layers,
            }
        )
        if jax.process_index() == 0:
            runs.replace(part, json.dumps(rows))
        context.advance(len(rows) / len(run.compressions))
        yield rows[-1]


def _pruner(
    run: Run, problem: methods.Problem, key: Key[Array, ""]
) -> Callable[[float], tuple[PyTree, Row]]:
    """``prune(density) -> masks, and what there is to say about the rounds``."""
    in_rounds = run.method in ("synflow", "certified")
    method = run.method.removesuffix("_evaluated")
    if method != run.method:
        problem = problem._replace(logits_fn=problem.apply_fn)
    score = methods.score_fn("synflow" if in_rounds else method, problem, key)
    if not in_rounds:
        masks_at = one_shot(score, problem.params)
        return lambda density: (jax.block_until_ready(masks_at(density)), {})
    how = {"schedule": sj.certified(run.ratio)} if run.ratio else {"rounds": run.rounds}

    def prune(density: float) -> tuple[PyTree, Row]:
        masks, info = sj.prune(score, problem.params, density, keep_connected=False, **how)
        largest = round(float(info.removed.max()), 4)
        return masks, {"rounds": len(info.removed), "largest_ratio": largest}

    return prune


def one_shot(score_fn: ScoreFn, params: PyTree) -> Callable[[float], PyTree]:
    """Pruning in one round to many densities: the scores are computed once.

    Args:
      score_fn: the criterion.
      params: what is pruned.

    Returns:
      ``masks_at(density) -> masks``, those of ``prune(score_fn, params, density,
      rounds=1)``.

    Raises:
      FloatingPointError: if a score is NaN or infinite.
    """
    whole = sj.all_kept(params)
    chosen = prunable_leaves(params, sj.is_kernel)
    leaves = jax.tree.leaves(jax.jit(score_fn)(params, whole))
    scores = [leaf for leaf, yes in zip(leaves, chosen) if yes]
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in scores):
        raise FloatingPointError("a score is NaN or infinite.")
    size = sum(leaf.size for leaf in scores)

    def masks_at(density: float) -> PyTree:
        kept = iter(_keep_top(scores, np.uint32(sj.num_kept(size, density))))
        pairs = zip(jax.tree.leaves(whole), chosen)
        masks = [next(kept) if yes else mask for mask, yes in pairs]
        return jax.tree.unflatten(jax.tree.structure(params), masks)

    return masks_at


# Compiled once for all runs on a network.
_keep_top = jax.jit(sj.keep_top)


EXPERIMENT = command.Experiment(
    name="layer_collapse",
    about="Fraction kept of each layer against compression: Figs. 1 and 2 of the paper.",
    runs=the_runs,
    execute=execute,
    figures={
        "layers_cifar.png": functools.partial(figures.draw, "cifar"),
        "layers_imagenet.png": functools.partial(figures.draw, "imagenet"),
    },
    tables=figures.tables,
    cost=cost,
)


if __name__ == "__main__":
    command.main(EXPERIMENT)

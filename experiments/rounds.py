"""How many rounds SynFlow needs: the largest share of the flow that a round removes.

  python -m experiments rounds --scale smoke|cpu|paper

The paper's prune-size ratio is the total score of what a round removes, as a share of R; in
a one-shot prune of L layers it can be near L. While it is below 1, some path from input to
output survives the round, whatever it removes. Fig. 7 of Tanaka et al. 2020 has the largest
ratio of all rounds against their number, on VGG-19 for ImageNet. Beside these stand
certified rounds, whose number is not chosen but found: each takes as much as a given ratio
allows. What a number of rounds is worth is the flow that they keep.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import synflow_jax as sj
from experiments import published
from experiments.figures import rounds as figures
from experiments.harness import command
from experiments.harness.sweeps import Context, Row
from synflow_jax import models

SCHEDULES = {"exponential": sj.exponential, "linear": sj.linear}
RATIOS = (0.9, 0.5, 0.2)


@dataclasses.dataclass(frozen=True)
class Run:
    """One pruning of a network at initialisation.

    Attributes:
      network: a key of ``synflow_jax.models.NETWORKS``.
      compression: log10 of one over the density.
      schedule: "exponential", "linear" or "certified".
      rounds: their number; None for certified rounds, which find it.
      ratio: the largest share of the flow that a certified round removes; None for others.
      seed: of the weights.
    """

    network: str
    compression: float
    schedule: str
    rounds: int | None = None
    ratio: float | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        how = f"ratio{self.ratio:g}" if self.rounds is None else f"n{self.rounds}"
        what = f"{self.network}-c{self.compression:g}-{self.schedule}-{how}"
        return what + (f"-seed{self.seed}" if self.seed else "")


# Of the grid of Fig. 7, what is done first.
_FIRST = (1, 10, 20, 50, 100)


def runs(scale: command.Scale) -> list[Run]:
    """The runs of a scale, what tells most first. cpu has one draw of the large network."""
    if scale == "smoke":
        return [
            *(Run("mlp", 1, how, n) for n in (1, 5, 20, 100) for how in SCHEDULES),
            *(Run("mlp", 1, "certified", ratio=ratio) for ratio in RATIOS),
        ]
    theirs = published.load("rounds")
    network, compressions = theirs["network"], (1, 2)
    rest = [n for n in theirs["rounds"] if n not in _FIRST]
    figure = []
    for compression in compressions:
        figure += [Run(network, compression, "exponential", n) for n in _FIRST]
        figure += [Run(network, compression, "certified", ratio=r) for r in RATIOS]
    figure += [Run(network, c, "linear", n) for c in compressions for n in _FIRST]
    others = [Run(network, c, h, n) for h in SCHEDULES for c in compressions for n in rest]
    if scale == "paper":
        others = [
            dataclasses.replace(r, seed=s) for s in (0, 1, 2) for r in figure + others
        ]
        figure = []
    return [*_small(0), *figure, *_small(1), *_small(2), *others]


def _small(seed: int) -> list[Run]:
    """What rounds are worth on smaller networks, where more of them can be afforded."""
    return [
        run
        for network in ("resnet20", "vgg16_cifar")
        for c in (1, 2, 3)
        for run in (
            *(Run(network, c, "exponential", n, seed=seed) for n in (10, 20, 50, 100, 200)),
            *(Run(network, c, "certified", ratio=ratio, seed=seed) for ratio in RATIOS),
        )
    ]


class _Problem(NamedTuple):
    apply_fn: Any
    params: Any
    input_shape: tuple[int, ...]
    score: Any
    log_flow: Any


@functools.lru_cache(maxsize=1)
def _problem(network: str, seed: int) -> _Problem:
    """Kept from run to run, so that one compilation serves all that follow each other."""
    apply_fn, params, shape = models.build(network, jax.random.key(seed))

    def log_flow(params, masks):
        return sj.log_flow(apply_fn, sj.apply_masks(params, masks), shape)

    score = sj.synflow(apply_fn, shape)
    return _Problem(apply_fn, params, shape, score, jax.jit(log_flow))


def execute(run: Run, context: Context) -> Iterator[Row]:
    """One row: rounds, largest ratio, and what is left of the network."""
    network = _problem(run.network, run.seed)
    params, density = network.params, 10.0**-run.compression
    dense = float(network.log_flow(params, sj.all_kept(params)))
    count = itertools.count(1)

    def on_round(info):
        done = next(count)
        if run.rounds is not None:
            context.advance(done / run.rounds)
        else:
            reached = math.log(float(info.density)) / math.log(density)
            context.advance(min(reached, 1.0))

    if run.rounds is None:
        how = {"schedule": sj.certified(run.ratio)}
    else:
        how = {"schedule": SCHEDULES[run.schedule], "rounds": run.rounds}
    masks, info = sj.prune(
        network.score, params, density, keep_connected=False, on_round=on_round, **how
    )
    removed = np.asarray(info.removed)
    flow = float(network.log_flow(params, masks))
    yield {
        "kind": "pruned",
        "rounds": len(removed),
        "largest_ratio": float(removed.max()),
        "largest_in_round": int(removed.argmax()) + 1,
        "certificate": bool(info.certificate),
        "stopped": bool(info.stopped[-1]),
        "kept": int(info.kept[-1]),
        "ln_flow": flow if math.isfinite(flow) else None,  # None: no path is left
        "ln_flow_dense": dense,
        "empty": sj.collapsed(params, masks),
    }


def _cost(run: Run) -> float:
    """Weights times rounds, nearly: a certified round costs about two."""
    weights = {"vgg19_imagenet": 144.0, "vgg16_cifar": 15.0}.get(run.network, 1.0)
    if run.rounds is not None:
        return weights * run.rounds
    return weights * 2 * 14 * run.compression / run.ratio


EXPERIMENT = command.Experiment(
    name="rounds",
    about="The prune-size ratio against the number of rounds, Fig. 7 of the paper, and "
    "certified rounds.",
    runs=runs,
    execute=execute,
    figures={"rounds.png": figures.draw},
    tables=figures.tables,
    cost=_cost,
)


if __name__ == "__main__":
    command.main(EXPERIMENT)

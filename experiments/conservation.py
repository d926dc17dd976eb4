"""Conservation of scores in units and in layers, for every criterion: Figs. 3 and 4.

  python -m experiments conservation --scale cpu     # VGG-19, 224 pixels, Tiny ImageNet
  python -m experiments conservation --scale paper   # VGG-19, ImageNet

Synaptic saliency, ``w * dR/dw``, has the same sum over the weights into a hidden unit,
its bias included, as over those out of it (Theorem 1 of Tanaka et al. 2020), and so the
same sum in every layer (Theorem 2): the average score of a layer is inverse to its size.
Here both sums are taken for the paper's five criteria. What departs from the law does so
for a reason:

- random and magnitude are no saliencies: their sums follow the number of weights.
- SNIP is the absolute value of one, and in a sum of absolute values nothing cancels.
- GraSP is ``w * (H g)``. The law of the loss, differentiated along its gradient ``g``, says
  that the sums of ``w * (H g) + g**2`` are equal; so GraSP departs by the squared gradient.
- SynFlow is a saliency, and positive: what is left is rounding.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

import synflow_jax as sj
from experiments import methods
from experiments.figures import conservation as figures
from experiments.harness import command
from experiments.harness.sweeps import Context, Row
from synflow_jax import models

# The rows keep at most this number of a layer's units, evenly spaced, for the figure; the
# measures of agreement are of all.
DRAWN = 512


@dataclasses.dataclass(frozen=True)
class Run:
    """The scores of one criterion on one network at initialisation.

    Attributes:
      network: a key of ``synflow_jax.models.NETWORKS``; its layers are a chain.
      num_classes: its outputs.
      input_shape: of an image; those of the data are resized to it.
      method: a name of ``experiments.methods.PAPER``.
      seed: of the weights, of random scores and of the choice of images.
      data: where SNIP and GraSP get their images; None for criteria that need none.
      each: images of every class.
      classes: number of classes that the images are of; None for all.
      batch: the largest number of images in a batch, which changes no more than rounding.
    """

    network: str
    num_classes: int
    input_shape: tuple[int, int, int]
    method: str
    seed: int = 0
    data: str | None = None
    each: int | None = None
    classes: int | None = None
    batch: int | None = None

    @property
    def name(self) -> str:
        return f"{self.network}-{self.method}-s{self.seed}"


def the_runs(scale: command.Scale) -> list[Run]:
    """One run for each criterion.

    At scale cpu the images are of the data set of photographs that is at hand, each of
    another class. At scale paper they are as many as the paper's code has.
    """
    network: tuple[Any, ...] = ("vgg19_imagenet", 1000, (224, 224, 3))
    if scale == "smoke":
        network = ("conv", 10, (8, 8, 1))
        seen = {"data": "digits", "each": 2, "batch": 10}
    elif scale == "cpu":
        seen = {"data": "tiny_imagenet_10k", "each": 1, "classes": 16, "batch": 4}
    else:
        seen = {"data": "imagenet2012", "each": 10, "batch": 50}
    return [
        Run(*network, method, **(seen if method in ("snip", "grasp") else {}))
        for method in methods.PAPER
    ]


def cost(run: Run) -> float:
    """Roughly its seconds on one core, of the scale cpu."""
    return {"snip": 120.0, "grasp": 400.0}.get(run.method, 30.0)


def execute(run: Run, context: Context) -> Iterator[Row]:
    """Scores the network once; rows of the layers, and of how well their units agree.

    The row of a layer has the ``total`` of its weights' scores. If hidden units are behind
    it, ``into`` and ``out`` are the sums of some of them, each ``every``-th.
    """
    layers = layers_of(_scores(run, context))
    flows = unit_flows(layers)
    for layer, flow in zip(layers, [*flows, None]):
        row = {
            "kind": "layer",
            "layer": layer.name,
            "size": layer.kernel.size,
            "total": float(layer.kernel.sum(dtype=np.float64)),
        }
        if flow is not None:
            every = -(-len(flow.into) // DRAWN)
            row |= {
                "units": len(flow.into),
                "between": flow.between,
                "every": every,
                "into": _rounded(flow.into[::every]),
                "out": _rounded(flow.out[::every]),
            }
        yield row
    yield {"kind": "agreement", "of": "units", **agreement(flows)}
    # The published sums are of the channels between two convolutions.
    between = [flow for flow in flows if flow.between]
    yield {"kind": "agreement", "of": "channels", **agreement(between)}
    if run.method == "random":
        around = [
            flow._replace(
                into=flow.into - 0.5 * flow.weights_in,
                out=flow.out - 0.5 * flow.weights_out,
            )
            for flow in between
        ]
        yield {"kind": "agreement", "of": "channels, around the mean", **agreement(around)}


def _scores(run: Run, context: Context) -> PyTree:
    weights_key, score_key = jax.random.split(jax.random.key(run.seed))
    problem = methods.problem(
        models.NETWORKS[run.network].make(num_classes=run.num_classes),
        weights_key,
        run.input_shape,
        methods.scored_images(run, context.data_dir),
    )
    # In evaluation mode, as in the paper's code: nothing is dropped.
    problem = problem._replace(logits_fn=problem.apply_fn)
    score = methods.score_fn(run.method, problem, score_key)
    context.advance(0.1)
    return jax.jit(score)(problem.params, sj.all_kept(problem.params))


# --- the sums -----------------------------------------------------------------------------


class Layer(NamedTuple):
    """The scores of a convolution or a dense layer.

    Attributes:
      name: of the layer.
      kernel: height, width, inputs and outputs; or inputs and outputs.
      bias: one for each output; None if the layer has none.
    """

    name: str
    kernel: np.ndarray
    bias: np.ndarray | None = None


class UnitFlow(NamedTuple):
    """The hidden units behind a layer.

    Attributes:
      into, out: for each unit the sum of the scores of the weights that lead into it, the
        bias included, and of those that lead out of it.
      weights_in, weights_out: how many these are for one unit.
      between: whether the unit is a channel between two convolutions.
    """

    into: np.ndarray
    out: np.ndarray
    weights_in: int
    weights_out: int
    between: bool


def layers_of(scores: PyTree) -> list[Layer]:
    """The layers of a network whose names are in their order."""
    return [
        Layer(
            name,
            np.asarray(scores[name]["kernel"]),
            np.asarray(scores[name]["bias"]) if "bias" in scores[name] else None,
        )
        for name in sorted(scores)
    ]


def unit_flows(layers: Sequence[Layer]) -> list[UnitFlow]:
    """Sums of scores into and out of every hidden unit, in double precision.

    A dense layer behind a convolution reads the positions of the feature map one after the
    other, with the channels of each side by side: its input ``i`` is channel
    ``i % channels``.

    Args:
      layers: each is fed by the one before, and by nothing else.

    Returns:
      One entry for each pair of neighbours.

    Raises:
      ValueError: if a layer cannot be fed by the one before.
    """
    found = []
    for layer, behind in zip(layers, layers[1:]):
        into = _sum_but_last(layer.kernel)
        bias = 0 if layer.bias is None else layer.bias
        channels, inputs = len(into), behind.kernel.shape[-2]
        dense = behind.kernel.ndim == 2
        if inputs % channels if dense else inputs != channels:
            raise ValueError(
                f"{behind.name} has {inputs} inputs and is not fed by the {channels} "
                f"outputs of {layer.name}."
            )
        # Over its outputs first, which makes the rest small.
        out = behind.kernel.sum(axis=-1, dtype=np.float64)
        found.append(
            UnitFlow(
                into + bias,
                _sum_but_last(out.reshape(-1, channels)),
                layer.kernel.size // channels + (layer.bias is not None),
                behind.kernel.size // channels,
                layer.kernel.ndim == behind.kernel.ndim == 4,
            )
        )
    return found


def _sum_but_last(x: np.ndarray) -> np.ndarray:
    return x.sum(axis=tuple(range(x.ndim - 1)), dtype=np.float64)


def agreement(flows: Sequence[UnitFlow]) -> dict[str, Any]:
    """How well the sums into units agree with those out of them.

    Returns:
      The number of units; the median and the largest of ``|in - out|`` over the larger size
      of both; the correlation of the sums.
    """
    into = np.concatenate([flow.into for flow in flows])
    out = np.concatenate([flow.out for flow in flows])
    larger = np.maximum(abs(into), abs(out))
    gap = abs(into - out) / np.where(larger == 0, 1, larger)
    return {
        "units": len(into),
        "median_gap": float(np.median(gap)),
        "largest_gap": float(gap.max()),
        "correlation": float(np.corrcoef(into, out)[0, 1]),
    }


def _rounded(values: np.ndarray) -> list[float]:
    """With the digits that a figure needs: the row is read by people too."""
    return [float(f"{value:.6g}") for value in values]


EXPERIMENT = command.Experiment(
    name="conservation",
    about="Sums of scores into and out of units, and in layers: the paper's Figs. 3 and 4.",
    runs=the_runs,
    execute=execute,
    figures={"units.png": figures.draw_units, "layers.png": figures.draw_layers},
    tables=figures.tables,
    cost=cost,
)


if __name__ == "__main__":
    command.main(EXPERIMENT)

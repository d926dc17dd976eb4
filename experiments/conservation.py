"""Conservation of scores in units and in layers, for every criterion: Figs. 3 and 4.

  python -m experiments.conservation --scale cpu     # VGG-19, 224 pixels, Tiny ImageNet
  python -m experiments.conservation --scale paper   # VGG-19, ImageNet

Synaptic saliency, ``w * dR/dw``, has the same sum over the weights into a hidden unit,
its bias included, as over those out of it (Theorem 1 of Tanaka et al. 2020), and so the
same sum in every layer (Theorem 2): the average score of a layer is inverse to its size.
Here both sums are taken for the paper's five criteria. What departs from the law does so
for a reason:

- random and magnitude are no saliencies: their sums follow the number of weights.
- SNIP is the size of one, and in a sum of sizes nothing cancels.
- GraSP is ``w * (H g)``. The law of the loss, differentiated along its gradient ``g``, says
  that the sums of ``w * (H g) + g**2`` are equal; so GraSP departs by the squared gradient.
- SynFlow is a saliency, and positive: what is left is rounding.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from jaxtyping import PyTree
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

import synflow_jax as sj
from experiments import command, methods, plots, published
from experiments.layer_collapse import batches
from experiments.sweeps import Context, Row
from synflow_jax import models

# Of a layer at most so many units are kept in the rows and drawn, evenly spaced; the
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
      seed: draws the weights, random scores and the images.
      data: where SNIP and GraSP get their images; None for criteria that need none.
      each: images of every class.
      classes: of so many classes; None for all.
      batch: at most so many images in a batch, which changes no more than rounding.
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
    it, ``into`` and ``out`` are the sums of some of them, every so many as ``every`` says.
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
    weights, drawn = jax.random.split(jax.random.key(run.seed))
    problem = methods.problem(
        models.NETWORKS[run.network].make(num_classes=run.num_classes),
        weights,
        run.input_shape,
        batches(run, context.data_dir),
    )
    # In evaluation mode, as in the paper's code: nothing is dropped.
    problem = problem._replace(logits_fn=problem.apply_fn)
    score = methods.score_fn(run.method, problem, drawn)
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


class Fit(NamedTuple):
    """Layers as Fig. 4 has them: average score against inverse size.

    Attributes:
      slope: of the logarithms; 1 where layers have equal totals.
      correlation: of the logarithms.
      spread: the largest total of a layer over the smallest.
    """

    slope: float
    correlation: float
    spread: float


def fit(rows: Sequence[Row]) -> Fit:
    """The line through the layers of one run; of totals with a sign, their sizes."""
    size = np.array([row["size"] for row in rows], float)
    total = abs(np.array([row["total"] for row in rows]))
    x, y = -np.log10(size), np.log10(total / size)
    slope = float(np.polyfit(x, y, 1)[0])
    # A column of equal numbers has no correlation.
    together = float(np.corrcoef(x, y)[0, 1]) if np.ptp(y) else 0.0
    return Fit(slope, together, float(total.max() / total.min()))


# --- what came out ------------------------------------------------------------------------


def of_method(rows: Sequence[Row], kind: str) -> dict[str, list[Row]]:
    """The rows of a kind by criterion, in the order of the paper's legends."""
    configs = command.configs(rows)
    found = {
        method: [
            row
            for row in rows
            if row["kind"] == kind and configs[row["run"]]["method"] == method
        ]
        for method in methods.PAPER
    }
    return {method: own for method, own in found.items() if own}


def sentences(rows: list[Row]) -> list[str]:
    """What came out, beside what the paper found."""
    theirs = published.load("conservation")
    config = next(iter(command.configs(rows).values()))
    same = config["network"] == theirs["network"]
    found = []
    for method, own in of_method(rows, "agreement").items():
        by_kind = {row["of"]: row for row in own}
        channels = by_kind["channels"]
        beside = []
        if same and method in theirs["gap"]:
            gap = theirs["gap"][method]
            beside += [f"median {gap['median']:.1e}, largest {gap['largest']:.1e}"]
        if same:
            beside += [f"correlation {theirs['correlation'][method]:{_digits(method)}}"]
        text = (
            f"{methods.LABELS[method]}: over the {channels['units']:,} channels between "
            "convolutions the sums of scores in and out differ by "
            f"{channels['median_gap']:.1e} of the larger in the median and "
            f"{channels['largest_gap']:.1e} at most, with correlation "
            f"{channels['correlation']:{_digits(method)}}{_beside(beside)}"
        )
        if method == "random":
            around = by_kind["channels, around the mean"]["correlation"]
            text += (
                ", as the sums of these uniform draws follow the number of weights; around "
                f"their mean the correlation is {around:.4f}"
            )
        units = by_kind["units"]
        text += (
            f"; over all {units['units']:,} hidden units {units['median_gap']:.1e}, "
            f"{units['largest_gap']:.1e} and {units['correlation']:{_digits(method)}}."
        )
        found.append(text)
    for method, own in of_method(rows, "layer").items():
        line, beside = fit(own), []
        if same:
            beside += [f"slope {theirs['slope'][method]:.4g}"]
        if same and method in theirs["spread"]:
            beside += [f"ratio {theirs['spread'][method]:.4g}"]
        found.append(
            f"{methods.LABELS[method]}: the average score of the {len(own)} layers goes "
            f"with their inverse size to the power {line.slope:.4f} (r = "
            f"{line.correlation:.4f}), and the largest total of a layer is "
            f"{line.spread:.7g} times the smallest{_beside(beside)}."
        )
    return found


def _beside(theirs: Sequence[str]) -> str:
    return f" (paper: {', '.join(theirs)})" if theirs else ""


def _digits(method: str) -> str:
    return ".6f" if method == "synflow" else ".4f"


def caption(rows: list[Row]) -> str:
    """What the figures show, at which scale."""
    configs = command.configs(rows).values()
    first = next(iter(configs))
    height, width, _ = first["input_shape"]
    text = (
        f"Scores of the weights of {first['network']} at initialisation "
        f"({height}x{width} pixels, {first['num_classes']:,} classes, one seed). Above, "
        "each point is a hidden unit: the sum of the scores of the weights into it, its "
        "bias included, against the sum of those out of it, dark near the input; on the "
        "diagonal they are equal. Below, each point is a layer: its average score against "
        "its inverse size, divided by the mean total of the criterion's layers, so that "
        "equal totals lie on the diagonal. Of sums with a sign the size is drawn; an open "
        "point is a unit whose sums in and out have different signs, and r is the "
        "correlation, signs included, over the channels between two convolutions, as "
        "published."
    )
    every = max(row.get("every", 1) for row in rows if row["kind"] == "layer")
    if every > 1:
        text += f" Of layers with more than {DRAWN} units every few are drawn."
    looking = next((c for c in configs if c["data"]), None)
    if looking is not None:
        count = looking["each"] * (looking["classes"] or looking["num_classes"])
        text += f" SNIP and GraSP look at {count:,} training images of {looking['data']}"
        if looking["data"].startswith("tiny"):
            text += (
                f", resized to {height} pixels, in place of ImageNet's, and their labels "
                f"are the first of the {first['num_classes']:,} classes"
            )
        text += "."
    return text


# --- the figures --------------------------------------------------------------------------


def draw_units(rows: list[Row], path: pathlib.Path) -> None:
    """A panel for each criterion, a point for each hidden unit: Fig. 3 of the paper."""
    found = of_method(rows, "layer")
    if not found:
        return
    channels = {
        method: next(row for row in own if row["of"] == "channels")
        for method, own in of_method(rows, "agreement").items()
    }
    names = [row["layer"] for row in next(iter(found.values()))][:-1]
    depth = len(names)
    colors = matplotlib.colormaps["viridis"].resampled(depth)
    with plots.settings():
        # One cell more than there are panels, for the legend.
        columns = min(3, len(found) + 1)
        lines = -(-(len(found) + 1) // columns)
        figure = Figure((2.9 * columns + 1.0, 3.2 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes, (method, own) in zip(panels.flat, found.items()):
            _units_panel(axes, own, colors(np.arange(depth)))
            r = f"{channels[method]['correlation']:{_digits(method)}}"
            axes.set_title(f"{methods.LABELS[method]}, r = {r}")
            axes.set_xlabel("scores into the unit")
            axes.set_ylabel("scores out of the unit")
        for axes in panels.flat[len(found) :]:
            axes.set_axis_off()
        points = {"color": plots.INK, "ls": "", "marker": "o", "ms": 4}
        handles = [
            Line2D([], [], color=plots.PALE, lw=1, label="in = out"),
            Line2D([], [], **points, label="a hidden unit"),
            Line2D([], [], **points, mfc="white", label="in and out differ in sign"),
        ]
        panels.flat[len(found)].legend(handles=handles, loc="center left")
        norm = BoundaryNorm(np.arange(depth + 1) - 0.5, depth)
        bar = figure.colorbar(
            ScalarMappable(norm, colors), ax=panels, pad=0.01, aspect=40, shrink=0.9
        )
        step = -(-depth // 18)
        bar.set_ticks(range(0, depth, step), labels=names[::step])
        bar.ax.tick_params(labelsize=8, length=0)
        bar.ax.minorticks_off()
        bar.outline.set_visible(False)
        bar.ax.set_title("into", fontsize=9)
        figure.savefig(path, dpi=180)


def _units_panel(axes: Axes, rows: Sequence[Row], colors: np.ndarray) -> None:
    layers = [row for row in rows if "into" in row]
    sums = np.array([(a, b) for row in layers for a, b in zip(row["into"], row["out"])])
    shown = (sums != 0).all(axis=1)  # an axis of logarithms has no zero
    color = np.repeat(colors[: len(layers)], [len(row["into"]) for row in layers], axis=0)
    same = (np.sign(sums[:, 0]) == np.sign(sums[:, 1])) & shown
    other = shown & ~same
    sizes = abs(sums)
    low, high = sizes[shown].min() / 1.6, sizes[shown].max() * 1.6
    axes.plot([low, high], [low, high], color=plots.PALE, lw=1, zorder=1)
    axes.scatter(*sizes[same].T, s=5, c=color[same], lw=0, zorder=2, rasterized=True)
    axes.scatter(
        *sizes[other].T, s=7, facecolors="none", edgecolors=color[other], lw=0.6, zorder=3
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=4))
        axis.set_minor_locator(NullLocator())


def draw_layers(rows: list[Row], path: pathlib.Path) -> None:
    """Average score against inverse size, a point for each layer: Fig. 4 of the paper."""
    found = of_method(rows, "layer")
    if not found:
        return
    inverse = [1 / row["size"] for own in found.values() for row in own]
    ends = np.array([min(inverse) / 2, max(inverse) * 2])
    with plots.settings():
        figure = Figure((6.2, 4.3), layout="constrained")
        axes = figure.subplots()
        axes.plot(ends, ends, color=plots.PALE, lw=1.2, zorder=1)
        for method, own in found.items():
            size = np.array([row["size"] for row in own], float)
            total = abs(np.array([row["total"] for row in own]))
            # Rings, as others lie under them.
            ring = {"mfc": "none", "ms": 8, "mew": 1.6} if method == "synflow" else {}
            points = {"ls": "", "ms": 4.5, "mew": 0, **ring, **plots.style(method)}
            points["label"] += f": slope {fit(own).slope:.3f}"
            axes.plot(1 / size, total / total.mean() / size, **points)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(*ends)
        axes.set_xlabel("1 / weights of the layer")
        axes.set_ylabel("average score / mean total of a layer")
        handles, texts = axes.get_legend_handles_labels()
        handles.append(Line2D([], [], color=plots.PALE, lw=1.2))
        axes.legend(handles, [*texts, "equal totals: slope 1"], loc="upper left")
        figure.savefig(path, dpi=180)


EXPERIMENT = command.Experiment(
    name="conservation",
    about="Sums of scores into and out of units, and in layers: the paper's Figs. 3 and 4.",
    runs=the_runs,
    execute=execute,
    figures={"units.png": draw_units, "layers.png": draw_layers},
    sentences=sentences,
    caption=caption,
    cost=cost,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    main()

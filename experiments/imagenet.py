"""ResNet-50 for ImageNet, pruned at its full size: what is kept of each layer.

  python -m experiments.imagenet --scale smoke|cpu|paper

SynFlow's hundred rounds on 25.5 million weights at 224 pixels, beside random and magnitude,
to densities of 0.1 and 0.05 and to the two that Wang et al. 2023 (NTK-SAP) trained to.
SynFlow looks at no images, so this needs none; nothing is trained here.
"""

import dataclasses
import functools
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

import synflow_jax as sj
from experiments import methods, plots, published
from experiments.harness import command
from experiments.harness.sweeps import Context, Row
from experiments.harness.tables import Table
from synflow_jax import models
from synflow_jax.trees import ScoreFn, prunable_leaves

COMPARED = ("random", "magnitude", "synflow")


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
      seed: draws the weights and random scores.
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
        for method in COMPARED
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
        score, problem.params, run.density, rounds=run.rounds, on_round=on_round
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
    drawn: Key[Array, ""]


# Both are made once, as every function is compiled anew.
@functools.lru_cache(maxsize=1)
def _network(
    network: str, num_classes: int, input_shape: tuple[int, int, int], seed: int
) -> _Network:
    weights, drawn = jax.random.split(jax.random.key(seed))
    make = TinyResNet if network == "tiny_resnet" else models.NETWORKS[network].make
    problem = methods.problem(make(num_classes=num_classes), weights, input_shape, None)
    apply_fn = problem.apply_fn

    @jax.jit
    def alive(params: PyTree, masks: PyTree) -> tuple[PyTree, jax.Array]:
        pruned = sj.apply_masks(params, masks)
        return (
            sj.effective_masks(apply_fn, params, masks, input_shape),
            sj.log_flow(apply_fn, pruned, input_shape),
        )

    return _Network(alive, problem, drawn)


@functools.lru_cache(maxsize=1)
def _score(method: str, *network: Any) -> ScoreFn:
    _, problem, drawn = _network(*network)
    return methods.score_fn(method, problem, drawn)


def _kept(params: PyTree, masks: PyTree) -> list[tuple[str, int, int]]:
    rows = zip(sj.summarize(params, masks), prunable_leaves(params, sj.is_kernel))
    return [
        (row.name.removesuffix("/kernel"), row.kept, row.size) for row, yes in rows if yes
    ]


# --- what came out ------------------------------------------------------------------------


def of_density(rows: Sequence[Row]) -> dict[float, dict[str, Row]]:
    """The rows of the first seed by density, the largest first, and criterion."""
    found: dict[float, dict[str, Row]] = {}
    rows = [row for row in rows if row["kind"] == "layers" and row["seed"] == 0]
    for row in sorted(rows, key=lambda row: -row["density"]):
        found.setdefault(row["density"], {})[row["method"]] = row
    return found


def tables(rows: Sequence[Row]) -> list[Table]:
    """The weights kept at each density: a line a layer, a column a criterion."""
    made = []
    for density, own in of_density(rows).items():
        compared = [own[method] for method in COMPARED if method in own]
        first, body = compared[0], []
        for place, (name, _, size) in enumerate(first["layers"]):
            kept = [_share(row["layers"][place][1], size) for row in compared]
            body.append([name, f"{size:,}", *kept])
        kept = [_share(row["kept"], first["size"]) for row in compared]
        body.append(["all", f"{first['size']:,}", *kept])
        headings = [methods.LABELS[row["method"]] for row in compared]
        title = f"Weights kept of each layer at density {density:.4g}"
        made.append(Table(title, ["layer", "weights", *headings], body))
    return made


def _share(kept: int, size: int) -> str:
    return f"{kept:,} ({100 * kept / size:.3g} %)"


def sentences(rows: list[Row]) -> list[str]:
    """What came out, and the accuracies that others report for such networks."""
    theirs, found = published.load("imagenet"), []
    network = next(iter(command.configs(rows).values()))["network"]
    for density, own in of_density(rows).items():
        for method, row in own.items():
            found.append(_sentence(row))
        accuracy = theirs["accuracy"].get(f"{density:.6g}")
        if accuracy and network == theirs["network"]:
            trained = [f"{methods.LABELS[m]} {accuracy[m]:.2f} %" for m in own]
            found.append(
                f"After training on ImageNet at density {density:.4g}, which was not done "
                f"here, Wang et al. 2023 report {_listed(trained)} (dense "
                f"{theirs['dense']:.2f} %)."
            )
            cut = [methods.LABELS[m] for m, row in own.items() if row["log10_flow"] is None]
            if cut:
                found[-1] += (
                    f" No network without a path beats chance, so what they prune by "
                    f"{_listed(cut)}, or the weights it starts from, differs from ours."
                )
    rounds = [row for row in rows if row.get("method") == "synflow"]
    if rounds:
        each = statistics.median(row["round_seconds"] for row in rounds)
        device = next(row["device"] for row in rows if row["kind"] == "run")
        found.append(
            f"A round of SynFlow on {rounds[0]['size']:,} weights takes {each:.2f} s on "
            f"this machine's {device}."
        )
    return found


def _sentence(row: Row) -> str:
    shares = {name: kept / size for name, kept, size in row["layers"]}
    least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    empty = [name for name, share in shares.items() if not share]
    text = (
        f"{methods.LABELS[row['method']]} at density {row['density']:.4g} keeps "
        f"{row['kept']:,} of {row['size']:,} weights, from {100 * shares[least]:.3g} % of "
        f"{least} to {100 * shares[most]:.3g} % of {most}; "
    )
    if empty:
        text += f"of its {len(shares)} layers {_listed(empty)} "
        text += "keeps nothing; " if len(empty) == 1 else "keep nothing; "
    if row["log10_flow"] is None:
        return text + "no path is left from input to output."
    away = row["kept"] - row["on_paths"]
    return text + (
        f"{away:,} of those kept lie on no path from input to output, and the flow that is "
        f"left is 10^{row['log10_flow']:.1f}."
    )


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]


def caption(rows: list[Row]) -> str:
    """What the figure shows, at which scale."""
    config = next(iter(command.configs(rows).values()))
    height, width, _ = config["input_shape"]
    rounds = max(c["rounds"] for c in command.configs(rows).values())
    return (
        f"Fraction kept of each layer of {config['network']} at initialisation "
        f"({height}x{width} pixels, seed 0), in the order of depth; SynFlow in {rounds} "
        "rounds, the others in one. Crosses at the lower edge are layers with no weight "
        "left. The shades are the groups of residual blocks; open points are the "
        "convolutions of shortcuts. No network is trained and no image is used."
    )


# --- the figure ---------------------------------------------------------------------------


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """The fraction kept of each layer, a panel for each density."""
    found = of_density(rows)
    if not found:
        return
    every = [row for own in found.values() for row in own.values()]
    names = [name for name, *_ in every[0]["layers"]]
    low = min(kept / size for row in every for _, kept, size in row["layers"] if kept)
    low = 10.0 ** (math.floor(2 * math.log10(low)) / 2)
    with plots.settings():
        lines = -(-len(found) // 2)
        figure = Figure((10.5, 0.6 + 2.9 * lines), layout="constrained")
        panels = figure.subplots(lines, 2, sharex=True, sharey=True, squeeze=False)
        for axes, (density, own) in zip(panels.flat, found.items()):
            _groups(axes, names)
            for method in COMPARED:
                if method in own:
                    _line(axes, own[method], low)
            axes.axhline(density, color=plots.PALE, lw=1, ls=(0, (4, 3)), zorder=1)
            kept = next(iter(own.values()))["kept"]
            axes.set_title(f"density {density:.4g}: {kept:,} weights")
        for axes in panels.flat[len(found) :]:
            axes.set_axis_off()
        axes = panels[0, 0]
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, 1.3)
        axes.set_xlim(0.3, len(names) + 0.7)
        axes.yaxis.set_minor_locator(NullLocator())
        for axes in panels[:, 0]:
            axes.set_ylabel("fraction kept")
        handles, texts = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper center", ncols=len(texts))
        figure.savefig(path, dpi=180)


def _line(axes: Axes, row: Row, low: float) -> None:
    mark = plots.style(row["method"])
    kept = np.array([kept / size for _, kept, size in row["layers"]])
    places = np.arange(1, len(kept) + 1)
    main = np.array(["shortcut" not in name for name, *_ in row["layers"]])
    alive = kept > 0
    # The line follows the main way; shortcuts lie beside it.
    axes.plot(places[main & alive], kept[main & alive], lw=1, ms=3.6, **mark)
    beside = {**mark, "ls": "", "ms": 4.4, "mfc": "white", "label": None}
    axes.plot(places[~main & alive], kept[~main & alive], **beside)
    axes.plot(places[~alive], np.full((~alive).sum(), low), "x", color=mark["color"], ms=5)


def _groups(axes: Axes, names: Sequence[str]) -> None:
    """Shades every second group of blocks and names the parts of the network below."""
    parts = [name.split("_block")[0] for name in names]
    ticks = []
    for number, part in enumerate(dict.fromkeys(parts)):
        first = parts.index(part) + 0.5
        last = first + parts.count(part)
        ticks.append(
            ((first + last) / 2, _PARTS.get(part, part.replace("group", "group ")))
        )
        if number % 2:
            axes.axvspan(first, last, color="#f2f2f2", lw=0, zorder=0)
    axes.set_xticks(*zip(*ticks))
    axes.tick_params(axis="x", length=0)


_PARTS = {"conv": "stem", "linear": "out"}


EXPERIMENT = command.Experiment(
    name="imagenet",
    about="ResNet-50 for ImageNet pruned at its full size: what is kept of each layer.",
    runs=the_runs,
    execute=execute,
    figures={"layers.png": draw},
    sentences=sentences,
    caption=caption,
    tables=tables,
    cost=cost,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    main()

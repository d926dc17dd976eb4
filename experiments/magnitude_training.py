"""Magnitude pruning after training, in rounds, and why it works: Fig. 5 of the paper.

  python -m experiments.magnitude_training --scale smoke|cpu|paper

Left: a network is trained, pruned by magnitude and rewound to its initial weights, once,
twice or three times, and trained at last (`sj.train_and_prune`). One round empties layers
at compressions at which three do not.

Right: under gradient descent with a small step, the squared weights of every layer grow by
the same amount (their growth is a synaptic saliency, so it is conserved, section 6 of the
paper): training itself brings the average squared weight of a layer towards one over the
layer's size, as SynFlow's scores are.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import synflow_jax as sj
from experiments import accuracy, command, data, plots, published, train
from experiments.sweeps import Context, Row
from synflow_jax import models

ROUNDS = (1, 2, 3)


@dataclasses.dataclass(frozen=True)
class Ticket:
    """One pruning by magnitude after training, and the training of what is left."""

    network: str
    """A name that `experiments.accuracy.module_of` knows."""
    dataset: str
    """A name of `experiments.data`."""
    rounds: int
    """Of training, pruning and rewinding."""
    compression: float
    """log10 of (weights / weights kept) in the end."""
    seed: int
    """Of the weights and of the order of the images."""
    training: train.Settings
    """Of every round, and of the end."""

    @property
    def name(self) -> str:
        return f"{self.network}-{self.rounds}-rounds-{self.compression:g}-s{self.seed}"


@dataclasses.dataclass(frozen=True)
class Growth:
    """One dense training in which the squared weights of each layer are watched."""

    network: str
    """A name that `experiments.accuracy.module_of` knows, or deep: an MLP whose layers are
    of six sizes."""
    dataset: str
    """A name of `experiments.data`."""
    seed: int
    """Of the weights and of the order of the images."""
    training: train.Settings
    """Without weight decay, which shrinks the weights."""

    @property
    def name(self) -> str:
        return f"growth-{self.network}-s{self.seed}"


def runs(scale: command.Scale) -> list[Ticket | Growth]:
    """The sweep of a scale."""
    short = train.Settings(
        epochs=5, learning_rate=0.1, decay="cosine", weight_decay=5e-4, augment=False
    )
    slow = dataclasses.replace(
        short,
        epochs=100,
        learning_rate=0.001,
        decay="drops",
        drops=(),
        weight_decay=0.0,
        momentum=0.9,
    )
    if scale == "smoke":
        one = dataclasses.replace(short, epochs=1, batch=64)
        return [
            *tickets("mlp", "digits", (1, 2), (1.0, 3.0), (0,), one),
            Growth("deep", "digits", 0, dataclasses.replace(slow, epochs=3, batch=64)),
        ]
    if scale == "cpu":
        compressions = accuracy.grid(0.5, 3.5, 0.5)
        return [
            *tickets("mlp", "fashion_mnist", ROUNDS, compressions, (0, 1, 2), short),
            Growth("deep", "fashion_mnist", 0, slow),
        ]
    paper = train.Settings(epochs=50, learning_rate=0.01, drops=())
    return [
        *tickets(
            "vgg11_cifar", "cifar10", ROUNDS, accuracy.grid(0.1, 3.7, 0.2), (0, 1, 2), paper
        ),
        Growth("vgg19_cifar", "cifar10", 0, slow),
    ]


def tickets(
    network: str,
    dataset: str,
    rounds: Sequence[int],
    compressions: Sequence[float],
    seeds: Sequence[int],
    training: train.Settings,
) -> list[Ticket]:
    """All numbers of rounds at all compressions, seed by seed."""
    cells = itertools.product(seeds, compressions, rounds)
    return [Ticket(network, dataset, n, c, seed, training) for seed, c, n in cells]


def execute(run: Ticket | Growth, context: Context) -> Iterator[Row]:
    """Does one run of either kind."""
    loaded = _images(run.dataset, context.data_dir)
    if run.network == "deep":
        module = models.MLP(loaded.num_classes, hidden=(300, 200, 100, 50, 25))
    else:
        module = accuracy.module_of(run.network, loaded.num_classes)
    zeros = jnp.zeros((1, *loaded.train_images.shape[1:]))
    variables = jax.jit(module.init)(jax.random.key(run.seed), zeros)
    plan = train.plan(module, run.training, loaded)
    splits = train.on_device(plan, loaded)
    if isinstance(run, Growth):
        yield from _grow(run, plan, variables, splits, context)
    else:
        yield _ticket(run, plan, variables, splits, context)


def _ticket(
    run: Ticket,
    plan: train.Plan,
    variables: PyTree,
    splits: tuple[train.Split, train.Split],
    context: Context,
) -> Row:
    """Rounds of training, pruning and rewinding, and a last training."""

    def trained(params, masks, round_):
        state = train.start(plan, {**variables, "params": params}, masks)
        kind = context.folder / f"round{round_}" if run.training.epochs > 10 else None

        def advance(fraction):
            context.advance((round_ + fraction) / (run.rounds + 1))

        options = {"folder": kind, "every": 10, "advance": advance}
        return train.train(plan, state, splits, run.seed, **options)

    state, _ = sj.train_and_prune(
        lambda params, masks, round_: trained(params, masks, round_)[0].params,
        variables["params"],
        10.0**-run.compression,
        rounds=run.rounds,
    )
    last, history = trained(state.params, state.masks, run.rounds)
    layers = _layers(state.params, state.masks)
    kept, revived = train.num_nonzero(last.params, state.masks)
    if (kept, revived) != (sum(row.kept for row in layers), 0):
        raise RuntimeError(f"{run.name}: {revived} pruned weights moved in training.")
    accuracies = [epoch.accuracy for epoch in history]
    return {
        "kind": "ticket",
        "network": run.network,
        "dataset": run.dataset,
        "rounds": run.rounds,
        "compression": run.compression,
        "seed": run.seed,
        "layers": [[row.name, row.kept, row.size] for row in layers],
        "best": max(accuracies),
        "last": accuracies[-1],
    }


def _grow(
    run: Growth,
    plan: train.Plan,
    variables: PyTree,
    splits: tuple[train.Split, train.Split],
    context: Context,
) -> Iterator[Row]:
    """A dense training; a row of squared norms before it and after every epoch."""
    state = train.start(plan, variables, sj.all_kept(variables["params"]))
    yield _norms(0, state.params)
    for number in range(1, run.training.epochs + 1):
        # One epoch at a time, as the weights of each are wanted.
        state, loss = train.one_epoch(plan, state, splits[0], run.seed, number)
        context.advance(number / run.training.epochs)
        yield {**_norms(number, state.params), "loss": float(loss)}


def _norms(number: int, params: PyTree) -> Row:
    layers = []
    for name, leaf in zip(sj.leaf_names(params), jax.tree.leaves(params)):
        squares = float(jnp.sum(jnp.square(leaf)))
        layers.append([name, leaf.size, float(f"{squares:.7g}")])
    return {"kind": "norms", "epoch": number, "leaves": layers}


def _layers(params: PyTree, masks: PyTree) -> list[Any]:
    leaves = zip(sj.summarize(params, masks), jax.tree.leaves(params))
    return [row for row, leaf in leaves if sj.is_kernel(row.name, leaf)]


@functools.lru_cache(maxsize=2)
def _images(dataset: str, data_dir: pathlib.Path | None) -> data.Data:
    return data.load(dataset, data_dir)


# --- what came out ------------------------------------------------------------------------


def accuracies(rows: list[Row]) -> dict[int, dict[float, list[float]]]:
    """Best accuracies in per cent, one a seed: by rounds, by compression."""
    found: dict[int, dict[float, list[float]]] = {}
    for row in rows:
        if row["kind"] == "ticket":
            of = found.setdefault(row["rounds"], {})
            of.setdefault(row["compression"], []).append(100 * row["best"])
    return {n: dict(sorted(of.items())) for n, of in sorted(found.items())}


def survived(rows: list[Row]) -> dict[int, float | None]:
    """By rounds: the largest compression up to which no layer is empty in any seed."""
    found = {}
    for n in sorted({row["rounds"] for row in rows if row["kind"] == "ticket"}):
        own = [row for row in rows if row["kind"] == "ticket" and row["rounds"] == n]
        found[n] = None
        for c in sorted({row["compression"] for row in own}):
            at = [row for row in own if row["compression"] == c]
            if any(not kept for row in at for _, kept, _ in row["layers"]):
                break
            found[n] = c
    return found


def weights_of(row: Row) -> dict[str, tuple[int, float]]:
    """Of a row of norms: the layers' kernels, with their sizes and squared norms."""
    return {
        name.rsplit("/", 1)[0]: (size, squares)
        for name, size, squares in row["leaves"]
        if name.endswith("kernel")
    }


def conserved(rows: list[Row]) -> dict[str, list[float]]:
    """By layer: how much its squared weights have grown after each epoch, as conserved.

    The growth of the biases of the layers before it is taken off, since at every hidden
    unit what comes in by its weights and its bias goes out by its weights (theorem 1). In
    the limit of small steps the numbers of all layers are equal.
    """
    norms = [row for row in rows if row["kind"] == "norms"]
    grown: dict[str, list[float]] = {}
    for row in norms:
        squares = {name: value for name, _, value in row["leaves"]}
        first = {name: value for name, _, value in norms[0]["leaves"]}
        carried = 0.0
        for layer in weights_of(row):
            kernel, bias = f"{layer}/kernel", f"{layer}/bias"
            grown.setdefault(layer, []).append(squares[kernel] - first[kernel] - carried)
            carried += squares.get(bias, 0.0) - first.get(bias, 0.0)
    return grown


def slope(row: Row) -> float:
    """Of the average squared weight against one over the size of a layer, log-log."""
    sizes, squares = zip(*weights_of(row).values())
    average = [math.log(s / n) for s, n in zip(squares, sizes)]
    return float(np.polyfit([-math.log(n) for n in sizes], average, 1)[0])


# --- the figure ---------------------------------------------------------------------------

_COLORS = ("#D55E00", "#E69F00", "#0072B2")


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Accuracy by rounds, ours and the published, and the squared weights in training."""
    norms = [row for row in rows if row["kind"] == "norms"]
    with plots.settings():
        figure = Figure((9.2, 7.0), layout="constrained")
        (ours, theirs), (by_size, growth) = figure.subplots(2, 2)
        _tickets(ours, rows)
        _published(theirs)
        if norms:
            _by_size(by_size, norms)
            _growth(growth, rows)
        figure.savefig(path, dpi=160)


def _tickets(axes: Axes, rows: list[Row]) -> None:
    for (n, found), color in zip(accuracies(rows).items(), _COLORS):
        x = list(found)
        low, high = zip(*((min(values), max(values)) for values in found.values()))
        axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
        means = [statistics.fmean(values) for values in found.values()]
        label = f"{n} round{'s' if n > 1 else ''}"
        axes.plot(x, means, color=color, marker="o", label=label)
    first = next((row for row in rows if row["kind"] == "ticket"), None)
    if first is not None:
        axes.set_title(f"{first['network']}, {first['dataset']}", loc="left")
        axes.legend(loc="lower left")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("accuracy (%)")
    plots.compressions(axes)


def _published(axes: Axes) -> None:
    numbers = published.load("magnitude_training")["accuracy"]
    for (n, pairs), color in zip(numbers.items(), _COLORS):
        axes.plot(*zip(*pairs), color=color, marker="o", ls="--", lw=1.1, ms=3.5)
    axes.set_title("vgg11, cifar10 (published)", loc="left")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("accuracy (%)")
    plots.compressions(axes)


def _by_size(axes: Axes, norms: list[Row]) -> None:
    """The average squared weight of each layer before, during and after training."""
    shown = sorted({0, len(norms) // 10, len(norms) - 1})
    for place, color in zip(shown, (plots.PALE, "#56B4E9", "#0072B2")):
        sizes, squares = zip(*weights_of(norms[place]).values())
        x, y = [1 / n for n in sizes], [s / n for s, n in zip(squares, sizes)]
        label = f"epoch {norms[place]['epoch']}, slope {slope(norms[place]):.2f}"
        axes.plot(x, y, "o", color=color, label=label)
    low, high = min(x), max(x)
    middle = math.exp(statistics.fmean(math.log(b / a) for a, b in zip(x, y)))
    axes.plot([low, high], [low * middle, high * middle], color=plots.INK, lw=0.9, ls=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("1 / size of the layer")
    axes.set_ylabel("average squared weight")
    axes.set_title("dotted: slope 1", loc="left")
    axes.legend(loc="upper left")


def _growth(axes: Axes, rows: list[Row]) -> None:
    grown = conserved(rows)
    shades = np.linspace(0.25, 1, len(grown))
    for (layer, values), shade in zip(grown.items(), shades):
        axes.plot(values, color="#0072B2", alpha=shade, label=layer, lw=1.3)
    axes.set_xlabel("epoch")
    axes.set_ylabel("growth of the squared weights")
    axes.set_title("one line a layer", loc="left")
    axes.legend(fontsize=8)


def sentences(rows: list[Row]) -> list[str]:
    """Up to where each number of rounds goes, and how equal the growth is."""
    texts = []
    parts = []
    for n, c in survived(rows).items():
        where = "no compression tried" if c is None else f"10^{c:g}"
        parts.append(f"{n} round{'s' if n > 1 else ''} up to {where}")
    if parts:
        texts.append(
            "No layer of any seed's network is emptied by magnitude pruning after training "
            f"in {', '.join(parts)}. (In the paper's Fig. 5a, on VGG-11, accuracy is at "
            "chance from 10^1.9 with 1 round and from 10^3.5 with 2; with 3 it is not.)"
        )
    texts += _by_rounds(accuracies(rows))
    norms = [row for row in rows if row["kind"] == "norms"]
    if norms:
        spans = []
        for place in sorted({len(norms) // 10, len(norms) - 1}):
            grown = [values[place] for values in conserved(rows).values()]
            number = norms[place]["epoch"]
            spans.append(f"{min(grown):.4g} to {max(grown):.4g} after {number} epochs")
        texts.append(
            f"The squared weights of the {len(weights_of(norms[0]))} layers have grown by "
            f"{', '.join(spans)} (the growth of earlier biases taken off): equal for small "
            "steps, while the noise of steps that are not adds to the first layers. The "
            "log-log slope of average squared weight against one over size went from "
            f"{slope(norms[0]):.2f} to {slope(norms[-1]):.2f}; equal growth from zero "
            "would give 1, the line to which the paper's Fig. 5b converges."
        )
    return texts


def _by_rounds(found: dict[int, dict[float, list[float]]]) -> list[str]:
    """The mean accuracies where the numbers of rounds differ most."""
    means = {n: {c: statistics.fmean(v) for c, v in of.items()} for n, of in found.items()}
    shared = set.intersection(*map(set, means.values())) if means else set()
    if len(means) < 2 or not shared:
        return []

    def spread(c):
        return max(of[c] for of in means.values()) - min(of[c] for of in means.values())

    c = max(sorted(shared), key=spread)
    listed = ", ".join(f"{n}: {of[c]:.1f} %" for n, of in means.items())
    where = f"at 10^{c:g}, where the mean accuracy is, by rounds"
    return [f"The rounds differ most {where}, {listed}."]


def caption(rows: list[Row]) -> str:
    """What was trained on what."""
    texts = []
    for kind in ("rounds", None):
        own = [c for c in command.configs(rows).values() if ("rounds" in c) == bool(kind)]
        if own:
            training = own[0]["training"]
            what = "each round and the end" if kind else "without weight decay"
            texts.append(
                f"{own[0]['network']} on {own[0]['dataset']}, {training['epochs']} epochs "
                f"({what}), learning rate {training['learning_rate']:g}, "
                f"{len({c['seed'] for c in own})} seeds"
            )
    return (
        "Magnitude pruning after training in rounds, weights set back to their initial "
        "values, mean and range of the best held-out accuracy; and squared weights in "
        "training: " + "; ".join(texts) + "."
    )


EXPERIMENT = command.Experiment(
    name="magnitude_training",
    about="Magnitude pruning after training, in rounds, and why it works: Fig. 5.",
    runs=runs,
    execute=execute,
    figures={"magnitude_training.png": draw},
    sentences=sentences,
    caption=caption,
    cost=lambda run: run.rounds + 1 if isinstance(run, Ticket) else 20,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the experiment from the command line."""
    command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    main()

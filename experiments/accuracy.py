"""Accuracy after training against compression, for every criterion: Fig. 6 of the paper.

  python -m experiments.accuracy --scale cpu     # MLP and LeNet on Fashion-MNIST, a ResNet
  python -m experiments.accuracy --scale paper   # four networks, three data sets, 3 seeds

Every network is pruned at initialisation by each method to each compression and trained
under its masks; beside the paper's five methods stand the controls of
`experiments.methods`. Both the best and the last epoch's accuracy on the held-out images
are recorded; the paper reports the best one.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
from matplotlib.figure import Figure

import synflow_jax as sj
from experiments import command, data, methods, networks, plots, published, train
from experiments.sweeps import Context, Row
from synflow_jax import models

# What is trained besides the networks of synflow_jax.models.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "lenet": networks.LeNet,
    "resnet8_half": functools.partial(models.CifarResNet, 8, width=0.5),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One method at one compression on one network, trained from one or several seeds."""

    network: str
    """A name in synflow_jax.models, or of ``NETWORKS``."""
    dataset: str
    """A name of `experiments.data`."""
    method: str
    """A name of `experiments.methods`, or dense."""
    compression: float
    """log10 of (weights / weights kept)."""
    seeds: tuple[int, ...]
    """Of the weights, the criterion and the order of the images; trained as one program."""
    training: train.Settings
    """How."""
    train_images: int | None = None
    """Only the first so many of the shuffled training images; None for all."""
    test_images: int | None = None
    """The same of the held-out images."""
    rounds: int = 100
    """Of SynFlow."""
    iterations: int = 100
    """Rounds of the iterative forms of SNIP and GraSP."""
    each: int = 10
    """Training images of each class for the criteria that need data."""

    @property
    def name(self) -> str:
        seeds = "-".join(map(str, self.seeds))
        return f"{self.network}-{self.dataset}-{self.method}-{self.compression:g}-s{seeds}"


def module_of(network: str, num_classes: int) -> nn.Module:
    """A network by its name, not yet initialised.

    Raises:
      ValueError: if there is none of this name.
    """
    if network in NETWORKS:
        return NETWORKS[network](num_classes=num_classes)
    if network not in models.NETWORKS:
        known = ", ".join([*NETWORKS, *sorted(models.NETWORKS)])
        raise ValueError(f"there is no network {network!r}; there are {known}.")
    return models.NETWORKS[network].make(num_classes=num_classes)


def sweep(
    network: str,
    dataset: str,
    compressions: tuple[float, ...],
    seeds: tuple[tuple[int, ...], ...],
    training: train.Settings,
    compared: tuple[str, ...] = methods.PAPER + methods.CONTROLS,
    **more,
) -> list[Run]:
    """All methods at all compressions, one group of seeds after the other."""
    runs = []
    for group in seeds:
        common = {"seeds": group, "training": training, **more}
        runs.append(Run(network, dataset, "dense", 0.0, **common))
        for compression, method in itertools.product(compressions, compared):
            runs.append(Run(network, dataset, method, compression, **common))
    return runs


def grid(first: float, last: float, step: float) -> tuple[float, ...]:
    """Compressions from the first to the last."""
    count = round((last - first) / step) + 1
    return tuple(round(first + i * step, 4) for i in range(count))


def runs(scale: command.Scale) -> list[Run]:
    """The sweep of a scale."""
    short = train.Settings(
        epochs=2, learning_rate=0.05, decay="cosine", weight_decay=5e-4, augment=False
    )
    if scale == "smoke":
        one = dataclasses.replace(short, epochs=1, batch=64)
        return sweep(
            "mlp", "digits", (1.0, 3.0), ((0, 1),), one, rounds=5, iterations=3, each=2
        )
    if scale == "cpu":
        five = dataclasses.replace(short, epochs=5, learning_rate=0.1)
        small = dataclasses.replace(short, batch=64, learning_rate=0.1)
        fashion, apart = "fashion_mnist", ((0,), (1,), (2,))
        return [
            *sweep("mlp", fashion, grid(0.5, 4, 0.5), ((0, 1, 2, 3, 4),), five),
            *sweep(
                "lenet",
                fashion,
                grid(0.5, 3.5, 0.5),
                apart,
                short,
                train_images=8000,
                test_images=2500,
                iterations=20,
            ),
            *sweep(
                "resnet8_half",
                "cifar10_20k",
                grid(0.5, 3, 0.5),
                apart[:2],
                small,
                train_images=8000,
                test_images=2500,
                iterations=20,
            ),
        ]
    pairs = itertools.product(("cifar10", "cifar100", "tiny_imagenet"), range(4))
    paper = []
    for dataset, i in pairs:
        form = "_tiny" if dataset == "tiny_imagenet" else ""
        base = ("vgg11", "vgg16", "resnet18", "wide_resnet18")[i]
        name = base + (form or ("_cifar" if base.startswith("vgg") else ""))
        training = train.paper(name, dataset)
        paper += sweep(name, dataset, grid(0.25, 3, 0.25), ((0,), (1,), (2,)), training)
    return paper


def execute(run: Run, context: Context) -> Iterator[Row]:
    """Prunes and trains; rows of every epoch and of the trained networks."""
    loaded = _images(run.dataset, run.train_images, run.test_images, context.data_dir)
    module = module_of(run.network, loaded.num_classes)
    plan = train.plan(module, run.training, loaded)
    settings = [_setting(run, seed, context.data_dir) for seed in run.seeds]
    problems = [_problem(setting) for setting in settings]
    masks = [_masks(run, seed, context.data_dir) for seed in run.seeds]
    states = [train.start(plan, p.variables, m) for p, m in zip(problems, masks)]
    splits = train.on_device(plan, loaded)
    # A checkpoint costs more than a short training.
    folder = context.folder if run.training.epochs > 10 else None
    options = {"folder": folder, "every": 10, "advance": context.advance}
    if len(run.seeds) == 1:
        state, history = train.train(plan, states[0], splits, run.seeds[0], **options)
        states = [state]
        history = [e._replace(loss=[e.loss], accuracy=[e.accuracy]) for e in history]
    else:
        many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        seeds = jnp.array(run.seeds)
        many, history = train.train_many(plan, many, splits, seeds, **options)
        states = [jax.tree.map(lambda x, i=i: x[i], many) for i in range(len(run.seeds))]
    for i, seed in enumerate(run.seeds):
        accuracies = [epoch.accuracy[i] for epoch in history]
        for epoch in history:
            yield {
                "kind": "epoch",
                "seed": seed,
                "epoch": epoch.epoch,
                "loss": _number(epoch.loss[i]),
                "accuracy": epoch.accuracy[i],
            }
        before = sj.apply_masks(problems[i].params, masks[i])
        flow = float(_flow(settings[i])(before)) / math.log(10)
        kept, revived = train.num_nonzero(states[i].params, masks[i])
        size = train.num_nonzero(problems[i].params, sj.all_kept(before))[0]
        k = sj.num_kept(size, 10.0**-run.compression)
        if (kept, revived) != (k, 0):
            raise RuntimeError(
                f"{run.name}: after training {kept} kept and {revived} pruned weights are "
                f"not zero; it should be {k} and 0."
            )
        yield {
            "kind": "trained",
            "network": run.network,
            "dataset": loaded.name,
            "method": run.method,
            "compression": run.compression,
            "seed": seed,
            "size": size,
            "kept": kept,
            "best": max(accuracies),
            "last": accuracies[-1],
            "log10_flow": round(flow, 4) if math.isfinite(flow) else None,
        }


# --- what runs share ----------------------------------------------------------------------


def _masks(run: Run, seed: int, data_dir: pathlib.Path | None) -> PyTree:
    if run.method == "dense":
        return sj.all_kept(_problem(_setting(run, seed, data_dir)).params)
    rounds = run.iterations if run.method.startswith("iterative") else run.rounds
    masks_at = _pruner(run.method, _setting(run, seed, data_dir), rounds)
    return masks_at(10.0**-run.compression)


class _Setting(NamedTuple):
    """What decides a network and what the criteria see of it."""

    network: str
    dataset: str
    train_images: int | None
    test_images: int | None
    data_dir: pathlib.Path | None
    each: int
    seed: int


def _setting(run: Run, seed: int, data_dir: pathlib.Path | None) -> _Setting:
    parts = run.network, run.dataset, run.train_images, run.test_images
    return _Setting(*parts, data_dir, run.each, seed)


# Made once, as every score function is compiled anew.
@functools.lru_cache(maxsize=64)
def _pruner(method: str, setting: _Setting, rounds: int) -> Callable[[float], PyTree]:
    key = jax.random.fold_in(jax.random.key(setting.seed), 1)
    return methods.pruner(method, _problem(setting), key, rounds=rounds)


@functools.lru_cache(maxsize=16)
def _problem(setting: _Setting) -> methods.Problem:
    loaded = _images(*setting[1:5])
    module = module_of(setting.network, loaded.num_classes)
    batches = methods.batches(loaded, setting.seed, each=setting.each)
    shape = loaded.train_images.shape[1:]
    return methods.problem(module, jax.random.key(setting.seed), shape, batches)


@functools.lru_cache(maxsize=2)
def _images(dataset, train_images, test_images, data_dir) -> data.Data:
    return data.first(data.load(dataset, data_dir), train_images, test_images)


@functools.lru_cache(maxsize=8)
def _flow(setting: _Setting) -> Callable[[PyTree], Array]:
    problem = _problem(setting)
    return jax.jit(
        lambda params: sj.log_flow(problem.apply_fn, params, problem.input_shape)
    )


def _number(loss: float) -> float | None:
    return round(loss, 5) if math.isfinite(loss) else None


# --- the figure ---------------------------------------------------------------------------

# On the left what the paper compares, on the right SynFlow and what it is made of.
_LEFT = methods.PAPER
_RIGHT = ("synflow", *methods.CONTROLS)

# The paper's panels that stand below those of networks that it does not have.
_BESIDE = ("vgg16_cifar-cifar10", "resnet18-cifar10")


class Point(NamedTuple):
    """One method at one compression, over its seeds; accuracies in per cent.

    Attributes:
      mean, low, high: of the best epoch's accuracy.
      last: the mean of the last epoch's.
      seeds: how many.
      connected: how many of them had a path from input to output before training.
    """

    mean: float
    low: float
    high: float
    last: float
    seeds: int
    connected: int


def points(rows: list[Row]) -> dict[str, dict[str, dict[float, Point]]]:
    """What was measured: by network and data set, by method, by compression.

    A network of which no pruned form is trained yet is left out.
    """
    trained = [row for row in rows if row["kind"] == "trained"]
    found: dict = {}
    for row in trained:
        of_pair = found.setdefault(f"{row['network']}-{row['dataset']}", {})
        of_method = of_pair.setdefault(row["method"], {})
        of_method.setdefault(row["compression"], []).append(row)
    return {
        pair: {
            method: {c: _point(group) for c, group in sorted(groups.items())}
            for method, groups in of_pair.items()
        }
        for pair, of_pair in found.items()
        if set(of_pair) - {"dense"}
    }


def _point(group: list[Row]) -> Point:
    best = [100 * row["best"] for row in group]
    last = statistics.fmean(100 * row["last"] for row in group)
    alive = sum(row["log10_flow"] is not None for row in group)
    return Point(statistics.fmean(best), min(best), max(best), last, len(group), alive)


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Accuracy against compression, a row of two panels for each network.

    The mean over the seeds and the range from the lowest to the highest. Open markers:
    no seed's network has a path left from input to output. Dashed: published numbers.
    """
    ours, theirs = points(rows), _published()
    beside = [] if set(ours) & set(theirs) else [_BESIDE]
    with plots.settings():
        height = 0.7 + 2.9 * (len(ours) + len(beside))
        figure = Figure((9.2, height), layout="constrained")
        panels = figure.subplots(len(ours) + len(beside), 2, squeeze=False)
        for axes, (pair, found) in zip(panels, ours.items()):
            for one, compared in zip(axes, (_LEFT, _RIGHT)):
                _panel(one, pair, found, theirs.get(pair, {}), compared)
            axes[1].sharey(axes[0])
        for axes, pairs in zip(panels[len(ours) :], beside):
            for one, pair in zip(axes, pairs):
                _panel(one, pair, {}, theirs[pair], _LEFT)
        handles = {}
        for axes in panels.flat:
            for handle, label in zip(*axes.get_legend_handles_labels()):
                handles.setdefault(label, handle)
        figure.legend(
            handles.values(),
            handles,
            loc="outside upper center",
            ncols=5,
            columnspacing=1.2,
        )
        figure.savefig(path, dpi=160)


def _panel(axes, pair, found, published_, compared) -> None:
    network, dataset = pair.rsplit("-", 1)
    title = f"{network}, {dataset}"
    axes.set_title(title if found else f"{title} (published)", loc="left")
    for method in compared:
        style = plots.style(method)
        if method in found:
            own = found[method]
            x = list(own)
            axes.fill_between(
                x,
                [point.low for point in own.values()],
                [point.high for point in own.values()],
                color=style["color"],
                alpha=0.15,
                lw=0,
            )
            axes.plot(x, [point.mean for point in own.values()], **style)
            dead = [c for c, point in own.items() if not point.connected]
            axes.plot(
                dead,
                [own[c].mean for c in dead],
                style["marker"],
                color=style["color"],
                mfc="white",
            )
        if method in published_:
            x, y = published_[method]
            label = style["label"] if not found else None
            own_style = {
                **style,
                "label": label,
                "marker": "" if found else style["marker"],
            }
            axes.plot(x, y, ls="--", lw=1.1, ms=3.5, **{**own_style})
    if "dense" in found:
        dense = found["dense"][0.0].mean
        axes.axhline(dense, color=plots.PALE, lw=1.1, zorder=1)
        plots.note(axes, dense, "dense")
    chance = _CHANCE.get(dataset)
    if chance is not None:
        axes.axhline(chance, color=plots.PALE, lw=1.1, ls=":", zorder=1)
        plots.note(axes, chance, "chance")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("accuracy (%)")
    plots.compressions(axes)


_CHANCE = {
    "digits": 10.0,
    "fashion_mnist": 10.0,
    "cifar10": 10.0,
    "cifar10_20k": 10.0,
    "cifar100": 1.0,
    "tiny_imagenet": 0.5,
}


def _published() -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Published means by pair and method: compressions and accuracies in per cent."""
    numbers = published.load("accuracy")
    return {
        pair: {
            method: (numbers["alpha"], [statistics.fmean(runs) for runs in zip(*of_runs)])
            for method, of_runs in by_method.items()
        }
        for pair, by_method in numbers["accuracy"].items()
    }


# --- in words -----------------------------------------------------------------------------


def sentences(rows: list[Row]) -> list[str]:
    """Which method is best where, and who is still above chance when others are not."""
    texts = []
    for pair, found in points(rows).items():
        network, dataset = pair.rsplit("-", 1)
        chance = _CHANCE[dataset]
        texts.append(f"{network} on {dataset}: {_best_of_paper(found, chance)}")
        texts.append(f"{network}: {_above_chance(found, chance)}")
        texts += [f"{network}: {text}" for text in _controls(found)]
        texts += [f"{network}: {text}" for text in _first_losses(rows, network, dataset)]
    return texts


def _best_of_paper(found: dict[str, dict[float, Point]], chance: float) -> str:
    """The best of the paper's methods at each compression, and by how much."""
    parts = []
    shared = [set(found.get(method, {})) for method in methods.PAPER]
    for c in sorted(set.intersection(*shared)):
        ranked = sorted(methods.PAPER, key=lambda method: -found[method][c].mean)
        first, second = ranked[:2]
        if found[first][c].mean <= 1.5 * chance:
            parts.append(f"10^{c:g} none is above 1.5 times chance")
            continue
        lead = found[first][c].mean - found[second][c].mean
        overlap = found[first][c].low <= found[second][c].high
        parts.append(
            f"10^{c:g} {methods.LABELS[first]} {found[first][c].mean:.1f} % "
            f"(+{lead:.1f} over {methods.LABELS[second]}"
            f"{', ranges overlap' if overlap else ''})"
        )
    return "the best of the paper's five methods: " + "; ".join(parts) + "."


def _above_chance(found: dict[str, dict[float, Point]], chance: float) -> str:
    """Up to which compression every seed of a method learns more than chance."""
    parts = []
    for method in methods.LABELS:
        own = found.get(method, {})
        reached = None
        for c, point in own.items():
            if point.low <= 1.5 * chance:
                break
            reached = c
        where = "nowhere" if reached is None else f"10^{reached:g}"
        if own:
            parts.append(f"{methods.LABELS[method]} {where}")
    return (
        "the largest compression up to which every seed is above 1.5 times chance: "
        + ", ".join(parts)
        + "."
    )


def _controls(found: dict[str, dict[float, Point]]) -> list[str]:
    """What SynFlow's own choice of weights adds to its layers' densities, and iteration."""
    if "synflow" not in found:
        return []
    texts = []
    for method in methods.CONTROLS:
        common = sorted(set(found.get(method, {})) & set(found["synflow"]))
        if common:
            gaps = [found[method][c].mean - found["synflow"][c].mean for c in common]
            listed = ", ".join(f"{gap:+.1f} at 10^{c:g}" for c, gap in zip(common, gaps))
            texts.append(f"{methods.LABELS[method]} minus SynFlow, in points: {listed}.")
    return texts


def _first_losses(rows: list[Row], network: str, dataset: str) -> list[str]:
    """The loss of the first epoch at the lowest compression: who starts with outputs that
    are too large for the learning rate, as GraSP does, which prefers large gradients."""
    configs = command.configs(rows)
    losses: dict[float, dict[str, list[float]]] = {}
    for row in rows:
        config = configs[row["run"]] if "run" in row else None
        if row["kind"] != "epoch" or row["epoch"] != 1 or row["loss"] is None:
            continue
        if (config["network"], config["dataset"]) == (network, dataset):
            of = losses.setdefault(config["compression"], {})
            of.setdefault(config["method"], []).append(row["loss"])
    pruned = sorted(c for c in losses if c > 0)
    if not pruned:
        return []
    listed = ", ".join(
        f"{methods.LABELS[method]} {statistics.fmean(losses[pruned[0]][method]):.2f}"
        for method in methods.LABELS
        if method in losses[pruned[0]]
    )
    return [f"mean loss of the first epoch at 10^{pruned[0]:g}: {listed}."]


def caption(rows: list[Row]) -> str:
    """What was trained on what."""
    texts = []
    settings = command.configs(rows).values()
    for pair, found in points(rows).items():
        network, dataset = pair.rsplit("-", 1)
        own = [c for c in settings if (c["network"], c["dataset"]) == (network, dataset)]
        training = own[0]["training"]
        images = own[0]["train_images"]
        seeds = sorted({point.seeds for of in found.values() for point in of.values()})
        iterated = own[0]["iterations"]
        texts.append(
            f"{network} on {dataset}: "
            f"{f'{images:,} of the' if images else 'all'} training images, "
            f"{training['epochs']} epochs of batches of {training['batch']}, "
            f"{'-'.join(map(str, seeds))} seeds, "
            f"{own[0]['rounds']} rounds of SynFlow, {iterated} of iterative SNIP and GraSP"
        )
    return (
        "Best held-out accuracy over the epochs after pruning at initialisation; mean and "
        "range over seeds; open markers: no path left in any seed; where a filled one is "
        "at chance, there are paths but this training was too short to use them. "
        + "; ".join(texts)
        + ". Dashed: the authors' published means of three runs, of which SNIP and GraSP "
        "are from code that was corrected later."
    )


def cost(run: Run) -> float:
    """Seconds on one core, roughly; only for the estimate of the time left."""
    per_image = {"mlp": 3e-5, "lenet": 8e-4, "resnet8_half": 1.4e-3}.get(run.network, 1e-2)
    seen = (run.train_images or 60_000) * run.training.epochs * len(run.seeds)
    return 3.0 + seen * per_image


EXPERIMENT = command.Experiment(
    name="accuracy",
    about="Accuracy after training against compression, for every method: Fig. 6.",
    runs=runs,
    execute=execute,
    figures={"accuracy.png": draw},
    sentences=sentences,
    caption=caption,
    cost=cost,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the experiment from the command line."""
    command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    main()

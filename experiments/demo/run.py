"""What the demonstration does: it prunes a deep network, then trains a small one."""

import dataclasses
import pathlib
import time
from typing import Any

import jax
from jaxtyping import Array, Key, PyTree

import synflow_jax as sj
from experiments.datasets.load import Data, Name, load
from experiments.demo import figures, masking, page
from experiments.harness import runs
from experiments.harness.console import progress, say
from experiments.training import loop, steps
from experiments.training.networks import SmallConvNet
from experiments.training.settings import Settings
from synflow_jax import models


@dataclasses.dataclass(frozen=True)
class Config:
    """Prune VGG-16 at initialisation, and train a small network under masks: SynFlow,
    magnitude and random pruning side by side. Under three minutes on two cores; the result
    is report.html in the folder that --out names."""

    out: pathlib.Path = pathlib.Path("results/demo")
    """Folder for the results; an earlier demo's files in it are replaced."""
    seed: int = 0
    """Decides the initial weights, random pruning and the order of the images."""
    rounds: int = 100
    """Rounds of SynFlow; the other methods take one."""
    network: str = "vgg16_cifar"
    """First part: the network to prune, a name in synflow_jax.models."""
    num_classes: int = 100
    """First part: its outputs."""
    compressions: tuple[float, ...] = (1.0, 2.0, 4.0, 6.0)
    """First part: log10 of (weights / weights kept)."""
    dataset: Name = "auto"
    """Second part: the images; auto takes the first one that is found on this machine."""
    data_dir: pathlib.Path | None = None
    """Second part: where to look for them, if not where tensorflow-datasets puts them."""
    channels: tuple[int, ...] = (16, 32, 64, 64)
    """Second part: channels of the small network's convolutions."""
    train_compressions: tuple[float, ...] = (0.5, 1.5, 2.5)
    """Second part: log10 of (weights / weights kept)."""
    seen: int = 40_000
    """Second part: training images that each network sees, rounded to whole epochs of the
    data set."""
    training: Settings = Settings(
        epochs=0, decay="cosine", weight_decay=5e-4, augment=False
    )
    """Second part: how each network is trained; 0 epochs: as many as --seen says."""
    smoke: bool = False
    """A run of seconds on tiny networks, to see that all works; into results/smoke."""


FIGURES = {"layers.png": figures.layers, "accuracy.png": figures.accuracies}


def smoke(config: Config) -> Config:
    """The same run in a form of seconds."""
    default_out = config.out == Config.out
    return dataclasses.replace(
        config,
        out=pathlib.Path("results/smoke") if default_out else config.out,
        rounds=30,
        network="mlp",
        num_classes=10,
        compressions=(1.0, 3.0),
        dataset="digits",
        data_dir=None,
        channels=(8, 8),
        train_compressions=(1.0, 2.0),
        seen=1,
        training=dataclasses.replace(config.training, batch=64),
    )


def run(config: Config, command: str) -> pathlib.Path:
    """Does the whole demonstration.

    Args:
      config: the settings.
      command: the command line, for the record.

    Returns:
      The path of the report.

    Raises:
      FileNotFoundError: if the images asked for are not there.
      FileExistsError: if the folder holds such files from somewhere else.
      RuntimeError: if training did not leave exactly the weights of the mask.
    """
    began = time.perf_counter()
    images = load(config.dataset, config.data_dir)
    runs.start(config.out, "demo", config, command, [*FIGURES, page.NAME])
    prune_at_initialisation(config)
    train_under_masks(config, images)
    _, rows = runs.read(config.out)
    with progress("drawing figures", first=""):
        for name, figure in FIGURES.items():
            figure(rows, config.out / name)
    runs.log(config.out, {"kind": "done", "seconds": time.perf_counter() - began})
    return page.write(config.out)


def prune_at_initialisation(config: Config) -> None:
    """First part: what three methods leave of a deep network before any training."""
    init_key, random_key = _keys(config.seed, part=1)
    with progress(f"{config.network}: initialising"):
        apply_fn, params, input_shape = models.build(
            config.network, init_key, num_classes=config.num_classes
        )
        jax.block_until_ready(params)
    targets = [*masking.grid(config.compressions), masking.one_weight_a_layer(params)]
    pruned = masking.sweep(
        config.network, apply_fn, params, input_shape, targets, config.rounds, random_key
    )
    for row, _ in pruned:
        runs.log(config.out, {"part": "initialisation", **row})
        say(_in_words(row))


def train_under_masks(config: Config, images: Data) -> None:
    """Second part: the accuracy of a small network trained under each mask, and dense."""
    init_key, random_key = _keys(config.seed, part=2)
    module = SmallConvNet(images.num_classes, config.channels)
    input_shape = images.train_images.shape[1:]
    with progress("small network: initialising"):
        variables = models.init(module, init_key, input_shape)
        apply_fn, params = sj.from_linen(module, variables)
    seen = max(1, round(config.seen / len(images.train_labels)))
    training = dataclasses.replace(config.training, epochs=config.training.epochs or seen)
    plan = steps.plan(module, training, images)
    about = {
        "kind": "data",
        "data": images.name,
        "num_classes": images.num_classes,
        "input_shape": input_shape,
        "train_images": len(images.train_labels),
        "test_images": len(images.test_labels),
        "epochs": training.epochs,
        "steps": training.epochs * plan.steps,
    }
    runs.log(config.out, about)

    splits = steps.on_device(plan, images)
    everything = sj.all_kept(params)
    size = steps.num_nonzero(params, everything)[0]
    dense = {"method": "dense", "label": "10^0", "compression": 0.0, "k": size}
    _train(config, plan, variables, everything, splits, dense)
    pruned = masking.sweep(
        "small network",
        apply_fn,
        params,
        input_shape,
        masking.grid(config.train_compressions),
        config.rounds,
        random_key,
    )
    for row, masks in pruned:
        runs.log(config.out, {"part": "training", **row})
        say(_in_words(row))
        _train(config, plan, variables, masks, splits, row)


def _train(
    config: Config,
    plan: steps.Plan,
    variables: PyTree,
    masks: PyTree,
    splits: tuple[steps.Split, steps.Split],
    row: dict[str, Any],
) -> None:
    """Trains one network and logs each epoch and what is left at the end."""
    began = time.perf_counter()
    about = {key: row[key] for key in ("method", "label", "compression", "k")}
    name = f"{row['method']}, {row['label']}"
    with progress(f"training: {name}", 100) as advance:
        shown = 0

        def on_part(fraction: float) -> None:
            nonlocal shown
            advance(round(100 * fraction) - shown)
            shown = round(100 * fraction)

        def on_epoch(epoch: loop.Epoch) -> None:
            runs.log(config.out, {"kind": "epoch", **about, **epoch._asdict()})

        state, measured = loop.train(
            plan,
            steps.start(plan, variables, masks),
            splits,
            config.seed,
            on_epoch=on_epoch,
            advance=on_part,
        )
    kept, revived = steps.num_nonzero(state.params, masks)
    result = {
        "kind": "trained",
        **about,
        "accuracy": measured[-1].accuracy,
        "nonzero_kept": kept,
        "nonzero_pruned": revived,
        "seconds": time.perf_counter() - began,
    }
    runs.log(config.out, result)
    if (kept, revived) != (row["k"], 0):
        raise RuntimeError(
            f"{name}: after training {kept} kept and {revived} pruned weights are not "
            f"zero; it should be {row['k']} and 0."
        )
    say(f"  trained: {measured[-1].accuracy:.1%} right, {result['seconds']:.1f} s")


def _in_words(row: dict[str, Any]) -> str:
    flow, emptied = row["log10_flow"], len(row["collapsed"])
    left = "no path left" if flow is None else f"log10 R = {flow:.1f}"
    return (
        f"{row['network']}: {row['method']}, {row['label']}: {row['kept']:,} weights, "
        f"{emptied} of {len(row['layers'])} layers emptied, {left}, {row['seconds']:.1f} s"
    )


def _keys(seed: int, part: int) -> Key[Array, "2"]:
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), part))

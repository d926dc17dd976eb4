"""How far each criterion can prune a network before it empties a layer, without training.

  python -m experiments.layer_collapse --scale smoke|cpu|paper

The fraction of each layer's weights that is kept, against compression: Fig. 2 of Tanaka et
al. 2020 on VGG-19 for ImageNet, and the densities behind its Fig. 1 on VGG-16 for
CIFAR-100, beside those that the authors published with their code. A criterion's critical
compression is the largest of the grid at which no layer is empty; since a network can be
cut without that, the largest at which a path leads from input to output stands beside it.
"""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Key, PyTree
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import synflow_jax as sj
from experiments import command, data, images, methods, plots, published, runs, stream
from experiments.sweeps import Context, Row
from synflow_jax import models
from synflow_jax.trees import ScoreFn, prunable_leaves

# Of the published densities those of these criteria are sound; SNIP's and GraSP's are of
# code that was corrected after they were written.
COMPARED = ("synflow", "magnitude", "random")
DEVIATIONS, RELATIVE = 3.0, 0.02  # what counts as agreement
RATIO = 0.9  # of certified rounds: as few of them as leave the network connected
FEW = 20  # weights; in smaller layers one weight is much of the whole


@dataclasses.dataclass(frozen=True)
class Run:
    """One criterion on one network at initialisation, at every compression.

    Attributes:
      part: "cifar", Fig. 1 of the paper, or "imagenet", Fig. 2; at scale smoke small
        networks stand in for those of the paper.
      network: a key of ``synflow_jax.models.NETWORKS``.
      num_classes: its outputs.
      input_shape: of an image; those of the data are resized to it.
      method: a name of ``experiments.methods.PAPER``, or "certified": SynFlow in rounds
        that cannot cut the network.
      seed: draws the weights, random scores and the images.
      compressions: log10 of one over the density.
      rounds: of SynFlow; all others take one.
      data: where SNIP and GraSP get their images; None for criteria that need none.
      each: images of every class.
      classes: of so many classes; None for all.
      batch: at most so many images in a batch.
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


class Images(NamedTuple):
    """What a criterion of the loss looks at; the fields are those of `Run`."""

    data: str
    each: int
    classes: int | None = None
    batch: int = 250


# 10^0 to 10^6 in steps of 10^0.25, as published; 4^0 to 4^11.
_QUARTERS = tuple(step / 4 for step in range(25))
_FOURFOLD = tuple(power * math.log10(4) for power in range(12))


def the_runs(scale: command.Scale) -> list[Run]:
    """The runs of a scale: the network of Fig. 1 first, the cheap criteria before SynFlow,
    and GraSP last; then SynFlow in certified rounds at the largest compressions of Fig. 1,
    where the paper's hundred rounds can be too few.

    On a processor GraSP's convolutions are slow, so it sees fewer images there, and so do
    SNIP and GraSP on VGG-19.
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
        cifar = {"snip": Images("cifar100_10k", 10), "grasp": Images("cifar100_10k", 1)}
        imagenet = {
            "snip": Images("tiny_imagenet_10k", 1, classes=16, batch=4),
            "grasp": Images("tiny_imagenet_10k", 1, classes=4, batch=4),
        }
    else:
        cifar = dict.fromkeys(("snip", "grasp"), Images("cifar100", 10))
        imagenet = dict.fromkeys(("snip", "grasp"), Images("imagenet2012", 10, batch=50))
    vgg16 = ("vgg16_cifar", 100, (32, 32, 3))
    vgg19 = ("vgg19_imagenet", 1000, (224, 224, 3))
    return [
        *_part("cifar", *vgg16, seeds=5, compressions=_QUARTERS, looks_at=cifar),
        *_certified("cifar", *vgg16, seeds=5, weights=(15, 14), of=14_761_664),
        *_part("imagenet", *vgg19, compressions=_FOURFOLD, looks_at=imagenet),
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
) -> list[Run]:
    settings = {name: looks._asdict() for name, looks in looks_at.items()}
    return [
        Run(
            *(part, network, num_classes, input_shape, method, seed, compressions),
            rounds if method == "synflow" else 1,
            **settings.get(method, {}),
        )
        for method in ("random", "magnitude", "synflow", "snip", "grasp")
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
    return seconds[run.method] * (10 if run.part == "imagenet" else 1)


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
    weights, drawn = jax.random.split(jax.random.key(run.seed))
    part = context.folder / "part.json"
    rows = json.loads(part.read_text()) if part.exists() else []
    yield from rows
    if len(rows) == len(run.compressions):
        return
    problem = methods.problem(
        models.NETWORKS[run.network].make(num_classes=run.num_classes),
        weights,
        run.input_shape,
        batches(run, context.data_dir),
    )
    log_flow = jax.jit(
        lambda params, masks: sj.log_flow(
            problem.apply_fn, sj.apply_masks(params, masks), run.input_shape
        )
    )
    prune = _pruner(run, problem, drawn)
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
    score = methods.score_fn("synflow" if in_rounds else run.method, problem, key)
    if not in_rounds:
        masks_at = one_shot(score, problem.params)
        return lambda density: (jax.block_until_ready(masks_at(density)), {})
    how = {"schedule": sj.certified(run.ratio)} if run.ratio else {"rounds": run.rounds}

    def prune(density: float) -> tuple[PyTree, Row]:
        masks, info = sj.prune(score, problem.params, density, **how)
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


def batches(run: Run, data_dir: pathlib.Path | None = None) -> PyTree:
    """The images of a run as `experiments.methods.batches` has them, resized to the
    network's input; None for criteria that look at none.

    Those of imagenet2012 are the first of a shuffled and augmented epoch, as many as
    ``each`` of every class would be; all others are as many of every class.

    Raises:
      FileNotFoundError: if the data set is not there.
    """
    if run.data is None:
        return None
    if run.data == "imagenet2012":
        return _streamed(run, data_dir)
    drawn = methods.batches(
        _loaded(run.data, data_dir),
        run.seed,
        each=run.each,
        size=run.batch,
        classes=run.classes,
    )
    shape = (*drawn["images"].shape[:2], *run.input_shape)
    return drawn | {"images": jax.image.resize(drawn["images"], shape, "bilinear")}


def _streamed(run: Run, data_dir: pathlib.Path | None) -> PyTree:
    examples = data.source(run.data, "train", data_dir)
    size = run.input_shape[0]
    epoch = stream.training(examples, run.seed, epochs=1, batch=run.batch, size=size)
    parts = run.each * (run.classes or run.num_classes) // run.batch
    some, labels = zip(*itertools.islice(epoch, parts))
    recipe = images.recipe(run.data)
    scaled = jnp.stack([images.normalise(recipe, jnp.asarray(batch)) for batch in some])
    return {"images": scaled, "labels": jnp.asarray(np.stack(labels))}


@functools.lru_cache(maxsize=1)
def _loaded(name: str, data_dir: pathlib.Path | None) -> data.Data:
    return data.load(name, data_dir)


# --- what came out ------------------------------------------------------------------------


class Critical(NamedTuple):
    """Largest compressions of the grid, log10; None if there is none.

    Attributes:
      whole: at which every layer keeps a weight, in all seeds: the paper's.
      connected: at which a path is left from input to output, in all seeds.
    """

    whole: float | None
    connected: float | None


def of_method(
    rows: Sequence[Row], part: str, names: Sequence[str] = methods.PAPER
) -> dict[str, list[list[Row]]]:
    """The rows of a part of the experiment by criterion: for each seed its rows, in the
    order of the compressions. Criteria are in the order of the paper's legends."""
    by_run: dict[str, list[Row]] = {}
    for row in rows:
        if row["kind"] == "layers":
            by_run.setdefault(row["run"], []).append(row)
    configs = command.configs(rows)
    found: dict[str, list[list[Row]]] = {}
    for method in names:
        for run, own in by_run.items():
            if (configs[run]["part"], configs[run]["method"]) == (part, method):
                found.setdefault(method, []).append(own)
    return found


def critical(seeds: Sequence[Sequence[Row]]) -> Critical:
    """Up to where a criterion leaves a network whole, and connected.

    Args:
      seeds: for each seed its rows, as `of_method` has them.
    """

    def largest(what: str) -> float | None:
        at: dict[float, list[bool]] = {}
        for row in (row for own in seeds for row in own):
            at.setdefault(row["compression"], []).append(row[what])
        return max((c for c, flags in at.items() if all(flags)), default=None)

    return Critical(largest("whole"), largest("connected"))


def largest_possible(layers: Sequence[Sequence[Any]]) -> float:
    """log10 of N/L, the compression that leaves a weight for each layer."""
    return math.log10(sum(size for *_, size in layers) / len(layers))


def comparison(rows: Sequence[Row]) -> list[Row]:
    """Published fractions kept beside ours, layer by layer and compression by compression.

    They agree if the published one, which is of one draw of the weights, is within
    ``DEVIATIONS`` standard deviations of ours or ``RELATIVE`` of their mean. Near the edge
    that is a matter of chance: ``own`` says how many of our seeds agree with the others.

    Returns:
      Rows with ``method``, ``compression``, ``layer`` and its ``size``; ``published``,
      ``mean`` and ``deviation`` in weights; ``agrees``; ``own``; ``seeds``. Empty unless
      there are two seeds of the published network.
    """
    theirs = published.load("layer_collapse")
    setting = {"network": theirs["network"], "num_classes": theirs["num_classes"]}
    same = {
        run
        for run, config in command.configs(rows).items()
        if setting.items() <= config.items()
    }
    own_rows = [row for row in rows if row["run"] in same]
    table = []
    for method, seeds in of_method(own_rows, "cifar").items():
        if method not in COMPARED or len(seeds) < 2:
            continue
        for at in zip(*seeds, strict=True):
            compression = at[0]["compression"]
            densities = theirs["density"][method].get(str(compression))
            if densities is None:
                continue
            layers = zip(*(row["layers"] for row in at), strict=True)
            for density, size, layer in zip(
                densities, theirs["sizes"], layers, strict=True
            ):
                name, _, own_size = layer[0]
                if own_size != size:
                    raise ValueError(f"{name} has {own_size} weights, not {size}.")
                kept = [count for _, count, _ in layer]
                others = [kept[:i] + kept[i + 1 :] for i in range(len(kept))]
                table.append(
                    {
                        "method": method,
                        "compression": compression,
                        "layer": name,
                        "size": size,
                        "published": density * size,
                        "mean": statistics.mean(kept),
                        "deviation": statistics.stdev(kept),
                        "agrees": agrees(density * size, kept),
                        "own": sum(map(agrees, kept, others)),
                        "seeds": len(kept),
                    }
                )
    return table


def agrees(count: float, sample: Sequence[int]) -> bool:
    """Whether a number of weights could be one of the sample, or nearly is their mean."""
    mean = statistics.mean(sample)
    spread = statistics.stdev(sample) if len(sample) > 1 else 0.0
    return abs(count - mean) <= max(DEVIATIONS * spread, RELATIVE * mean)


def sentences(rows: list[Row]) -> list[str]:
    """What came out, beside what the paper found."""
    said = []
    for part in ("cifar", "imagenet"):
        found = of_method(rows, part)
        if not found:
            continue
        first = next(iter(found.values()))[0][0]
        config = command.configs(rows)[first["run"]]
        limit, last = largest_possible(first["layers"]), max(config["compressions"])
        said.append(
            f"{_title(config)}: {sum(size for *_, size in first['layers']):,} weights in "
            f"{len(first['layers'])} layers, so that no compression above N/L = "
            f"{_power(limit)} leaves each layer a weight; tried up to {_power(last)}."
        )
        for method, seeds in found.items():
            said.append(_how_far(method, seeds, config))
            said += _emptied_first(method, seeds)
        said += _why_cut(found.get("synflow", []))
        said += _certified_rounds(rows, part)
    return said + _agreement(rows)


def _how_far(method: str, seeds: Sequence[Sequence[Row]], config: dict[str, Any]) -> str:
    theirs, found = published.load("layer_collapse"), critical(seeds)
    label = methods.LABELS[method]
    number = f"each of {len(seeds)} seeds" if len(seeds) > 1 else "the one seed"
    if found.whole is None:
        return f"{label} empties a layer at every compression tried."
    text = f"{label} keeps weights in every layer up to {_power(found.whole)} in {number}"
    if found.connected == found.whole:
        text += " and leaves a path from input to output as far"
    elif found.connected is None:
        text += " but leaves no path from input to output"
    else:
        text += f" but a path from input to output only up to {_power(found.connected)}"
    text += _in_some_seeds(seeds, found.connected)
    if (config["network"], config["num_classes"]) == (
        theirs["network"],
        theirs["num_classes"],
    ):
        text += (
            f"; the authors' three runs: weights up to {_power(theirs['critical'][method])}"
        )
        if theirs["drawn"][method] != theirs["critical"][method]:
            text += f" (Fig. 1 draws {_power(theirs['drawn'][method])})"
    return text + "."


def _in_some_seeds(seeds: Sequence[Sequence[Row]], limit: float | None) -> str:
    """In how many seeds a path is left beyond the compressions at which it is in all."""
    alive: dict[float, int] = {}
    for row in (row for own in seeds for row in own if row["connected"]):
        if limit is None or row["compression"] > limit:
            alive[row["compression"]] = alive.get(row["compression"], 0) + 1
    if not alive:
        return ""
    each = [f"in {alive[c]} of {len(seeds)} seeds at {_power(c)}" for c in sorted(alive)]
    return f" (and {', '.join(each)})"


def _emptied_first(method: str, seeds: Sequence[Sequence[Row]]) -> list[str]:
    """At which compression layers are empty first, and which."""
    at: dict[float, set[str]] = {}
    for row in (row for own in seeds for row in own):
        names = {name for name, kept, _ in row["layers"] if not kept}
        if names:
            at.setdefault(row["compression"], set()).update(names)
    if not at:
        return []
    names = [name for name, *_ in seeds[0][0]["layers"] if name in at[min(at)]]
    some = " in some seed" if len(seeds) > 1 else ""
    return [
        f"{methods.LABELS[method]}: empty first{some}, at {_power(min(at))}: "
        f"{', '.join(names)}."
    ]


def _why_cut(seeds: Sequence[Sequence[Row]]) -> list[str]:
    """What the rounds removed in which SynFlow cut a network, if it did."""
    cut = [row for own in seeds for row in own if not row["connected"]]
    ratios = [row["largest_ratio"] for row in cut if "largest_ratio" in row]
    if not ratios:
        return []
    at = ", ".join(_power(c) for c in sorted({row["compression"] for row in cut}))
    return [
        f"SynFlow's {cut[0]['rounds']} rounds cut the network {len(cut)} times, at {at}: "
        f"there a round removed more than the whole flow ({min(ratios):.2f} to "
        f"{max(ratios):.2f} times R), and Theorem 3 asks that none does."
    ]


def _certified_rounds(rows: list[Row], part: str) -> list[str]:
    """What SynFlow keeps if no round may remove so much."""
    at: dict[int, list[Row]] = {}
    for own in of_method(rows, part, ["certified"]).get("certified", []):
        for row in own:
            at.setdefault(row["k"], []).append(row)
    said = []
    for k, own in at.items():
        whole = sum(row["connected"] and row["kept"] == k for row in own)
        rounds = sorted(row["rounds"] for row in own)
        many = f"{rounds[0]}" if rounds[0] == rounds[-1] else f"{rounds[0]} to {rounds[-1]}"
        said.append(
            f"SynFlow in certified rounds, each removing at most {RATIO:g} of the flow, "
            f"leaves a path with {k} weights ({_power(own[0]['compression'])}) in {whole} "
            f"of {len(own)} seeds, in {many} rounds."
        )
    return said


def _agreement(rows: list[Row]) -> list[str]:
    table, said = comparison(rows), []
    for method in COMPARED:
        own = [row for row in table if row["method"] == method]
        if not own:
            continue
        large = [row for row in own if min(row["published"], row["mean"]) >= FEW]
        good, good_large = (sum(row["agrees"] for row in some) for some in (own, large))
        chance = sum(row["own"] for row in own) / sum(row["seeds"] for row in own)
        text = (
            f"{methods.LABELS[method]}: the published fraction kept lies within "
            f"{DEVIATIONS:g} standard deviations or {RELATIVE:.0%} of ours in {good} of "
            f"{len(own)} cases (layers and compressions), and in {good_large} of the "
            f"{len(large)} with {FEW} weights or more. One of our {own[0]['seeds']} seeds "
            f"against the others does so in {chance:.1%}."
        )
        far = [row for row in large if not row["agrees"]]
        far.sort(key=lambda row: -abs(row["published"] / row["mean"] - 1))
        if far:
            text += " Exceptions of these: " + "; ".join(map(_exception, far[:SHOWN]))
            text += f"; and {len(far) - SHOWN} that differ less." if far[SHOWN:] else "."
        said.append(text)
    if said:
        said.append(
            "The published SNIP and GraSP are not compared: they were made by the first "
            "version of the authors' code, whose errors in these two were corrected later "
            "(batch norm in evaluation mode; GraSP's sign), and our images are others."
        )
    return said


SHOWN = 6  # exceptions in a sentence


def _exception(row: Row) -> str:
    place = f"{row['layer']} at {_power(row['compression'])}"
    ours = f"{row['mean']:,.0f} ± {row['deviation']:,.0f}"
    return f"{place}, published {row['published']:,.0f}, ours {ours}"


def caption(rows: list[Row]) -> str:
    """What the figures show, in words."""
    text = (
        "Fraction of each layer's weights that is kept at initialisation, against "
        "compression (weights over weights kept), for each criterion."
    )
    for part in ("cifar", "imagenet"):
        found = of_method(rows, part)
        if not found:
            continue
        configs = command.configs(rows)
        by_method = {m: configs[seeds[0][0]["run"]] for m, seeds in found.items()}
        numbers = {methods.LABELS[m]: len(seeds) for m, seeds in found.items()}
        text += f" {_title(next(iter(by_method.values())))}: "
        if len(set(numbers.values())) == 1:
            number = next(iter(numbers.values()))
            text += f"mean of {number} seeds" if number > 1 else "one seed"
        else:
            text += "seeds: " + ", ".join(f"{m} {n}" for m, n in numbers.items())
        if "synflow" in by_method:
            text += f"; SynFlow in {by_method['synflow']['rounds']} rounds, others in one"
        looks = [
            f"{methods.LABELS[m]} sees {_looked_at(config)}"
            for m, config in by_method.items()
            if config["data"]
        ]
        text += "".join(f"; {look}" for look in looks) + "."
    if comparison(rows):
        text += " Dashed: the authors' first run, published with their code"
        if {"snip", "grasp"} & set(of_method(rows, "cifar")):
            text += "; its SNIP and GraSP were made before that code was corrected"
        text += "."
    return text


def _looked_at(config: dict[str, Any]) -> str:
    classes = config["classes"] or {
        "imagenet2012": 1000,
        "tiny_imagenet_10k": 200,
    }.get(config["data"], config["num_classes"])
    text = f"{config['each'] * classes:,} images of {config['data']}"
    if config["data"].startswith("tiny_imagenet") and config["input_shape"][0] == 224:
        text += " enlarged to 224 pixels"
    return text


_TITLES = {
    ("vgg16_cifar", 100): "VGG-16 for CIFAR-100",
    ("vgg19_imagenet", 1000): "VGG-19 for ImageNet",
}


def _title(config: dict[str, Any]) -> str:
    network, classes = config["network"], config["num_classes"]
    return _TITLES.get((network, classes), f"{network} with {classes} classes")


def _power(compression: float) -> str:
    return f"10^{round(compression, 2):g}"


# --- the figures --------------------------------------------------------------------------


def draw(part: str, rows: list[Row], path: pathlib.Path) -> None:
    """A panel for each criterion, a line for each layer, dark at the input.

    A line ends where a seed keeps nothing of the layer. The shade is where some seed has no
    path left from input to output.
    """
    found = of_method(rows, part)
    if not found:
        return
    first = next(iter(found.values()))[0][0]
    config = command.configs(rows)[first["run"]]
    depth, limit = len(first["layers"]), largest_possible(first["layers"])
    theirs = published.load("layer_collapse")
    same = (theirs["network"], theirs["num_classes"]) == (
        config["network"],
        config["num_classes"],
    )
    colors = matplotlib.colormaps["viridis"](np.linspace(0.15, 0.95, depth))
    end = max(limit + 0.15, max(config["compressions"]))
    low = min(
        kept / size
        for seeds in found.values()
        for own in seeds
        for row in own
        for _, kept, size in row["layers"]
        if kept
    )
    with plots.settings():
        columns = 3
        lines = -(-len(found) // columns)
        spare = lines * columns > len(found)  # a place for the legend among the panels
        height = 0.5 + 3.1 * lines + (0 if spare else 1.2)
        figure = Figure((10.5, height), layout="constrained")
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for place, (method, seeds) in enumerate(found.items()):
            axes = panels.flat[place]
            _panel(axes, seeds, colors, limit, end)
            if same:
                _their_lines(axes, theirs["density"][method])
            axes.set_title(methods.LABELS[method])
        # Both are shared by all panels.
        axes.set_yscale("log")
        axes.set_ylim(10.0 ** (math.floor(2 * math.log10(low) - 0.4) / 2), 2)
        axes.set_xlim(0, end)
        axes.xaxis.set_major_locator(FixedLocator(range(math.floor(end) + 1)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"$10^{{{x:g}}}$"))
        axes.yaxis.set_minor_locator(NullLocator())
        for place, axes in enumerate(panels.flat):
            if place >= len(found):
                axes.set_axis_off()
            elif place + columns >= len(found):
                axes.tick_params(labelbottom=True)
                axes.set_xlabel("compression")
        for axes in panels[:, 0]:
            axes.set_ylabel("fraction kept")
        names = [name for name, _, _ in first["layers"]]
        layers, rest = _handles(names, colors, same)
        if spare:
            place = panels.flat[len(found)]
            own = place.legend(handles=layers, loc="upper left", ncols=3, fontsize=8.5)
            place.add_artist(own)
            place.legend(handles=rest, loc="lower left", fontsize=8.5)
        else:
            both = {"fontsize": 8.5, "loc": "outside lower left"}
            figure.legend(handles=layers, ncols=5, **both)
            figure.legend(handles=rest, **both | {"loc": "outside lower right"})
        figure.suptitle(_title(config), fontsize=11.5)
        figure.savefig(path, dpi=180)


def _panel(axes: Axes, seeds, colors, limit: float, end: float) -> None:
    x = np.array([row["compression"] for row in seeds[0]])
    kept = np.array([[[n for _, n, _ in row["layers"]] for row in own] for own in seeds])
    sizes = np.array([size for *_, size in seeds[0][0]["layers"]])
    mean = np.where((kept > 0).all(axis=0), kept.mean(axis=0), np.nan) / sizes
    found = critical(seeds)
    if found.connected is not None and found.connected < x[-1]:
        axes.axvspan(found.connected, end, color="#eeeeee", lw=0, zorder=0)
    axes.axvline(limit, color=plots.PALE, lw=1.2, ls=":", zorder=1)
    if found.whole is not None:
        left = found.whole > 0.8 * end  # of the line, where there is room
        axes.axvline(found.whole, color=plots.INK, lw=1.0, zorder=1)
        axes.annotate(
            f"$10^{{{round(found.whole, 2):g}}}$",
            (found.whole, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if left else 3, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top",
            color=plots.INK,
        )
    for layer, color in enumerate(colors):
        y = mean[:, layer]
        axes.plot(x, y, color=color, lw=2.0, solid_capstyle="butt", zorder=3)
        last = np.flatnonzero(np.isfinite(y))
        if last.size and last[-1] + 1 < len(x):
            ends = x[last[-1]], y[last[-1]]
            axes.plot(*ends, "x", color=color, ms=5.5, mew=1.6, zorder=5)


def _their_lines(axes: Axes, density: dict[str, list[float]]) -> None:
    x = np.array(sorted(map(float, density)))
    y = np.array([density[str(c)] for c in x])
    y = np.where(y > 0, y, np.nan)
    axes.plot(x, y, color="black", lw=0.7, ls=(0, (4, 2.5)), zorder=4)


def _handles(
    names: Sequence[str], colors: np.ndarray, same: bool
) -> tuple[list[Line2D], list[Line2D | Patch]]:
    """What the legends explain: the layers, and the rest."""
    layers = [Line2D([], [], color=c, lw=2.0, label=n) for n, c in zip(names, colors)]
    rest = [
        Line2D([], [], color=plots.INK, lw=1.0, label="no layer empty up to here"),
        Line2D([], [], color=plots.PALE, lw=1.2, ls=":", label="N/L, the largest possible"),
        Line2D(
            *([], []),
            **{"color": plots.INK, "ls": "", "marker": "x"},
            label="last before the layer is empty",
        ),
        Patch(color="#eeeeee", label="no path from input to output, in some seed"),
    ]
    if same:
        dashed = {"color": "black", "lw": 0.7, "ls": (0, (4, 2.5))}
        rest.insert(0, Line2D([], [], **dashed, label="published"))
    return layers, rest


EXPERIMENT = command.Experiment(
    name="layer_collapse",
    about="Fraction kept of each layer against compression: Figs. 1 and 2 of the paper.",
    runs=the_runs,
    execute=execute,
    figures={
        "layers_cifar.png": functools.partial(draw, "cifar"),
        "layers_imagenet.png": functools.partial(draw, "imagenet"),
    },
    sentences=sentences,
    caption=caption,
    cost=cost,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    main()

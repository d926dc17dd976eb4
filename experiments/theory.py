"""How far a network can be pruned, how far SynFlow prunes it, and what flow is left.

  python -m experiments.theory --scale smoke|cpu|paper

For each network: N prunable weights in L layers, and the paper's largest compression N / L,
which is one weight a layer; the fewest weights that leave a path from input to output, less
than L with shortcuts; SynFlow with exactly L weights, and with fewer as long as a path is
left; and R, the total flow, at each whole compression.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import synflow_jax as sj
from experiments import command, plots, published, runs
from experiments.sweeps import Context, Row, by_run
from synflow_jax import models

TABLE = "table.md"
ROUNDS = 100

# What a core prunes a dozen times in minutes, the quickest first.
_ON_CPU = (
    *("mlp", "conv", "resnet20", "wide_resnet20", "resnet32", "vgg11_cifar"),
    *("vgg13_cifar", "vgg16_cifar", "vgg19_cifar", "resnet18", "vgg11_tiny", "resnet56"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One network at initialisation.

    Attributes:
      network: a key of ``synflow_jax.models.NETWORKS``.
      rounds: of SynFlow; 0: the network is not pruned, only its counts and flow are taken.
      seed: draws the weights.
    """

    network: str
    rounds: int = ROUNDS
    seed: int = 0

    @property
    def name(self) -> str:
        return self.network if self.rounds else f"{self.network}-dense"


def scaled_runs(scale: command.Scale) -> list[Run]:
    """Those that are pruned first; at the scale of the paper these are all."""
    if scale == "smoke":
        return [Run("mlp", 20), Run("conv", 0), Run("resnet20", 0)]
    pruned = _ON_CPU if scale == "cpu" else models.NETWORKS
    others = [name for name in models.NETWORKS if name not in pruned]
    return [*map(Run, pruned), *(Run(name, 0) for name in others)]


def counts(module, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Prunable weights, and the leaves they are in: the paper's N and L.

    From shapes alone, so that the largest network costs no memory.
    """
    zeros = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), zeros)["params"]
    named = zip(sj.leaf_names(params), jax.tree.leaves(params))
    sizes = [leaf.size for name, leaf in named if sj.is_kernel(name, leaf)]
    return sum(sizes), len(sizes)


def fewest(name: str) -> int:
    """Weights on the shortest path from input to output.

    Counted on a narrow copy of the network, with a sixteenth of its channels: how many
    weights a path meets is a matter of layers and shortcuts, not of their width.
    """
    network = models.NETWORKS[name]
    module = network.make(num_classes=2, width=1 / 16)
    zeros = jnp.zeros((1, *network.input_shape))
    variables = jax.jit(module.init)(jax.random.key(0), zeros)
    apply_fn, params = sj.from_linen(module, variables)
    return sj.fewest_weights(apply_fn, params, network.input_shape)


def fewest_connected(
    connected: Callable[[int], bool], layers: int, lower: int, size: int
) -> int:
    """The fewest weights with which a path is left, sought from one weight a layer.

    Downwards by bisection, if ``connected(layers)``; else upwards by doubling first. Like
    `sj.critical_compression` it takes for granted that more weights leave a path if fewer
    do, which for SynFlow in rounds is no theorem; at the number returned one is left.

    Args:
      connected: ``connected(k)``: whether a path is left with k weights.
      layers: where to begin.
      lower: with fewer than these no path can be left.
      size: of the network, which is connected.
    """
    low, high = lower - 1, layers
    while not connected(high):
        low, high = high, min(2 * high, size)
    while high - low > 1:
        k = max(low + 1, math.isqrt(low * high))
        if connected(k):
            high = k
        else:
            low = k
    return high


def execute(run: Run, context: Context) -> Iterator[Row]:
    """A row on the network, then one for each pruning; the first prunes nothing."""
    network = models.NETWORKS[run.network]
    module = network.make(num_classes=network.num_classes)
    size, layers = counts(module, network.input_shape)
    limit = fewest(run.network) if run.rounds else None
    yield {"kind": "network", "weights": size, "layers": layers, "fewest": limit}
    apply_fn, params, shape = models.build(run.network, jax.random.key(run.seed))
    score = sj.synflow(apply_fn, shape)
    done: dict[int, Row] = {}

    @jax.jit
    def log_flow(masks):
        return sj.log_flow(apply_fn, sj.apply_masks(params, masks), shape)

    def pruned(k: int) -> Row:
        if k not in done:
            if k < size:
                masks, _ = sj.prune(score, params, k / size, rounds=run.rounds)
            else:
                masks = sj.all_kept(params)
            flow = float(log_flow(masks)) / math.log(10)
            done[k] = {
                "kind": "pruned",
                "k": k,
                "compression": math.log10(size / k),
                "log10_flow": flow if math.isfinite(flow) else None,  # None: no path
                "empty": sj.collapsed(params, masks),
            }
            context.advance(min(len(done) / expected, 1.0))
        return done[k]

    if limit is None:
        expected = 1
        yield {**pruned(size), "whole": 0}
        return
    whole = range(math.floor(math.log10(size / layers)) + 1)
    expected = len(whole) + 1 + math.ceil(math.log2(layers - limit + 1))
    for compression in whole:
        yield {**pruned(sj.num_kept(size, 10.0**-compression)), "whole": compression}
    seen = set(done)
    reached = fewest_connected(
        lambda k: pruned(k)["log10_flow"] is not None, layers, limit, size
    )
    yield from (row for k, row in done.items() if k not in seen)
    yield {"kind": "reached", "k": reached, "compression": math.log10(size / reached)}


def _cost(run: Run) -> float:
    """Weights, and what compiling and starting a network costs beside."""
    network = models.NETWORKS[run.network]
    size, layers = counts(network.make(num_classes=10), network.input_shape)
    return (size / 1e6 + layers) * (1.0 if run.rounds else 0.1)


# --- what came out ------------------------------------------------------------------------


def networks(rows: Sequence[Row]) -> list[Row]:
    """A row for each network: its counts, its flows, and how far it was pruned.

    Beside the counts, where it was pruned: ``reached``, the number of weights; ``flows``,
    log10 R by number of weights, None where no path is left; ``whole``, the same by whole
    compression; ``rounds``.
    """
    of_runs, found = by_run(rows), []
    for name, config in command.configs(rows).items():
        own = of_runs[name]
        (about,) = (row for row in own if row["kind"] == "network")
        pruned = [row for row in own if row["kind"] == "pruned"]
        reached = [row["k"] for row in own if row["kind"] == "reached"]
        found.append(
            {
                "network": config["network"],
                "rounds": config["rounds"],
                "weights": about["weights"],
                "layers": about["layers"],
                "fewest": about["fewest"],
                "reached": reached[0] if reached else None,
                "flows": {row["k"]: row["log10_flow"] for row in pruned},
                "whole": {r["whole"]: r["log10_flow"] for r in pruned if "whole" in r},
            }
        )
    return found


def _pruned(rows: Sequence[Row]) -> list[Row]:
    return [row for row in networks(rows) if row["reached"]]


def compare(rows: Sequence[Row]) -> list[str]:
    """The counts that differ from those of the authors' networks, in words."""
    theirs, apart = published.load("theory")["networks"], []
    for row in networks(rows):
        for count, theirs_is in theirs.get(row["network"], {}).items():
            if row[count] is not None and row[count] != theirs_is:
                apart.append(
                    f"{row['network']} has {count} {row[count]:,}, theirs {theirs_is:,}"
                )
    return apart


def sentences(rows: list[Row]) -> list[str]:
    """What came out, beside the paper's numbers."""
    theirs, apart = published.load("theory")["networks"], compare(rows)
    both = [row["network"] for row in networks(rows) if row["network"] in theirs]
    said = []
    if both:
        said.append(
            f"Of {len(both)} networks that the authors' code has too ({', '.join(both)}), "
            "the weights N, the layers L and, where it was sought, the fewest weights of a "
            "path "
            + (f"differ: {'; '.join(apart)}." if apart else "are all equal to theirs.")
        )
    pruned = _pruned(rows)
    chains = [row for row in pruned if row["fewest"] == row["layers"]]
    if chains:
        whole = [row for row in chains if row["reached"] == row["layers"]]
        short = "; ".join(
            f"{row['network']} needs {row['reached']} weights for {row['layers']} layers"
            for row in chains
            if row not in whole
        )
        said.append(
            "Without shortcuts, where N / L is the limit, SynFlow left a path with exactly "
            f"one weight a layer in {len(whole)} of {len(chains)} networks"
            + (f"; {short}." if short else ".")
        )
    for row in pruned:
        if row["fewest"] < row["layers"]:
            said.append(_beyond(row))
    for row in pruned:
        dense, last = row["flows"][row["weights"]], row["flows"].get(row["layers"])
        if last is not None:
            said.append(
                f"R of {row['network']} falls from 10^{dense:.2f} at initialisation to "
                f"10^{last:.2f} at N / L = 10^{_log(row, row['layers']):.2f}."
            )
    return said


def _beyond(row: Row) -> str:
    at_layers = row["flows"][row["layers"]] is not None
    return (
        f"{row['network']} has shortcuts: {row['fewest']} weights can make a path, so "
        f"10^{_log(row, row['fewest']):.2f} is its limit and not N / L = "
        f"10^{_log(row, row['layers']):.2f}. With one weight for each of its "
        f"{row['layers']} layers SynFlow left {'a path' if at_layers else 'none'}; it got "
        f"as far as 10^{_log(row, row['reached']):.2f}, {row['reached']} weights."
    )


def _log(row: Row, k: int) -> float:
    return math.log10(row["weights"] / k)


def caption(rows: list[Row]) -> str:
    """What the figure shows, and which networks were left out."""
    pruned = _pruned(rows)
    dense = [row for row in networks(rows) if not row["rounds"]]
    rounds = sorted({row["rounds"] for row in pruned})
    text = (
        "Left: the paper's largest compression N / L (dark bar), that beyond which no path "
        "can be left (pale bar, where shortcuts make it another) and the largest that "
        "SynFlow reached with a path left. Right: R, the total flow, against compression, "
        "as far as a path is left. "
        f"{' or '.join(map(str, rounds))} exponential rounds, one draw of the weights."
    )
    if dense:
        low = min(row["weights"] for row in dense)
        high = max(row["weights"] for row in dense)
        text += (
            f" {len(dense)} more networks, of {low:,} to {high:,} weights, are in {TABLE} "
            "with their counts and R, but not pruned: a dozen prunings of each would take "
            "from minutes to hours on two processor cores."
        )
    return text


def table(rows: Sequence[Row]) -> str:
    """Markdown: how far each network goes, its flow, and the networks not pruned."""
    pruned = _pruned(rows)
    dense = [row for row in networks(rows) if not row["rounds"]]
    lines = []
    if pruned:
        lines += [
            "| network | N | L | log10 N/L | fewest | log10 N/fewest | SynFlow reached |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for row in pruned:
            lines.append(
                f"| {row['network']} | {row['weights']:,} | {row['layers']} | "
                f"{_log(row, row['layers']):.3f} | {row['fewest']} | "
                f"{_log(row, row['fewest']):.3f} | {_log(row, row['reached']):.3f}, "
                f"{row['reached']} weights |"
            )
        last = max(max(row["whole"]) for row in pruned)
        lines += [
            "",
            "| log10 R at | "
            + " | ".join(f"10^{c}" for c in range(last + 1))
            + " | N/L | the last with a path |",
            "|---|" + "---:|" * (last + 3),
        ]
        for row in pruned:
            cells = [_cell(row["whole"], c) for c in range(last + 1)]
            cells += [_cell(row["flows"], row[end]) for end in ("layers", "reached")]
            lines.append(f"| {row['network']} | {' | '.join(cells)} |")
    if dense:
        lines += [
            "",
            "| not pruned | N | L | log10 N/L | log10 R |",
            "|---|---:|---:|---:|---:|",
        ]
        for row in dense:
            lines.append(
                f"| {row['network']} | {row['weights']:,} | {row['layers']} | "
                f"{_log(row, row['layers']):.3f} | {_cell(row['whole'], 0)} |"
            )
    return "\n".join(lines).strip()


def _cell(flows: dict[int, float | None], place: int) -> str:
    if place not in flows:
        return ""
    return "no path" if flows[place] is None else f"{flows[place]:.2f}"


# --- the figure ---------------------------------------------------------------------------

# Okabe and Ito's colours, then the same again with other markers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
_MARKERS = "os^Dv"


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Left: the limits and what was reached. Right: R against compression."""
    pruned = _pruned(rows)
    if not pruned:
        return
    with plots.settings():
        figure = Figure((9.6, max(3.4, 1.7 + 0.3 * len(pruned))), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
        _limits(left, pruned)
        _flows(right, pruned)
        figure.savefig(path, dpi=200)


def _limits(axes: Axes, pruned: Sequence[Row]) -> None:
    for height, row in enumerate(pruned):
        limit, paper = _log(row, row["fewest"]), _log(row, row["layers"])
        reached = _log(row, row["reached"])
        axes.plot([0, reached], [height] * 2, color="#dddddd", lw=1.2, zorder=1)
        axes.plot(paper, height, "|", color=plots.INK, ms=15, mew=1.8, zorder=2)
        if row["fewest"] < row["layers"]:
            axes.plot(limit, height, "|", color=plots.PALE, ms=15, mew=1.8, zorder=2)
        look = _look(height)
        axes.plot(reached, height, look["marker"], color=look["color"], ms=5.5, zorder=3)
    axes.set_yticks(range(len(pruned)), [row["network"] for row in pruned])
    axes.set_ylim(len(pruned) - 0.4, -0.6)
    axes.set_xlim(0, None)
    axes.set_xlabel("compression, log10 (weights / weights kept)")
    axes.set_title("how far: limit and reached")
    marks = {
        "N / L": {"marker": "|", "color": plots.INK, "ms": 12, "mew": 1.8},
        "shortest path": {"marker": "|", "color": plots.PALE, "ms": 12, "mew": 1.8},
        "SynFlow": {"marker": "o", "color": plots.INK},
    }
    for label, mark in marks.items():
        axes.plot([], [], ls="", **mark, label=label)
    axes.figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper left", ncols=len(marks)
    )


def _flows(axes: Axes, pruned: Sequence[Row]) -> None:
    axes.axhline(0, color=plots.PALE, lw=1, zorder=1)
    for place, row in enumerate(pruned):
        points = sorted(
            (_log(row, k), flow) for k, flow in row["flows"].items() if flow is not None
        )
        x, y = zip(*points)
        axes.plot(x, y, **_look(place), label=row["network"], zorder=2)
    axes.set_xlabel("compression, log10 (weights / weights kept)")
    axes.set_ylabel("log10 R")
    axes.set_title("flow that is left")
    axes.legend(ncols=2 if len(pruned) > 4 else 1)


def _look(place: int) -> dict[str, str]:
    marker = _MARKERS[place // len(_COLOURS) % len(_MARKERS)]
    return {"color": _COLOURS[place % len(_COLOURS)], "marker": marker}


EXPERIMENT = command.Experiment(
    name="theory",
    about="The largest compression of each network, what SynFlow reaches of it, and the "
    "flow that is left.",
    runs=scaled_runs,
    execute=execute,
    figures={"theory.png": draw},
    sentences=sentences,
    caption=caption,
    cost=_cost,
)


def main(argv: Sequence[str] | None = None) -> pathlib.Path:
    """Besides figures and rows it writes the tables of docs/theory.md."""
    out = command.main(EXPERIMENT, argv)
    rows = command.results(out)
    if rows:
        runs.replace(out / TABLE, table(rows))
    return out


if __name__ == "__main__":
    main()

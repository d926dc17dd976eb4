"""How far a network can be pruned, how far SynFlow prunes it, and what flow is left.

  python -m experiments theory --scale smoke|cpu|paper

For each network of the zoo: N prunable weights in L layers, and the paper's largest
compression N / L, which is one weight a layer; the fewest weights that leave a path from
input to output, less than L with shortcuts; one pass of SynFlow to L weights in the paper's
100 exponential rounds, which goes on beyond N / L at the same rate; and after each round R,
the total flow, the share of it that the round removed, and the number of layers that are
not empty. A round that cuts the network is undone and tried again, removing half as many
weights: a pass ends where one weight alone would cut the last path, or where no shorter
path can be.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

import synflow_jax as sj
from experiments.figures import theory as figures
from experiments.harness import command
from experiments.harness.sweeps import Context, Row
from synflow_jax import models


@dataclasses.dataclass(frozen=True)
class Run:
    """One pass over one network at initialisation.

    Attributes:
      network: a key of ``synflow_jax.models.NETWORKS``.
      rounds: of SynFlow, to N / L.
      seed: of the weights.
    """

    network: str
    rounds: int = 100
    seed: int = 0

    @property
    def name(self) -> str:
        return self.network + (f"-seed{self.seed}" if self.seed else "")


# Networks without shortcuts, up to VGG-16.
AGAIN = (
    *("mlp", "conv", "vgg11_cifar", "vgg11_tiny", "vgg13_cifar", "vgg13_tiny"),
    *("vgg16_cifar", "vgg16_tiny"),
)


def scaled_runs(scale: command.Scale) -> list[Run]:
    """The whole zoo, and two more draws of the chains that are quick; it needs no training,
    so cpu is the paper's scale."""
    if scale == "smoke":
        return [Run("mlp", 20), Run("resnet20", 20)]
    again = [Run(name, seed=seed) for name in AGAIN for seed in (1, 2)]
    return [*map(Run, models.NETWORKS), *again]


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
    variables = models.init(module, jax.random.key(0), network.input_shape)
    apply_fn, params = sj.from_linen(module, variables)
    return sj.fewest_weights(apply_fn, params, network.input_shape)


def counts_of_pass(size: int, layers: int, least: int, rounds: int) -> list[int]:
    """How many weights each round leaves: ``layers`` after ``rounds``, then fewer.

    Exponential rounds to ``layers``, and further ones at the same rate to ``least``. Rounds
    that would remove nothing are left out.

    Args:
      size: weights of the network.
      layers: of them.
      least: with fewer weights no path can be left; at most ``layers``.
      rounds: from ``size`` to ``layers``.

    Returns:
      Decreasing integers, ``layers`` among them, the last one ``least``.
    """
    rate = (layers / size) ** (1 / rounds)
    last = math.ceil(math.log(least / size) / math.log(rate) - 1e-9)
    after = [sj.num_kept(size, rate**r) for r in range(1, last + 1)]
    after[rounds - 1], after[-1] = layers, least
    return sorted(set(after), reverse=True)


def descend(size: int, counts: Sequence[int], leaves_a_path: Callable[[int], bool]) -> int:
    """Goes down by ``counts``, and by halves of a step where one cuts the network.

    After a cut steps are small, and double while they cut nothing.

    Args:
      size: where to begin.
      counts: where each round should end, falling.
      leaves_a_path: ``leaves_a_path(k)`` prunes to ``k`` weights, and takes it back and
        returns False if that leaves no path.

    Returns:
      The weights that are left: the last of ``counts``, or one more than leaves a path.
    """
    k, largest_step = size, size
    while k > counts[-1] and largest_step:
        goal = max(k - largest_step, next(count for count in counts if count < k))
        if leaves_a_path(goal):
            if largest_step < size:
                largest_step = max(largest_step, 2 * (k - goal))
            k = goal
        else:
            largest_step = (k - goal) // 2
    return k


def execute(run: Run, context: Context) -> Iterator[Row]:
    """A row on the network, then one on the pass: what was left after each round."""
    network = models.NETWORKS[run.network]
    module = network.make(num_classes=network.num_classes)
    size, layers = counts(module, network.input_shape)
    least = fewest(run.network)
    yield {"kind": "network", "weights": size, "layers": layers, "fewest": least}
    apply_fn, params, shape = models.build(run.network, jax.random.key(run.seed))
    pruner = sj.iterative(sj.synflow(apply_fn, shape))
    step = jax.jit(pruner.step)

    @jax.jit
    def ln_flow(params, masks):
        return sj.log_flow(apply_fn, sj.apply_masks(params, masks), shape)

    def measured(state) -> tuple[float, int]:
        """log10 R, and the number of layers that keep a weight."""
        flow = float(ln_flow(params, state.masks)) / math.log(10)
        return round(flow, 6), layers - len(sj.collapsed(params, state.masks))

    state, cuts = pruner.init(params), []
    rounds = [(size, 0.0, *measured(state))]

    def leaves_a_path(k: int) -> bool:
        nonlocal state
        tried, info = step(state, params, k)
        removed = float(f"{float(info.removed):.5g}")
        flow, left = measured(tried)
        if not math.isfinite(flow):
            cuts.append({"before": rounds[-1][0], "after": k, "removed": removed})
            return False
        rounds.append((k, removed, flow, left))
        context.advance(math.log(size / k) / math.log(size / least))
        state = tried
        return True

    descend(size, counts_of_pass(size, layers, least, run.rounds), leaves_a_path)
    kept, removed, flows, left = map(list, zip(*rounds))
    yield {
        "kind": "pass",
        "kept": kept,
        "log10_flow": flows,
        "removed": removed,
        "layers_left": left,
        "cuts": cuts,
    }


@functools.cache
def _cost(run: Run) -> float:
    """Rounds over the weights, and compiling, which goes with the layers."""
    network = models.NETWORKS[run.network]
    size, layers = counts(network.make(num_classes=10), network.input_shape)
    return size / 1e6 + layers


EXPERIMENT = command.Experiment(
    name="theory",
    about="The largest compression of each network, what SynFlow reaches of it, and the "
    "flow that is left.",
    runs=scaled_runs,
    execute=execute,
    figures={"theory.png": figures.draw_limits, "flow.png": figures.draw_flows},
    tables=figures.tables,
    cost=_cost,
)


if __name__ == "__main__":
    command.main(EXPERIMENT)

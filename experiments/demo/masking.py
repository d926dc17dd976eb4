"""Several methods at several densities: the masks, and what they leave of the network."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Key, PyTree

import synflow_jax as sj
from experiments.harness.console import progress

METHODS = ("synflow", "magnitude", "random")


class Target(NamedTuple):
    """One prune to do.

    Attributes:
      method: one of ``METHODS``.
      density: fraction of the prunable weights to keep.
      label: what tables and figures call the density.
    """

    method: str
    density: float
    label: str


def grid(compressions: Iterable[float]) -> list[Target]:
    """Every method at every compression (log10 of one over the density)."""
    return [
        Target(method, 10.0**-c, f"10^{c:g}") for c in compressions for method in METHODS
    ]


def one_weight_a_layer(params: PyTree) -> Target:
    """SynFlow at the highest compression that can leave every layer one weight, N/L."""
    sizes = [row.size for row in _layers(params, sj.all_kept(params))]
    return Target("synflow", len(sizes) / sum(sizes), "N/L")


def sweep(
    network: str,
    apply_fn: Callable[..., Array],
    params: PyTree,
    input_shape: tuple[int, ...],
    targets: Iterable[Target],
    rounds: int,
    key: Key[Array, ""],
) -> Iterator[tuple[dict[str, Any], PyTree]]:
    """Prunes a network to every target, one after the other, from the same parameters.

    Args:
      network: its name, for the rows.
      apply_fn: ``apply_fn(params, images) -> logits``, in evaluation mode.
      params: its parameters at initialisation.
      input_shape: of one image.
      targets: what to do.
      rounds: of SynFlow; magnitude and random pruning take one.
      key: of random pruning.

    Yields:
      A row to log and the masks. In the row, ``log10_flow`` is the decimal logarithm of R,
      the sum over all paths from input to output of the product of the absolute values of
      the weights, before and after; None where no path is left.
    """
    # Made once: another score function, though it be the same, is another compilation.
    criteria = {
        "synflow": (sj.synflow(apply_fn, input_shape), rounds),
        "magnitude": (sj.magnitude(), 1),
        "random": (sj.random(key), 1),
    }
    log_flow = jax.jit(
        lambda params, masks: sj.log_flow(
            apply_fn, sj.apply_masks(params, masks), input_shape
        )
    )
    with progress(f"{network}: flow at initialisation"):
        before = _log10(log_flow(params, sj.all_kept(params)))
    for method, density, label in targets:
        score_fn, n = criteria[method]
        began = time.perf_counter()
        with progress(f"{network}: {method}, {label}", n) as advance:
            masks, _ = sj.prune(
                score_fn, params, density, rounds=n, on_round=lambda info: advance(1)
            )
        seconds = time.perf_counter() - began
        layers = _layers(params, masks)
        size = sum(row.size for row in layers)
        row = {
            "kind": "mask",
            "network": network,
            "method": method,
            "rounds": n,
            "label": label,
            "compression": -math.log10(density),
            "size": size,
            "k": sj.num_kept(size, density),
            "kept": sum(row.kept for row in layers),
            "layers": [[_layer(r.name), r.kept, r.size] for r in layers],
            "collapsed": [_layer(name) for name in sj.collapsed(params, masks)],
            "log10_flow_before": before,
            "log10_flow": _log10(log_flow(params, masks)),
            "seconds": seconds,
        }
        yield row, masks


def _layers(params: PyTree, masks: PyTree) -> list[Any]:
    """The rows of `synflow_jax.summarize` that `prune` may touch, in order of depth."""
    leaves = zip(sj.summarize(params, masks), jax.tree.leaves(params))
    return [row for row, leaf in leaves if sj.is_kernel(row.name, leaf)]


def _layer(name: str) -> str:
    return name.rsplit("/", 1)[0]


def _log10(natural: Array) -> float | None:
    number = float(natural) / math.log(10)
    return number if math.isfinite(number) else None

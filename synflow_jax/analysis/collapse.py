"""Layer-collapse and connectivity: at which compression a network stops being connected.

A network is connected if a path of weights that are not zero leads from its input to its
output, which means R > 0. A chain of layers needs a weight in every layer for that. With
shortcuts this is not necessary, since a path can avoid layers; and it is never sufficient,
since one weight in every layer need not form a path. The functions here therefore search
for paths, and report layers only by name.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from synflow_jax.analysis.effective import effective_masks
from synflow_jax.analysis.summary import collapsed, summarize
from synflow_jax.masks import apply_masks
from synflow_jax.paths.fewest import NO_PATH, fewest_weights, is_connected
from synflow_jax.pruning.loop import prune
from synflow_jax.pruning.rounds import Scope
from synflow_jax.pruning.schedules import Schedule, exponential
from synflow_jax.transform.network_flow import log_flow
from synflow_jax.transform.rules import flow_rules
from synflow_jax.transform.values import Rules, checked_rules
from synflow_jax.trees import Masks, Params, Prunable, ScoreFn, is_kernel, prunable_leaves


class Connectivity(NamedTuple):
    """Whether a masked network is connected, and which layers are: see `connectivity`.

    Attributes:
      connected: whether a path of kept weights leads from input to output.
      log_flow: natural logarithm of R. Minus infinity if the network is not connected, or
        if the remaining flow underflows in an array with entries 2**100 times larger.
      kept: number of prunable weights kept.
      effective: number of those that lie on a path from input to output.
      empty: names of the prunable leaves that have no kept weights.
      starved: names of the prunable leaves, empty or not, that are on no path although the
        network is connected. No names if the network is not connected.
    """

    connected: bool
    log_flow: float
    kept: int
    effective: int
    empty: list[str]
    starved: list[str]

    def __str__(self) -> str:
        state = "connected" if self.connected else "disconnected"
        line = f"{state}: {self.kept} weights kept, {self.effective} of them on a path"
        if self.connected:
            return line + f"; starved: {', '.join(self.starved) or 'none'}"
        return line + f"; empty: {', '.join(self.empty) or 'none'}"


def connectivity(
    apply_fn: Callable[..., PyTree],
    params: Params,
    masks: Masks,
    input_shape: PyTree,
    *,
    prunable: Prunable = is_kernel,
    rules: Rules = flow_rules,
) -> Connectivity:
    """Tells whether a masked network is connected, and which layers are on no path.

    An empty layer is what the paper calls layer-collapse. A network with shortcuts can be
    connected although a layer is empty: SynFlow leaves no path through the shortcuts of
    residual networks, since their branches carry nearly all of the flow. And a network can
    be disconnected although no layer is empty.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``, in evaluation mode.
      params: a pytree of arrays.
      masks: boolean leaves shaped like ``params``.
      input_shape: as in `synflow`.
      prunable: as in `prune`.
      rules: as in `flow`.

    Returns:
      A `Connectivity`, whose ``str`` is one line of text.

    Raises:
      ValueError: if ``masks`` does not mirror ``params``, no leaf is prunable, or the
        network has no flow (`flow`).

    Example:
      >>> import numpy as np
      >>> params = {"body/kernel": np.ones((1, 3)), "shortcut/kernel": np.ones((1, 3))}
      >>> def apply_fn(params, x):
      ...     return x @ params["body/kernel"] + x @ params["shortcut/kernel"]
      >>> masks = {"body/kernel": np.array([[True, False, True]])}
      >>> masks["shortcut/kernel"] = np.zeros((1, 3), bool)
      >>> print(connectivity(apply_fn, params, masks, (1,)))
      connected: 2 weights kept, 2 of them on a path; starved: shortcut/kernel
    """
    is_prunable = prunable_leaves(params, prunable)
    masked = apply_masks(jax.tree.map(jnp.asarray, params), masks)
    rules = checked_rules(rules)
    flow = log_flow(apply_fn, masked, input_shape, rules=rules)
    live = effective_masks(
        apply_fn, params, masks, input_shape, prunable=prunable, rules=rules
    )
    kept, effective = (
        [row for row, yes in zip(summarize(params, m), is_prunable) if yes]
        for m in (masks, live)
    )
    connected = is_connected(apply_fn, masked, input_shape, rules)
    return Connectivity(
        connected=connected,
        log_flow=float(flow),
        kept=sum(row.kept for row in kept),
        effective=sum(row.kept for row in effective),
        empty=collapsed(params, masks, prunable=prunable),
        starved=[r.name for r in effective if connected and r.size and not r.kept],
    )


def largest_compression(
    apply_fn: Callable[..., PyTree],
    params: Params,
    input_shape: PyTree,
    *,
    prunable: Prunable = is_kernel,
    rules: Rules = flow_rules,
) -> float:
    """The compression above which no masks leave a network connected.

    It is ``log10(N / n)``, where N is the number of prunable weights and n the smallest
    number of them that forms a path. For a chain of L layers ``N / n`` is the paper's
    N / L; with shortcuts it is larger.

    Args:
      apply_fn, params, input_shape, prunable, rules: as in `fewest_weights`. The limits
        stated there apply here too.

    Returns:
      A compression: log10 of one over the density. Infinite if a path contains no prunable
      weight.

    Raises:
      ValueError: as `fewest_weights` does.

    Example:
      >>> import numpy as np
      >>> params = {"a": {"kernel": np.ones((4, 5))}, "b": {"kernel": np.ones((5, 36))}}
      >>> def chain(params, x):
      ...     return x @ params["a"]["kernel"] @ params["b"]["kernel"]
      >>> largest_compression(chain, params, (4,))
      2.0

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), section 3, maximal compression.
    """
    fewest = fewest_weights(apply_fn, params, input_shape, prunable=prunable, rules=rules)
    return _compression(params, prunable_leaves(params, prunable), fewest)


def critical_compression(
    score_fn: ScoreFn,
    apply_fn: Callable[..., PyTree],
    params: Params,
    input_shape: PyTree,
    *,
    rounds: int = 100,
    schedule: Schedule = exponential,
    scope: Scope = "global",
    prunable: Prunable = is_kernel,
    regrow: bool = False,
    rules: Rules = flow_rules,
) -> float:
    """The largest compression at which a criterion leaves a network connected.

    Found by bisection on the integer number of weights, so it takes about log2(N) runs of
    `prune`, which is compiled once. Bisection assumes that a network which is connected
    with k weights is also connected with more. That is true of criteria whose ranking of
    the weights does not change, in one round or in many (`magnitude`, `random`); for
    others, such as SynFlow in rounds, it is not a theorem. In any case the network is
    connected at the compression that is returned, and is not if one weight less is
    requested.

    Args:
      score_fn: the criterion.
      apply_fn: ``apply_fn(params, x) -> y``, in evaluation mode.
      params: a pytree of arrays.
      input_shape: as in `synflow`.
      rounds, schedule, scope, prunable, regrow: as in `prune`.
      rules: as in `flow`; they do not change those of ``score_fn``.

    Returns:
      A compression: log10 of one over the density. The paper's axiom of maximal critical
      compression says that it should be `largest_compression`. Infinite if a path contains
      no prunable weight.

    Raises:
      ValueError: if the network is not connected before it is pruned, or as `prune` does.
      FloatingPointError: if a score is NaN or infinite.

    Example:
      >>> import numpy as np
      >>> from synflow_jax.criteria import magnitude
      >>> params = [{"kernel": np.full((1, 4), 9.0)}, {"kernel": np.ones((4, 24))}]
      >>> def chain(params, x):
      ...     return x @ params[0]["kernel"] @ params[1]["kernel"]
      >>> critical = critical_compression(magnitude(), chain, params, (1,), rounds=1)
      >>> round(100 / 10**critical)  # all 4 of the first layer, and 1 of the second
      5

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), section 3, critical compression.
    """
    is_prunable = prunable_leaves(params, prunable)
    params = jax.tree.map(jnp.asarray, params)
    if not is_connected(apply_fn, params, input_shape, rules):
        raise ValueError(NO_PATH)
    if is_connected(apply_fn, _without(params, is_prunable), input_shape, rules):
        return math.inf
    size = _num_prunable(params, is_prunable)
    low, high, kept = 0, size, size
    while high - low > 1:
        # Their geometric mean, since the answer may be a few weights out of millions.
        k = max(low + 1, math.isqrt(low * high))
        masks, info = prune(
            score_fn,
            params,
            k / size,
            rounds=rounds,
            schedule=schedule,
            scope=scope,
            prunable=prunable,
            regrow=regrow,
            keep_connected=False,
        )
        if is_connected(apply_fn, apply_masks(params, masks), input_shape, rules):
            high, kept = k, int(info.kept[-1])
        else:
            low = k
    return _compression(params, is_prunable, kept)


def _compression(params: Params, is_prunable: Sequence[bool], kept: int) -> float:
    size = _num_prunable(params, is_prunable)
    return math.log10(size / kept) if kept else math.inf


def _num_prunable(params: Params, is_prunable: Sequence[bool]) -> int:
    return sum(leaf.size for leaf, yes in zip(jax.tree.leaves(params), is_prunable) if yes)


def _without(params: Params, is_prunable: Sequence[bool]) -> Params:
    """The parameters with zeros in the prunable leaves."""
    leaves, treedef = jax.tree.flatten(params)
    leaves = [jnp.zeros_like(x) if yes else x for x, yes in zip(leaves, is_prunable)]
    return jax.tree.unflatten(treedef, leaves)

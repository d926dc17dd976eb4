"""Where a network stops being connected: what must be kept, and what a criterion keeps.

A network is connected if a path of weights that are not zero leads from its input to its
output, which is R > 0. In a chain of layers that takes a weight in every layer. A shortcut
takes the place of layers, and a weight in every layer need not make a path; so it is paths
that are looked for here, and layers are only named.

Nothing is computed with sizes, which could be lost beside others. Each value of the network
is a row of zeros and ones: whether a path of no weights reaches it, of one or fewer, of two
or fewer, and so on. Where a weight is met the row moves on by one.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from synflow_jax import scaled
from synflow_jax.analysis import collapsed, effective_masks, summarize
from synflow_jax.equations import Flowing, Plain, plain_or_flow
from synflow_jax.flow import ones, total_flow
from synflow_jax.interpreter import Settings, interpret
from synflow_jax.masks import apply_masks
from synflow_jax.pruning import prune
from synflow_jax.rounds import Scope
from synflow_jax.scaled import Scaled
from synflow_jax.schedules import Schedule, exponential
from synflow_jax.trees import (
    Masks,
    Params,
    Prunable,
    ScoreFn,
    cast_floating,
    is_kernel,
    prunable_leaves,
    scoring_dtype,
    widened,
)


class Connectivity(NamedTuple):
    """What masks leave of a network, as `connectivity` reports it.

    Attributes:
      connected: whether a path of kept weights leads from input to output.
      log_flow: natural logarithm of R; minus infinity if not connected, or if what is left
        is lost in one array beside entries 2**100 times larger.
      kept: prunable weights kept.
      effective: those of them that lie on a path from input to output.
      empty: names of the prunable leaves of which nothing is kept.
      starved: names of the prunable leaves, empty or not, that no path runs through while
        others connect the network. None if it is not connected.
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
) -> Connectivity:
    """Whether masks leave a network connected, and what they cut off.

    The paper calls it layer-collapse when a layer is empty. In a network with shortcuts an
    empty layer may leave the network whole: SynFlow starves the shortcuts of residual
    networks, since their branches carry nearly all of the flow. And a network may be cut
    without an empty layer.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``, in evaluation mode.
      params: a pytree of arrays.
      masks: boolean leaves shaped like ``params``.
      input_shape: as in `synflow`.
      prunable: as in `prune`.

    Returns:
      A `Connectivity`, whose ``str`` is a line of text.

    Raises:
      ValueError: if ``masks`` does not mirror ``params``, no leaf is prunable, or the
        network has no flow (`flow`).

    Example:
      >>> params = {"body/kernel": np.ones((1, 3)), "shortcut/kernel": np.ones((1, 3))}
      >>> def apply_fn(params, x):
      ...     return x @ params["body/kernel"] + x @ params["shortcut/kernel"]
      >>> masks = {"body/kernel": np.array([[True, False, True]])}
      >>> masks["shortcut/kernel"] = np.zeros((1, 3), bool)
      >>> print(connectivity(apply_fn, params, masks, (1,)))
      connected: 2 weights kept, 2 of them on a path; starved: shortcut/kernel
    """
    chosen = prunable_leaves(params, prunable)
    masked = apply_masks(jax.tree.map(jnp.asarray, params), masks)
    flow = _log_flow(apply_fn, masked, ones(input_shape))
    live = effective_masks(apply_fn, params, masks, input_shape, prunable=prunable)
    kept, effective = (
        [row for row, yes in zip(summarize(params, m), chosen) if yes]
        for m in (masks, live)
    )
    connected = _is_connected(apply_fn, masked, input_shape)
    return Connectivity(
        connected=connected,
        log_flow=float(flow),
        kept=sum(row.kept for row in kept),
        effective=sum(row.kept for row in effective),
        empty=collapsed(params, masks, prunable=prunable),
        starved=[r.name for r in effective if connected and r.size and not r.kept],
    )


def fewest_weights(
    apply_fn: Callable[..., PyTree],
    params: Params,
    input_shape: PyTree,
    *,
    prunable: Prunable = is_kernel,
) -> int:
    """The smallest number of prunable weights that keeps a network connected.

    It is the number of weights on the shortest path from input to output: the number of
    layers for a chain, and less with shortcuts. Paths follow the weights that are not zero,
    so masked parameters may be asked about too; of other parameters a zero lets nothing
    through, a norm's scale included.

    Exact where a path is a chain of different weights, used as they are. Where two flows
    are multiplied (gates, attention) both must be alive, but only the larger of their
    numbers counts: more weights may be needed. A weight that a path meets several times
    (recurrence, tied layers) counts each time: fewer may do. What is computed from weights
    before it is used, such as a standardised kernel, counts as a weight.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``, in evaluation mode.
      params: a pytree of arrays. To ask about the architecture whatever the weights,
        replace kernels that are zero by ones.
      input_shape: as in `synflow`.
      prunable: as in `prune`; parameters that it refuses are not counted.

    Returns:
      A whole number; 0 if a path meets no prunable weight.

    Raises:
      ValueError: if no path leads from input to output, no leaf is prunable, or the network
        has no flow (`flow`).

    Example:
      >>> params = {"a": {"kernel": np.ones((2, 2))}, "b": {"kernel": np.ones((2, 2))}}
      >>> def chain(params, x):
      ...     return x @ params["a"]["kernel"] @ params["b"]["kernel"]
      >>> fewest_weights(chain, params, (2,))
      2
      >>> def residual(params, x):
      ...     return chain(params, x) + x
      >>> fewest_weights(residual, params, (2,))
      0
    """
    chosen = tuple(prunable_leaves(params, prunable))
    drawn, inputs = _drawn(params, chosen), ones(input_shape)
    levels = 16  # enough for most networks with shortcuts, and chains of fewer layers
    while True:
        reached = np.asarray(_reached(apply_fn, levels, chosen, drawn, inputs))
        if not reached.any():
            raise ValueError(_CUT)
        fewest = int(np.argmax(reached))
        if fewest < levels:
            return fewest
        levels *= 2


def largest_compression(
    apply_fn: Callable[..., PyTree],
    params: Params,
    input_shape: PyTree,
    *,
    prunable: Prunable = is_kernel,
) -> float:
    """The compression beyond which no pruning leaves a network connected.

    ``log10(N / n)``, of N prunable weights and the fewest n that keep a path. For a chain
    of L layers that is the paper's N / L; shortcuts allow more.

    Args:
      apply_fn, params, input_shape, prunable: as in `fewest_weights`, whose limits hold.

    Returns:
      A compression: log10 of one over the density. Infinite if a path meets no prunable
      weight.

    Raises:
      ValueError: as `fewest_weights` does.

    Example:
      >>> params = {"a": {"kernel": np.ones((4, 5))}, "b": {"kernel": np.ones((5, 36))}}
      >>> def chain(params, x):
      ...     return x @ params["a"]["kernel"] @ params["b"]["kernel"]
      >>> largest_compression(chain, params, (4,))
      2.0

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), section 3, the maximal compression.
    """
    fewest = fewest_weights(apply_fn, params, input_shape, prunable=prunable)
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
) -> float:
    """The largest compression at which a criterion leaves a network connected.

    Found by bisection on whole numbers of weights, so it takes about log2(N) runs of
    `prune`, which is compiled once. Bisection takes for granted that a network which is
    connected with k weights is so with more. That is true of criteria whose order of the
    weights does not change, in one round or in many (`magnitude`, `random`); of others,
    such as SynFlow in rounds, it is not a theorem. Whatever they do, at the compression
    returned the network is connected, and with one weight less asked for it is not.

    Args:
      score_fn: the criterion.
      apply_fn: ``apply_fn(params, x) -> y``, in evaluation mode.
      params: a pytree of arrays.
      input_shape: as in `synflow`.
      rounds, schedule, scope, prunable, regrow: as in `prune`.

    Returns:
      A compression: log10 of one over the density. The paper's axiom of maximal critical
      compression says that it should be `largest_compression`. Infinite if a path meets no
      prunable weight.

    Raises:
      ValueError: if the network is not connected before it is pruned, or as `prune` does.
      FloatingPointError: if a score is NaN or infinite.

    Example:
      >>> from synflow_jax.scores import magnitude
      >>> params = [{"kernel": np.full((1, 4), 9.0)}, {"kernel": np.ones((4, 24))}]
      >>> def chain(params, x):
      ...     return x @ params[0]["kernel"] @ params[1]["kernel"]
      >>> critical = critical_compression(magnitude(), chain, params, (1,), rounds=1)
      >>> round(100 / 10**critical)  # all 4 of the first layer, and 1 of the second
      5

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), section 3, critical compression.
    """
    chosen = prunable_leaves(params, prunable)
    params = jax.tree.map(jnp.asarray, params)
    if not _is_connected(apply_fn, params, input_shape):
        raise ValueError(_CUT)
    if _is_connected(apply_fn, _without(params, chosen), input_shape):
        return math.inf
    size = _size(params, chosen)
    low, high, kept = 0, size, size
    while high - low > 1:
        # Half-way in compression: what is sought may be a handful out of millions.
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
        )
        if _is_connected(apply_fn, apply_masks(params, masks), input_shape):
            high, kept = k, int(info.kept[-1])
        else:
            low = k
    return _compression(params, chosen, kept)


_CUT = (
    "no path leads from the input to the output, before anything is pruned: parameters "
    "that are zero let nothing through. `unreached` names what lies behind them."
)


def _compression(params: Params, chosen: Sequence[bool], kept: int) -> float:
    size = _size(params, chosen)
    return math.log10(size / kept) if kept else math.inf


def _size(params: Params, chosen: Sequence[bool]) -> int:
    return sum(leaf.size for leaf, yes in zip(jax.tree.leaves(params), chosen) if yes)


def _without(params: Params, chosen: Sequence[bool]) -> Params:
    leaves, treedef = jax.tree.flatten(params)
    leaves = [jnp.zeros_like(x) if yes else x for x, yes in zip(leaves, chosen)]
    return jax.tree.unflatten(treedef, leaves)


@functools.partial(jax.jit, static_argnums=0)
def _log_flow(
    apply_fn: Callable[..., PyTree], params: Params, inputs: PyTree
) -> Float[Array, ""]:
    return scaled.log(total_flow(apply_fn, params, inputs))


def _is_connected(
    apply_fn: Callable[..., PyTree], params: Params, input_shape: PyTree
) -> bool:
    none = (False,) * len(jax.tree.leaves(params))
    return bool(_reached(apply_fn, 0, none, params, ones(input_shape))[0])


# --- what is reached through how many weights ---------------------------------------------

# What a weight passes on, beside 1 for other parameters. One sum then tells what arrives
# through weights from what arrives without: however many arrive, their sizes are far apart.
# Between them lies the error of convolutions by transforms, where there should be 0.
_THROUGH_A_WEIGHT = 2.0**-60

# In two draws, one of millions of kernel entries that are computed (standardised, say) may
# be the same by chance. In three it is not.
_DRAWS = 3


def _drawn(params: Params, chosen: Sequence[bool]) -> PyTree:
    """The parameters with other values beside those of the chosen leaves, along a leading
    axis of these: of the other sign, and zero where they are."""
    rng = np.random.default_rng(0)

    def draws(leaf):
        factors = -1 - rng.random((_DRAWS - 1, *leaf.shape), np.float32)
        return jnp.concatenate([leaf[None], leaf[None] * jnp.asarray(factors, leaf.dtype)])

    leaves, treedef = jax.tree.flatten(widened(params))
    leaves = [draws(leaf) if yes else leaf for leaf, yes in zip(leaves, chosen)]
    return jax.tree.unflatten(treedef, leaves)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _reached(
    apply_fn: Callable[..., PyTree],
    levels: int,
    drawn: Sequence[bool],
    params: PyTree,
    inputs: PyTree,
) -> Bool[Array, " numbers"]:
    """Whether the output is reached through so many weights or fewer.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      levels: the numbers of weights that are told apart.
      drawn: which leaves have draws along a leading axis. What differs between the draws is
        a weight, or is made of weights.
      params: the parameters, with the draws of those leaves.
      inputs: what ``apply_fn`` takes as ``x``.

    Returns:
      A truth value for no weight, for one or fewer, and so on up to ``levels - 1``; the
      last, at ``levels``, is for any number.
    """
    leaves, treedef = jax.tree.flatten(widened(params))
    dtype = jnp.dtype(scoring_dtype(*leaves))
    inputs = cast_floating(inputs, dtype)

    def size(parameter: Plain) -> Array:
        draws = lax.all_gather(jnp.asarray(parameter), "draws")
        differ = jnp.any(draws != draws[:1], axis=0)
        passed_on = jnp.where(differ, _THROUGH_A_WEIGHT, 1.0)
        return jnp.where(jnp.abs(draws[0]) > 0, passed_on, 0.0).astype(dtype)

    def finished(value: Flowing) -> Flowing:
        mantissa, exponent = plain_or_flow(value)
        amount = jnp.abs(mantissa * jnp.exp2(exponent.astype(dtype)))
        through = (amount > _THROUGH_A_WEIGHT / 2) & (amount < _THROUGH_A_WEIGHT**0.5)
        # Each number hands on to the next, and the last to itself: it is any number.
        number = lax.axis_index("numbers")
        before = jnp.where(number < levels, number - 1, number)
        through = lax.all_gather(through, "numbers")[before] & (before >= 0)
        flow = Scaled((through | (amount > 0.25)).astype(dtype), jnp.zeros_like(exponent))
        return flow if isinstance(value, Scaled) else value._replace(flow=flow)

    settings = Settings(dtype, size=size, finished=finished)

    def output_reached(*leaves):
        params = jax.tree.unflatten(treedef, leaves)
        outs = interpret(apply_fn, params, (inputs,), settings)
        outs = jax.tree.leaves(outs, is_leaf=lambda x: isinstance(x, Scaled))
        flows = [jnp.any(out.mantissa) for out in outs if isinstance(out, Scaled)]
        return jnp.any(jnp.array(flows, bool))

    each = [None] * len(leaves)
    output_reached = jax.vmap(
        output_reached, each, axis_name="numbers", axis_size=levels + 1
    )
    each = [0 if yes else None for yes in drawn]
    output_reached = jax.vmap(output_reached, each, axis_name="draws", axis_size=_DRAWS)
    return output_reached(*leaves)[0]

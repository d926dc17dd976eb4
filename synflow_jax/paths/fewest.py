"""The shortest path from input to output, counted in weights.

The search uses no magnitudes, since a small one could be lost next to a large one. Each
value of the network becomes a row of booleans: whether a path of no weight reaches it, a
path of at most one, of at most two, and so on. A weight shifts the row by one place.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, PyTree

from synflow_jax.precision import cast_floating, scoring_dtype, widened
from synflow_jax.transform.interpreter import Settings, interpret
from synflow_jax.transform.network_flow import ones
from synflow_jax.transform.scaled import Scaled
from synflow_jax.transform.values import Flowing, Plain, plain_or_flow
from synflow_jax.trees import Params, Prunable, is_kernel, prunable_leaves


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
            raise ValueError(NO_PATH)
        fewest = int(np.argmax(reached))
        if fewest < levels:
            return fewest
        levels *= 2


NO_PATH = (
    "no path leads from the input to the output, before anything is pruned: parameters "
    "that are zero let nothing through. `unreached` names what lies behind them."
)


def is_connected(
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

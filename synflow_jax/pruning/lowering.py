"""The program of a pruning run, without running it: for arrays that are not there."""

from typing import Any

import jax
from jaxtyping import PyTree

from synflow_jax.pruning.criterion import data_of
from synflow_jax.pruning.loop import prepared
from synflow_jax.pruning.progress import all_rounds
from synflow_jax.trees import Params, ScoreFn
from synflow_jax.xla.backends import Backend, backend_of


def lower_prune(
    score_fn: ScoreFn,
    params: Params,
    density: float,
    *,
    platform: str | None = None,
    **options: Any,
) -> jax.stages.Lowered:
    """The program that `prune` would run, for parameters of which only shapes are known.

    With it one sees how much memory a run takes on each device, and what devices exchange,
    before there are weights or even devices: JAX compiles for TPUs that
    `jax.experimental.topologies` describes. To run a program elsewhere, export a function
    that calls `prune`, by `jax.export`.

    Args:
      score_fn: as in `prune`. The data of `snip` and others may be
        `jax.ShapeDtypeStruct` too.
      params: a pytree of `jax.ShapeDtypeStruct`, or of arrays. Their shardings say on which
        devices the program runs; without, it is the default device.
      density: as in `prune`.
      platform: ``"cpu"``, ``"cuda"``, ``"rocm"`` or ``"tpu"``: lowers for this kind of
        device, which need not be there. Default: that of the shardings.
      options: as in `prune`, other than ``on_round``; ``masks`` are arrays.

    Returns:
      A `jax.stages.Lowered`: ``as_text()`` is the program. Its ``compile()``, for devices
      that are there or described, has ``memory_analysis()``, ``cost_analysis()`` and the
      compiled program's ``as_text()``.

    Raises:
      ValueError: as `prune` does, for what shapes can show.

    Example:
      >>> import jax.numpy as jnp
      >>> from synflow_jax.criteria import synflow
      >>> score = synflow(lambda params, x: x @ params["kernel"], input_shape=(20,))
      >>> params = {"kernel": jax.ShapeDtypeStruct((20, 10), jnp.float32)}
      >>> lowered = lower_prune(score, params, 0.1, rounds=3)
      >>> lowered.compile().memory_analysis().output_size_in_bytes < 1000
      True
      >>> "stablehlo" in lower_prune(score, params, 0.1, platform="cuda").as_text()
      True
    """
    masks = options.get("masks")
    rounds = prepared(score_fn, params, density, **options)
    placed = params, data_of(score_fn)
    backend = backend_of(*placed)
    if backend is None:
        raise ValueError("`lower_prune` is not to be called inside of a jitted function.")
    if platform is not None:
        backend = Backend(platform == "cpu", backend.one_device)
    params, masks = _shapes((params, masks))
    method, constants = rounds.method_on(backend, params)
    static = method, rounds.plan, rounds.limit, rounds.keep_connected
    operands = _shapes(constants), params, rounds.targets, masks
    traced = all_rounds.trace(*static, *operands)
    platforms = None if platform is None else (platform,)
    return traced.lower(lowering_platforms=platforms)


def _shapes(tree: PyTree) -> PyTree:
    """The shapes and dtypes of arrays, with the shardings of those that are committed."""

    def shape(x):
        sharding = x.sharding if getattr(x, "committed", False) else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    def is_shape(x):
        return isinstance(x, jax.ShapeDtypeStruct)

    return jax.tree.map(lambda x: x if is_shape(x) else shape(x), tree)

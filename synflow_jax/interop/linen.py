"""Flax linen modules as ``(apply_fn, params)``, and back."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import PyTree

from synflow_jax.trees import Params, check_like


def from_linen(
    module: Any, variables: Mapping[str, Any], **kwargs: Any
) -> tuple[Callable[..., PyTree], Params]:
    """Converts a Flax linen module and its variables to ``(apply_fn, params)``.

    All other variables, such as batch statistics, are held fixed. Make a new pair when they
    have changed.

    Args:
      module: a ``flax.linen.Module``.
      variables: the result of ``module.init``; ``variables["params"]`` becomes ``params``.
      kwargs: passed to every call of the module, such as ``train=False``.

    Returns:
      ``apply_fn(params, *args) -> y``, pure, and the parameters.

    Raises:
      ValueError: if ``variables`` has no ``"params"``.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> dense = nn.Dense(3)
      >>> variables = dense.init(jax.random.key(0), jnp.ones((1, 2)))
      >>> apply_fn, params = from_linen(dense, variables)
      >>> apply_fn(params, jnp.ones((5, 2))).shape
      (5, 3)
    """
    _check_variables(variables)
    rest = {name: value for name, value in variables.items() if name != "params"}

    def apply_fn(params: Params, *args: Any) -> PyTree:
        return module.apply({"params": params, **rest}, *args, **kwargs)

    return apply_fn, variables["params"]


def to_linen(variables: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """The inverse of `from_linen`: returns the variables with other parameters.

    Args:
      variables: the result of ``module.init``; not changed.
      params: parameters shaped like ``variables["params"]``, such as pruned ones.

    Returns:
      A dict to pass to ``module.apply``.

    Raises:
      ValueError: if ``variables`` has no ``"params"``, or if ``params`` differs from them
        in structure or shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> variables = {"params": {"scale": jnp.ones(2)}, "batch_stats": {"mean": 0.0}}
      >>> to_linen(variables, {"scale": jnp.zeros(2)})
      {'params': {'scale': Array([0., 0.], dtype=float32)}, 'batch_stats': {'mean': 0.0}}
    """
    _check_variables(variables)
    check_like(params, variables["params"], name="params")
    return {**variables, "params": params}


def _check_variables(variables: Mapping[str, Any]) -> None:
    if "params" not in variables:
        raise ValueError(
            "`variables` must be the result of module.init, which has a key 'params'; its "
            f"keys are {sorted(variables)}."
        )

"""Flax linen modules as ``(apply_fn, params)``, and back."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import PyTree

from synflow_jax.trees import Params, check_like


def from_linen(
    module: Any, variables: Mapping[str, Any], **kwargs: Any
) -> tuple[Callable[..., PyTree], Params]:
    """A Flax linen module and its variables as ``(apply_fn, params)``.

    Everything but the parameters (batch statistics, ...) is held fixed, so make the pair
    again when it has changed.

    Args:
      module: the module.
      variables: what ``module.init`` returned; ``variables["params"]`` becomes ``params``.
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
    """The way back from `from_linen`: the variables with other parameters.

    Args:
      variables: what ``module.init`` returned; left as they are.
      params: parameters shaped like ``variables["params"]``, such as pruned ones.

    Returns:
      A dict for ``module.apply``.

    Raises:
      ValueError: if ``variables`` has no ``"params"``, or ``params`` is not shaped like
        them.

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
            "`variables` must be what module.init returned, with the key 'params'; its "
            f"keys are {sorted(variables)}."
        )

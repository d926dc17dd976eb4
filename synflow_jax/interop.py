"""From the modules of JAX libraries to the plain pair (apply_fn, params)."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import PyTree

from synflow_jax.trees import Params


def from_linen(
    module: nn.Module, variables: Mapping[str, Any], **kwargs: Any
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
      >>> import jax, jax.numpy as jnp
      >>> dense = nn.Dense(3)
      >>> variables = dense.init(jax.random.key(0), jnp.ones((1, 2)))
      >>> apply_fn, params = from_linen(dense, variables)
      >>> apply_fn(params, jnp.ones((5, 2))).shape
      (5, 3)
    """
    if "params" not in variables:
        raise ValueError(
            "`variables` must be what module.init returned, with the key 'params'; its "
            f"keys are {sorted(variables)}."
        )
    rest = {name: value for name, value in variables.items() if name != "params"}

    def apply_fn(params: Params, *args: Any) -> PyTree:
        return module.apply({"params": params, **rest}, *args, **kwargs)

    return apply_fn, variables["params"]

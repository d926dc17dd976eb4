"""Flax NNX modules as ``(apply_fn, params)``, and back."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from synflow_jax.trees import Params, check_like


def from_nnx(module: Any, **kwargs: Any) -> tuple[Callable[..., PyTree], Params]:
    """Converts a Flax NNX module to ``(apply_fn, params)``, in evaluation mode.

    The pair is made from a copy on which ``module.eval()`` was called, so dropout is off
    and batch normalisation uses its running averages; the module itself is not changed.
    All other variables, such as batch statistics and random state, are held fixed at their
    present values. Make a new pair when they have changed.

    Args:
      module: an ``nnx.Module`` that takes a batch.
      kwargs: passed to every call of the module.

    Returns:
      ``apply_fn(params, *args) -> y``, pure, and the values of all ``nnx.Param`` as nested
      dicts whose keys are the attributes' names. A parameter that several layers share is
      one leaf, under the first of its names, so pruning it prunes all of these layers.

    Raises:
      ValueError: if ``module`` is not an ``nnx.Module``.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> apply_fn, params = from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> apply_fn(params, jnp.ones((5, 2))).shape
      (5, 3)
      >>> {name: leaf.shape for name, leaf in params.items()}
      {'bias': (3,), 'kernel': (2, 3)}
    """
    nnx = _nnx()
    graphdef, params, rest = _split_nnx(module)
    copy = nnx.merge(graphdef, params, rest, copy=True)
    copy.eval()
    graphdef, params, rest = _split_nnx(copy)

    def apply_fn(values: Params, *args: Any) -> PyTree:
        # Without the copy, a module that writes to its variables would change `rest`.
        model = nnx.merge(graphdef, _with_values(params, values), rest, copy=True)
        return model(*args, **kwargs)

    return apply_fn, nnx.to_pure_dict(params)


def to_nnx(module: Any, params: Params) -> Any:
    """The inverse of `from_nnx`: returns a copy of the module with other parameters.

    ``nnx.Optimizer`` needs masks with the structure of the module's state:
    ``static_pruning(optimizer, nnx.state(to_nnx(module, masks), nnx.Param))``.

    Args:
      module: an ``nnx.Module``; not changed.
      params: leaves shaped like the parameters that `from_nnx` returned.

    Returns:
      A new module, in the mode (training, evaluation) of the given one.

    Raises:
      ValueError: if ``module`` is not an ``nnx.Module``, or if ``params`` differs from its
        parameters in structure or shapes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> apply_fn, params = from_nnx(module)
      >>> zero = to_nnx(module, jax.tree.map(jnp.zeros_like, params))
      >>> float(zero(jnp.ones((1, 2))).sum()), float(jnp.abs(module.kernel[...]).sum()) > 0
      (0.0, True)
    """
    nnx = _nnx()
    graphdef, old, rest = _split_nnx(module)
    check_like(params, nnx.to_pure_dict(old), name="params")
    return nnx.merge(graphdef, _with_values(old, params), rest, copy=True)


def _split_nnx(module: Any) -> tuple[Any, Any, Any]:
    nnx = _nnx()
    if not isinstance(module, nnx.Module):
        raise ValueError(f"`module` must be an nnx.Module; got {type(module).__name__}.")
    return nnx.split(module, nnx.Param, ...)


def _with_values(state: Any, values: Params) -> Any:
    """A copy of an NNX state whose values are those of a dict of plain arrays."""
    state = jax.tree.map(lambda leaf: leaf, state)
    _nnx().replace_by_pure_dict(state, values)
    return state


def _nnx() -> Any:
    from flax import nnx  # takes half a second to import, and linen does not need it

    return nnx

"""From the modules of JAX libraries to the plain pair (apply_fn, params), and back.

Everything else in this package is written for functions of a pytree of arrays, so a library
whose models are such functions needs no adapter. Haiku's, for one:

Example:
  >>> import jax, jax.numpy as jnp
  >>> import synflow_jax as sj
  >>> def apply(params, rng, x):  # what hk.transform(forward).apply looks like
  ...     return x @ params["linear"]["w"]
  >>> params = {"linear": {"w": jnp.ones((4, 3))}}
  >>> score = sj.synflow(lambda params, x: apply(params, None, x), input_shape=(4,))
  >>> is_w = lambda path, leaf: path.endswith("/w")  # Haiku's name for a kernel
  >>> masks, info = sj.prune(score, params, 0.5, prunable=is_w)
  >>> int(masks["linear"]["w"].sum())
  6
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import PyTree

from synflow_jax.trees import Params, check_like

# --- Flax linen ---------------------------------------------------------------------------


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


# --- Flax NNX -----------------------------------------------------------------------------


def from_nnx(module: Any, **kwargs: Any) -> tuple[Callable[..., PyTree], Params]:
    """A Flax NNX module as ``(apply_fn, params)``, in evaluation mode.

    The pair is made from a copy on which ``module.eval()`` was called, so dropout is off
    and batch normalisation uses its running averages; the module itself is left as it is.
    Everything but the parameters (batch statistics, random state, ...) is held fixed at its
    present value, so make the pair again when it has changed.

    Args:
      module: an ``nnx.Module`` that takes a batch.
      kwargs: passed to every call of the module.

    Returns:
      ``apply_fn(params, *args) -> y``, pure, and the values of all ``nnx.Param`` as nested
      dicts, named by attribute. A parameter that several layers share is one leaf, under
      the first of its names: what it loses it loses in all of them.

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
        # Without the copy a module that writes to its variables would write to ours.
        model = nnx.merge(graphdef, _with_values(params, values), rest, copy=True)
        return model(*args, **kwargs)

    return apply_fn, nnx.to_pure_dict(params)


def to_nnx(module: Any, params: Params) -> Any:
    """The way back from `from_nnx`: a copy of the module with other parameters.

    ``nnx.Optimizer`` takes masks in the form of the module's own state:
    ``freeze_pruned(nnx.state(to_nnx(module, masks), nnx.Param))``.

    Args:
      module: an ``nnx.Module``; left as it is.
      params: leaves shaped like the parameters that `from_nnx` returned.

    Returns:
      A new module, in the mode (training, evaluation) of the given one.

    Raises:
      ValueError: if ``module`` is not an ``nnx.Module``, or ``params`` is not shaped like
        its parameters.

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
    """A copy of an NNX state with the values of a pure dict."""
    state = jax.tree.map(lambda leaf: leaf, state)
    _nnx().replace_by_pure_dict(state, values)
    return state


def _nnx() -> Any:
    from flax import nnx  # half a second, and linen does without

    return nnx


# --- Equinox ------------------------------------------------------------------------------


def from_equinox(
    module: Any, *, state: Any = None, **kwargs: Any
) -> tuple[Callable[..., PyTree], Params]:
    """An Equinox module as ``(apply_fn, params)``, in inference mode.

    Equinox modules take one example; ``apply_fn`` takes a batch, by `jax.vmap`. The pair is
    made from ``eqx.nn.inference_mode(module)``, so dropout is off (and needs no key) and
    batch normalisation uses its running averages.

    Args:
      module: an ``eqx.Module`` that can be called on one example. It is left as it is.
      state: for a module with state, such as batch normalisation, its ``eqx.nn.State``
        (``eqx.nn.make_with_state`` returns both). The module is then called as
        ``module(*args, state, **kwargs)`` and returns ``(y, state)``. Held fixed.
      kwargs: passed to every call of the module, the same for all examples.

    Returns:
      ``apply_fn(params, *args) -> y``, pure, each of ``args`` with a leading batch axis;
      and the parameters: the module with everything but its floating arrays replaced by
      None, as of ``eqx.filter(module, eqx.is_inexact_array)``. So masks and scores are
      modules as well, and fit the gradients of ``eqx.filter_grad``. Leaves that
      ``eqx.nn.Shared`` ties are one leaf.

      The default of ``prunable``, `is_kernel`, takes every array named ``weight`` of two or
      more dimensions: also that of ``eqx.nn.Embedding``, and of ``eqx.nn.LayerNorm`` over
      several axes. It does not take ``weight_ih`` and ``weight_hh`` of recurrent cells. Say
      otherwise by name: ``prunable=lambda path, leaf: is_kernel(path, leaf) and not
      path.startswith("embedding")``.

    Raises:
      ImportError: if Equinox is not installed.
      ValueError: if ``module`` is not an ``eqx.Module``, or has state and none is given.

    Example:
      >>> import equinox as eqx, jax, jax.numpy as jnp
      >>> apply_fn, params = from_equinox(eqx.nn.Linear(2, 3, key=jax.random.key(0)))
      >>> apply_fn(params, jnp.ones((5, 2))).shape
      (5, 3)
      >>> params.weight.shape
      (3, 2)
    """
    eqx = _equinox()
    _check_equinox(module)
    if state is None and _has_state(module):
        raise ValueError(
            "`module` has state (such as the running averages of batch normalisation), so "
            "`state` is needed too: module, state = eqx.nn.make_with_state(Module)(...)."
        )
    params, rest = eqx.partition(eqx.nn.inference_mode(module), eqx.is_inexact_array)

    def apply_fn(params: Params, *args: Any) -> PyTree:
        model = eqx.combine(params, rest)

        def on_one(*args):
            if state is None:
                return model(*args, **kwargs)
            # A copy: setting a value in a state makes the state itself unusable.
            return model(*args, jax.tree.map(lambda leaf: leaf, state), **kwargs)[0]

        return jax.vmap(on_one)(*args)

    return apply_fn, params


def to_equinox(module: Any, params: Params) -> Any:
    """The way back from `from_equinox`: the module with other parameters.

    Args:
      module: an ``eqx.Module``; left as it is.
      params: leaves shaped like the parameters that `from_equinox` returned.

    Returns:
      A new module, in the mode (training, inference) of the given one.

    Raises:
      ImportError: if Equinox is not installed.
      ValueError: if ``module`` is not an ``eqx.Module``, or ``params`` is not shaped like
        its parameters.

    Example:
      >>> import equinox as eqx, jax, jax.numpy as jnp
      >>> module = eqx.nn.Linear(2, 3, key=jax.random.key(0))
      >>> apply_fn, params = from_equinox(module)
      >>> zero = to_equinox(module, jax.tree.map(jnp.zeros_like, params))
      >>> float(zero(jnp.ones(2)).sum()), float(jnp.abs(module.weight).sum()) > 0
      (0.0, True)
    """
    eqx = _equinox()
    _check_equinox(module)
    old, rest = eqx.partition(module, eqx.is_inexact_array)
    check_like(params, old, name="params")
    return eqx.combine(params, rest)


def _check_equinox(module: Any) -> None:
    if not isinstance(module, _equinox().Module):
        raise ValueError(f"`module` must be an eqx.Module; got {type(module).__name__}.")


def _has_state(module: Any) -> bool:
    def is_index(leaf):
        return isinstance(leaf, _equinox().nn.StateIndex)

    return any(map(is_index, jax.tree.leaves(module, is_leaf=is_index)))


def _equinox() -> Any:
    try:
        import equinox
    except ImportError as error:
        raise ImportError(
            "Equinox is not installed. It is optional here: pip install equinox."
        ) from error
    return equinox

"""Equinox modules as ``(apply_fn, params)``, and back."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from synflow_jax.trees import Params, check_like


def from_equinox(
    module: Any, *, state: Any = None, **kwargs: Any
) -> tuple[Callable[..., PyTree], Params]:
    """Converts an Equinox module to ``(apply_fn, params)``, in inference mode.

    Equinox modules take one example; ``apply_fn`` takes a batch, through `jax.vmap`. The
    pair is made from ``eqx.nn.inference_mode(module)``, so dropout is off (and needs no
    key) and batch normalisation uses its running averages.

    Args:
      module: an ``eqx.Module`` that can be called on one example. It is not changed.
      state: the ``eqx.nn.State`` of a module that has state, such as batch normalisation
        (``eqx.nn.make_with_state`` returns both). The module is then called as
        ``module(*args, state, **kwargs)`` and returns ``(y, state)``. Every call starts
        from this state, and its updates are dropped.
      kwargs: passed to every call of the module, the same for all examples.

    Returns:
      ``apply_fn(params, *args) -> y``, pure, each of ``args`` with a leading batch axis;
      and the parameters: the module with everything but its floating arrays replaced by
      None, as ``eqx.filter(module, eqx.is_inexact_array)`` returns it. Masks and scores are
      then modules too, with the structure of the gradients that ``eqx.filter_grad``
      returns. Leaves that ``eqx.nn.Shared`` ties together are one leaf.

      The default of ``prunable``, `is_kernel`, selects every array named ``weight`` of two
      or more dimensions, including that of ``eqx.nn.Embedding``, and of
      ``eqx.nn.LayerNorm`` over several axes. It does not select ``weight_ih`` and
      ``weight_hh`` of recurrent cells. To select other leaves, test their names:
      ``prunable=lambda path, leaf: is_kernel(path, leaf) and not
      path.startswith("embedding")``.

    Raises:
      ImportError: if Equinox is not installed.
      ValueError: if ``module`` is not an ``eqx.Module``, or if it has state and ``state``
        is not given.

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
            # Pass a copy: setting a value in a state makes that state unusable.
            return model(*args, jax.tree.map(lambda leaf: leaf, state), **kwargs)[0]

        return jax.vmap(on_one)(*args)

    return apply_fn, params


def to_equinox(module: Any, params: Params) -> Any:
    """The inverse of `from_equinox`: returns the module with other parameters.

    Args:
      module: an ``eqx.Module``; not changed.
      params: leaves shaped like the parameters that `from_equinox` returned.

    Returns:
      A new module, in the mode (training, inference) of the given one.

    Raises:
      ImportError: if Equinox is not installed.
      ValueError: if ``module`` is not an ``eqx.Module``, or if ``params`` differs from
        its parameters in structure or shapes.

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
            "Equinox is an optional dependency and is not installed: pip install equinox."
        ) from error
    return equinox

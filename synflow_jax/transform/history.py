"""What a flow is a function of, entry by entry.

Each value has an immediate dominator, its parent: a value computed from one value has it as
parent, and one computed from several values of one history has their nearest common
dominator. Whatever mixes entries, or multiplies by an array, starts a new history.
"""

from collections.abc import Callable, Iterator

import jax.numpy as jnp
from jaxtyping import Array

from synflow_jax.transform.scaled import Scaled
from synflow_jax.transform.values import (
    Derived,
    Flowing,
    Plain,
    Stopped,
    known,
    plain_or_flow,
)


def derived(
    flow: Scaled,
    *operands: Flowing,
    shift: float = 0.0,
    added: Callable[[], Array] | None = None,
) -> Derived:
    """A flow that was computed entry by entry from others."""
    parent = common_dominator(*operands)
    if parent is not None and _shape(parent) != flow.mantissa.shape:
        parent = None  # broadcast: an entry then has several children
    return Derived(flow, parent, shift=shift, added=added)


def scaling(
    flow: Scaled,
    operand: Flowing,
    factor: Plain,
    invert: bool,
    *,
    shift: float = 0.0,
    added: Callable[[], Array] | None = None,
) -> Derived:
    """A flow that was multiplied, or divided, by one number."""
    result = derived(flow, operand, shift=shift, added=added)
    if result.parent is None:
        return result
    factors = () if known(factor) else ((factor, invert),)
    return Derived(flow, result.parent, factors, True, shift, added)


def common_dominator(*values: Flowing) -> Scaled | Derived | None:
    """The nearest value of which all of these are functions, entry by entry.

    Example:
      >>> y, z = Scaled(jnp.ones(2), jnp.int32(0)), Scaled(jnp.ones(2), jnp.int32(0))
      >>> half = derived(y, y)
      >>> common_dominator(derived(y, half), half) is half
      True
      >>> common_dominator(half, y) is y and common_dominator(half, z) is None
      True
    """
    first, *others = [list(_chain(value)) for value in values]
    for chain in others:
        ids = {id(value) for value in chain}
        first = [value for value in first if id(value) in ids]
    return first[0] if first else None


def outer_factors(value: Flowing, dominator: Scaled | Derived) -> list[tuple[Plain, bool]]:
    """The parameters outside of every nonlinearity on the way from the dominator.

    Those of ``g * sigmoid(b * y)`` on the way from ``y`` are ``g`` alone.
    """
    factors = []
    for node in _chain(value):
        if node is dominator or not isinstance(node, Derived):
            break
        factors += node.factors
        if not node.scales:
            break
    return factors


def shift_of(value: Flowing) -> float:
    return value.shift if isinstance(value, Derived) else 0.0


def added_to(value: Flowing) -> Callable[[], Array] | None:
    return value.added if isinstance(value, Derived) else None


def _chain(value: Flowing) -> Iterator[Scaled | Derived]:
    """The value and its dominators, nearest first."""
    node = value.of if isinstance(value, Stopped) else value
    while isinstance(node, Scaled | Derived):
        yield node
        node = node.parent if isinstance(node, Derived) else None


def _shape(value: Flowing) -> tuple[int, ...]:
    return jnp.shape(plain_or_flow(value).mantissa)

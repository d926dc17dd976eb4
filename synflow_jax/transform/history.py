"""What a flow is a function of, entry by entry.

Each value has an immediate dominator, its parent: a value computed from one value has it as
parent, and one computed from several values of one history has their nearest common
dominator. Whatever mixes entries, or multiplies by an array, starts a new history.
"""

from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
from jaxtyping import Array

from synflow_jax.transform.scaled import Scaled
from synflow_jax.transform.values import (
    Derived,
    Flowing,
    Plain,
    Stopped,
    Value,
    carries_flow,
    known,
    number_of,
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
    """A flow that was multiplied, or divided, by a number or an array."""
    result = derived(flow, operand, shift=shift, added=added)
    if result.parent is None:
        return result
    factors = () if known(factor) else ((factor, invert),)
    layer = bool(factors) and jnp.size(factor) != 1
    return Derived(flow, result.parent, factors, True, layer, shift, added)


def common_dominator(
    *values: Flowing, through_layers: bool = False
) -> Scaled | Derived | None:
    """The nearest value of which all of these are functions, entry by entry.

    With ``through_layers``, products with arrays are functions too.

    Example:
      >>> y, z = Scaled(jnp.ones(2), jnp.int32(0)), Scaled(jnp.ones(2), jnp.int32(0))
      >>> half = derived(y, y)
      >>> common_dominator(derived(y, half), half) is half
      True
      >>> common_dominator(half, y) is y and common_dominator(half, z) is None
      True
    """
    first, *others = [list(chain(value, through_layers)) for value in values]
    for nodes in others:
        ids = {id(value) for value in nodes}
        first = [value for value in first if id(value) in ids]
    return first[0] if first else None


def outer_factors(
    value: Flowing, dominator: Scaled | Derived
) -> tuple[tuple[Plain, bool], ...]:
    """The parameters outside of every nonlinearity on the way from the dominator.

    Those of ``g * sigmoid(b * y)`` on the way from ``y`` are ``g`` alone.
    """
    factors = []
    for node in chain(value):
        if node is dominator or not isinstance(node, Derived):
            break
        factors += node.factors
        if not node.scales:
            break
    return tuple(factors)


def shift_of(value: Value) -> float:
    return value.shift if isinstance(value, Derived) else 0.0


def added_to(value: Value) -> Callable[[], Array] | None:
    return value.added if isinstance(value, Derived) else None


def added_together(
    values: Sequence[Value], combine: Callable[..., Array]
) -> Callable[[], Array] | None:
    """What was added to several values that become one; to a plain value nothing was."""
    if not any(added_to(value) for value in values):
        return None

    def added():
        arrays = [value.mantissa if isinstance(value, Scaled) else value for value in flows]
        terms = [
            jnp.zeros_like(x) if term is None else term() for x, term in zip(arrays, of)
        ]
        dtype = jnp.result_type(*terms)
        return combine(*(term.astype(dtype) for term in terms))

    flows, of = [*map(plain_or_flow, values)], [*map(added_to, values)]
    return added


def common_shift(values: Sequence[Value]) -> float:
    """The number that was added to all of several values; 0 if there is no such number."""
    if not all(carries_flow(value) or known(value) for value in values):
        return 0.0
    numbers = {
        shift_of(value) if carries_flow(value) else number_of(value) for value in values
    }
    return numbers.pop() if len(numbers) == 1 else 0.0


def chain(value: Flowing, through_layers: bool = True) -> Iterator[Scaled | Derived]:
    """The value and its dominators, nearest first; up to a product with an array, or
    through it."""
    node = value.of if isinstance(value, Stopped) else value
    while isinstance(node, Scaled | Derived):
        yield node
        if not isinstance(node, Derived) or (node.layer and not through_layers):
            break
        node = node.parent


def _shape(value: Flowing) -> tuple[int, ...]:
    return jnp.shape(plain_or_flow(value).mantissa)

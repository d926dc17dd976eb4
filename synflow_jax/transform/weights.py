"""Parameters as they are stored, beside the masked values that a network reads.

All weights of a network, masked, are another copy of them. What reads a weight part by
part, such as a loop over layers, masks each part by itself instead.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import lax
from jaxtyping import Array, Bool


class Weight(NamedTuple):
    """A parameter, and which of its entries are kept; None for all."""

    stored: Array
    mask: Bool[Array, "..."] | None

    def masked(self) -> Array:
        """Zero where the mask is False."""
        if self.mask is None:
            return self.stored
        return lax.select(self.mask, self.stored, lax.full_like(self.stored, 0))


class Weights:
    """Which values of a network are weights.

    Args:
      begin: called with each value of a weight.
    """

    def __init__(self, begin: Callable[[Array], None]):
        self._begin = begin
        # By the identity of a value, which is kept so that no other value gets it.
        self._behind: dict[int, tuple[Array, Weight]] = {}

    def read(self, weight: Weight) -> Array:
        """The value of a weight, masked."""
        value = weight.masked()
        self._behind[id(value)] = value, weight
        self._begin(value)
        return value

    def behind(self, value: Any) -> Weight | None:
        """The weight that a value was read from; None if it is another value."""
        return self._behind.get(id(value), (None, None))[1]

    def again(self, value: Any) -> Any:
        """The value of a weight, read once more; any other value as it is."""
        weight = self.behind(value)
        return value if weight is None else self.read(weight)

"""Along which axes arrays without flow are equal, as functions of the parameters.

An array that meets a flow stored by classes has its own classes of positions: those of a
broadcast parameter are found from the equations that made it; those of an array that
depends on no parameter and no input, such as the counts of a pooling that excludes padding,
from its values. Arrays that vary along an axis otherwise have none there.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core
from jaxtyping import Array

from synflow_jax.transform.classes import Classes, one_class, refined, useful
from synflow_jax.transform.parameters import as_written
from synflow_jax.transform.values import Plain, known
from synflow_jax.xla.jaxprs import parameters, typed

# Entries up to which an array is computed while tracing.
_MOST = 2**22


class Origins:
    """From which equation each array came. Nothing is computed before it is asked for."""

    def __init__(self, is_entrywise: Callable[[str], bool]):
        self._is_entrywise = is_entrywise
        # By the identity of an array: itself, and its equation with operands and the number
        # of the result; or None for a constant of the model.
        self._made: dict[int, tuple[Any, Any]] = {}
        # By the identity of a constant's array: what the model closes over.
        self._given: dict[int, Any] = {}
        self._known: dict[int, tuple[Any, bool]] = {}
        self._values: dict[int, tuple[Any, np.ndarray | None]] = {}

    def constant(self, given: Any, array: Array) -> Array:
        """Notes what the model closes over and its array in the program; returns that."""
        if not isinstance(given, Tracer):
            self._made[id(array)], self._given[id(array)] = (array, None), given
        return array

    def follow(
        self, eqn: core.JaxprEqn, operands: Sequence[Plain], outs: Sequence[Plain]
    ) -> None:
        """Notes the results of an equation without flow."""
        for number, out in enumerate(outs):
            if id(out) not in self._made and not any(out is x for x in operands):
                self._made[id(out)] = out, (eqn, operands, number)

    def classes(self, array: Plain, axis: int) -> Classes | None:
        """The classes of an array along an axis; None if none are known."""
        size = np.shape(array)[axis]
        if size == 1 or known(array):
            return one_class(size)
        _, made = self._made.get(id(array), (None, None))
        found = self._of_equation(made, axis, size) if made else None
        if found is None and (value := self.value(array)) is not None:
            rows = np.moveaxis(value, axis, 0).reshape(size, -1)
            seen: dict[bytes, int] = {}
            labels = [seen.setdefault(row.tobytes(), len(seen)) for row in rows]
            found = Classes(np.array(labels))
        return None if found is None else useful(found)

    def _of_equation(self, made, axis: int, size: int) -> Classes | None:
        """The classes of a result, from those of the equation's operands."""
        eqn, operands, number = made
        name, shape = eqn.primitive.name, typed(eqn.outvars[number]).shape
        if name == "broadcast_in_dim":
            dims = parameters(eqn)["broadcast_dimensions"]
            if axis not in dims:
                return one_class(size)
            (operand, *_), inner = operands, dims.index(axis)
            return self._along(operand, inner, size)
        if name == "transpose":
            return self._along(operands[0], parameters(eqn)["permutation"][axis], size)
        if name in ("reshape", "squeeze"):
            inner = same_axis(np.shape(operands[0]), shape, axis)
            return None if inner is None else self._along(operands[0], inner, size)
        if self._is_entrywise(name):
            found = [
                self._along(x, axis, size)
                for x in operands
                if np.ndim(x) == len(shape) and np.ndim(x)
            ]
            known_along = [m for m in found if m is not None]
            whole = len(known_along) < len(found) or not found
            return None if whole else refined(known_along)
        return None

    def _along(self, array: Plain, axis: int, size: int) -> Classes | None:
        """The classes of an array that is broadcast to a size along an axis."""
        return one_class(size) if np.shape(array)[axis] == 1 else self.classes(array, axis)

    def value(self, array: Plain) -> np.ndarray | None:
        """The values of an array that depends on no parameter and no input, if it is
        small."""
        if isinstance(array, np.ndarray | np.generic):
            return np.asarray(array) if array.size <= _MOST else None
        if id(array) not in self._values:
            value = None
            if self._is_known(array):
                value = np.asarray(_run(lambda: self._computed(array, {})))
            self._values[id(array)] = array, value
        return self._values[id(array)][1]

    def _is_known(self, array: Plain) -> bool:
        if math.prod(np.shape(array)) > _MOST:
            return False
        if isinstance(array, np.ndarray | np.generic):
            return True
        if id(array) not in self._known:
            found = id(array) in self._made and (  # and no random key
                jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool
            )
            if found:
                _, made = self._made[id(array)]
                if made is None:
                    given = self._given[id(array)]
                    found = getattr(given, "is_fully_addressable", True)
                else:
                    eqn, operands, _ = made
                    found = not eqn.effects and all(map(self._is_known, operands))
            self._known[id(array)] = array, found
        return self._known[id(array)][1]

    def _computed(self, array: Plain, done: dict[int, Any]) -> Any:
        """The array, computed anew from the equations that made it."""
        _, made = self._made.get(id(array), (None, None))
        if made is None:
            return np.asarray(self._given.get(id(array), array))
        if id(array) not in done:
            eqn, operands, number = made
            inner = [self._computed(x, done) for x in operands]
            done[id(array)] = as_written(eqn, inner)[number]
        return done[id(array)]


def _run(function: Callable[[], Array]) -> Array:
    """The result of one program, also inside a trace and where nothing else is compiled."""
    with jax.disable_jit(False):
        return jax.jit(function).lower().compile()()


def same_axis(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """The axis of an array that a reshape keeps whole as ``axis`` of its result."""
    for sources, results in reshaped_groups(before, after):
        if results == [axis] and len(sources) == 1:
            return sources[0]
    return None


def reshaped_groups(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Splits the axes of a reshape into the smallest groups that it does not mix. Axes of
    length 1 are in no group.

    Example:
      >>> reshaped_groups((2, 6, 1, 5), (2, 3, 2, 5))
      [([0], [0]), ([1], [1, 2]), ([3], [3])]
    """
    if 0 in before:
        return []
    sources = [k for k, n in enumerate(before) if n != 1]
    results = [k for k, n in enumerate(after) if n != 1]
    groups = []
    while sources and results:
        left, right = [sources.pop(0)], [results.pop(0)]
        while (a := math.prod(before[k] for k in left)) != (
            b := math.prod(after[k] for k in right)
        ):
            if a < b:
                left.append(sources.pop(0))
            else:
                right.append(results.pop(0))
        groups.append((left, right))
    return groups

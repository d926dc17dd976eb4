"""Brings flows and arrays that meet in one equation to common classes of positions."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from synflow_jax.transform.classes import (
    Classes,
    Maps,
    refined,
    set_apart,
    useful,
)
from synflow_jax.transform.origins import Origins
from synflow_jax.transform.parameters import Sums
from synflow_jax.transform.scaled import Scaled
from synflow_jax.transform.values import (
    Classed,
    Flowing,
    Inverse,
    Plain,
    Stopped,
    Tokens,
    Value,
    as_array,
    carries_flow,
    known,
    plain_or_flow,
)
from synflow_jax.xla.reading import read_axes


class Refinement:
    """Refines and expands each value once, so that histories, which compare values by their
    identity, are those of whole flows."""

    def __init__(self, origins: Origins, sums: Sums):
        self._origins, self._sums = origins, sums
        # By the identity of a value, and what is read of it: the value and the result.
        self._done: dict[Any, tuple[Any, Any]] = {}

    # --- flows ----------------------------------------------------------------------------

    def expanded(self, value: Value, axes: Sequence[int] | None = None) -> Value:
        """The value, whole along some axes; along all of them, without classes."""
        if not isinstance(value, Classed):
            return value
        axes = range(len(value.shape)) if axes is None else axes
        maps = tuple(None if k in axes else m for k, m in enumerate(value.maps))
        return classed(self.to(value, maps), value.shape, maps)

    def to(self, value: Value, maps: Maps) -> Flowing:
        """The flow inside, stored for classes that refine its own."""
        if not isinstance(value, Classed):
            return value
        entries = tuple(
            None if old is None or old == new else (old, new)
            for old, new in zip(value.maps, maps)
        )
        if all(pair is None for pair in entries):
            return value.value
        return self._refined(value.value, entries)

    def _refined(self, value: Flowing, pairs) -> Any:
        key = (id(value), pairs)
        if key not in self._done:
            self._done[key] = value, self._newly_refined(value, pairs)
        return self._done[key][1]

    def _newly_refined(self, value: Flowing, pairs) -> Flowing:
        def whole(x):
            return _read(x, pairs)

        if isinstance(value, Scaled):
            return Scaled(whole(value.mantissa), value.exponent)
        flow = Scaled(whole(value.flow.mantissa), value.flow.exponent)
        if isinstance(value, Inverse):
            return Inverse(flow, whole(value.factor))
        if isinstance(value, Stopped):
            return Stopped(flow, self._refined(value.of, pairs))
        added, shape = value.added, value.flow.mantissa.shape
        return dataclasses.replace(
            value,
            flow=flow,
            parent=None if value.parent is None else self._refined(value.parent, pairs),
            factors=tuple((self._factor(x, pairs), inv) for x, inv in value.factors),
            added=added and (lambda: whole(jnp.broadcast_to(added(), shape))),
        )

    def _factor(self, factor: Plain, pairs) -> Plain:
        if np.size(factor) == 1:
            return factor
        pairs = tuple(None if n == 1 else p for n, p in zip(np.shape(factor), pairs))
        if all(pair is None for pair in pairs):
            return factor
        return self._plainly(factor, pairs, lambda x: _read(x, pairs))

    # --- arrays without flow --------------------------------------------------------------

    def plain(self, array: Plain, shape: tuple[int, ...], maps: Maps) -> Plain:
        """An array that meets a flow of a shape, stored for the classes of that flow."""
        if np.size(array) == 1:
            return array
        at = tuple(m if n > 1 else None for n, m in zip(np.shape(array), maps))
        if all(m is None for m in at):
            return array
        if known(array):
            stored = [n if m is None else m.number for n, m in zip(np.shape(array), at)]
            return np.broadcast_to(np.asarray(array).flat[0], stored)

        def function(x):
            reads = {axis: m.first for axis, m in enumerate(at) if m is not None}
            return read_axes(x, reads)

        return self._plainly(array, at, function)

    def value(self, value: Value) -> np.ndarray | None:
        """The values of an array that depends on no parameter and no input, if it is
        small; None of any other, such as a flow or integers of the input."""
        if carries_flow(value) or isinstance(value, Tokens):
            return None
        return self._origins.value(value)

    def _plainly(self, array: Plain, key, function: Callable[[Array], Array]) -> Plain:
        key = (id(array), key)
        if key not in self._done:
            result = function(jnp.asarray(as_array(array)))
            self._sums.read(array, result, function)
            self._done[key] = array, result
        return self._done[key][1]

    # --- common classes -------------------------------------------------------------------

    def common(self, operands: Sequence[Value], shape: tuple[int, ...]) -> Maps:
        """The classes along each axis to which all operands of an equation that acts entry
        by entry can be brought."""
        maps = [self._along(axis, n, operands) for axis, n in enumerate(shape)]
        for x in operands:
            # An array of several entries must not become a single one: it is a layer, and a
            # single parameter is none.
            if carries_flow(x) or np.size(x) == 1 or known(x):
                continue
            axes = [k for k, n in enumerate(np.shape(x)) if n > 1]
            if all((m := maps[k]) is not None and m.number == 1 for k in axes):
                maps[axes[0]] = useful(set_apart(shape[axes[0]]))
        return tuple(maps)

    def _along(self, axis: int, n: int, operands: Sequence[Value]) -> Classes | None:
        if n == 1:
            return None
        flows, broadcast = set(), False
        for x in filter(carries_flow, operands):
            shape = shape_of(x)
            if not shape:
                continue
            if shape[axis] == 1:
                broadcast = True
            elif not isinstance(x, Classed) or x.maps[axis] is None:
                return None
            else:
                flows.add(x.maps[axis])
        for x in operands:
            if carries_flow(x) or np.ndim(x) == 0 or np.shape(x)[axis] == 1:
                continue
            if (found := self._origins.classes(x, axis)) is None:
                return None
            flows.add(found)
        if not flows:
            return None
        found = refined([*flows])
        # A flow that is broadcast must be seen to be: it starts a new history.
        found = set_apart(n) if broadcast and found.number == 1 else found
        return useful(found)


def classed(value: Flowing, shape: tuple[int, ...], maps: Maps) -> Value:
    """A flow stored by classes; as it is, where there are none."""
    return value if all(m is None for m in maps) else Classed(value, shape, maps)


def shape_of(value: Value) -> tuple[int, ...]:
    """The shape of a flow, whole."""
    if isinstance(value, Classed):
        return value.shape
    return jnp.shape(plain_or_flow(value).mantissa)


def maps_of(value: Value) -> Maps:
    """The classes of a flow along each axis."""
    if isinstance(value, Classed):
        return value.maps
    return (None,) * len(shape_of(value))


def _read(x: Array, pairs) -> Array:
    reads = {}
    for axis, pair in enumerate(pairs):
        if pair is not None:
            old, new = pair
            reads[axis] = old.of if new is None else old.of[new.first]
    return read_axes(x, reads)

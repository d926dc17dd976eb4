"""Moves of flows of which equal positions are stored once: what a move does to positions,
it does to their classes. The functions are called as those of `transform.class_rules`.
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from synflow_jax.transform.classes import (
    NOTHING,
    Classes,
    Maps,
    compressed,
    every_position,
    of_rows,
    one_class,
    useful,
)
from synflow_jax.transform.origins import reshaped_groups
from synflow_jax.transform.refinement import Refinement, classed, maps_of, shape_of
from synflow_jax.transform.values import (
    Classed,
    Equation,
    Plain,
    Value,
    carries_flow,
    known,
)
from synflow_jax.xla.reading import read


def moving(refinement: Refinement, apply: Callable, equation: Equation, *operands: Value):
    """Moves entries: what the move does to positions, it does to their classes."""
    flow, *others = operands
    move = _MOVES.get(equation.name)
    if move is None or not isinstance(flow, Classed) or any(map(carries_flow, others)):
        return NotImplemented
    found = move(equation, flow)
    if found is None:
        return NotImplemented
    axes, results = found
    if axes:  # along these the flow must be whole
        flow = refinement.expanded(flow, axes)
        if not isinstance(flow, Classed):
            return NotImplemented
    return moved(apply, equation, flow, results, others)


# The result of a move: a function of the arrays that are stored, and the classes.
Moved = tuple[Callable[[Array], Array], Maps]
# A move: the axes along which the flow must be whole first, and for each result what moves
# the flow; None if the whole flow must be moved.
Move = tuple[Sequence[int], list[Moved]] | None


def moved(
    apply: Callable,
    equation: Equation,
    flow: Classed,
    results: Sequence[Moved],
    others: Sequence[Value] = (),
):
    """The rule for whole flows, with other functions for the primitive itself."""

    def bind(array, *_):
        array = jnp.broadcast_to(array, flow.stored)
        return [function(array) for function, _ in results]

    shapes, maps = equation.out_shapes, [m for _, m in results]
    stored = [compressed(*each) for each in zip(shapes, maps)]
    outs = apply(equation._replace(bind=bind, out_shapes=stored), flow.value, *others)
    return [classed(*each) for each in zip(outs, shapes, maps)]


def _transpose(equation: Equation, flow: Classed) -> Move:
    order = equation.params["permutation"]
    maps = tuple(flow.maps[axis] for axis in order)
    return (), [(lambda x: lax.transpose(x, order), maps)]


def _squeeze(equation: Equation, flow: Classed) -> Move:
    dims = equation.params["dimensions"]
    maps = tuple(m for axis, m in enumerate(flow.maps) if axis not in dims)
    return (), [(lambda x: lax.squeeze(x, dims), maps)]


def _broadcast(equation: Equation, flow: Classed) -> Move:
    (shape,) = equation.out_shapes
    dims = equation.params["broadcast_dimensions"]
    maps: list[Classes | None] = [useful(one_class(n)) for n in shape]
    for axis, to in enumerate(dims):
        if flow.shape[axis] == shape[to]:
            maps[to] = flow.maps[axis]
    stored = compressed(shape, tuple(maps))
    return (), [(lambda x: lax.broadcast_in_dim(x, stored, dims), tuple(maps))]


def _reshape(equation: Equation, flow: Classed) -> Move:
    (shape,) = equation.out_shapes
    if equation.params.get("dimensions") is not None or 0 in shape:
        return None
    maps: list[Classes | None] = [None] * len(shape)
    mixed, split = [], {}
    for sources, results in reshaped_groups(flow.shape, shape):
        inside = [flow.maps[k] for k in sources]
        if len(sources) == len(results) == 1:
            maps[results[0]] = inside[0]
        elif all(m is not None and m.number == 1 for m in inside):
            for k in results:
                maps[k] = one_class(shape[k])
        elif len(sources) == 1 and inside[0] is not None:
            found, split[sources[0]] = _split_up(inside[0], [shape[k] for k in results])
            for k, m in zip(results, found):
                maps[k] = useful(m)
        elif len(results) == 1 and (one := _merged(flow, sources)) is not None:
            maps[results[0]] = one
        else:
            mixed += sources
    stored = compressed(shape, tuple(maps))

    def function(x):
        for axis, entries in split.items():
            x = read(x, axis, entries)
        return lax.reshape(x, stored)

    return mixed, [(function, tuple(maps))]


def _split_up(classes: Classes, lengths: Sequence[int]) -> tuple[list[Classes], np.ndarray]:
    """The classes of several axes that one becomes (patches of an image), and those of its
    own classes that their combinations are."""
    labels = classes.of.reshape(lengths)
    found = [
        of_rows(np.moveaxis(labels, axis, 0).reshape(n, -1))
        for axis, n in enumerate(lengths)
    ]
    return found, labels[np.ix_(*(m.first for m in found))].reshape(-1)


# Positions of an axis without classes up to which it may become one with an axis that has
# them: pixels that were channels before.
_SHORT = 8


def _merged(flow: Classed, axes: Sequence[int]) -> Classes | None:
    """The classes of several axes that become one: those of all combinations."""
    labels, numbers = np.zeros(1, int), []
    for axis in axes:
        m, n = flow.maps[axis], flow.shape[axis]
        if m is None and n > _SHORT:
            return None
        m = m or every_position(n)
        labels = (labels[:, None] * m.number + m.of).reshape(-1)
        numbers.append(m.number)
    return useful(Classes.stored(labels, math.prod(numbers)))


def _taken(
    flow: Classed, labels: Sequence[np.ndarray | None], rest: Callable[[Array], Array]
) -> Moved:
    """Moves along single axes. ``labels`` are the classes at the positions of the result,
    along each axis that has classes; ``rest`` moves along the other axes."""
    maps = [
        old if at is None or old is None or np.array_equal(at, old.of) else Classes(at)
        for at, old in zip(labels, flow.maps)
    ]

    def function(x):
        x = rest(x)
        for axis, (at, old, m) in enumerate(zip(labels, flow.maps, maps)):
            if at is not None and m is not None and m is not old:
                x = read(x, axis, at[m.first])
        return x

    return function, tuple(None if m is None else useful(m) for m in maps)


def _reverse(equation: Equation, flow: Classed) -> Move:
    dims = equation.params["dimensions"]
    labels = [
        None if m is None else m.of[::-1] if axis in dims else m.of
        for axis, m in enumerate(flow.maps)
    ]
    whole = [axis for axis in dims if flow.maps[axis] is None]
    return (), [_taken(flow, labels, lambda x: lax.rev(x, whole))]


def _slice(equation: Equation, flow: Classed) -> Move:
    params = equation.params
    steps = params["strides"] or (1,) * len(flow.shape)
    at = zip(params["start_indices"], params["limit_indices"], steps)
    return (), [_sliced(flow, [slice(*each) for each in at])]


def _sliced(flow: Classed, places: Sequence[slice]) -> Moved:
    labels = [None if m is None else m.of[at] for m, at in zip(flow.maps, places)]
    whole = [at if m is None else slice(None) for m, at in zip(flow.maps, places)]

    def rest(x):
        return lax.slice(x, *zip(*(at.indices(n) for at, n in zip(whole, x.shape))))

    return _taken(flow, labels, rest)


def _part(flow: Classed, axis: int, start: int, size: int) -> Moved:
    places = [slice(None)] * len(flow.shape)
    places[axis] = slice(start, start + size)
    return _sliced(flow, places)


def _split(equation: Equation, flow: Classed) -> Move:
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    results, start = [], 0
    for size in sizes:
        results.append(_part(flow, axis, start, size))
        start += size
    return (), results


def _unstack(equation: Equation, flow: Classed) -> Move:
    axis = equation.params["axis"]
    return (), [_entry(flow, axis, at) for at in range(flow.shape[axis])]


def _entry(flow: Classed, axis: int, at: int) -> Moved:
    taken, maps = _part(flow, axis, at, 1)
    return lambda x: lax.squeeze(taken(x), (axis,)), (*maps[:axis], *maps[axis + 1 :])


def _pad(equation: Equation, flow: Classed) -> Move:
    (shape,), config = equation.out_shapes, equation.params["padding_config"]
    labels, whole = [], []
    for m, n, (low, high, interior) in zip(flow.maps, shape, config, strict=True):
        whole.append((low, high, interior) if m is None else (0, 0, 0))
        if m is None:
            labels.append(None)
            continue
        at, hole = np.divmod(np.arange(n) - low, interior + 1)
        inside = (hole == 0) & (at >= 0) & (at < m.size)
        labels.append(np.where(inside, m.of[np.where(inside, at, 0)], NOTHING))

    def rest(x):
        return lax.pad(x, jnp.zeros((), x.dtype), whole)

    return (), [_taken(flow, labels, rest)]


def _tile(equation: Equation, flow: Classed) -> Move:
    reps = equation.params["reps"]
    labels = [None if m is None else np.tile(m.of, n) for m, n in zip(flow.maps, reps)]
    whole = [n if m is None else 1 for m, n in zip(flow.maps, reps)]
    return (), [_taken(flow, labels, lambda x: jnp.tile(x, whole))]


_MOVES: dict[str, Callable[[Equation, Classed], Move]] = {
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "unstack": _unstack,
    "pad": _pad,
    "tile": _tile,
}


def joining(refinement: Refinement, apply: Callable, equation: Equation, *operands: Value):
    """Concatenates classes as it does positions; along the other axes they are refined."""
    if equation.name != "concatenate":
        return NotImplemented
    (shape,) = equation.out_shapes
    axis = equation.params["dimension"]
    flows = [x for x in operands if carries_flow(x)]
    others = tuple(1 if k == axis else n for k, n in enumerate(shape))
    maps = [*refinement.common(flows, others)]
    # Along this axis a flow has its own classes; an array without flow is one class.
    along = []
    for x in operands:
        n = shape_of(x)[axis] if carries_flow(x) else np.shape(x)[axis]
        own = maps_of(x)[axis] if carries_flow(x) else one_class(n)
        along.append(own or every_position(n))
    labels, number = [], 0
    for m in along:
        labels.append(m.of + number)
        number += m.number
    maps[axis] = useful(Classes.stored(np.concatenate(labels), number))
    if all(m is None for m in maps):
        return NotImplemented
    stored = []
    for x, m in zip(operands, along):
        own = (*maps[:axis], m, *maps[axis + 1 :])
        if carries_flow(x):
            stored.append(refinement.to(x, (*own[:axis], useful(m), *own[axis + 1 :])))
        else:
            stored.append(_without_flow(equation, x, own))
    maps = tuple(maps)
    equation = equation._replace(out_shapes=[compressed(shape, maps)])
    return [classed(out, shape, maps) for out in apply(equation, *stored)]


def stacking(refinement: Refinement, apply: Callable, equation: Equation, *operands: Value):
    """Stacks arrays along a new axis, which has no classes; the others are refined."""
    if equation.name != "stack":
        return NotImplemented
    (shape,), axis = equation.out_shapes, equation.params["axis"]
    flows = [x for x in operands if carries_flow(x)]
    maps = refinement.common(flows, (*shape[:axis], *shape[axis + 1 :]))
    if all(m is None for m in maps):
        return NotImplemented
    stored = [
        refinement.to(x, maps) if carries_flow(x) else _without_flow(equation, x, maps)
        for x in operands
    ]
    maps = (*maps[:axis], None, *maps[axis:])
    equation = equation._replace(out_shapes=[compressed(shape, maps)])
    return [classed(out, shape, maps) for out in apply(equation, *stored)]


def _without_flow(equation: Equation, array: Plain, maps: Maps) -> np.ndarray:
    """What stands for an array of parameters among flows that are joined: any array of its
    shape, since no flow enters by it."""
    fill = np.asarray(array).flat[0] if known(array) else np.zeros((), equation.dtype)
    return np.broadcast_to(fill, compressed(np.shape(array), maps))


def slicing(
    refinement: Refinement, apply: Callable, equation: Equation, flow: Value, *starts: Value
):
    """Cuts out a part that begins at known positions, as close to the end as it fits."""
    if equation.name != "dynamic_slice" or not isinstance(flow, Classed):
        return NotImplemented
    places = []
    for start, size, n in zip(starts, equation.params["slice_sizes"], flow.shape):
        value = refinement.value(start)
        if value is None:
            return NotImplemented
        first = min(max(int(value), 0), n - size)
        places.append(slice(first, first + size))
    return moved(apply, equation, flow, [_sliced(flow, places)], starts)


def gather(
    refinement: Refinement, apply: Callable, equation: Equation, flow: Value, places: Value
):
    """Reads known positions of one axis, as the resizing to nearest neighbours does."""
    if equation.name != "gather" or not isinstance(flow, Classed):
        return NotImplemented
    values = refinement.value(places)
    axis = None if values is None else _axis_read(equation, flow.shape, values.shape)
    if axis is None or values is None:
        return NotImplemented
    at = values.reshape(-1)
    if ((at < 0) | (at >= flow.shape[axis])).any():
        return NotImplemented
    labels = [None if m is None else m.of for m in flow.maps]
    if (own := labels[axis]) is None:
        result = _taken(flow, labels, lambda x: jnp.take(x, at, axis, mode="clip"))
    else:
        labels[axis] = own[at]
        result = _taken(flow, labels, lambda x: x)
    return moved(apply, equation, flow, [result], [places])


def _axis_read(
    equation: Equation, shape: Sequence[int], places: Sequence[int]
) -> int | None:
    """The axis of which a gather reads single positions, in the place of that axis; None
    if it reads otherwise."""
    numbers = equation.params["dimension_numbers"]
    if len(places) != 2 or len(numbers.start_index_map) != 1:
        return None
    (axis,) = numbers.start_index_map
    others = tuple(k for k in range(len(shape)) if k != axis)
    sizes = tuple(1 if k == axis else n for k, n in enumerate(shape))
    whole = (others, (axis,), sizes) == (
        tuple(numbers.offset_dims),
        tuple(numbers.collapsed_slice_dims),
        tuple(equation.params["slice_sizes"]),
    )
    return axis if whole else None

"""Rules at flows of which equal positions are stored once: entries, moves and sums.

Each is called as ``rule(refinement, apply, equation, *operands)``, with ``apply`` the rule
for whole flows. It finds the classes of the result, and mostly applies that rule to what is
stored. NotImplemented says that the operands must be whole; so it is for every primitive
that is not known here, such as one to which a user gave the rule of another.
"""

from collections.abc import Callable, Iterable, Sequence

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
    one_class,
    useful,
)
from synflow_jax.transform.control_flow import call
from synflow_jax.transform.elementwise import nonlinearity
from synflow_jax.transform.origins import reshaped_groups
from synflow_jax.transform.refinement import Refinement, classed, maps_of, shape_of
from synflow_jax.transform.scaled import Scaled
from synflow_jax.transform.values import (
    Classed,
    Equation,
    Value,
    carries_flow,
    known,
    plain_or_flow,
)
from synflow_jax.xla.reading import read


def through(refinement: Refinement, apply: Callable, equation: Equation, *operands: Value):
    """Calls and the like: the operands pass as they are."""
    return apply(equation, *operands)


def entrywise(
    refinement: Refinement, apply: Callable, equation: Equation, *operands: Value
):
    """What acts on each entry by itself does so on each class."""
    if len(equation.out_shapes) != 1:
        return NotImplemented
    (shape,) = equation.out_shapes
    maps = refinement.common(operands, shape)
    if all(m is None for m in maps):
        return NotImplemented
    stored = [
        refinement.to(x, _of_operand(maps, shape_of(x)))
        if carries_flow(x)
        else refinement.plain(x, shape, maps)
        for x in operands
    ]
    outs = apply(equation._replace(out_shapes=[compressed(shape, maps)]), *stored)
    return [classed(out, shape, maps) for out in outs]


def _of_operand(maps: Maps, shape: tuple[int, ...]) -> Maps:
    """The classes to which an operand is brought; none where it is broadcast."""
    return tuple(None if n == 1 else m for n, m in zip(shape, maps))


def activation(
    refinement: Refinement, apply: Callable, equation: Equation, *operands: Value
):
    """A nonlinearity recognised by its name; a function that only shares it is a call."""
    flows = [x for x in operands if carries_flow(x)]
    scalars = [x for x in operands if not carries_flow(x) and np.ndim(x) == 0]
    alone = len(flows) == 1 and len(scalars) == len(operands) - 1
    consts = getattr(equation.params.get("jaxpr"), "consts", ())
    if alone and equation.out_shapes == [shape_of(flows[0])] and not len(consts):
        return entrywise(refinement, nonlinearity, equation, *operands)
    return call(equation, *operands)


# --- moves --------------------------------------------------------------------------------


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
    return _moved(apply, equation, flow, results, others)


# The result of a move: a function of the arrays that are stored, and the classes.
_Moved = tuple[Callable[[Array], Array], Maps]
# A move: the axes along which the flow must be whole first, and for each result what moves
# the flow; None if the whole flow must be moved.
_Move = tuple[Sequence[int], list[_Moved]] | None


def _moved(
    apply: Callable,
    equation: Equation,
    flow: Classed,
    results: Sequence[_Moved],
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


def _transpose(equation: Equation, flow: Classed) -> _Move:
    order = equation.params["permutation"]
    maps = tuple(flow.maps[axis] for axis in order)
    return (), [(lambda x: lax.transpose(x, order), maps)]


def _squeeze(equation: Equation, flow: Classed) -> _Move:
    dims = equation.params["dimensions"]
    maps = tuple(m for axis, m in enumerate(flow.maps) if axis not in dims)
    return (), [(lambda x: lax.squeeze(x, dims), maps)]


def _broadcast(equation: Equation, flow: Classed) -> _Move:
    (shape,) = equation.out_shapes
    dims = equation.params["broadcast_dimensions"]
    maps: list[Classes | None] = [useful(one_class(n)) for n in shape]
    for axis, to in enumerate(dims):
        if flow.shape[axis] == shape[to]:
            maps[to] = flow.maps[axis]
    stored = compressed(shape, tuple(maps))
    return (), [(lambda x: lax.broadcast_in_dim(x, stored, dims), tuple(maps))]


def _reshape(equation: Equation, flow: Classed) -> _Move:
    (shape,) = equation.out_shapes
    if equation.params.get("dimensions") is not None or 0 in shape:
        return None
    maps: list[Classes | None] = [None] * len(shape)
    mixed = []
    for sources, results in reshaped_groups(flow.shape, shape):
        inside = [flow.maps[k] for k in sources]
        if len(sources) == len(results) == 1:
            maps[results[0]] = inside[0]
        elif all(m is not None and m.number == 1 for m in inside):
            for k in results:
                maps[k] = one_class(shape[k])
        elif len(results) == 1 and all(m is not None for m in inside):
            maps[results[0]] = _merged(inside)  # pyright: ignore[reportArgumentType]
        else:
            mixed += sources
    stored = compressed(shape, tuple(maps))
    return mixed, [(lambda x: lax.reshape(x, stored), tuple(maps))]


def _merged(maps: Sequence[Classes]) -> Classes:
    """The classes of several axes that become one: those of all combinations."""
    labels = np.zeros(1, int)
    for m in maps:
        labels = (labels[:, None] * m.number + m.of).reshape(-1)
    return Classes(labels)


def _taken(labels: Sequence[np.ndarray | None], rest: Callable[[Array], Array]) -> _Moved:
    """Moves along single axes. ``labels`` are the classes at the positions of the result,
    along each axis that has classes; ``rest`` moves along the other axes."""
    maps = [None if at is None else Classes(at) for at in labels]

    def function(x):
        x = rest(x)
        for axis, (at, m) in enumerate(zip(labels, maps)):
            if at is not None and m is not None:
                x = read(x, axis, at[m.first])
        return x

    return function, tuple(None if m is None else useful(m) for m in maps)


def _reverse(equation: Equation, flow: Classed) -> _Move:
    dims = equation.params["dimensions"]
    labels = [
        None if m is None else m.of[::-1] if axis in dims else m.of
        for axis, m in enumerate(flow.maps)
    ]
    whole = [axis for axis in dims if flow.maps[axis] is None]
    return (), [_taken(labels, lambda x: lax.rev(x, whole))]


def _slice(equation: Equation, flow: Classed) -> _Move:
    params = equation.params
    steps = params["strides"] or (1,) * len(flow.shape)
    at = zip(params["start_indices"], params["limit_indices"], steps)
    return (), [_sliced(flow, [slice(*each) for each in at])]


def _sliced(flow: Classed, places: Sequence[slice]) -> _Moved:
    labels = [None if m is None else m.of[at] for m, at in zip(flow.maps, places)]
    whole = [at if m is None else slice(None) for m, at in zip(flow.maps, places)]

    def rest(x):
        return lax.slice(x, *zip(*(at.indices(n) for at, n in zip(whole, x.shape))))

    return _taken(labels, rest)


def _split(equation: Equation, flow: Classed) -> _Move:
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    results, start = [], 0
    for size in sizes:
        places = [slice(None)] * len(flow.shape)
        places[axis] = slice(start, start + size)
        results.append(_sliced(flow, places))
        start += size
    return (), results


def _pad(equation: Equation, flow: Classed) -> _Move:
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

    return (), [_taken(labels, rest)]


_MOVES: dict[str, Callable[[Equation, Classed], _Move]] = {
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "pad": _pad,
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
    maps[axis] = useful(Classes(np.concatenate(labels)))
    if all(m is None for m in maps):
        return NotImplemented
    stored = []
    for x, m in zip(operands, along):
        own = (*maps[:axis], m, *maps[axis + 1 :])
        if carries_flow(x):
            stored.append(refinement.to(x, (*own[:axis], useful(m), *own[axis + 1 :])))
            continue
        each = compressed(np.shape(x), own)
        fill = np.asarray(x).flat[0] if known(x) else np.zeros((), equation.dtype)
        stored.append(np.broadcast_to(fill, each))

    def bind(*arrays):
        return [lax.concatenate(arrays, axis)]

    maps = tuple(maps)
    equation = equation._replace(bind=bind, out_shapes=[compressed(shape, maps)])
    return [classed(out, shape, maps) for out in apply(equation, *stored)]


# --- sums ---------------------------------------------------------------------------------


def summing(refinement: Refinement, apply: Callable, equation: Equation, flow: Classed):
    """A sum over an axis counts each class as often as there are positions of it."""
    if equation.name != "reduce_sum":
        return NotImplemented
    axes = equation.params["axes"]

    def function(x):
        return lax.reduce_sum(weighted(x, flow.maps, axes), axes)

    maps = tuple(m for axis, m in enumerate(flow.maps) if axis not in axes)
    return _moved(apply, equation, flow, [(function, maps)])


def weighted(x: Array, maps: Maps, axes: Iterable) -> Array:
    """Entries times the number of positions that they stand for along some axes."""
    counts = np.ones((1,) * x.ndim)
    for axis in axes:
        if (m := maps[axis]) is not None:
            shape = [1] * x.ndim
            shape[axis] = -1
            counts = counts * m.counts.reshape(shape)
    return (
        x if counts.size == 1 and counts.item() == 1 else x * jnp.asarray(counts, x.dtype)
    )


def largest(refinement: Refinement, apply: Callable, equation: Equation, flow: Classed):
    """The largest over an axis. Classes are in the order of their first positions, so the
    first among equals is the same."""
    if equation.name not in ("reduce_max", "reduce_min", "reduce_or", "reduce_and"):
        return NotImplemented
    axes = equation.params["axes"]
    maps = tuple(m for axis, m in enumerate(flow.maps) if axis not in axes)
    (shape,) = equation.out_shapes
    equation = equation._replace(out_shapes=[compressed(shape, maps)])
    return [classed(out, shape, maps) for out in apply(equation, flow.value)]


def along_axis(refinement: Refinement, apply: Callable, equation: Equation, flow: Classed):
    """What reads whole lines along one axis; other axes keep their classes."""
    if equation.name not in ("cumsum", "cummax", "cummin", "cumlogsumexp", "cumprod"):
        return NotImplemented
    flow = refinement.expanded(flow, [equation.params["axis"]])
    if not isinstance(flow, Classed):
        return NotImplemented
    equation = equation._replace(out_shapes=[flow.stored])
    return [classed(out, flow.shape, flow.maps) for out in apply(equation, flow.value)]


# --- matrix products ----------------------------------------------------------------------


def dot_general(
    refinement: Refinement, apply: Callable, equation: Equation, left: Value, right: Value
):
    """A matrix product keeps the classes along the axes that it does not sum over."""
    if equation.name != "dot_general":
        return NotImplemented
    (shape,) = equation.out_shapes
    contracted, batched = equation.params["dimension_numbers"]
    sides, free = [], []
    for x, summed, batch in zip((left, right), contracted, batched):
        whole = refinement.expanded(x, (*summed, *batch))
        sides.append(whole.value if isinstance(whole, Classed) else whole)
        own = maps_of(whole) if carries_flow(x) else (None,) * np.ndim(x)
        free += [m for k, m in enumerate(own) if k not in (*summed, *batch)]
    maps = (*[None] * len(batched[0]), *free)
    equation = equation._replace(out_shapes=[compressed(shape, maps)])
    return [classed(out, shape, maps) for out in apply(equation, *sides)]


def total_of(flow: Scaled | Classed) -> Scaled:
    """The sum of all entries of a flow."""
    if not isinstance(flow, Classed):
        return Scaled(jnp.sum(flow.mantissa), flow.exponent)
    mantissa, exponent = plain_or_flow(flow.value)
    return Scaled(jnp.sum(weighted(mantissa, flow.maps, range(mantissa.ndim))), exponent)

"""The effect of each primitive on the wires of a network: one function a rule, one table.

Where nothing better is known, all operands and all results become one wire. That is
coarser, and still true.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jax.extend import core

from synflow_jax.topology.values import (
    Flow,
    Other,
    Topology,
    Value,
    Weights,
    leaves_of,
    mover,
)
from synflow_jax.topology.wires import MOVES, joined, placed, windows
from synflow_jax.xla.jaxprs import parameters, typed

# --- weights ------------------------------------------------------------------------------


def dot_general(topology: Topology, eqn: core.JaxprEqn, left: Value, right: Value):
    """A layer, if weights of one leaf meet the flow. Two flows and their product are one
    wire for each batch entry."""
    (cl, cr), (bl, br) = parameters(eqn)["dimension_numbers"]
    shape, shapes = typed(eqn.outvars[0]).shape, [typed(atom).shape for atom in eqn.invars]
    free = [
        [k for k in range(len(s)) if k not in (*c, *b)]
        for s, c, b in zip(shapes, (cl, cr), (bl, br))
    ]
    # Axes of the result: batch, then the free ones of the left and of the right.
    batch = list(range(len(bl)))
    places = [len(batch) + k for k in range(len(free[0]) + len(free[1]))]
    places = [places[: len(free[0])], places[len(free[0]) :]]
    first = 0 if isinstance(left, Flow) else 1
    flow, other = (left, right) if first == 0 else (right, left)
    contracted, batched = ((cl, bl), (cr, br))[first]
    if isinstance(other, Weights):
        kernel = shapes[1 - first]
        met = topology.wires.along(flow.ids, free[first])
        met = met.transpose([*batched, *contracted, *free[first]])
        met = met.reshape(met.shape[: len(batched) + len(contracted)])
        contracted, batched = ((cr, br), (cl, bl))[first]
        axes = [*batched, *free[1 - first]]
        fresh = topology.wires.new([kernel[k] for k in axes])
        topology.layer(
            flow,
            other,
            placed(met, [*batched, *contracted], kernel),
            placed(fresh, axes, kernel),
        )
        return [topology.flow(placed(fresh, [*batch, *places[1 - first]], shape))]
    if isinstance(other, Flow):
        wires = []
        for value, c, b, f in ((left, cl, bl, free[0]), (right, cr, br, free[1])):
            wire = topology.wires.along(value.ids, [*c, *f]).transpose([*b, *c, *f])
            wires.append(wire.reshape(wire.shape[: len(b)]))
        ids = placed(topology.wires.unite(*wires), batch, shape)
        return [topology.flow(ids, left, right)]
    topology.not_as_weights(other)
    kept = topology.wires.along(flow.ids, contracted)
    kept = kept.transpose([*batched, *free[first], *contracted])
    kept = kept.reshape(kept.shape[: len(batched) + len(free[first])])
    return [topology.flow(placed(kept, [*batch, *places[first]], shape), flow)]


def conv_general_dilated(
    topology: Topology, eqn: core.JaxprEqn, image: Value, kernel: Value
):
    """A layer from channels to channels: all positions of a channel meet the same
    weights."""
    if not isinstance(image, Flow) or isinstance(kernel, Flow):
        return mixing(topology, eqn, image, kernel)
    params, wires = parameters(eqn), topology.wires
    numbers = params["dimension_numbers"]
    shape = typed(eqn.invars[1]).shape
    ids = image.ids.transpose(numbers.lhs_spec)
    ids = wires.along(ids, range(2, ids.ndim))
    batch, channels = ids.shape[:2]
    # Axes: groups of images, images, groups of channels, channels in a group.
    split, groups = params["batch_group_count"], params["feature_group_count"]
    ids = ids.reshape(split, batch // split, groups, channels // groups)
    ids = wires.along(ids, [1])[:, 0].reshape(split * groups, -1)
    out, into, *_ = numbers.rhs_spec
    each = shape[out] // (split * groups)
    parents = []
    if isinstance(kernel, Weights):
        channel = wires.new((shape[out],))
        if len(ids) == 1:
            sources = placed(ids[0], [into], shape)
        else:
            sources = placed(np.repeat(ids, each, axis=0), [out, into], shape)
        topology.layer(image, kernel, sources, placed(channel, [out], shape))
    else:
        channel, parents = np.repeat(wires.along(ids, [1])[:, 0], each), [image]
        topology.not_as_weights(kernel)
    ids = placed(channel, [numbers.out_spec[1]], typed(eqn.outvars[0]).shape)
    return [topology.flow(ids, *parents)]


def embedding(topology: Topology, eqn: core.JaxprEqn, table: Value, index: Value):
    """A table read at integers: a layer from the input to the entries of a row."""
    shape, rows = typed(eqn.outvars[0]).shape, typed(eqn.invars[0]).shape
    numbers, sizes = parameters(eqn)["dimension_numbers"], parameters(eqn)["slice_sizes"]
    if not isinstance(table, Weights) or isinstance(index, Weights):
        topology.not_as_weights(table, index)
        return [topology.source(shape)]
    start = topology.source(())
    chosen = numbers.collapsed_slice_dims
    whole = [k for k in range(len(rows)) if k not in chosen]
    by_row = (
        tuple(numbers.start_index_map) == tuple(chosen)
        and not numbers.operand_batching_dims
        and all(sizes[k] == rows[k] for k in whole)
    )
    axes, places = (whole, numbers.offset_dims) if by_row else ((), ())
    fresh = topology.wires.new([rows[k] for k in axes])
    topology.layer(
        start, table, np.broadcast_to(start.ids, rows), placed(fresh, axes, rows)
    )
    return [topology.flow(placed(fresh, places, shape))]


# --- entry by entry -----------------------------------------------------------------------


def entrywise(topology: Topology, eqn: core.JaxprEqn, *operands: Value):
    """Sums and nonlinearities: entries at the same position become one wire."""
    flows = [x for x in operands if isinstance(x, Flow)]
    shape = typed(eqn.outvars[0]).shape
    ids = topology.wires.unite(np.broadcast_to(-1, shape), *(x.ids for x in flows))
    return [topology.flow(ids, *flows)]


def first_operand(topology: Topology, eqn: core.JaxprEqn, left: Value, right: Value):
    """Centring and normalising drop the second operand, as `flow` does."""
    if isinstance(left, Flow) and isinstance(right, Flow):
        return entrywise(topology, eqn, left)
    return entrywise(topology, eqn, left, right)


def divide(topology: Topology, eqn: core.JaxprEqn, left: Value, right: Value):
    """As `first_operand`. A plain value divided by flow is a factor that carries no
    flow."""
    if not isinstance(left, Flow):
        return gone(topology, eqn, left, right)
    topology.not_as_weights(right)
    topology.computed |= leaves_of(right)
    return first_operand(topology, eqn, left, right)


def multiply(topology: Topology, eqn: core.JaxprEqn, left: Value, right: Value):
    """Scaling keeps the wires. Of two flows each contributes to the product."""
    topology.not_as_weights(left, right)
    return entrywise(topology, eqn, left, right)


def power(topology: Topology, eqn: core.JaxprEqn, flow: Value, *exponent: Value):
    """A nonlinearity; a negative exponent makes it a normalisation."""
    if parameters(eqn).get("y", 1) < 0:
        return gone(topology, eqn, flow)
    return entrywise(topology, eqn, flow)


def gone(topology: Topology, eqn: core.JaxprEqn, *operands: Value):
    """One divided by a flow is a factor that carries no flow."""
    return [Other(leaves_of(*operands), data=True) for _ in eqn.outvars]


def select_n(topology: Topology, eqn: core.JaxprEqn, which: Value, *cases: Value):
    """Entries of all cases become one wire; the condition carries no flow, unless it
    chooses among plain values."""
    topology.computed |= leaves_of(which)
    if not any(isinstance(case, Flow) for case in cases):
        if not isinstance(which, Flow):
            return gone(topology, eqn, *cases)
        # Parameters chosen by the flow are its weights.
        topology.not_as_weights(*cases)
        return entrywise(topology, eqn, which)
    return entrywise(topology, eqn, *cases)


# --- structure ----------------------------------------------------------------------------


def moving(topology: Topology, eqn: core.JaxprEqn, flow: Value, *places: Value):
    """The wires move with the entries, if the positions are known."""
    run = mover(eqn, places)
    if run is None or not isinstance(flow, Flow):
        return mixing(topology, eqn, flow, *places)
    return [topology.flow(run(flow.ids, -1), flow)]


def split(topology: Topology, eqn: core.JaxprEqn, flow: Flow):
    """Consecutive pieces."""
    ends = np.cumsum(parameters(eqn)["sizes"])[:-1]
    pieces = np.split(flow.ids, ends, parameters(eqn)["axis"])
    return [topology.flow(piece, flow) for piece in pieces]


def unstack(topology: Topology, eqn: core.JaxprEqn, flow: Flow):
    """Slices along an axis."""
    rows = np.moveaxis(flow.ids, parameters(eqn)["axis"], 0)
    return [topology.flow(row, flow) for row in rows]


def concatenate(topology: Topology, eqn: core.JaxprEqn, *operands: Value):
    """Concatenation; some of the arrays may carry no flow."""
    flows, arrays = _ids_of(eqn, operands)
    return [topology.flow(joined(arrays, parameters(eqn)["dimension"]), *flows)]


def stack(topology: Topology, eqn: core.JaxprEqn, *operands: Value):
    """Concatenation along a new axis."""
    flows, arrays = _ids_of(eqn, operands)
    axis = parameters(eqn)["axis"]
    arrays = [np.expand_dims(ids, axis) for ids in arrays]
    return [topology.flow(joined(arrays, axis), *flows)]


def _ids_of(eqn: core.JaxprEqn, operands: Sequence[Value]):
    flows = [x for x in operands if isinstance(x, Flow)]
    return flows, [
        x.ids if isinstance(x, Flow) else np.broadcast_to(-1, typed(atom).shape)
        for x, atom in zip(operands, eqn.invars)
    ]


def reducing(topology: Topology, eqn: core.JaxprEqn, flow: Flow):
    """Sums and maxima over whole axes."""
    axes = tuple(parameters(eqn).get("axes", range(flow.ids.ndim)))
    return [topology.flow(topology.wires.along(flow.ids, axes).squeeze(axes), flow)]


def cumulating(topology: Topology, eqn: core.JaxprEqn, flow: Flow):
    """Running sums: all entries along the axis become one wire."""
    one = topology.wires.along(flow.ids, [parameters(eqn)["axis"]])
    return [topology.flow(np.broadcast_to(one, flow.ids.shape), flow)]


def ordering(topology: Topology, eqn: core.JaxprEqn, *operands: Value):
    """Sorting and the k largest: all entries along the axis become one wire."""
    params = parameters(eqn)
    names = [n for n in ("dimension", "reduction_dimension", "axis") if n in params]
    axis = params[names[0]] if names else -1
    outs = []
    for x, var in zip([*operands, Other()], eqn.outvars):
        if isinstance(x, Flow):
            one = topology.wires.along(x.ids, [axis % x.ids.ndim])
            outs.append(topology.flow(np.broadcast_to(one, typed(var).shape), x))
        else:
            outs.append(Other(leaves_of(x), data=True, chosen=True))
    return outs


def transforming(topology: Topology, eqn: core.JaxprEqn, flow: Flow):
    """A Fourier transform: all entries along its axes become one wire."""
    number = len(parameters(eqn)["fft_lengths"])
    axes = range(flow.ids.ndim - number, flow.ids.ndim)
    one = topology.wires.along(flow.ids, axes)
    return [topology.flow(np.broadcast_to(one, typed(eqn.outvars[0]).shape), flow)]


def scattering(
    topology: Topology, eqn: core.JaxprEqn, into: Value, index: Value, updates: Value
):
    """Sums and maxima of segments: along axes that are scattered whole, entries at the same
    position become one wire; along the others all do, wherever they go."""
    if isinstance(index, Flow):
        return mixing(topology, eqn, into, index, updates)
    topology.not_as_weights(into, updates)
    numbers = parameters(eqn)["dimension_numbers"]
    shape, window = (typed(eqn.invars[i]).shape for i in (0, 2))
    inserted = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    axes = [k for k in range(len(shape)) if k not in inserted]
    pairs = zip(axes, numbers.update_window_dims)
    whole = [(k, u) for k, u in pairs if window[u] == shape[k]]

    def along_others(value, kept):
        others = [k for k in range(value.ids.ndim) if k not in kept]
        ids = topology.wires.along(value.ids, others).squeeze(tuple(others))
        return placed(ids, [k for k, _ in whole], shape)

    flows = [x for x in (into, updates) if isinstance(x, Flow)]
    ids = [
        along_others(x, [pair[end] for pair in whole])
        for x, end in ((into, 0), (updates, 1))
        if isinstance(x, Flow)
    ]
    return [topology.flow(topology.wires.unite(*ids), *flows)]


def pooling(topology: Topology, eqn: core.JaxprEqn, flow: Value, *init: Value):
    """Entries of a window become one wire, whichever of them is the largest."""
    if not isinstance(flow, Flow) or set(parameters(eqn)["base_dilation"]) != {1}:
        return mixing(topology, eqn, flow, *init)
    seen = windows(flow.ids, parameters(eqn))
    return [topology.flow(topology.wires.unite(*seen), flow)]


def nothing_returned(topology: Topology, eqn: core.JaxprEqn, *operands: Value):
    """Printing and other side effects."""
    return []


def mixing(topology: Topology, eqn: core.JaxprEqn, *operands: Value):
    """An unknown primitive: all operands and all results become one wire."""
    flows = [x for x in operands if isinstance(x, Flow)]
    topology.not_as_weights(*operands)
    topology.computed |= leaves_of(*operands)
    one = topology.flow(topology.everything(flows), *flows)
    return [Flow(np.broadcast_to(one.ids, typed(v).shape), one.note) for v in eqn.outvars]


_ENTRYWISE = (
    "abs acos acosh add add_any asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt "
    "ceil clamp complex conj convert_element_type copy copy_p cos cosh digamma erf "
    "erf_inv erfc exp exp2 expm1 floor imag lgamma log log1p log2 logistic max min name "
    "neg nextafter one_minus_square polynomial pow real reduce_precision rem round "
    "sharding_constraint sign sin sinh sqrt square stop_gradient tan tanh"
).split()

# Step functions: their results are boolean and carry flow.
_SOME = "reduce_or reduce_and unvmap_any unvmap_all unvmap_max".split()
STEPS = frozenset(
    [*"eq ge gt le lt ne eq_to le_to lt_to and or xor not is_finite".split(), *_SOME]
)
# What becomes of their results: they are moved, counted and converted to numbers.
CARRIES_STEPS = STEPS | {*MOVES, *"convert_element_type gather reduce_sum".split()}

RULES: dict[str, Callable[..., Sequence[Value]]] = {
    **dict.fromkeys([*_ENTRYWISE, *STEPS], entrywise),
    **dict.fromkeys([*MOVES, "dynamic_slice", "gather"], moving),
    **dict.fromkeys("reduce_sum reduce_max reduce_min reduce_prod".split(), reducing),
    **dict.fromkeys(_SOME, reducing),
    **dict.fromkeys("cumsum cumprod cummax cummin cumlogsumexp".split(), cumulating),
    **dict.fromkeys(
        "reduce_window reduce_window_sum reduce_window_max reduce_window_min".split(),
        pooling,
    ),
    **dict.fromkeys("sort top_k approx_top_k".split(), ordering),
    **dict.fromkeys(
        "scatter scatter-add scatter-sub scatter-max scatter-min scatter-mul".split(),
        scattering,
    ),
    "fft": transforming,
    "dot_general": dot_general,
    "conv_general_dilated": conv_general_dilated,
    "sub": first_operand,
    "div": divide,
    "mul": multiply,
    "integer_pow": power,
    "rsqrt": gone,
    "select_n": select_n,
    "split": split,
    "unstack": unstack,
    "concatenate": concatenate,
    "stack": stack,
    **dict.fromkeys(["debug_callback", "debug_print"], nothing_returned),
}

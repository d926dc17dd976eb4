"""Checks scores against the conservation law, for every hidden unit and every cut."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from synflow_jax.criteria.synaptic_flow import flow_scores
from synflow_jax.precision import cast_floating, scoring_dtype, widened
from synflow_jax.topology.units import Layer, Units, units_of
from synflow_jax.topology.wires import compact
from synflow_jax.transform.network_flow import ones
from synflow_jax.transform.rules import flow_rules
from synflow_jax.transform.values import Rules, checked_rules
from synflow_jax.trees import Masks, Params, Scores, check_like, check_masks, leaf_names


class UnitFlow(NamedTuple):
    """The hidden units of a network: arrays with one entry for each unit.

    Attributes:
      layer: index in the list of layers of the first layer that leads into the unit.
      into: sum of the scores of the weights that lead into it.
      out: sum of the scores of the weights that lead out of it.
      gap: ``|into - out| / max(|into|, |out|)``.
    """

    layer: np.ndarray
    into: np.ndarray
    out: np.ndarray
    gap: np.ndarray


class LayerFlow(NamedTuple):
    """One layer: a leaf of the parameters whose entries are weights between units."""

    name: str
    size: int
    kept: int
    total: float


class Cut(NamedTuple):
    """A set of weights that separates the input from the output.

    It consists of whole layers. Of a layer that reads several concatenated values it can
    contain a part: the rows that read some of these values.
    """

    layers: tuple[str, ...]
    total: float


class Conservation(NamedTuple):
    """The result of `conservation`.

    Attributes:
      units: the hidden units, as arrays.
      layers: the layers, in the order of the network.
      cuts: the cuts, from the input to the output.
      unit_gap: the largest gap of a unit; 0 if no unit can be compared.
      cut_gap: the largest difference between the totals of two cuts, divided by the
        largest absolute total; 0 if there are fewer than two cuts.
      gap: the larger of the two; NaN if nothing was compared, or no cut was found.
    """

    units: UnitFlow
    layers: list[LayerFlow]
    cuts: list[Cut]
    unit_gap: float
    cut_gap: float
    gap: float


# The flow is computed without subtractions, so the score of a weight that carries 1e-20 of
# it has the relative precision of any other, and its unit must have as small a gap. Only
# underflow is different: scores below 2**-126 are lost in float32. A unit of a million
# weights may lose 2**-106 of the flow in this way, which is 1e-6 of the share below. If a
# unit carries less, its gap is therefore relative to this share of the largest layer.
_NEGLIGIBLE = 2.0**-86


def conservation(
    apply_fn: Callable[..., PyTree],
    params: Params,
    masks: Masks,
    input_shape: PyTree,
    *,
    scores: Scores | None = None,
    rules: Rules = flow_rules,
) -> Conservation:
    """Checks whether scores obey the conservation law.

    For SynFlow, as for every synaptic saliency ``w * dR/dw`` of a homogeneous network, the
    scores of the weights into a hidden unit have the same sum as those of the weights out
    of it, and the scores of all sets of weights that separate the input from the output
    have the same sum. Any other scores can be checked as well.

    Units, layers and cuts are read from the network's jaxpr:

    - A unit is a neuron or a channel. Values that are added to each other share their
      units, so with shortcuts a unit is a channel of the residual stream, and weights of
      the stem and of all blocks lead into it.
    - A layer is a leaf of the parameters whose entries are multiplied with the flow. They
      may be rearranged, masked or scaled before. Biases and normalisation are not layers;
      a leaf that enters any other computation before it is used, such as a standardised
      kernel, passes the flow on but is not listed.
    - If a leaf is used twice, the units that it leads from in the two uses are one unit,
      and so are the units that it leads to.
    - Two flows that are multiplied (a gate, the parts of an attention head) share the flow
      of their product, so the two and the product are one unit.
    - Units in which flow starts or ends other than through weights, such as the input and
      the output, are not compared.

    Runs on the host, not under `jit`.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      params: the parameters.
      masks: boolean leaves shaped like ``params``; pruned weights count as having score 0.
      input_shape: as in `synflow`.
      scores: shaped like ``params``; by default, those of `synflow`. Signed scores are
        summed with their signs, as in the law; the paper's figures show absolute values.
      rules: as in `flow`.

    Returns:
      A `Conservation`. If the network has no cuts, or nothing to compare, its ``gap`` is
      NaN and a warning says why. For synflow's scores the ``gap`` is only rounding: at most
      1e-5 on the paper's networks, and close to that only on VGG-19 at 224 pixels, where
      the scores of the first layer are float32 sums over 50,000 positions. Each gap is
      relative to the scores of the unit itself, however small they are. Only if they are
      less than 2**-86 of the largest layer's total, where float32 underflows, is the gap
      relative to 2**-86 of that total.

    Raises:
      ValueError: if ``masks`` or ``scores`` do not mirror ``params``, or the network has
        no flow (`flow`) and no scores are given.

    Example:
      >>> params = {"a": np.ones((2, 3)), "b": np.array([[1.0], [2.0], [-3.0]])}
      >>> masks = jax.tree.map(lambda w: np.ones(w.shape, bool), params)
      >>> found = conservation(lambda p, x: x @ p["a"] @ p["b"], params, masks, (2,))
      >>> found.units.into.round(3), found.units.out.round(3)
      (array([0.167, 0.333, 0.5  ]), array([0.167, 0.333, 0.5  ]))
      >>> [(cut.layers, round(cut.total, 3)) for cut in found.cuts]
      [(('a',), 1.0), (('b',), 1.0)]

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), Theorems 1 and 2, Figures 3 and 4.
    """
    check_masks(masks, params)
    if scores is None:
        scores = flow_scores(apply_fn, params, masks, input_shape, rules=rules)
    check_like(scores, params, name="scores")
    shapes = jax.eval_shape(widened, params)
    dtype = scoring_dtype(*jax.tree.leaves(shapes))
    inputs = cast_floating(ones(input_shape), dtype)
    structure = units_of(apply_fn, shapes, inputs, checked_rules(rules))

    names, kept = leaf_names(params), [np.asarray(m) for m in jax.tree.leaves(masks)]
    leaves = [np.asarray(s) for s in jax.tree.leaves(scores)]
    count = len(structure.space)
    into, out = np.zeros(count), np.zeros(count)
    first = np.full(count, -1)
    layers, pieces = [], []
    for number, layer in enumerate(structure.layers):
        mask, scored = kept[layer.leaf], leaves[layer.leaf]
        values = np.where(mask, scored, np.zeros_like(scored, shape=()))
        total = float(values.sum(dtype=np.float64))
        alive = int(np.count_nonzero(mask))
        layers.append(LayerFlow(names[layer.leaf], mask.size, alive, total))
        values = layer.arranged(values, 0)
        into += _sums(values, layer.targets, count)
        out += _sums(values, layer.sources, count)
        pieces += _pieces(values, number, layer, structure.space)
        ends = np.unique(compact(layer.targets)[0])
        ends = ends[ends >= 0]
        first[ends] = np.where(first[ends] < 0, number, first[ends])

    feeding = np.zeros(count, bool)
    for layer in structure.layers:
        (small,) = compact(layer.sources)
        feeding[small[small >= 0]] = True
    hidden = (first >= 0) & feeding & ~structure.starts & ~structure.ends
    into, out = into[hidden], out[hidden]
    floor = _NEGLIGIBLE * max((abs(layer.total) for layer in layers), default=0.0)
    scale = np.maximum(np.maximum(abs(into), abs(out)), floor)
    gap = abs(into - out) / np.where(scale == 0, 1, scale)
    cuts = _cuts(pieces, structure, [layer.name for layer in layers])
    totals = np.array([cut.total for cut in cuts])
    largest = abs(totals).max(initial=0.0)
    cut_gap = float(np.ptp(totals) / largest) if largest else 0.0
    unit_gap = float(gap.max(initial=0.0))
    both = float(np.maximum(unit_gap, cut_gap))  # NaN if one of them is
    if reason := _why_nothing(cuts, int(hidden.sum()), len(layers)):
        warnings.warn(f"the conservation law was not checked: {reason}", stacklevel=2)
        both = float("nan")
    return Conservation(
        UnitFlow(first[hidden], into, out, gap),
        layers,
        cuts,
        unit_gap,
        cut_gap,
        both,
    )


def _why_nothing(cuts: list[Cut], hidden: int, layers: int) -> str:
    """Why there is nothing to compare; empty if there is."""
    if not layers:
        return "no leaf of the parameters is a layer, used only as weights."
    if not cuts:
        return (
            "no cut was found. A path leads from the input to the output through none of "
            f"the network's {layers} layers (a shortcut, a value that is computed from the "
            f"parameters, or one wire of everything); `units` compares {hidden} units."
        )
    if len(cuts) < 2 and not hidden:
        return "the network has one cut and no hidden unit, so its total equals itself."
    return ""


def _sums(values: np.ndarray, units: np.ndarray, count: int) -> np.ndarray:
    """For each unit the sum, in double precision, of the values that lead to or from it."""
    (small,) = compact(units)
    sums = _summed_to(values, small.shape)
    return np.bincount(small[small >= 0], sums[small >= 0], minlength=count)


def _summed_to(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sums over the axes along which ``shape`` is 1, and keeps them."""
    axes = tuple(k for k, n in enumerate(shape) if n == 1)
    return values.sum(axis=axes, keepdims=True, dtype=np.float64)


# --- cuts ---------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """Sum of the scores of a layer's weights from one space to another (`Units.space`)."""

    layer: int
    source: int
    target: int
    total: float


def _pieces(
    values: np.ndarray, number: int, layer: Layer, space: np.ndarray
) -> list[_Piece]:
    """Sums the scores of a layer for each pair of spaces that its weights connect."""

    def spaces(units):
        numbers = np.append(space, -1)[compact(units)[0]]
        same = numbers.size and (numbers == numbers.flat[0]).all()
        return numbers[(slice(0, 1),) * numbers.ndim] if same else numbers

    ends = np.broadcast_arrays(spaces(layer.sources), spaces(layer.targets))
    sums = _summed_to(values, ends[0].shape)
    both = (ends[0] >= 0) & (ends[1] >= 0)
    # A pair is stored as one number, since numpy sorts numbers faster than pairs.
    pairs = ends[0][both] * len(space) + ends[1][both]
    pairs, which = np.unique(pairs, return_inverse=True)
    totals = np.bincount(which.reshape(-1), sums[both], minlength=len(pairs))
    pairs = zip(*divmod(pairs, len(space)))
    return [
        _Piece(number, int(source), int(target), total)
        for (source, target), total in zip(pairs, totals)
    ]


def _cuts(pieces: list[_Piece], structure: Units, names: list[str]) -> list[Cut]:
    """The cuts between the levels of the network.

    Spaces on a cycle, such as the stream of a residual stage and the inner layers of its
    blocks, form one component. The level of a component is the length of the longest path
    to it. No path leads back to a lower level, so the weights that cross from one level to
    the next are a cut.
    """
    spaces = structure.space.max(initial=-1) + 1
    place = np.arange(spaces)
    source, target = spaces, spaces + 1
    place[structure.space[structure.starts]] = source
    if source in place[structure.space[structure.ends]]:
        return []  # a path without weights, which no cut separates
    place[structure.space[structure.ends]] = target
    tails = place[np.array([p.source for p in pieces], int)]
    heads = place[np.array([p.target for p in pieces], int)]

    from scipy import sparse  # takes half a second to import, and only cuts need it
    from scipy.sparse import csgraph

    graph = sparse.coo_matrix((np.ones(len(pieces)), (tails, heads)), (spaces + 2,) * 2)
    graph = graph.tocsr()
    reached = csgraph.breadth_first_order(graph, source, return_predecessors=False)
    useful = csgraph.breadth_first_order(graph.T, target, return_predecessors=False)
    alive = np.isin(np.arange(spaces + 2), reached) & np.isin(np.arange(spaces + 2), useful)
    component = csgraph.connected_components(graph, connection="strong")[1]
    tails, heads = component[tails], component[heads]
    live = [
        alive[place[p.source]] and alive[place[p.target]] and t != h
        for p, t, h in zip(pieces, tails, heads)
    ]
    pieces = [p for p, yes in zip(pieces, live) if yes]
    tails, heads = tails[live], heads[live]
    level = np.zeros(spaces + 2, int)
    while True:
        higher = level.copy()
        np.maximum.at(higher, heads, level[tails] + 1)
        if (higher == level).all():
            break
        level = higher
    cuts = []
    for low in range(level[component[target]]):
        crossing = np.flatnonzero((level[tails] <= low) & (low < level[heads]))
        layers = dict.fromkeys(names[pieces[i].layer] for i in crossing)
        cuts.append(Cut(tuple(layers), float(sum(pieces[i].total for i in crossing))))
    return cuts

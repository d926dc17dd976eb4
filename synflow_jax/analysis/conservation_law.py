"""Whether scores obey the law of conservation: unit by unit, and cut by cut."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from synflow_jax.criteria.synaptic_flow import synflow
from synflow_jax.precision import cast_floating, scoring_dtype, widened
from synflow_jax.topology.units import Layer, Units, units_of
from synflow_jax.topology.wires import compact
from synflow_jax.transform.network_flow import ones
from synflow_jax.transform.rules import flow_rules
from synflow_jax.transform.values import Rules, checked_rules
from synflow_jax.trees import Masks, Params, Scores, check_like, check_masks, leaf_names


class UnitFlow(NamedTuple):
    """The hidden units of a network, one entry each.

    Attributes:
      layer: place in the list of layers of the first layer that leads into the unit.
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
    """Weights that separate the input from the output: whole layers, or where a layer
    reads several values side by side the rows that cross."""

    layers: tuple[str, ...]
    total: float


class Conservation(NamedTuple):
    """What `conservation` finds.

    Attributes:
      units: the hidden units, as arrays.
      layers: the layers, in the order of the network.
      cuts: the cuts, from the input to the output.
      unit_gap: the largest gap of a unit; 0 if none can be compared.
      cut_gap: the largest difference between the totals of two cuts, over the largest
        total; 0 if there are fewer than two.
      gap: the larger of both.
    """

    units: UnitFlow
    layers: list[LayerFlow]
    cuts: list[Cut]
    unit_gap: float
    cut_gap: float
    gap: float


# Nothing is subtracted in the flow, so the score of a weight that carries 1e-20 of it has
# as many digits as any other, and its unit is held to the same gap. That ends where float32
# does, at 2**-126: a million weights of a unit may lose 2**-106 of the whole there, which
# is 1e-6 of this share. Below it a gap counts relative to this share of the largest layer.
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
    """Holds scores against the law of conservation.

    For SynFlow, as for every synaptic saliency ``w * dR/dw`` of a homogeneous network, the
    scores of the weights into a hidden unit and of those out of it have the same sum, and
    so have the scores of all sets of weights that separate the input from the output. Any
    other scores may be held against it too.

    Units, layers and cuts are read from the network's jaxpr:

    - A unit is a neuron or a channel. Values that are added to each other are one unit, so
      with shortcuts it is a channel of the residual stream, into which the stem and all
      blocks lead.
    - Weights are a layer where they meet the flow as entries of one leaf of the
      parameters, moved about, masked or scaled. Biases and normalisation are not; leaves
      that are computed with before they are used pass the flow on without being listed.
    - A leaf that is used twice makes one unit of what it leads from in both uses, and of
      what it leads to.
    - Two flows that are multiplied (a gate, the parts of an attention head) share what they
      make, so all three are one unit.
    - Units at which flow starts or ends other than through weights (the input, the output,
      such factors) are not compared.

    Runs on the host, not under `jit`.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      params: the parameters.
      masks: boolean leaves shaped like ``params``; a pruned weight counts 0.
      input_shape: as in `synflow`.
      scores: shaped like ``params``; default, those of `synflow`. Sums keep the signs of
        signed scores, as the law does; the paper's figures show absolute values.
      rules: as in `flow`.

    Returns:
      A `Conservation`. With synflow's scores its ``gap`` is rounding: at most 1e-5 on the
      paper's networks, and near that only on VGG-19 at 224 pixels, whose first scores are
      float32 sums over 50,000 positions. Each gap is relative to what the unit itself
      carries, however little; only units that carry less than 2**-86 of the largest
      layer's total, where float32 ends, are measured against that.

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
        scores = jax.jit(synflow(apply_fn, input_shape, rules=rules))(params, masks)
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
    size = np.maximum(np.maximum(abs(into), abs(out)), floor)
    gap = abs(into - out) / np.where(size == 0, 1, size)
    cuts = _cuts(pieces, structure, [layer.name for layer in layers])
    totals = np.array([cut.total for cut in cuts])
    largest = abs(totals).max(initial=0.0)
    cut_gap = float(np.ptp(totals) / largest) if largest else 0.0
    unit_gap = float(gap.max(initial=0.0))
    return Conservation(
        UnitFlow(first[hidden], into, out, gap),
        layers,
        cuts,
        unit_gap,
        cut_gap,
        float(np.maximum(unit_gap, cut_gap)),  # a NaN stays one
    )


def _sums(values: np.ndarray, units: np.ndarray, count: int) -> np.ndarray:
    """For each unit the sum of the values that belong to it, in double precision."""
    (small,) = compact(units)
    sums = _summed_to(values, small.shape)
    return np.bincount(small[small >= 0], sums[small >= 0], minlength=count)


def _summed_to(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    axes = tuple(k for k, n in enumerate(shape) if n == 1)
    return values.sum(axis=axes, keepdims=True, dtype=np.float64)


# --- cuts ---------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """What a layer carries from one space to another."""

    layer: int
    source: int
    target: int
    total: float


def _pieces(
    values: np.ndarray, number: int, layer: Layer, space: np.ndarray
) -> list[_Piece]:
    def spaces(units):
        numbers = np.append(space, -1)[compact(units)[0]]
        same = numbers.size and (numbers == numbers.flat[0]).all()
        return numbers[(slice(0, 1),) * numbers.ndim] if same else numbers

    ends = np.broadcast_arrays(spaces(layer.sources), spaces(layer.targets))
    sums = _summed_to(values, ends[0].shape)
    both = (ends[0] >= 0) & (ends[1] >= 0)
    # One number for a pair: numpy sorts numbers faster than pairs.
    pairs = ends[0][both] * len(space) + ends[1][both]
    pairs, which = np.unique(pairs, return_inverse=True)
    totals = np.bincount(which.reshape(-1), sums[both], minlength=len(pairs))
    pairs = zip(*divmod(pairs, len(space)))
    return [_Piece(number, *map(int, p), total) for p, total in zip(pairs, totals)]


def _cuts(pieces: list[_Piece], structure: Units, names: list[str]) -> list[Cut]:
    """The cuts between the levels of the network.

    Spaces that lead back into each other, as the stream of a residual stage and the blocks
    beside it do, are one place; a place's level is the length of the longest way to it.
    No way leads back to a lower level, so all that crosses from one to the next is a cut.
    """
    spaces = structure.space.max(initial=-1) + 1
    place = np.arange(spaces)
    source, target = spaces, spaces + 1
    place[structure.space[structure.starts]] = source
    if source in place[structure.space[structure.ends]]:
        return []  # a way without weights
    place[structure.space[structure.ends]] = target
    tails = place[np.array([p.source for p in pieces], int)]
    heads = place[np.array([p.target for p in pieces], int)]

    from scipy import sparse  # half a second that `import synflow_jax` does without
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

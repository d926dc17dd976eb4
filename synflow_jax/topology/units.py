"""The units of a network, read from its jaxpr: which weights lead into and out of each.

A unit is a neuron or a channel; with shortcuts, a channel of the residual stream. It is the
smallest part of the network for which the conservation law involves scores of weights only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from synflow_jax.topology.interpreter import constant, interpret
from synflow_jax.topology.values import Flow, Note, Other, Topology, Use, Value, Weights
from synflow_jax.topology.wires import classes, compact
from synflow_jax.transform.rules import flow_rules
from synflow_jax.transform.values import Fixed, split_fixed


class Layer(NamedTuple):
    """A leaf whose entries are the weights between units.

    Attributes:
      leaf: the leaf's number.
      arranged: ``arranged(x, fill)`` lays an array shaped like the leaf out as the units.
      sources, targets: the units that each weight leads from and to; -1 for none.
    """

    leaf: int
    arranged: Callable[[np.ndarray, int], np.ndarray]
    sources: np.ndarray
    targets: np.ndarray


class Units(NamedTuple):
    """The units of a network and the layers between them.

    Attributes:
      layers: in the order of the network.
      space: for each unit, the number of the value it lies in, the last where there are
        several; consecutive from 0.
      starts: for each unit, whether flow enters it other than through weights.
      ends: for each unit, whether flow leaves it other than through weights.
      computed: leaves that act on the flow in another way than as weights or factors: they
        are computed with before they meet it, divide it, or choose among flows.
    """

    layers: list[Layer]
    space: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    computed: frozenset[int]


def units_of(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    inputs: PyTree,
    rules: Mapping[str, Any] = flow_rules,
) -> Units:
    """Reads a network's structure from shapes: arrays or `jax.ShapeDtypeStruct`."""
    leaves, inputs = split_fixed(inputs)
    traced = jax.make_jaxpr(apply_fn)(params, inputs)
    topology = Topology(rules)
    args: list[Value] = [Weights(i) for i in range(len(jax.tree.leaves(params)))]
    for x in leaves:
        if isinstance(x, Fixed):
            args.append(constant(x.value))
        elif jnp.issubdtype(x.dtype, jnp.inexact):
            topology.inputs.append(topology.wires.new(x.shape))
            args.append(topology.flow(topology.inputs[-1]))
        else:
            args.append(Other(data=True))
    with jax.ensure_compile_time_eval():  # constants, also while a loop is traced
        outs = interpret(topology, traced.jaxpr, traced.consts, args)
        outs = [out for out in outs if isinstance(out, Flow)]
        topology.passes(*outs)
        topology.ends += [out.ids for out in outs]
        return _resolved(topology, [x.shape for x in jax.tree.leaves(params)])


def _resolved(topology: Topology, shapes: Sequence[tuple[int, ...]]) -> Units:
    """From wires to units."""
    wires, layers = topology.wires, []
    for leaf, uses in topology.uses.items():
        if leaf in topology.not_layers:  # its scores do not belong to these weights alone
            for use in uses:
                every = [Flow(use.sources, Note()), Flow(use.targets, Note())]
                topology.everything(every)
            topology.passes()
        else:
            layers.append(_layer(topology, leaf, uses, shapes[leaf]))
    pairs = np.concatenate(topology.pairs)
    unit = classes(wires.size, pairs)
    count = unit.max(initial=-1) + 1

    def marked(arrays):
        mark = np.zeros(count, bool)
        for ids in arrays:
            (small,) = compact(ids)
            mark[unit[small[small >= 0]]] = True
        return mark

    space = np.zeros(count, np.int64)
    space[unit] = np.searchsorted(wires.starts, np.arange(wires.size), side="right") - 1
    space = np.unique(space, return_inverse=True)[1].reshape(-1)
    return Units(
        [
            layer._replace(
                sources=_renumbered(layer.sources, unit),
                targets=_renumbered(layer.targets, unit),
            )
            for layer in layers
        ],
        space,
        marked(topology.inputs),
        marked(topology.ends),
        frozenset(topology.computed),
    )


def _renumbered(ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    (small,) = compact(ids)
    # The number -1, of no unit, reads the last entry.
    return np.broadcast_to(np.append(numbers, -1)[small], ids.shape)


def _layer(
    topology: Topology, leaf: int, uses: Sequence[Use], shape: tuple[int, ...]
) -> Layer:
    """One layer of all uses of a leaf. The units that a weight leads from in its different
    uses are one unit, since its score is the sum over the uses."""
    unite = topology.wires.unite
    arrangements: list[Use] = []
    for use in uses:
        for i, other in enumerate(arrangements):
            if _same(use.weights, other.weights):
                sources = unite(other.sources, use.sources)
                targets = unite(other.targets, use.targets)
                arrangements[i] = Use(other.weights, sources, targets)
                break
        else:
            arrangements.append(use)
    first = arrangements[0]
    if len(arrangements) == 1 and first.weights.once:
        topology.passes()
        return Layer(leaf, first.weights.arranged, first.sources, first.targets)
    # Entry by entry of the leaf.
    places = np.arange(int(np.prod(shape))).reshape(shape)
    ends = np.full((2, places.size), -1)
    for use in arrangements:
        at = use.weights.arranged(places, -1)
        for end, ids in zip(ends, (use.sources, use.targets)):
            there, ids = at[at >= 0], ids[at >= 0]
            unite(end[there], ids)
            end[there] = ids
            unite(end[there], ids)
    topology.passes()
    return Layer(leaf, lambda x, fill: x.reshape(-1), *ends)


def _same(one: Weights, other: Weights) -> bool:
    if one.steps is other.steps:
        return True
    return len(one.steps) == len(other.steps) and all(
        a is b or (a.key is not None and a.key == b.key)
        for a, b in zip(one.steps, other.steps)
    )

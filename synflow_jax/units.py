"""The units of a network, read from its jaxpr: which weights lead into and out of each.

A unit is the smallest part of the network for which the law of conservation can be stated
in scores of weights alone: a neuron, a channel, with shortcuts a channel of the residual
stream.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import PyTree

from synflow_jax.jaxprs import called, evaluate, opened, parameters
from synflow_jax.junctions import RULES, embedding, mixing
from synflow_jax.rules import flow_rules
from synflow_jax.wires import MOVES, classes, compact, joined
from synflow_jax.wiring import (
    Flow,
    Network,
    Note,
    Plain,
    Step,
    Use,
    Value,
    Weights,
    leaves_of,
    plain,
)


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
      computed: leaves that act on the flow otherwise than as weights or factors: what is
        computed from them meets it, they divide or choose.
    """

    layers: list[Layer]
    space: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    computed: frozenset[int]


def units_of(apply_fn: Callable[..., PyTree], params: PyTree, inputs: PyTree) -> Units:
    """Reads a network's structure; arrays or `jax.ShapeDtypeStruct` will do."""
    traced = jax.make_jaxpr(apply_fn)(params, inputs)
    network = Network()
    args: list[Value] = [Weights(i) for i in range(len(jax.tree.leaves(params)))]
    for x in jax.tree.leaves(inputs):
        if jnp.issubdtype(x.dtype, jnp.floating):
            network.inputs.append(network.wires.new(x.shape))
            args.append(network.flow(network.inputs[-1]))
        else:
            args.append(Plain(data=True))
    outs = interpret(network, traced.jaxpr, traced.consts, args)
    outs = [out for out in outs if isinstance(out, Flow)]
    network.passes(*outs)
    network.ends += [out.ids for out in outs]
    return _resolved(network, [x.shape for x in jax.tree.leaves(params)])


def _resolved(network: Network, shapes: Sequence[tuple[int, ...]]) -> Units:
    """From wires to units."""
    wires, layers = network.wires, []
    for leaf, uses in network.uses.items():
        if leaf in network.spoiled:  # its scores are not those of these weights alone
            for use in uses:
                every = [Flow(use.sources, Note()), Flow(use.targets, Note())]
                network.everything(every)
            network.passes()
        else:
            layers.append(_layer(network, leaf, uses, shapes[leaf]))
    pairs = np.concatenate(network.pairs)
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
        marked(network.inputs),
        marked(network.ends),
        frozenset(network.computed),
    )


def _renumbered(ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    (small,) = compact(ids)
    # The last entry serves those that have none.
    return np.broadcast_to(np.append(numbers, -1)[small], ids.shape)


def _layer(
    network: Network, leaf: int, uses: Sequence[Use], shape: tuple[int, ...]
) -> Layer:
    """One layer of all uses of a leaf. What a weight leads from in one use and in another
    is one unit, since its score is the sum over its uses."""
    unite = network.wires.unite
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
        network.passes()
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
    network.passes()
    return Layer(leaf, lambda x, fill: x.reshape(-1), *ends)


def _same(one: Weights, other: Weights) -> bool:
    if one.steps is other.steps:
        return True
    return len(one.steps) == len(other.steps) and all(
        a is b or (a.key is not None and a.key == b.key)
        for a, b in zip(one.steps, other.steps)
    )


# --- the interpreter ----------------------------------------------------------------------


def interpret(
    network: Network, jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Value]
) -> list[Value]:
    """Reads a jaxpr, its arguments being values as above."""

    def step(eqn, operands):
        return _outcome(network, eqn, [*map(_value, operands)])

    return [*map(_value, evaluate(jaxpr, consts, args, step))]


def _value(x: Any) -> Value:
    """A constant as a value."""
    if isinstance(x, Flow | Weights | Plain):
        return x
    return Plain() if isinstance(x, jax.core.Tracer) else Plain(value=lambda: x)


def _outcome(
    network: Network, eqn: core.JaxprEqn, operands: list[Value]
) -> Sequence[Value]:
    name = eqn.primitive.name
    if name in CONTROL:
        return CONTROL[name](network, eqn, *operands)
    floating = [jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars]
    data = any(isinstance(x, Flow) or (isinstance(x, Plain) and x.data) for x in operands)
    if not any(floating) and data:  # a comparison, an index
        return [Plain(data=True)] * len(floating)
    flows = any(isinstance(x, Flow) for x in operands)
    if name in _STARTS and not flows and data and leaves_of(*operands):
        # Weights chosen by whole numbers, the tokens: the flow starts at them.
        if name == "gather":
            return embedding(network, eqn, *operands)
        operands = [
            network.source(atom.aval.shape) if isinstance(x, Plain) and x.data else x
            for x, atom in zip(operands, eqn.invars)
        ]
        flows = True
    if flows:
        outs = RULES.get(name, mixing)(network, eqn, *operands)
    else:
        outs = plain(eqn, operands)
    return [
        out if f or not isinstance(out, Flow) else Plain(data=True)
        for f, out in zip(floating, outs, strict=True)
    ]


_STARTS = ("gather", "dot_general", "conv_general_dilated")


# --- calls, branches, loops ---------------------------------------------------------------


def call(network: Network, eqn: core.JaxprEqn, *operands: Value):
    """Goes inside, unless the function is one that `flow` takes for a nonlinearity."""
    inner = called(parameters(eqn))
    flows = [x for x in operands if isinstance(x, Flow)]
    shapes = [v.aval.shape for v in eqn.outvars]
    if (
        f"jit:{parameters(eqn).get('name')}" in flow_rules
        and [x.ids.shape for x in flows] == shapes
        and not leaves_of(*operands)
        and not inner.consts
    ):
        return flows
    return _inside(network, inner, operands)


def cond(network: Network, eqn: core.JaxprEqn, index: Value, *operands: Value):
    """Goes inside every branch; what one or another returns is one wire."""
    network.computed |= leaves_of(index)
    branches = [_inside(network, b, operands) for b in parameters(eqn)["branches"]]
    return [_either(network, outs) for outs in zip(*branches, strict=True)]


def _either(network: Network, outs: Sequence[Value]) -> Value:
    flows = [out for out in outs if isinstance(out, Flow)]
    if not flows:
        data = any(isinstance(out, Plain) and out.data for out in outs)
        return Plain(leaves_of(*outs), data)
    return network.flow(network.wires.unite(*(flow.ids for flow in flows)), *flows)


def scan(network: Network, eqn: core.JaxprEqn, *operands: Value):
    """Step by step, so that weights stacked for the steps are layers one after another."""
    params = parameters(eqn)
    length = params["length"]
    start, stop = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, xs = operands[:start], operands[start:stop], operands[stop:]
    steps = range(length)[::-1] if params["reverse"] else range(length)
    rows = [()] * length
    for i in steps:
        args = (*consts, *carry, *(_row(x, i) for x in xs))
        outs = _inside(network, params["jaxpr"], args)
        carry, rows[i] = outs[: len(carry)], outs[len(carry) :]
    stacked = [_stacked(network, column) for column in zip(*rows)]
    return [*carry, *(stacked or [Plain()] * (len(eqn.outvars) - len(carry)))]


def _row(x: Value, i: int) -> Value:
    if isinstance(x, Flow):
        return Flow(x.ids[i], x.note)
    if isinstance(x, Weights):
        params = {"row": i}
        step = Step(("row", params), lambda x, fill: MOVES["row"](x, params, fill))
        return x._replace(steps=(*x.steps, step))
    return x if x.value is None else x._replace(value=lambda: x.value()[i])


def _stacked(network: Network, rows: Sequence[Value]) -> Value:
    flows = [row for row in rows if isinstance(row, Flow)]
    if not flows:
        return _either(network, rows)
    nothing = np.broadcast_to(-1, flows[0].ids.shape)
    arrays = [row.ids if isinstance(row, Flow) else nothing for row in rows]
    return network.flow(joined([ids[None] for ids in arrays], axis=0), *flows)


def barrier(network: Network, eqn: core.JaxprEqn, *operands: Value):
    """Returns what it gets."""
    return operands


def _inside(network: Network, jaxpr: Any, operands: Sequence[Value]) -> list[Value]:
    return interpret(network, *opened(jaxpr), operands)


_CALLS = "jit pjit closed_call core_call remat2 checkpoint custom_jvp_call custom_vjp_call"

CONTROL: dict[str, Callable[..., Sequence[Value]]] = {
    **dict.fromkeys(_CALLS.split(), call),
    "cond": cond,
    "scan": scan,
    "optimization_barrier": barrier,
}

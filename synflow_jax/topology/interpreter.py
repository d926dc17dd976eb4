"""Reads a jaxpr equation by equation and follows its wires, into calls and loops too."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core

from synflow_jax.topology.rules import CARRIES_STEPS, RULES, embedding, mixing
from synflow_jax.topology.values import (
    Flow,
    Other,
    Step,
    Topology,
    Value,
    Weights,
    is_chosen,
    leaves_of,
    plain,
)
from synflow_jax.topology.wires import MOVES, joined
from synflow_jax.xla.jaxprs import called, evaluate, opened, parameters, typed


def interpret(
    topology: Topology, jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Value]
) -> list[Value]:
    """The results of a jaxpr, of which the arguments are values (`topology.values`)."""

    def step(eqn, operands):
        return _outcome(topology, eqn, [*map(constant, operands)])

    return [*map(constant, evaluate(jaxpr, consts, args, step))]


def constant(x: Any) -> Value:
    """A constant as a value."""
    if isinstance(x, Flow | Weights | Other):
        return x
    return Other() if isinstance(x, Tracer) else Other(value=lambda: x)


def _outcome(
    topology: Topology, eqn: core.JaxprEqn, operands: list[Value]
) -> Sequence[Value]:
    name = eqn.primitive.name
    if name in CONTROL:
        return CONTROL[name](topology, eqn, *operands)
    floating = [jnp.issubdtype(typed(v).dtype, jnp.inexact) for v in eqn.outvars]
    data = any(isinstance(x, Flow) or (isinstance(x, Other) and x.data) for x in operands)
    step = name in CARRIES_STEPS and any(isinstance(x, Flow) for x in operands)
    if not any(floating) and data and not step:  # an index, a comparison of integers
        return [Other(data=True, chosen=is_chosen(*operands))] * len(floating)
    flows = any(isinstance(x, Flow) for x in operands)
    starts = data and not is_chosen(*operands) and leaves_of(*operands)
    if name in _STARTS and starts:
        # Weights chosen by integers of the input (tokens): the flow starts at them.
        if name == "gather":
            return embedding(topology, eqn, *operands)
        operands = [
            topology.source(typed(atom).shape) if isinstance(x, Other) and x.data else x
            for x, atom in zip(operands, eqn.invars)
        ]
        flows = True
    if flows:
        outs = RULES.get(name, mixing)(topology, eqn, *operands)
    else:
        outs = plain(eqn, operands)
    return [
        out if f or step or not isinstance(out, Flow) else Other(data=True, chosen=True)
        for f, out in zip(floating, outs, strict=True)
    ]


_STARTS = ("gather", "dot_general", "conv_general_dilated")


# --- calls, branches, loops ---------------------------------------------------------------


def call(topology: Topology, eqn: core.JaxprEqn, *operands: Value):
    """Goes inside, unless `flow` treats the function as a nonlinearity by its name."""
    inner = called(parameters(eqn))
    flows = [x for x in operands if isinstance(x, Flow)]
    shapes = [typed(v).shape for v in eqn.outvars]
    if (
        f"jit:{parameters(eqn).get('name')}" in topology.rules
        and [x.ids.shape for x in flows] == shapes
        and not leaves_of(*operands)
        and not inner.consts
    ):
        return flows
    return _inside(topology, inner, operands)


def cond(topology: Topology, eqn: core.JaxprEqn, index: Value, *operands: Value):
    """Goes inside every branch; the results of all branches become one wire."""
    topology.computed |= leaves_of(index)
    branches = [_inside(topology, b, operands) for b in parameters(eqn)["branches"]]
    return [_either(topology, outs) for outs in zip(*branches, strict=True)]


def _either(topology: Topology, outs: Sequence[Value]) -> Value:
    flows = [out for out in outs if isinstance(out, Flow)]
    if not flows:
        data = any(isinstance(out, Other) and out.data for out in outs)
        return Other(leaves_of(*outs), data, chosen=is_chosen(*outs))
    return topology.flow(topology.wires.unite(*(flow.ids for flow in flows)), *flows)


def scan(topology: Topology, eqn: core.JaxprEqn, *operands: Value):
    """Goes through the steps, so that weights stacked for them are consecutive layers."""
    params = parameters(eqn)
    length = params["length"]
    start, stop = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, xs = operands[:start], operands[start:stop], operands[stop:]
    steps = range(length)[::-1] if params["reverse"] else range(length)
    rows = [()] * length
    for i in steps:
        args = (*consts, *carry, *(_row(x, i) for x in xs))
        outs = _inside(topology, params["jaxpr"], args)
        carry, rows[i] = outs[: len(carry)], outs[len(carry) :]
    stacked = [_stacked(topology, column) for column in zip(*rows)]
    return [*carry, *(stacked or [Other()] * (len(eqn.outvars) - len(carry)))]


def _row(x: Value, i: int) -> Value:
    if isinstance(x, Flow):
        return Flow(x.ids[i], x.note)
    if isinstance(x, Weights):
        params = {"row": i}
        step = Step(("row", params), lambda x, fill: MOVES["row"](x, params, fill))
        return x._replace(steps=(*x.steps, step))
    return x if x.value is None else x._replace(value=lambda: x.value()[i])


def _stacked(topology: Topology, rows: Sequence[Value]) -> Value:
    flows = [row for row in rows if isinstance(row, Flow)]
    if not flows:
        return _either(topology, rows)
    nothing = np.broadcast_to(-1, flows[0].ids.shape)
    arrays = [row.ids if isinstance(row, Flow) else nothing for row in rows]
    return topology.flow(joined([ids[None] for ids in arrays], axis=0), *flows)


def barrier(topology: Topology, eqn: core.JaxprEqn, *operands: Value):
    """Returns its operands."""
    return operands


def _inside(topology: Topology, jaxpr: Any, operands: Sequence[Value]) -> list[Value]:
    return interpret(topology, *opened(jaxpr), operands)


_CALLS = "jit pjit closed_call core_call remat2 checkpoint custom_jvp_call custom_vjp_call"

CONTROL: dict[str, Callable[..., Sequence[Value]]] = {
    **dict.fromkeys(_CALLS.split(), call),
    "cond": cond,
    "scan": scan,
    "optimization_barrier": barrier,
    "device_put": barrier,
}

"""Rules of calls, branches and loops: the flow goes inside."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from synflow_jax.transform.elementwise import nonlinearity
from synflow_jax.transform.history import chain, outer_factors
from synflow_jax.transform.scaled import Scaled, normalised, nothing, power_of_two
from synflow_jax.transform.values import (
    Derived,
    Equation,
    Stopped,
    Tokens,
    Value,
    as_array,
    carries_flow,
    must_be_plain,
    plain_or_flow,
)
from synflow_jax.transform.weights import Weight
from synflow_jax.xla.jaxprs import JITTED, called, evaluate, opened, parameters, switch


def call(equation: Equation, *operands: Value):
    """Goes inside a jitted function or one with custom derivatives."""
    return equation.inside(called(equation.params), *operands)


def nothing_returned(equation: Equation, *operands: Value):
    """A call with a side effect alone, such as printing: the flow does not have it."""
    return []


def rematerialised(equation: Equation, *operands: Value):
    """Goes inside, and keeps no more values for the backward pass than the network does."""
    params, known = equation.params, []

    def inside():  # operands are closed over: they keep their histories
        again = [equation.weights.again(x) for x in operands]
        outs = equation.inside(called(params), *again)
        known[:] = [_Known(out, operands) for out in outs]
        return [record.arrays() for record in known]

    keep = {name: params[name] for name in ("prevent_cse", "policy")}
    results = jax.checkpoint(inside, **keep)()
    return [record.value(arrays) for record, arrays in zip(known, results)]


class _Known:
    """What is known while tracing of a result that leaves a rematerialised part: its kind,
    and its history from the values outside on."""

    def __init__(self, out: Value, operands: Sequence[Value]):
        self.out, self.parent, self.factors, self.nodes = out, None, (), []
        if isinstance(out, Derived):
            outside = {id(node) for x in operands if carries_flow(x) for node in chain(x)}
            self.parent = next((n for n in chain(out) if id(n) in outside), None)
        if self.parent is not None:
            self.factors = outer_factors(out, self.parent)
            inside = itertools.takewhile(lambda node: node is not self.parent, chain(out))
            self.nodes = [node for node in inside if isinstance(node, Derived)]

    def arrays(self):
        if not isinstance(self.out, Derived):
            return self.out.flow if isinstance(self.out, Stopped) else self.out
        added = None if self.out.added is None else self.out.added()
        return self.out.flow, added, [factor for factor, _ in self.factors]

    def value(self, arrays) -> Value:
        if isinstance(self.out, Stopped):
            return Stopped(arrays, arrays)
        if not isinstance(self.out, Derived):
            return arrays
        flow, added, factors = arrays
        inverts = [inverts for _, inverts in self.factors]
        return Derived(
            flow,
            self.parent,
            tuple(zip(factors, inverts)),
            all(node.scales for node in self.nodes),
            any(node.layer for node in self.nodes),
            self.out.shift,
            None if added is None else lambda: added,
        )


def activation(equation: Equation, *operands: Value):
    """A nonlinearity recognised by its name. A function that only shares the name, with
    other operands than an activation has, is a call."""
    flows = [operand for operand in operands if carries_flow(operand)]
    scalars = [
        x for x in operands if not carries_flow(x) and jnp.ndim(plain_or_flow(x)) == 0
    ]
    elementwise = (
        len(flows) == 1
        and len(scalars) == len(operands) - 1
        and equation.out_shapes == [plain_or_flow(flows[0]).mantissa.shape]
        and not len(getattr(equation.params.get("jaxpr"), "consts", ()))
    )
    return (nonlinearity if elementwise else call)(equation, *operands)


def cond(equation: Equation, index: Value, *operands: Value):
    """Goes inside every branch. A branch that returns a parameter value returns no flow."""
    must_be_plain([index], "the branch that it takes")
    branches = equation.params["branches"]
    # Operands are closed over: they keep their histories.
    shapes = [
        jax.eval_shape(lambda branch=branch: inside(equation, branch, operands))
        for branch in branches
    ]
    kinds = [max(map(_kind, outs)) for outs in zip(*shapes)]

    def taken(branch):
        return lambda: of_kinds(kinds, inside(equation, branch, operands), equation.dtype)

    runs = [taken(branch) for branch in branches]
    return switch(equation.params, plain_or_flow(index), runs)


def checked(equation: Equation, *operands: Value):
    """`equinox.error_if`: the values that are checked pass, and the check is left out."""
    found = []

    def passed(eqn, operands):
        params = parameters(eqn)
        if eqn.primitive.name == "cond":  # its first branch is taken if there is no error
            found.append(eqn)
            return evaluate(*opened(params["branches"][0]), operands[1:], passed)
        if eqn.primitive.name in ("custom_jvp_call", *JITTED):
            return evaluate(*opened(called(params)), operands, passed)
        return [None] * len(eqn.outvars)

    outs = evaluate(*opened(called(equation.params)), operands, passed)
    if not found or any(out is None for out in outs):
        return call(equation, *operands)  # a function of another library
    return outs


def scan(equation: Equation, *operands: Value):
    """Goes inside at every step. A carried value that later meets the flow starts as zero
    flow."""
    params = equation.params
    start, stop = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts = operands[:start]  # closed over: they keep their histories
    values = [without_history(x) for x in operands]
    init, dtype = values[start:stop], equation.dtype
    # A weight is masked layer by layer.
    xs = [equation.weights.behind(x) or as_array(x) for x in values[stop:]]

    def step(carry, rows):
        rows = [equation.weights.read(x) if isinstance(x, Weight) else x for x in rows]
        outs = inside(equation, params["jaxpr"], [*consts, *carry, *rows])
        return outs[: len(init)], outs[len(init) :]

    def sliced(x):
        if isinstance(x, Scaled):  # entries of one array share its exponent
            exponents = jnp.broadcast_to(x.exponent, (params["length"],))
            return Scaled(x.mantissa, exponents)
        return x

    xs = [sliced(x) for x in xs]
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    kinds = settled(lambda carry, rows: step(carry, rows)[0], init, dtype, rows)

    def typed_step(carry, rows):
        outs, ys = step(carry, rows)
        return of_kinds(kinds, outs, dtype), ys

    carry, ys = lax.scan(
        typed_step,
        of_kinds(kinds, init, dtype),
        xs,
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *map(on_one_exponent, ys)]


# --- the kinds of values that a branch or a loop returns ----------------------------------


def without_history(value: Value) -> Value:
    return value if isinstance(value, Tokens) else plain_or_flow(value)


def inside(equation: Equation, jaxpr, operands: Sequence[Value]) -> list[Value]:
    return [without_history(x) for x in equation.inside(jaxpr, *operands)]


def _kind(value) -> int:
    """0 for a plain value, 1 for integers of the input, 2 for flow; shapes count alike."""
    return 2 if isinstance(value, Scaled) else int(isinstance(value, Tokens))


def of_kinds(kinds: Sequence[int], values: Sequence[Value], dtype) -> list[Value]:
    """The values; a plain one whose kind is flow becomes a flow of zeros."""

    def of_kind(kind, value):
        if kind == _kind(value):
            return value if kind else jnp.asarray(as_array(value))
        if kind == 1:
            return Tokens(jnp.asarray(value))
        if isinstance(value, Tokens):
            raise ValueError(
                "it holds integers of the input in one branch or step, and flow in another."
            )
        return nothing(as_array(value), dtype)

    return [*map(of_kind, kinds, values)]


def settled(step, init: Sequence[Value], dtype, *rest) -> list[int]:
    """The kinds of the carried values from the second step on."""
    kinds = [*map(_kind, init)]
    while True:
        carry = jax.eval_shape(lambda x, kinds=kinds: of_kinds(kinds, x, dtype), [*init])
        outs = jax.eval_shape(step, carry, *rest)
        after = [max(kind, _kind(out)) for kind, out in zip(kinds, outs)]
        if after == kinds:
            return kinds
        kinds = after


def on_one_exponent(stacked: Value) -> Value:
    """Stacked results of a scan, one exponent per step, brought to one exponent."""
    if not isinstance(stacked, Scaled) or stacked.exponent.ndim == 0:
        return stacked
    if not stacked.exponent.size:
        return normalised(stacked.mantissa)
    top = stacked.exponent.max()
    factors = power_of_two(stacked.exponent - top, stacked.mantissa.dtype)
    shape = (-1,) + (1,) * (stacked.mantissa.ndim - 1)
    return normalised(stacked.mantissa * factors.reshape(shape), top)

"""Reads a traced network equation by equation and applies the rules."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, PyTree

from synflow_jax.transform import parameters as plain
from synflow_jax.transform.control_flow import call
from synflow_jax.transform.integers import of_tokens, starting_rule
from synflow_jax.transform.rules import CALLS, flow_rules
from synflow_jax.transform.scaled import normalised
from synflow_jax.transform.values import (
    Equation,
    Flowing,
    Plain,
    Rule,
    Tokens,
    Value,
    carries_flow,
    plain_or_flow,
)
from synflow_jax.trees import is_floating
from synflow_jax.xla.jaxprs import FlowError, bind, evaluate, opened, parameters, user_line


class Settings(NamedTuple):
    """How equations are interpreted.

    Attributes:
      dtype: the precision of every flow.
      biases: whether added parameters join the flow.
      rules: the table.
      size: of a parameter where it meets the flow; None for its absolute value.
      finished: what is done to each flow that a rule returns, if anything.
    """

    dtype: np.dtype
    biases: bool = False
    rules: Mapping[str, Rule] = flow_rules
    size: Callable[[Plain], Array] | None = None
    finished: Callable[[Flowing], Flowing] | None = None


def interpret(
    apply_fn: Callable[..., PyTree], params: PyTree, args: PyTree, settings: Settings
) -> PyTree:
    """What ``apply_fn(params, *args)`` returns, each value plain or a `Scaled` flow."""
    traced, shape = jax.make_jaxpr(apply_fn, return_shape=True)(params, *args)
    sources = [_source(x) for x in jax.tree.leaves(args)]
    outs = _Interpreter(settings).run(
        traced.jaxpr, traced.consts, [*jax.tree.leaves(params), *sources]
    )
    return jax.tree.unflatten(jax.tree.structure(shape), map(plain_or_flow, outs))


def _source(x: Array) -> Value:
    """An input as the network meets it: floats are flow, whole numbers become it."""
    if is_floating(x):
        return normalised(x)
    return Tokens(x) if jnp.issubdtype(x.dtype, jnp.integer) else x


class _Interpreter(NamedTuple):
    """Evaluates jaxprs with some of their arguments carrying flow."""

    settings: Settings

    def run(
        self,
        jaxpr: core.Jaxpr,
        consts: Sequence[Any],
        args: Sequence[Value],
        line: str = "",
    ) -> list[Value]:
        """The results of a jaxpr.

        ``line`` is where the model calls it: JAX forgets the callers of jitted functions
        that it has traced before.
        """
        step = functools.partial(self.step, line=line)
        return evaluate(jaxpr, [*map(_as_array, consts)], args, step)

    def step(self, eqn: core.JaxprEqn, operands: list[Value], line: str) -> Sequence[Value]:
        name = eqn.primitive.name
        if any(map(carries_flow, operands)):
            rules = self.settings.rules
            return self.apply(rules.get(_named(eqn), rules.get(name)), eqn, operands, line)
        if any(isinstance(x, Tokens) for x in operands):
            if name in CALLS:
                return self.apply(self.settings.rules[name], eqn, operands, line)
            starts = starting_rule(eqn, operands)
            if starts is None:
                return of_tokens(eqn, operands, bind)
            return self.apply(starts, eqn, operands, line)
        if flow_rules.get(name) is call and name in ("jit", "pjit", "closed_call"):
            return self.apply(call, eqn, operands, line)
        return plain.evaluate(eqn, operands, bind)

    def apply(
        self, rule: Rule | None, eqn: core.JaxprEqn, operands: list[Value], line: str
    ) -> Sequence[Value]:
        name = eqn.primitive.name

        def inside(inner, *operands):
            return self.run(*opened(inner), operands, user_line(eqn) or line)

        if rule is None:
            raise FlowError(_unknown(name, user_line(eqn) or line))
        if not getattr(rule, "sees_kinds", False):
            operands = [plain_or_flow(operand) for operand in operands]
        settings = self.settings

        def absolute(plain):
            return jnp.abs(jnp.asarray(plain).astype(settings.dtype))

        equation = Equation(
            name=name,
            params=parameters(eqn),
            out_shapes=[var.aval.shape for var in eqn.outvars],
            dtype=settings.dtype,
            size=settings.size or absolute,
            biases=settings.biases,
            inside=inside,
            bind=lambda *arrays: bind(eqn, arrays),
        )
        try:
            outs = rule(equation, *operands)
        except FlowError:  # from a jaxpr inside this one: it has its place already
            raise
        except ValueError as error:
            raise FlowError(
                f"flow cannot pass the primitive `{name}`, called at "
                f"{user_line(eqn) or line}: {error}"
            ) from error
        if settings.finished is None:
            return outs
        # What only passes an equation is finished already, and stays the same object.
        passed = {id(operand) for operand in operands}
        return [
            settings.finished(out) if carries_flow(out) and id(out) not in passed else out
            for out in outs
        ]


def _unknown(name: str, line: str) -> str:
    return (
        f"flow has no rule for the primitive `{name}`, called at {line}. It acts on values "
        "that depend on the input, so what it does to the flow must be known. Add a rule, "
        f"or give it the rule of another: `synflow_jax.flow_rules[{name!r}] = "
        "synflow_jax.flow_rules['tanh']` lets the flow pass as through a nonlinearity, the "
        "rule of 'rev' moves entries about, that of 'reduce_sum' adds them up. Known: "
        f"{', '.join(sorted(flow_rules))}."
    )


def _named(eqn: core.JaxprEqn) -> str:
    """The key of a jitted function's own rule."""
    return f"jit:{eqn.params.get('name')}" if eqn.primitive.name in ("jit", "pjit") else ""


def _as_array(constant: Any) -> Array:
    return constant if isinstance(constant, jax.Array) else jnp.asarray(constant)

"""Reads a traced network equation by equation and applies the rules."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jaxtyping import Array, PyTree

from synflow_jax.transform import parameters as plain
from synflow_jax.transform.advice import unknown
from synflow_jax.transform.class_windows import LEAST, are_worthwhile
from synflow_jax.transform.classes import one_class, useful
from synflow_jax.transform.integers import Starts, of_tokens
from synflow_jax.transform.origins import Origins
from synflow_jax.transform.refinement import Refinement
from synflow_jax.transform.results import check_results, named, of_the_package
from synflow_jax.transform.rules import CALL, ENTRYWISE, flow_rules
from synflow_jax.transform.scaled import Scaled, normalised
from synflow_jax.transform.undecided import of_undecided
from synflow_jax.transform.values import (
    Classed,
    Equation,
    Fixed,
    Flowing,
    Plain,
    Rule,
    Tokens,
    Undecided,
    Uniform,
    Value,
    as_array,
    carries_flow,
    known,
    plain_or_flow,
    split_fixed,
)
from synflow_jax.transform.weights import Weight, Weights
from synflow_jax.trees import is_floating
from synflow_jax.xla.backends import ANYWHERE, Backend
from synflow_jax.xla.jaxprs import (
    JITTED,
    FlowError,
    bind,
    evaluate,
    opened,
    parameters,
    typed,
    user_line,
)
from synflow_jax.xla.placement import varying_with


class Settings(NamedTuple):
    """How equations are interpreted.

    Attributes:
      dtype: the precision of every flow.
      biases: whether added parameters join the flow.
      rules: the table of rules.
      absolute: ``absolute(plain) -> array``, what a parameter counts where it meets the
        flow; None for its absolute value.
      after_rule: applied to each new flow that a rule returns; it raises ValueError to
        refuse it. None for nothing.
      before_rule: ``before_rule(rule, equation, *operands)``, called before each rule; it
        raises ValueError to refuse the equation. None for nothing.
      backend: the devices that the flow is traced for.
      once: whether equal positions of `Uniform` inputs are computed once; None if that is
        faster. Never with ``before_rule``.
      least: the multiply-adds of a convolution, on average (`are_worthwhile`), from which
        it is faster.
    """

    dtype: np.dtype
    biases: bool = False
    rules: Mapping[str, Rule] = flow_rules
    absolute: Callable[[Plain], Array] | None = None
    after_rule: Callable[[Flowing], Flowing] | None = None
    before_rule: Callable[..., None] | None = None
    backend: Backend = ANYWHERE
    once: bool | None = None
    least: int = LEAST


def interpret(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    args: PyTree,
    settings: Settings,
    masks: PyTree | None = None,
) -> PyTree:
    """The results of ``apply_fn(params, *args)``, each plain, a `Scaled` flow, or a
    `Classed` one if an input is `Uniform`.

    Arguments that are `Fixed` are constants of the network. With ``masks`` the results are
    those of the masked parameters.
    """
    inputs, args = split_fixed(varying_with(args, params))
    traced, shape = jax.make_jaxpr(apply_fn, return_shape=True)(params, *args)
    once, marked = settings.once, any(isinstance(x, Uniform) for x in inputs)
    if settings.before_rule or not marked:
        once = False
    elif once is None:
        once = are_worthwhile(traced.jaxpr, settings.least)
    sources = [_source(x, settings.dtype, once) for x in inputs]
    stored = [*map(_as_array, jax.tree.leaves(params))]
    kept = [None] * len(stored) if masks is None else jax.tree.leaves(masks)

    def run(numbers_flow):
        sums, origins = plain.Sums(), Origins(ENTRYWISE.__contains__)
        weights = Weights(sums.begin)
        leaves = [*map(weights.read, map(Weight, stored, kept))]
        interpreter = _Interpreter(
            settings,
            sums,
            Starts(numbers_flow),
            origins,
            Refinement(origins, sums),
            weights,
        )
        outs = interpreter.run(traced.jaxpr, traced.consts, [*leaves, *sources])
        return outs, interpreter.starts

    outs, starts = run(numbers_flow=False)
    if starts.ignored and not starts.found and not any(map(carries_flow, sources)):
        outs, _ = run(numbers_flow=True)
    # An output that the flow decides, such as a label, carries none.
    outs = [jnp.zeros(*x) if isinstance(x, Undecided) else _without(x) for x in outs]
    return jax.tree.unflatten(jax.tree.structure(shape), outs)


def _without(out: Value) -> Any:
    """A result without its history."""
    if isinstance(out, Classed):
        return dataclasses.replace(out, value=plain_or_flow(out.value))
    return plain_or_flow(out)


def _source(x: Any, dtype: np.dtype, once: bool) -> Value:
    """An input of the network: floats are flow, and so are complex numbers with their
    modulus; integers are tokens, booleans are plain."""
    if isinstance(x, Fixed):
        return _as_array(x.value)
    if isinstance(x, Uniform):
        shape = x.value.shape
        maps = tuple(useful(one_class(n)) for n in shape)
        if not once or 0 in shape or all(m is None for m in maps):
            return _source(x.value, dtype, once)
        first = lax.slice(x.value, (0,) * len(shape), (1,) * len(shape))
        return Classed(_source(first, dtype, once), shape, maps)
    if is_floating(x):
        return normalised(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return normalised(jnp.abs(x).astype(dtype))
    return Tokens(x) if jnp.issubdtype(x.dtype, jnp.integer) else x


class _Interpreter(NamedTuple):
    """Evaluates jaxprs with some of their arguments carrying flow."""

    settings: Settings
    sums: plain.Sums
    starts: Starts
    origins: Origins
    refinement: Refinement
    weights: Weights

    def run(
        self,
        jaxpr: core.Jaxpr,
        consts: Sequence[Any],
        args: Sequence[Value],
        line: str = "",
    ) -> list[Value]:
        """The results of a jaxpr.

        ``line`` is the line of the model that calls it: JAX forgets the callers of jitted
        functions that it has traced before.
        """
        step = functools.partial(self.step, line=line)
        consts = [self.origins.constant(x, _as_array(x)) for x in consts]
        return evaluate(jaxpr, consts, args, step)

    def step(self, eqn: core.JaxprEqn, operands: list[Value], line: str) -> Sequence[Value]:
        name, rules = eqn.primitive.name, self.settings.rules
        if any(isinstance(x, Undecided) for x in operands):
            inside = rules.get(name)
            if inside is None or not inside.goes_inside:
                inside = Rule(functools.partial(of_undecided, eqn), sees_kinds=True)
            return self.apply(inside, eqn, operands, line)
        if any(map(carries_flow, operands)):
            return self.apply(rules.get(_named(eqn), rules.get(name)), eqn, operands, line)
        if any(isinstance(x, Tokens) for x in operands):
            rule = rules.get(name)
            if rule is None or not rule.goes_inside:
                rule = self.starts.rule(eqn, operands)
            if rule is None:
                return of_tokens(eqn, operands, bind)
            return self.apply(rule, eqn, operands, line)
        if name in JITTED:
            return self.apply(CALL, eqn, operands, line)
        outs = plain.as_written(eqn, operands)
        self.sums.follow(eqn, operands, outs)
        self.origins.follow(eqn, operands, outs)
        return outs

    def apply(
        self, rule: Rule | None, eqn: core.JaxprEqn, operands: list[Value], line: str
    ) -> Sequence[Value]:
        name, settings = eqn.primitive.name, self.settings
        line = user_line(eqn) or line

        def one_by_one(plain):
            if settings.absolute is not None:
                return settings.absolute(plain)
            array = jnp.asarray(plain)
            if jnp.issubdtype(array.dtype, jnp.complexfloating):
                return jnp.abs(array).astype(settings.dtype)
            return jnp.abs(array.astype(settings.dtype))

        def absolute(plain):
            if known(plain) and np.size(plain) > 1:
                return jnp.broadcast_to(one_by_one(plain.flat[0]), plain.shape)
            return self.sums.absolute(plain, one_by_one)

        equation = Equation(
            name=name,
            params=parameters(eqn),
            out_shapes=[typed(var).shape for var in eqn.outvars],
            dtype=settings.dtype,
            absolute=absolute,
            biases=settings.biases,
            inside=lambda inner, *operands: self.run(*opened(inner), operands, line),
            bind=lambda *arrays: bind(eqn, arrays),
            weights=self.weights,
            is_absolute=settings.absolute is None,
            line=line,
            backend=settings.backend,
        )
        if rule is None:
            operands = [self.refinement.expanded(x) for x in operands]
            raise FlowError(unknown(name, line, equation, operands, settings.rules))
        if not rule.sees_kinds:
            operands = [as_array(_without(operand)) for operand in operands]
        try:
            if settings.before_rule is not None:
                settings.before_rule(rule, equation, *operands)
            outs = _applied(rule, equation, operands, self.refinement)
            check_results(rule, equation, outs)
            return self._treated(outs, operands)
        except FlowError:  # from a jaxpr inside this one: it names a line already
            raise
        except ValueError as error:
            raise FlowError(
                f"flow cannot pass the primitive `{name}`, called at {line}: {error}"
            ) from error

    def _treated(self, outs: Sequence[Value], operands: list[Value]) -> Sequence[Value]:
        """The results, each new flow after ``settings.after_rule``."""
        treat = self.settings.after_rule
        if treat is None:
            return outs
        # A flow that a rule only passes on is the same object, and was treated before.
        passed = {id(_stored(x)) for x in operands if carries_flow(x)}

        def treated(out):
            if not carries_flow(out) or id(_stored(out)) in passed:
                return out
            if isinstance(out, Classed):
                return dataclasses.replace(out, value=treat(out.value))
            return treat(out)

        return [*map(treated, outs)]


def _stored(flow: Value) -> Scaled:
    """What is stored of a flow, without its history."""
    return plain_or_flow(flow.value if isinstance(flow, Classed) else flow)


def _applied(
    rule: Rule, equation: Equation, operands: Sequence[Value], refinement: Refinement
) -> Any:
    """What a rule returns; whatever a rule of the user's raises, its name is said."""
    try:
        if any(isinstance(x, Classed) for x in operands):
            empty = any(0 in shape for shape in equation.out_shapes)
            if rule.at_classes is not None and not empty:
                outs = rule.at_classes(refinement, rule.apply, equation, *operands)
                if outs is not NotImplemented:
                    return outs
            operands = [refinement.expanded(x) for x in operands]
        return rule.apply(equation, *operands)
    except FlowError:
        raise
    except Exception as error:
        if of_the_package(rule):
            raise
        kind = type(error).__name__
        raise ValueError(f"its rule {named(rule)} raised {kind}: {error}") from error


def _named(eqn: core.JaxprEqn) -> str:
    """The key of a rule for a jitted function by its name, such as 'jit:silu'."""
    return f"jit:{eqn.params.get('name')}" if eqn.primitive.name in ("jit", "pjit") else ""


def _as_array(constant: Any) -> Array:
    return constant if isinstance(constant, jax.Array) else jnp.asarray(constant)

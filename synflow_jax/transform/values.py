"""The values of a network, one of its equations, and the record of a rule.

A value of the network is plain, an array that does not depend on the input (parameters and
everything computed from them alone), or it carries flow. A rule is called for each equation
with at least one operand that carries flow. It sees flow as a `Scaled` array.

Three more types remember where a flow comes from. Only rules with `Rule.sees_kinds` are
shown them; every other rule sees the `Scaled` flow inside. `Tokens` are integers of the
input, before the flow starts.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from synflow_jax.transform.scaled import Scaled, nothing


class Pointwise(NamedTuple):
    """A flow of which each entry is a function of the same entry of ``origin``.

    The product ``x * sigmoid(x)`` of two functions of one flow is thereby recognised as an
    activation, and ``a * sigmoid(b)`` as a gate.
    """

    flow: Scaled
    origin: Scaled


class Inverse(NamedTuple):
    """``factor`` divided by a function of ``flow``, which normalises what it multiplies."""

    flow: Scaled
    factor: Array


class Stopped(NamedTuple):
    """A flow behind `stop_gradient`: added to another flow it is a shift."""

    flow: Scaled


class Tokens(NamedTuple):
    """Integers that depend on the input: the flow starts where they are looked up."""

    ids: Array


Plain = Array | np.ndarray
Flowing = Scaled | Pointwise | Inverse | Stopped
# Rules tell values apart at run time, which a type checker cannot follow.
if TYPE_CHECKING:
    Value: TypeAlias = Any
else:
    Value = Plain | Flowing | Tokens


class Equation(NamedTuple):
    """One equation of the traced network, as a rule sees it.

    Attributes:
      name: the primitive's name.
      params: the primitive's parameters, under the same names in every version of JAX.
      out_shapes: shape of each result.
      dtype: the precision of every flow.
      absolute: ``absolute(plain) -> array``, the absolute value of a parameter at its point
        of use, in that precision.
      biases: whether added parameters join the flow.
      inside: ``inside(closed_jaxpr, *operands) -> results``, for rules of primitives that
        call another jaxpr.
      bind: ``bind(*arrays) -> results`` evaluates the primitive itself.
    """

    name: str
    params: dict[str, Any]
    out_shapes: list[tuple[int, ...]]
    dtype: np.dtype
    absolute: Callable[[Plain], Array]
    biases: bool
    inside: Callable[..., list[Value]]
    bind: Callable[..., list[Array]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a primitive does to the flow, and what theorems may assume of it.

    Attributes:
      apply: ``apply(equation, *operands) -> results``. The operands come in order, plain
        arrays and `Scaled` flows; it returns one of them for each result of the primitive,
        with the shapes ``equation.out_shapes``.
      keeps_paths: whether each entry of a result is a maximum of sums, with fixed
        non-negative coefficients, of entries of the flow operands, so that a flow which is
        a sum over paths stays one. Products with weights are, and so is max pooling;
        products of two flows, minima and sorting are not. True, False, or a function of the
        arguments of ``apply``. Certificates (`PruneInfo.certified`) need it.
      sees_kinds: whether ``apply`` and ``keeps_paths`` are shown where flows come from
        (`Pointwise`, `Inverse`, `Stopped`). The flow starts at tokens by rules of the
        package, which are not in the table.
      goes_inside: whether it is a call: it evaluates a jaxpr of the primitive with
        ``equation.inside``, also where only tokens enter it.

    Example:
      >>> import jax, synflow_jax as sj
      >>> def apply(equation, flow):  # sorting moves entries; where to, the flow decides
      ...     (mantissa,) = equation.bind(flow.mantissa)
      ...     return [Scaled(mantissa, flow.exponent)]
      >>> rules = {**sj.flow_rules, "sort": Rule(apply)}
      >>> w = jnp.array([[1.0, -2.0]])
      >>> float(jnp.exp(sj.log_flow(lambda w, x: jnp.sort(x @ w), w, (1,), rules=rules)))
      3.0
    """

    apply: Callable[..., Sequence[Value]]
    keeps_paths: bool | Callable[..., bool] = False
    sees_kinds: bool = False
    goes_inside: bool = False


# What a user may give for a primitive: a record, or a function alone, which keeps no paths.
Rules = Mapping[str, Rule | Callable[..., Sequence[Value]]]


class RuleTable(Mapping[str, Rule]):
    """The default rules, read-only: what a criterion was made with cannot change later."""

    def __init__(self, rules: Mapping[str, Rule]):
        self._rules = dict(rules)

    def __getitem__(self, name: str) -> Rule:
        return self._rules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def __hash__(self) -> int:  # tables with equal rules are equal
        return hash(frozenset(self._rules))

    def __repr__(self) -> str:
        return f"<flow rules of {len(self)} primitives>"

    def __setitem__(self, name: str, rule: Any) -> None:
        raise TypeError(
            "the table `flow_rules` is read-only. Give a table of your own to the function "
            f"that needs it: rules={{**synflow_jax.flow_rules, {name!r}: rule}}."
        )

    def __delitem__(self, name: str) -> None:
        self[name] = None  # says that it is read-only


def checked_rules(rules: Rules) -> Mapping[str, Rule]:
    """A copy of a table, in which every rule is a record.

    Raises:
      ValueError: if a name is no string, or a rule is neither a `Rule` nor a function.
    """
    if isinstance(rules, RuleTable):
        return rules
    if not isinstance(rules, Mapping):
        raise ValueError(
            "`rules` is a table from the names of primitives to rules, such as "
            f"{{**synflow_jax.flow_rules, 'sort': rule}}; got {rules!r}."
        )
    checked = {}
    for name, rule in rules.items():
        if not isinstance(name, str):
            raise ValueError(
                f"`rules` has the key {name!r}; its keys are primitives' names."
            )
        if not isinstance(rule, Rule) and not callable(rule):
            raise ValueError(
                f"`rules[{name!r}]` is a Rule or a function; got {type(rule).__name__}."
            )
        rule = rule if isinstance(rule, Rule) else Rule(rule)
        keeps = rule.keeps_paths
        if not callable(rule.apply) or not (isinstance(keeps, bool) or callable(keeps)):
            raise ValueError(
                f"`rules[{name!r}]` must have a function as `apply`, and True, False or a "
                f"function as `keeps_paths`; got {rule}."
            )
        checked[name] = rule
    return RuleTable(checked)


def plain_or_flow(value: Value) -> Any:
    """The value without its history."""
    if isinstance(value, Tokens):
        return value.ids
    return value.flow if isinstance(value, Pointwise | Inverse | Stopped) else value


def carries_flow(value: Value) -> bool:
    return isinstance(value, Scaled | Pointwise | Inverse | Stopped)


def origin_of(value: Flowing) -> Scaled:
    """The flow that the value is a pointwise function of; by default the value's own."""
    return value.origin if isinstance(value, Pointwise) else plain_or_flow(value)


def as_flows(operands: Sequence[Plain | Scaled], dtype) -> list[Scaled]:
    """The operands, with a flow of zeros in the place of each parameter value."""
    return [x if isinstance(x, Scaled) else nothing(jnp.shape(x), dtype) for x in operands]


def must_be_plain(operands: Sequence[Value], what: str) -> None:
    if any(carries_flow(operand) for operand in operands):
        raise ValueError(f"{what} must not depend on the input.")


def one_flow(equation: Equation, *operands: Value) -> bool:
    """Whether a product keeps paths: one operand carries flow, the others are weights."""
    return sum(map(carries_flow, operands)) <= 1

"""The values of a network, one of its equations, and the record of a rule.

A value of the network is plain, an array that does not depend on the input (parameters and
everything computed from them alone), or it carries flow. A rule is called for each equation
with at least one operand that carries flow. It sees flow as a `Scaled` array.

Three more types remember where a flow comes from. Only rules with `Rule.sees_kinds` are
shown them; every other rule sees the `Scaled` flow inside. `Classed` flows store equal
positions once, for rules with `Rule.at_classes`. A plain value is a `jax.Array`,
or a numpy array if it is a number of the model's code, computed from nothing but such
numbers, or an array full of one. `Tokens` are integers of the input, before the flow
starts. `Undecided` integers are known only by their shape.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from synflow_jax.transform.classes import Maps, compressed
from synflow_jax.transform.scaled import Scaled, nothing
from synflow_jax.transform.weights import Weights
from synflow_jax.xla.backends import ANYWHERE, Backend


@dataclasses.dataclass(frozen=True, eq=False)
class Derived:
    """A flow with its history: what it is a function of, entry by entry.

    ``x * sigmoid(x)`` is thereby recognised as an activation of ``x``, ``a * sigmoid(b)``
    as a gate, and ``(1 + s) * x`` as ``x + s * x``. `transform.history` reads it.

    Attributes:
      flow: the flow.
      parent: the immediate dominator: the last value through which every entrywise
        computation of this one goes; None at the start of a history.
      factors: the parameters that multiply it, or divide it (True), outside of every
        nonlinearity on the way from the parent.
      scales: whether it is the parent times ``factors`` and numbers, and no other function
        of it.
      layer: whether these factors are an array. A product with an array starts a new
        history; only a selection looks through it, as for the slopes of a leaky ReLU.
      shift: the scalar, known while tracing, that the flow leaves out.
      added: computes the array that was added and left out; None if there is none.
    """

    flow: Scaled
    parent: "Scaled | Derived | None" = None
    factors: tuple[tuple["Plain", bool], ...] = ()
    scales: bool = False
    layer: bool = False
    shift: float = 0.0
    added: Callable[[], Array] | None = None


class Inverse(NamedTuple):
    """``factor`` divided by a function of ``flow``, which normalises what it multiplies."""

    flow: Scaled
    factor: Array


class Stopped(NamedTuple):
    """A flow behind `stop_gradient`: added to another flow it is a shift.

    Attributes:
      flow: the flow.
      of: the value that was stopped, with its history.
    """

    flow: Scaled
    of: "Scaled | Derived"


@dataclasses.dataclass(frozen=True, eq=False)
class Classed:
    """A flow of which equal positions are stored once (`transform.classes`).

    Attributes:
      value: the flow, with an entry for each class along the axes that have classes.
      shape: the shape of the whole flow.
      maps: for each axis the classes of its positions; None where there are none.
    """

    value: "Flowing"
    shape: tuple[int, ...]
    maps: Maps

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of the arrays of ``value``."""
        return compressed(self.shape, self.maps)


class Tokens(NamedTuple):
    """Integers that depend on the input: the flow starts where they are looked up."""

    ids: Array


class Undecided(NamedTuple):
    """Integers or truth values that the values of the flow decide, where these are not
    known: in questions about paths, which are asked whatever the weights are."""

    shape: tuple[int, ...]
    dtype: Any


UNDECIDED = (
    "the values of the flow decide here which entries are taken (`sort`, `top_k`, "
    "`argmax`), and whether a path leads through it depends on more than which weights are "
    "kept. Scores and R are defined (`log_flow`, `synflow`, `unreached`); to ask about "
    "paths, let every entry pass, such as with k as large as the number of experts."
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fixed:
    """An array that is given with the inputs and is a constant of the network."""

    value: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Uniform:
    """An input of the network whose entries are all equal."""

    value: Any


Plain = Array | np.ndarray
Flowing = Scaled | Derived | Inverse | Stopped
# Rules tell values apart at run time, which a type checker cannot follow.
if TYPE_CHECKING:
    Value: TypeAlias = Any
else:
    Value = Plain | Flowing | Classed | Tokens | Undecided


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
      weights: which plain values are weights.
      is_absolute: whether ``absolute`` is what its name says. Questions about paths ask
        for another function.
      line: the line of the model that calls it.
      backend: the devices that the flow is traced for.
    """

    name: str
    params: dict[str, Any]
    out_shapes: list[tuple[int, ...]]
    dtype: np.dtype
    absolute: Callable[[Plain], Array]
    biases: bool
    inside: Callable[..., list[Value]]
    bind: Callable[..., list[Array]]
    weights: Weights
    is_absolute: bool = True
    line: str = ""
    backend: Backend = ANYWHERE


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
        (`Derived`, `Inverse`, `Stopped`). The flow starts at tokens by rules of the
        package, which are not in the table.
      goes_inside: whether it is a call: it evaluates a jaxpr of the primitive with
        ``equation.inside``, also where only tokens enter it.
      at_classes: for the package's own rules: applies the rule to flows of which equal
        positions are stored once (`transform.classes`). None if the rule must see whole
        flows, as every rule of a user does.

    Example:
      >>> import jax.numpy as jnp, synflow_jax as sj
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
    at_classes: Callable[..., Any] | None = None


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


def known(value: Any) -> bool:
    """Whether a plain value is a number of the model's code, or an array full of one."""
    if isinstance(value, np.ndarray):
        return value.size == 1 or not any(value.strides)
    return isinstance(value, np.generic | int | float)


def number_of(plain: Any) -> float:
    """The number of a value that is `known`."""
    return float(np.asarray(plain).flat[0])


def as_array(value: Value) -> Any:
    """The value; an array full of one number becomes no constant of the program."""
    if isinstance(value, np.ndarray) and value.size > 1 and known(value):
        return lax.full(value.shape, value.flat[0], value.dtype)
    return value


def split_fixed(args: PyTree) -> tuple[list[Any], PyTree]:
    """The leaves, marked as `Fixed` or `Uniform` still, and the tree without marks."""
    marks = Fixed | Uniform
    leaves, tree = jax.tree.flatten(args, is_leaf=lambda x: isinstance(x, marks))
    values = [x.value if isinstance(x, marks) else x for x in leaves]
    return leaves, jax.tree.unflatten(tree, values)


def plain_or_flow(value: Value) -> Any:
    """The value without its history.

    Raises:
      ValueError: if the values of the flow decide it, and are not known.
    """
    if isinstance(value, Undecided):
        raise ValueError(UNDECIDED)
    if isinstance(value, Tokens):
        return value.ids
    return value.flow if isinstance(value, Derived | Inverse | Stopped) else value


def with_flow(value: Flowing, flow: Scaled) -> Any:
    """The value with its history and another flow."""
    if isinstance(value, Derived):
        return dataclasses.replace(value, flow=flow)
    if isinstance(value, Stopped):
        return Stopped(flow, with_flow(value.of, flow))
    return value._replace(flow=flow) if isinstance(value, Inverse) else flow


def carries_flow(value: Value) -> bool:
    return isinstance(value, Scaled | Derived | Inverse | Stopped | Classed)


def as_flows(operands: Sequence[Plain | Scaled], dtype) -> list[Scaled]:
    """The operands, with a flow of zeros in the place of each parameter value."""
    return [x if isinstance(x, Scaled) else nothing(x, dtype) for x in operands]


def must_be_plain(operands: Sequence[Value], what: str) -> None:
    if any(carries_flow(operand) for operand in operands):
        raise ValueError(f"{what} must not depend on the input.")


def one_flow(equation: Equation, *operands: Value) -> bool:
    """Whether a product keeps paths: one operand carries flow, the others are weights."""
    return sum(map(carries_flow, operands)) <= 1

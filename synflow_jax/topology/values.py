"""The values of a network and the wires of their entries, collected from its jaxpr.

Only shapes are read, and constants that depend on no parameter.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from synflow_jax.topology.wires import MOVES, Wires
from synflow_jax.xla.jaxprs import bind, parameters, typed

# --- the types of values ------------------------------------------------------------------


class Flow(NamedTuple):
    """A value that carries flow.

    Attributes:
      ids: the wire of each entry.
      note: the wires that are one if this value matters to the output.
    """

    ids: np.ndarray
    note: "Note"


class Note:
    """Wires that are one if the flow continues from here.

    Some values are computed and then dropped, such as the mean that a normalisation
    subtracts; they must not unite wires.
    """

    def __init__(self, pairs=(), parents: Sequence[Flow] = ()):
        self.pairs, self.parents, self.done = pairs, parents, False


class Weights(NamedTuple):
    """A value made of the entries of one leaf, moved and perhaps scaled.

    Attributes:
      leaf: the leaf's number.
      steps: the moves of its entries, in order.
      once: whether no entry of the leaf can appear twice.
      factors: other leaves that it was multiplied by.
      computed: leaves that act on it in another way: divisors, conditions, and leaves that
        a factor is computed from.
    """

    leaf: int
    steps: tuple["Step", ...] = ()
    once: bool = True
    factors: frozenset[int] = frozenset()
    computed: frozenset[int] = frozenset()

    def arranged(self, leaf: np.ndarray, fill: int) -> np.ndarray:
        """Arranges an array shaped like the leaf as this value is arranged."""
        for step in self.steps:
            leaf = step.run(leaf, fill)
        return leaf


class Step(NamedTuple):
    """A move of entries. Moves with equal keys are equal; a key of None equals no other."""

    key: tuple[str, dict] | None
    run: Callable[[np.ndarray, int], np.ndarray]


class Other(NamedTuple):
    """Any other value.

    Attributes:
      leaves: the parameters that it is computed from.
      data: whether it depends on the input (tokens, comparisons), without carrying flow.
      value: computes it, where it depends on neither.
      chosen: whether the flow decides it, such as the position of the largest entry. What
        is read there is no embedding.
    """

    leaves: frozenset[int] = frozenset()
    data: bool = False
    value: Callable[[], Any] | None = None
    chosen: bool = False


# Rules tell values apart at run time, which a type checker cannot follow.
if TYPE_CHECKING:
    Value: TypeAlias = Any
else:
    Value = Flow | Weights | Other


def leaves_of(*values: Value) -> frozenset[int]:
    """The parameters that plain values are computed from."""
    sets = [frozenset()]
    for value in values:
        if isinstance(value, Weights):
            sets.append(value.factors | {value.leaf})
        elif isinstance(value, Other):
            sets.append(value.leaves)
    return frozenset().union(*sets)


def is_chosen(*values: Value) -> bool:
    """Whether the flow decides what is computed from these values."""
    return any(isinstance(x, Flow) or (isinstance(x, Other) and x.chosen) for x in values)


# --- the collection -----------------------------------------------------------------------


class Use(NamedTuple):
    """Weights that meet the flow: the wires each leads from and to, shaped like them."""

    weights: Weights
    sources: np.ndarray
    targets: np.ndarray


class Topology:
    """All that is known about a network while its jaxpr is read, and the table of rules."""

    def __init__(self, rules: Mapping[str, Any]):
        self.rules = rules  # of `flow`: names of activations are read from it
        self.wires = Wires()
        self.uses: dict[int, list[Use]] = {}  # of each leaf, in the order of the network
        self.inputs: list[np.ndarray] = []  # where flow starts
        self.ends: list[np.ndarray] = []  # where flow leaves other than through weights
        self.pairs: list[np.ndarray] = [np.zeros((0, 2), np.int64)]
        self.not_layers: set[int] = set()  # leaves used also in other ways than as weights
        self.computed: set[int] = set()  # leaves that divide, choose or are computed with

    def flow(self, ids: np.ndarray, *parents: Flow) -> Flow:
        """A value computed from others, with the wires that were united to make it."""
        return Flow(ids, Note(self.wires.take_notes(), parents))

    def source(self, shape: Sequence[int]) -> Flow:
        """A value where flow starts, all entries on one wire."""
        self.inputs.append(self.wires.new(()))
        return self.flow(np.broadcast_to(self.inputs[-1], shape))

    def not_as_weights(self, *values: "Value") -> None:
        """Notes that the leaves of these values act in another way than as weights."""
        self.not_layers |= leaves_of(*values)
        self.computed |= leaves_of(*_plain(values))
        for weights in _of_weights(values):
            self.computed |= weights.computed

    def passes(self, *flows: Flow) -> None:
        """The flow continues from these values, so the notes on the way to them hold."""
        self.pairs += self.wires.take_notes()
        waiting = list(flows)
        while waiting:
            note = waiting.pop().note
            if not note.done:
                note.done = True
                self.pairs += note.pairs
                waiting += note.parents

    def layer(
        self, flow: Flow, weights: Weights, sources: np.ndarray, targets: np.ndarray
    ) -> None:
        """Adds weights, each of which leads from one wire to one wire."""
        self.passes(flow)
        self.not_layers |= weights.factors
        self.computed |= weights.computed
        self.uses.setdefault(weights.leaf, []).append(Use(weights, sources, targets))

    def everything(self, flows: Sequence[Flow]) -> np.ndarray:
        """Unites all entries of the values to one wire."""
        ends = [self.wires.along(f.ids, range(f.ids.ndim)).reshape(()) for f in flows]
        return self.wires.unite(*ends)


# --- values without flow ------------------------------------------------------------------


def plain(eqn: core.JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """A value computed from parameters and constants alone."""
    if all(isinstance(x, Other) and x.value for x in operands):
        return _evaluated(eqn, operands)
    weights = _weights(eqn, operands)
    if weights is not None:
        return [weights]
    data = any(isinstance(x, Other) and x.data for x in operands)
    out = Other(leaves_of(*operands), data, chosen=is_chosen(*operands))
    return [out] * len(eqn.outvars)


def _evaluated(eqn: core.JaxprEqn, operands: Sequence[Other]) -> list[Value]:
    """A constant, computed when it is first needed."""

    @functools.cache
    def run():
        values = [x.value() for x in operands if x.value is not None]
        if eqn.primitive.name == "pvary":  # which is nothing outside of `shard_map`
            return values
        return bind(eqn, values)

    if all(typed(v).size == 1 for v in eqn.outvars):
        run()  # otherwise the counters of a long loop form a chain as long as the loop
    return [Other(value=functools.partial(_item, run, i)) for i in range(len(eqn.outvars))]


def _item(run: Callable[[], Sequence[Any]], i: int) -> Any:
    return run()[i]


def _weights(eqn: core.JaxprEqn, operands: Sequence[Value]) -> Weights | None:
    """The result, if it still consists of weights of one leaf: moved, masked or scaled."""
    name = eqn.primitive.name
    at = [i for i, x in enumerate(operands) if isinstance(x, Weights)]
    result = typed(eqn.outvars[0])
    if not at or not jnp.issubdtype(result.dtype, jnp.floating):
        return None
    # Of two operands made of weights, the one that is not repeated: the kernel, not its
    # scale.
    shapes = [typed(atom).shape for atom in eqn.invars]
    at.sort(key=lambda i: not (operands[i].once and shapes[i] == result.shape))
    weights = operands[at[0]]
    others = [x for i, x in enumerate(operands) if i != at[0]]
    if name in _SAME:
        return weights
    if any(isinstance(x, Other) and x.data for x in others):
        return None
    if name in ("mul", "div") and shapes[at[0]] == result.shape:
        factors = leaves_of(*others)
        if weights.leaf in factors or (name == "div" and at[0] == 1):
            return None
        made = factors if name == "div" else leaves_of(*_plain(others))
        computed = frozenset().union(made, *(x.computed for x in _of_weights(others)))
        return weights._replace(
            factors=weights.factors | factors, computed=weights.computed | computed
        )
    if name == "select_n" and at[0] > 0:  # a mask
        computed = weights.computed | leaves_of(others[0])
        masked = all(map(_is_zero, others[1:]))
        return weights._replace(computed=computed) if masked else None
    if at[0] != 0 or len(at) > 1 or (name == "pad" and not _is_zero(others[0])):
        return None
    run = mover(eqn, others) if name in (*MOVES, "dynamic_slice", "gather") else None
    if run is None:
        return None
    step = Step((name, parameters(eqn)) if name in MOVES else None, run)
    grown = result.size > typed(eqn.invars[0]).size
    once = weights.once and name != "gather" and (name == "pad" or not grown)
    return weights._replace(steps=(*weights.steps, step), once=once)


def _plain(values: Sequence[Value]) -> list[Other]:
    return [value for value in values if isinstance(value, Other)]


def _of_weights(values: Sequence[Value]) -> list[Weights]:
    return [value for value in values if isinstance(value, Weights)]


_SAME = frozenset("neg abs convert_element_type copy copy_p reduce_precision".split())


def _is_zero(value: Value) -> bool:
    return (
        isinstance(value, Other) and value.value is not None and not np.any(value.value())
    )


def mover(eqn: core.JaxprEqn, places: Sequence[Value]):
    """``run(array, fill)``, which moves the entries of an array; None if the move is
    unknown."""
    name, params = eqn.primitive.name, parameters(eqn)
    if name in MOVES:
        return lambda x, fill: MOVES[name](x, params, fill)
    if not all(isinstance(place, Other) and place.value for place in places):
        return None
    settings = params | ({"fill_value": -1} if name == "gather" else {})

    def run(x, fill):
        index = jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape)
        at = eqn.primitive.bind(index, *(place.value() for place in places), **settings)
        at = np.asarray(at)
        return np.where(at < 0, np.asarray(fill, x.dtype), x.reshape(-1)[at])

    return run

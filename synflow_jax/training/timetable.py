"""When a training network is pruned, and how many weights each time leaves."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Integer

from synflow_jax.pruning.allocations import Allocation
from synflow_jax.pruning.counts import Allocations, Leaves, check_scope, counts_of
from synflow_jax.pruning.rounds import Scope
from synflow_jax.pruning.schedules import Schedule, as_density
from synflow_jax.xla.counts import Wide, as_count

# The number of an update that never comes: fills tables that are longer than they need.
NEVER = np.iinfo(np.int32).max


class Asked(NamedTuple):
    """The numbers that decide a timetable and can be replaced.

    Attributes:
      density: the 64 bits of the number as two integers: JAX has no float64 by default, and
        counts of large networks differ for a density that was rounded to float32.
      begin, end: numbers of updates.
    """

    density: Integer[Array | np.ndarray, "2"]
    begin: Integer[Array | np.ndarray, ""]
    end: Integer[Array | np.ndarray, ""]


class Timetable(NamedTuple):
    """When pruning happens, and how many weights it leaves; all on the host.

    Attributes:
      steps: numbers of the updates that prune, rising.
      counts: for each, the counts of weights that it leaves (`counts_per_round`).
      asked: what decided them.
    """

    steps: Integer[np.ndarray, " rounds"]
    counts: Integer[np.ndarray, "rounds *groups"] | Wide
    asked: Asked


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Recipe:
    """What else decides a timetable. It is static: a node without leaves.

    Attributes:
      leaves: the prunable leaves.
      every, schedule, scope: as in `gradual_pruning`.
      allocation: the same; of a mapping, its items, which can be hashed.
    """

    leaves: Leaves
    every: int
    schedule: Schedule
    scope: Scope
    allocation: Allocation | tuple[tuple[str, float], ...] | None

    def timetable(self, density: float, begin: int, end: int) -> Timetable:
        """The timetable for these numbers.

        Raises:
          ValueError: if they are out of range or do not fit the weights.
        """
        begin, end = _as_span(begin, end)
        steps = np.arange(begin, end + 1, self.every, dtype=np.int64)
        counts = counts_of(
            self.leaves,
            density,
            len(steps),
            self.schedule,
            self.scope,
            dict(self.allocation)
            if isinstance(self.allocation, tuple)
            else self.allocation,
        )
        bits = np.array([as_density(density)], np.float64).view(np.uint32)
        asked = Asked(bits, np.asarray(begin, np.int32), np.asarray(end, np.int32))
        size = sum(map(math.prod, self.leaves.shapes))
        return Timetable(steps.astype(np.int32), as_count(counts, size), asked)


def recipe_of(
    leaves: Leaves,
    every: int,
    schedule: Schedule,
    scope: Scope,
    allocation: Allocations | None,
) -> Recipe:
    """The recipe for the prunable leaves."""
    if isinstance(allocation, Mapping):
        return Recipe(leaves, every, schedule, scope, tuple(allocation.items()))
    return Recipe(leaves, every, schedule, scope, allocation)


def check_numbers(density: Any, begin: Any, end: Any, every: Any, scope: Any) -> None:
    """Raises unless the numbers of a timetable are known on the host and in range.

    Raises:
      ValueError: naming the first that is not.
    """
    for name, value in {"density": density, "begin": begin, "end": end}.items():
        check_static(value, name)
    as_density(density)
    as_update(every, "every")
    _as_span(begin, end)
    check_scope(scope)


def _as_span(begin: Any, end: Any) -> tuple[int, int]:
    begin, end = as_update(begin, "begin"), as_update(end, "end")
    if begin > end:
        raise ValueError(
            f"`begin` is {begin} and `end` {end}: the first pruning step must not come "
            "after the last."
        )
    return begin, end


def as_update(value: Any, name: str) -> int:
    """The number of an update, or of updates, as an int.

    Raises:
      ValueError: unless it is an integer of at least 1 that is known on the host.
    """
    check_static(value, name)
    is_number = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_number or not 1 <= value < NEVER:
        raise ValueError(
            f"`{name}` counts updates: it is an integer of at least 1; got {value!r}."
        )
    return int(value)


def check_static(value: Any, name: str) -> None:
    """Raises unless a number is one of Python or numpy.

    Raises:
      ValueError: naming what to do.
    """
    if isinstance(value, Tracer | jax.Array):
        raise ValueError(
            f"`{name}` is an array of JAX, but counts of weights and steps are computed on "
            "the host: give a number of Python. Under `optax.inject_hyperparams`, name it "
            "in `static_args`; to change it later there is `replace_schedule`."
        )

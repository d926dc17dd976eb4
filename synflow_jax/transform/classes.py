"""Classes of positions: the positions of an axis that hold equal flow, counted as one.

On an all-ones input most positions of an image carry the same flow, and not by chance: the
flow at a position is a function of the weights that is fixed by what its window reads. Two
positions whose windows read equal positions, padding and the holes of a dilated image
included, are the same function, and so are its derivatives. Here are the maps from
positions to classes, which are numpy arrays, found while tracing from shapes and known
numbers, never from values of the flow. docs/flow.md derives that this is exact.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Entry that a window reads where there is none: padding, or a hole of a dilated image.
NOTHING = -1


class Classes:
    """The classes of the positions of one axis, and where each is stored: numbered by their
    first occurrence, or (`stored`) as they happen to lie.

    Attributes:
      of: [positions] integers; where what belongs to each position is stored.
      first: [entries] integers; of each entry that is stored the first position. 0 if it
        belongs to none: such an entry is never read, and counts nothing.
    """

    __slots__ = ("_key", "first", "of")

    def __init__(self, labels: np.ndarray):
        """Positions with equal labels, which are integers of any value, are a class."""
        _, first, of = np.unique(labels, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        self._set(rank[of.reshape(-1)], first[order])

    @classmethod
    def stored(cls, of: np.ndarray, number: int) -> "Classes":
        """Of each position the place among a number of stored entries."""
        classes = cls.__new__(cls)
        places, at = np.unique(of, return_index=True)
        first = np.zeros(number, int)
        first[places] = at
        classes._set(of, first)
        return classes

    def _set(self, of: np.ndarray, first: np.ndarray):
        self.of, self.first = of, first
        self._key = len(first), of.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Classes) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"Classes({self.of.tolist()})"

    @property
    def size(self) -> int:
        """Number of positions."""
        return len(self.of)

    @property
    def number(self) -> int:
        """Number of entries that are stored."""
        return len(self.first)

    @property
    def counts(self) -> np.ndarray:
        """[entries] the number of positions of each stored entry."""
        return np.bincount(self.of, minlength=self.number)


# For each axis of an array its classes; None if every position is a class of its own.
Maps = tuple[Classes | None, ...]


@functools.lru_cache(256)
def one_class(size: int) -> Classes:
    """All positions are equal."""
    return Classes(np.zeros(size, int))


@functools.lru_cache(256)
def set_apart(size: int) -> Classes:
    """The first position, and all others: more classes than needed."""
    return Classes(np.minimum(np.arange(size), 1))


@functools.lru_cache(256)
def every_position(size: int) -> Classes:
    return Classes(np.arange(size))


def useful(classes: Classes) -> Classes | None:
    """The classes; None if there are as many as positions."""
    return None if classes.number == classes.size else classes


def of_rows(rows: np.ndarray) -> Classes:
    """Positions with equal rows, [positions, entries], are a class."""
    labels = np.zeros(len(rows), int)
    for column in rows.T:
        _, column = np.unique(column, return_inverse=True)
        labels = labels * (column.max(initial=0) + 1) + column
        _, labels = np.unique(labels, return_inverse=True)
    return Classes(labels)


def refined(maps: Sequence[Classes]) -> Classes:
    """Positions that are in one class of each of several maps are a class. If one of them
    has no larger classes, it is that map."""
    first, *others = dict.fromkeys(maps)
    if not others:
        return first
    found = of_rows(np.stack([m.of for m in (first, *others)], 1))
    fine = (m for m in (first, *others) if np.count_nonzero(m.counts) == found.number)
    return next(fine, found)


def compressed(shape: Sequence[int], maps: Maps) -> tuple[int, ...]:
    """Shape of the array that is stored for an array of a shape."""
    return tuple(n if m is None else m.number for n, m in zip(shape, maps))


# --- windows ------------------------------------------------------------------------------


class Window(NamedTuple):
    """How a window slides along one axis.

    Attributes:
      size, stride: of the window.
      low, high: padding, negative where positions are cut off.
      base_dilation: distance of two entries of the axis; between them are holes.
      dilation: distance of two entries of the window.
    """

    size: int
    stride: int
    low: int
    high: int
    base_dilation: int
    dilation: int

    @property
    def reach(self) -> int:
        """Number of positions from the first to the last entry of the window."""
        return (self.size - 1) * self.dilation + 1

    @property
    def is_trivial(self) -> bool:
        """Whether each position reads itself."""
        return self == (1, 1, 0, 0, 1, 1)

    def positions(self, length: int) -> int:
        """Number of positions of the window on an axis of a length."""
        padded = max(0, length - 1) * self.base_dilation + 1 + self.low + self.high
        return max(0, (padded - self.reach) // self.stride + 1) if length else 0


def window(size, stride, padding, base_dilation, dilation) -> Window:
    """A window from the parameters of a primitive, which may be numpy's integers."""
    return Window(*map(int, (size, stride, *padding, base_dilation, dilation)))


def entries_at(classes: Classes, window: Window, places: np.ndarray) -> np.ndarray:
    """The classes at places of the padded and dilated axis; `NOTHING` where none is."""
    at, hole = np.divmod(places - window.low, window.base_dilation)
    inside = (hole == 0) & (at >= 0) & (at < classes.size)
    return np.where(inside, classes.of[np.where(inside, at, 0)], NOTHING)


@functools.lru_cache(1024)
def read_by(classes: Classes, window: Window) -> tuple[Classes, np.ndarray]:
    """What a sliding window reads along an axis.

    Returns:
      The classes of its positions, and [classes, window] what the windows of each class
      read: classes of the axis, or `NOTHING`.
    """
    if window.is_trivial:  # each entry by itself, as it is stored
        return classes, np.arange(classes.number)[:, None]
    starts = np.arange(window.positions(classes.size)) * window.stride
    places = starts[:, None] + np.arange(window.size) * window.dilation
    rows = entries_at(classes, window, places)
    found = of_rows(rows)
    return found, rows[found.first]


@functools.lru_cache(1024)
def segments(
    classes: Classes, window: Window, found: Classes
) -> tuple[np.ndarray, np.ndarray]:
    """An axis that is as short as possible, on which the window meets every class.

    First positions of classes lie in few runs (an edge, one period of the inside, the other
    edge). The axis consists of what the windows of each run read, one run after another.

    Args:
      classes: of the axis that is read.
      window: how it is read.
      found: classes of the positions of the window (`read_by`).

    Returns:
      ``(entries, at)``: the classes that the short axis consists of, or `NOTHING`; and for
      each class of positions a position at which the window, without padding, reads what
      belongs to it.
    """
    if window.is_trivial:
        entries = np.arange(classes.number)
        return entries, entries
    stride = window.stride
    # A gap between two runs that is shorter than what another run costs is no gap.
    most = max(1, -(-window.reach // stride))
    breaks = np.flatnonzero(np.diff(found.first) > most) + 1
    entries, at, length = [], [], 0
    for run in np.split(found.first, breaks):
        if not len(run):
            continue
        start, stop = run[0] * stride, run[-1] * stride + window.reach
        stop += -(stop - start) % stride  # the next run starts at a step of the window
        entries.append(entries_at(classes, window, np.arange(start, stop)))
        at.append(length // stride + run - run[0])
        length += stop - start
    return np.concatenate(entries), np.concatenate(at)

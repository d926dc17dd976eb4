"""Wires of a network as integers: an array holds the wire of each entry of a value.

There are two operations: numbering new wires, and declaring wires to be one. An array of
wires has the shape of the value that it describes, with -1 for padding. Along an axis of
stride 0 it is constant, so a whole image costs one integer per channel.
"""

from collections.abc import Callable, Sequence

import numpy as np


class Wires:
    """Numbers wires, and notes which of them are the same wire."""

    def __init__(self):
        self.size = 0
        self.starts: list[int] = []  # the first number of each group
        self._pairs: list[np.ndarray] = []

    def new(self, shape: Sequence[int]) -> np.ndarray:
        """A new wire for each entry; together they form a group."""
        ids = self.size + np.arange(int(np.prod(shape)), dtype=np.int64)
        self.starts.append(self.size)
        self.size += ids.size
        return ids.reshape(shape)

    def unite(self, *arrays: np.ndarray) -> np.ndarray:
        """Unites entries at the same position of all the arrays to one wire."""
        shape = np.broadcast_shapes(*(x.shape for x in arrays))
        first, *others = (np.broadcast_to(x, shape) for x in arrays)
        for other in others:
            a, b = compact(first, other)
            differ = (a >= 0) & (b >= 0) & (a != b)
            pairs = np.stack([a[differ], b[differ]], axis=1)
            self._pairs.append(np.unique(pairs, axis=0) if len(pairs) > 1000 else pairs)
            first = np.broadcast_to(np.where(a < 0, b, a), shape)
        return first

    def along(self, ids: np.ndarray, axes: Sequence[int]) -> np.ndarray:
        """Unites all entries along the axes to one wire; each axis keeps one entry."""
        (small,) = compact(ids)
        one = small.max(axis=tuple(axes), keepdims=True, initial=-1)
        self.unite(one, small)
        return np.broadcast_to(
            one, [1 if k in axes else n for k, n in enumerate(ids.shape)]
        )

    def take_notes(self) -> list[np.ndarray]:
        """The pairs noted since the last call, which the caller keeps or drops."""
        pairs, self._pairs = self._pairs, []
        return [p for p in pairs if len(p)]


def classes(size: int, pairs: np.ndarray) -> np.ndarray:
    """The class of each integer below ``size``, where the pairs unite integers."""
    from scipy import sparse  # half a second that `import synflow_jax` does without
    from scipy.sparse import csgraph

    if not size:
        return np.zeros(0, np.int64)
    links = sparse.coo_matrix((np.ones(len(pairs), bool), pairs.T), (size, size))
    return csgraph.connected_components(links, directed=False)[1].astype(np.int64)


# --- arrays that are constant along some axes ---------------------------------------------


def constant_axes(*arrays: np.ndarray) -> tuple[bool, ...]:
    """For each axis of equally shaped arrays, whether all are known to be constant."""
    return tuple(all(x.strides[k] == 0 for x in arrays) for k in range(arrays[0].ndim))


def compact(*arrays: np.ndarray) -> list[np.ndarray]:
    """Equally shaped arrays, reduced to one entry along axes where all are constant."""
    constant = constant_axes(*arrays)
    where = tuple(slice(0, 1) if c else slice(None) for c in constant)
    return [x[(*where, ...)] for x in arrays]


def placed(
    ids: np.ndarray, axes: Sequence[int | np.integer], shape: Sequence[int]
) -> np.ndarray:
    """An array whose ``axes`` are those of ``ids``, in order, constant on all others."""
    axes = [int(axis) for axis in axes]
    ids = ids.transpose(np.argsort(axes))
    others = tuple(k for k in range(len(shape)) if k not in axes)
    return np.broadcast_to(np.expand_dims(ids, others), shape)


def joined(arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Concatenation that keeps constant axes constant."""
    shape = list(arrays[0].shape)
    shape[axis] = sum(x.shape[axis] for x in arrays)
    constant = [
        k != axis and all(x.strides[k] == 0 for x in arrays) for k in range(len(shape))
    ]
    where = tuple(slice(0, 1) if c else slice(None) for c in constant)
    return np.broadcast_to(np.concatenate([x[where] for x in arrays], axis), shape)


def windows(ids: np.ndarray, params: dict) -> list[np.ndarray]:
    """For each offset in a window of `reduce_window`, the entries there of every window."""
    settings = (params[f"window_{name}"] for name in ("dimensions", "strides", "dilation"))
    sizes, strides, dilation = (list(setting) for setting in settings)
    padding = params["padding"]
    shape = [
        (n + low + high - (size - 1) * d - 1) // stride + 1
        for n, (low, high), size, stride, d in zip(
            ids.shape, padding, sizes, strides, dilation
        )
    ]
    # Along a constant axis all windows hold the same entries.
    constant = constant_axes(ids)
    (ids,) = compact(ids)
    for k in np.flatnonzero(constant):
        sizes[k], strides[k], dilation[k] = 1, 1, 1
    padding = [(0, 0) if c else pair for c, pair in zip(constant, padding)]
    ids = padded(ids, [(int(low), int(high), 0) for low, high in padding], -1)
    slices = []
    for place in np.ndindex(*sizes):
        spans = zip(place, dilation, strides, sizes, ids.shape)
        where = (slice(p * d, n - (size - 1 - p) * d, s) for p, d, s, size, n in spans)
        slices.append(np.broadcast_to(ids[tuple(where)], shape))
    return slices


def padded(x: np.ndarray, config: Sequence[Sequence[int]], fill: int) -> np.ndarray:
    """`jax.lax.pad`: entries before, after (fewer if negative) and between."""
    spread = [(n - 1) * inner + n if n else 0 for n, (_, _, inner) in zip(x.shape, config)]
    shape = [low + n + high for n, (low, high, _) in zip(spread, config)]
    out = np.full(shape, fill, x.dtype)
    to, of = [], []
    for n, size, (low, _, inner) in zip(x.shape, shape, config):
        places = low + np.arange(n) * (inner + 1)
        inside = (places >= 0) & (places < size)
        to.append(places[inside])
        of.append(np.flatnonzero(inside))
    out[np.ix_(*to)] = x[np.ix_(*of)]
    return out


# --- primitives that move entries: (array, the primitive's parameters, fill) --------------


def _slice(x, params, fill):
    limits = zip(
        params["start_indices"], params["limit_indices"], params["strides"] or [1] * x.ndim
    )
    return x[tuple(slice(*limit) for limit in limits)]


def _pad(x, params, fill):
    config = [tuple(map(int, pads)) for pads in params["padding_config"]]
    still = [c and not any(pads) for c, pads in zip(constant_axes(x), config)]
    out = padded(x[tuple(slice(0, 1) if s else slice(None) for s in still)], config, fill)
    shape = [x.shape[k] if s else out.shape[k] for k, s in enumerate(still)]
    return np.broadcast_to(out, shape)


MOVES: dict[str, Callable[[np.ndarray, dict, int], np.ndarray]] = {
    "reshape": lambda x, params, fill: x.reshape(params["new_sizes"]),
    "transpose": lambda x, params, fill: x.transpose(params["permutation"]),
    "squeeze": lambda x, params, fill: x.squeeze(tuple(params["dimensions"])),
    "rev": lambda x, params, fill: np.flip(x, params["dimensions"]),
    "broadcast_in_dim": lambda x, params, fill: placed(
        x, params["broadcast_dimensions"], params["shape"]
    ),
    "tile": lambda x, params, fill: np.tile(x, params["reps"]),
    "slice": _slice,
    "pad": _pad,
    "row": lambda x, params, fill: x[params["row"]],  # one step of a scan
}

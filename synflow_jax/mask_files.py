"""Masks on disk, in one safetensors file, without pickle."""

import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array, PyTree

from synflow_jax.trees import Masks, check_like, leaf_names
from synflow_jax.xla.placement import placement_of
from synflow_jax.xla.processes import by_first_process, on_host, spans_processes

_FORMAT = "synflow_jax.masks.1"


def save_masks(path: str | os.PathLike, masks: Masks) -> None:
    """Writes masks to one safetensors file, one bit for each entry; nothing is pickled.

    If writing fails, the file stays as it was, or absent; it is never incomplete, also if
    the machine stops. Every leaf has a checksum. Other programs can read the file too: it
    holds one uint8 array for each leaf, packed by `numpy.packbits` and named like the leaf.

    Masks of which other processes hold a part are saved by all processes together: each
    calls this, one bit for each entry is exchanged leaf by leaf, and process 0 writes.

    Args:
      path: the file. A regular file that exists is replaced and keeps its mode; of a link
        the file that it leads to is.
      masks: boolean leaves. The structure of dicts, lists and tuples is stored; of any
        other container only the names of its leaves are (see `load_masks`).

    Raises:
      ValueError: if a leaf is not boolean, or ``path`` is something else than a file.
      FileNotFoundError: if the folder of ``path`` does not exist.
      RuntimeError: in the other processes, if process 0 could not write.
    """
    names, leaves = _tensor_names(masks), jax.tree.leaves(masks)
    for name, leaf in zip(names, leaves):
        if (dtype := jnp.result_type(leaf)) != np.bool_:
            raise ValueError(
                f"the leaf `{name}` has dtype {dtype}; `masks` must be boolean."
            )
    numbered = jax.tree.unflatten(jax.tree.structure(masks), range(len(leaves)))
    metadata = {
        "format": _FORMAT,
        "names": json.dumps(names),
        "shapes": json.dumps([jnp.shape(leaf) for leaf in leaves]),
        "structure": json.dumps(_described(numbered)),
    }
    packed = {name: np.packbits(on_host(leaf)) for name, leaf in zip(names, leaves)}
    metadata |= _checksums(metadata, packed.values())

    def write():
        _replace(path, safetensors.numpy.save(packed, metadata))

    by_first_process(write) if any(map(spans_processes, leaves)) else write()


def _replace(given: str | os.PathLike, content: bytes) -> None:
    """Puts a file in the place of another, whole or not at all."""
    path = pathlib.Path(os.path.realpath(given))
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {os.path.dirname(os.fspath(given))!r} for the masks file "
            f"{os.fspath(given)!r}."
        )
    exists = path.exists()
    if exists and not path.is_file():
        raise ValueError(
            f"{os.fspath(given)!r} is not a regular file, and save_masks replaces no other."
        )
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if exists:
            shutil.copymode(path, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check(metadata: dict[str, str], names: list[str], packed: list[np.ndarray]) -> None:
    """Raises if a checksum is not that of what the file holds."""
    own = _checksums(metadata, packed)
    pairs = zip(names, *(json.loads(m["checksums"]) for m in (own, metadata)), strict=True)
    other = [name for name, one, stored in pairs if one != stored]
    if other:
        raise ValueError(f"the checksum is not that of the leaf {', '.join(other)}")
    if own["checksum"] != metadata["checksum"]:
        raise ValueError("the checksum is not that of its names, shapes and structure")


def _checksums(metadata: Mapping[str, str], packed: Iterable[np.ndarray]) -> dict[str, str]:
    """Of every leaf, and of what the metadata say of them all."""
    leaves = json.dumps(
        [hashlib.sha256(bits.tobytes()).hexdigest()[:16] for bits in packed]
    )
    parts = [metadata[key] for key in ("names", "shapes", "structure")]
    whole = hashlib.sha256("\n".join([*parts, leaves]).encode()).hexdigest()[:16]
    return {"checksums": leaves, "checksum": whole}


def load_masks(path: str | os.PathLike, like: PyTree | None = None) -> Masks:
    """Reads masks that `save_masks` wrote.

    Args:
      path: the file.
      like: parameters (or masks) with the same leaf names; the result has their structure.
        Needed for containers other than lists, tuples and dicts with string or integer
        keys: without it, masks in other containers are returned as one flat dict from leaf
        names to leaves. And needed for leaves that are divided over devices: each mask is
        divided as the leaf is, also over several processes, each of which reads the file.

    Returns:
      Boolean leaves, in the structure of ``like`` or else in the stored one.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is truncated or is not a masks file, or if the masks do not
        fit ``like``.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no masks file at {os.fspath(path)!r}.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"its metadata has no format {_FORMAT!r}")
            names = json.loads(metadata["names"])
            shapes = [tuple(shape) for shape in json.loads(metadata["shapes"])]
            structure = json.loads(metadata["structure"])
            packed = [file.get_tensor(name) for name in names]
            if "checksum" in metadata:  # files of earlier versions have none
                _check(metadata, names, packed)
            leaves = [
                _unpacked(bits, shape) for bits, shape in zip(packed, shapes, strict=True)
            ]
            numbered = dict(zip(names, range(len(names))))
            if structure is not None:
                numbered = _rebuilt(structure)
            if sorted(jax.tree.leaves(numbered)) != list(range(len(names))):
                raise ValueError("its structure does not contain every leaf once")
    except (
        *(safetensors.SafetensorError, ValueError, OSError),
        *(KeyError, IndexError, TypeError, RecursionError),
    ) as error:
        raise ValueError(
            f"{os.fspath(path)!r} is not a masks file written by save_masks, or it is "
            f"damaged: {error}"
        ) from error
    if like is None:
        return jax.tree.map(lambda number: jnp.asarray(leaves[number]), numbered)
    treedef = jax.tree.structure(like)
    if treedef.num_leaves != len(leaves):
        raise ValueError(
            f"`like` has {treedef.num_leaves} leaves, but {os.fspath(path)!r} holds "
            f"{len(leaves)}."
        )
    if _tensor_names(like) != names:
        raise ValueError(
            f"`like` has the leaves {', '.join(_tensor_names(like))}, but "
            f"{os.fspath(path)!r} holds {', '.join(names)}."
        )
    check_like(treedef.unflatten(leaves), like, name="masks")
    return treedef.unflatten(map(_lying_like, leaves, jax.tree.leaves(like)))


def _lying_like(mask: np.ndarray, like: Any) -> Array:
    """A mask on the devices on which a leaf lies, each with its part."""
    placement = placement_of(like)
    if placement is None:
        return jnp.asarray(mask)
    return jax.make_array_from_callback(mask.shape, placement, lambda index: mask[index])


def _tensor_names(tree: PyTree) -> list[str]:
    """Leaf names, numbered if two of them are equal or the file format reserves one."""
    names = leaf_names(tree)
    if len(set(names)) < len(names) or "__metadata__" in names:  # {"a/b": m, "a": {"b": m}}
        names = [f"{i}:{name}" for i, name in enumerate(names)]
    return names


def _unpacked(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `numpy.packbits`, for a boolean array of a given shape."""
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"a leaf has the impossible shape {shape}")
    size = math.prod(shape)
    num_bytes = -(-size // 8)
    if bits.dtype != np.uint8 or bits.shape != (num_bytes,):
        raise ValueError(
            f"a leaf of shape {shape} needs {num_bytes} bytes, but is stored as "
            f"{bits.dtype} of shape {bits.shape}"
        )
    return np.unpackbits(bits, count=size).view(bool).reshape(shape)


def _described(tree: PyTree) -> list | int | None:
    """Describes a tree of leaf numbers in JSON; None unless of dicts, lists and tuples."""
    if type(tree) is int:
        return tree
    if type(tree) is dict:
        # Integer keys too: NNX turns a list of layers into a dict from their numbers.
        if not all(type(key) in (str, int) for key in tree):
            return None
        values = [_described(value) for value in tree.values()]
        parts = list(zip(tree, values))
    elif type(tree) in (list, tuple):
        parts = values = [_described(value) for value in tree]
    else:
        return None
    return None if None in values else [type(tree).__name__, parts]


def _rebuilt(described: list | int) -> PyTree:
    """The inverse of `_described`."""
    if isinstance(described, int):
        return described
    kind, parts = described
    if kind == "dict":
        return {key: _rebuilt(value) for key, value in parts}
    return {"list": list, "tuple": tuple}[kind](_rebuilt(part) for part in parts)

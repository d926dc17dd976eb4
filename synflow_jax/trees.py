"""Pytrees of parameters, masks and scores: types, leaf names, prunable leaves, checks."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, Shaped

# An array, or the description of one where only its shape and dtype are read.
Leaf = Array | np.ndarray | jax.ShapeDtypeStruct

# "?*w" lets each leaf have its own shape. The tag "P" says that all trees annotated with it
# in one signature have the same structure, and corresponding leaves the same shape.
Params = PyTree[Shaped[Leaf, "?*w"], "P"]
Masks = PyTree[Bool[Leaf, "?*w"], "P"]
Scores = PyTree[Float[Leaf, "?*w"], "P"]

# Scores every weight of a masked network; higher means keep.
ScoreFn = Callable[[Params, Masks], Scores]

# Says whether the leaf with this name ("Dense_0/kernel") can be pruned.
Prunable = Callable[[str, Leaf], bool]


def leaf_names(tree: PyTree) -> list[str]:
    """Names of the leaves, in `jax.tree.leaves` order.

    Example:
      >>> leaf_names({"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})
      ['dense/bias', 'dense/kernel']
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def is_kernel(path: str, leaf: Leaf) -> bool:
    """The default of ``prunable``: selects convolution and dense weights.

    Args:
      path: the leaf's name, which is its keys joined by slashes: ``"Dense_0/kernel"``.
      leaf: the parameter, or anything with a shape and a dtype.

    Returns:
      True for a floating leaf of two or more dimensions whose last key is ``kernel``
      (Flax) or ``weight`` (Equinox). Biases and normalisation parameters are not pruned,
      as in the paper's experiments.

    Example:
      >>> is_kernel("Dense_0/kernel", jnp.ones((2, 3)))
      True
      >>> is_kernel("BatchNorm_0/scale", jnp.ones(3))
      False
    """
    return names_kernel(path) and len(jnp.shape(leaf)) >= 2 and is_floating(leaf)


class Matching(NamedTuple):
    """Selects leaves by their names: the result of `matching`.

    Attributes:
      patterns: a leaf that matches one of them is selected; if there are none, a kernel is
        (`is_kernel`).
      without: a leaf that matches one of these is not selected.
    """

    patterns: tuple[str, ...]
    without: tuple[str, ...]

    def __call__(self, path: str, leaf: Leaf) -> bool:
        if self.patterns:
            matches = any(fnmatch.fnmatchcase(path, p) for p in self.patterns)
        else:
            matches = is_kernel(path, leaf)
        return matches and not any(fnmatch.fnmatchcase(path, p) for p in self.without)


def matching(*patterns: str, without: str | Sequence[str] = ()) -> Matching:
    """Selects leaves by patterns of their names, for ``prunable``.

    Patterns are those of `fnmatch`; ``*`` matches any characters, slashes included.
    ``"*/kernel"`` matches all kernels, ``"*/scale"`` the scales of normalisation layers,
    and ``"*shortcut*"`` the parameters of shortcuts.

    Args:
      patterns: leaves that match one of them are prunable. Default: those of `is_kernel`.
      without: a pattern, or several patterns, of leaves that are not prunable.

    Returns:
      ``prunable(path, leaf) -> bool``. The functions that it is given to raise a ValueError
      if a pattern matches no leaf of the parameters, and name the pattern.

    Example:
      >>> no_classifier = matching(without="linear/*")
      >>> no_classifier("linear/kernel", jnp.ones((2, 3)))
      False
      >>> no_classifier("conv/kernel", jnp.ones((2, 3)))
      True
      >>> kernels_and_biases = matching("*/kernel", "*/bias")
    """
    without = (without,) if isinstance(without, str) else tuple(without)
    for pattern in (*patterns, *without):
        if not isinstance(pattern, str):
            raise ValueError(f"a pattern is a string, such as '*/kernel'; got {pattern!r}.")
    return Matching(patterns, without)


def filled(params: Params, values: Mapping[str, float]) -> Params:
    """Puts other values into some leaves, for scoring a network that starts at zero.

    A head, or the last scale of a residual block, that is initialised to zero lets no flow
    pass, so the weights before it score nothing. Prune the filled parameters, and put the
    masks on the original ones.

    Args:
      params: a pytree of arrays.
      values: from patterns of leaf names, as in `matching`, to the number that all entries
        of the leaf become. Of several patterns that match, the first counts.

    Returns:
      The parameters, with the structure, shapes and dtypes that they had.

    Raises:
      ValueError: if a pattern matches no leaf, or a leaf that holds no floating numbers,
        or a value is no number.

    Example:
      >>> params = {"head": {"kernel": jnp.zeros((2, 1))}, "body": {"kernel": jnp.eye(2)}}
      >>> filled(params, {"head/*": 0.5})["head"]["kernel"]
      Array([[0.5],
             [0.5]], dtype=float32)
    """
    names, (leaves, treedef) = leaf_names(params), jax.tree.flatten(params)
    _check_values(values, names)
    new = []
    for name, leaf in zip(names, leaves):
        pattern = next((p for p in values if names_leaf(p, name)), None)
        if pattern is not None and not is_floating(leaf):
            raise ValueError(
                f"`values[{pattern!r}]` matches `{name}`, which has dtype {leaf.dtype}; "
                "only floating parameters can be filled."
            )
        new.append(leaf if pattern is None else jnp.full_like(leaf, values[pattern]))
    return jax.tree.unflatten(treedef, new)


def _check_values(values: Mapping[str, float], names: Sequence[str]) -> None:
    for pattern, value in values.items():
        if isinstance(value, str) or np.ndim(value):
            raise ValueError(f"`values[{pattern!r}]` is a number; got {value!r}.")
        if not any(names_leaf(pattern, name) for name in names):
            raise ValueError(
                f"the pattern {pattern!r} of `values` matches no leaf; the leaves are "
                f"{', '.join(names) or '(none)'}."
            )


def names_leaf(pattern: str, name: str) -> bool:
    """Whether a pattern names a leaf: by its very name, or as `fnmatch` says."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def names_kernel(path: str) -> bool:
    """Whether the last key of a leaf's name is ``kernel`` or ``weight``."""
    # Flax adds the key "value" to the name of a partitioned parameter.
    return path.removesuffix("/value").rsplit("/", 1)[-1] in ("kernel", "weight")


def prunable_leaves(params: PyTree, prunable: Prunable) -> list[bool]:
    """Calls ``prunable`` for every leaf, in `jax.tree.leaves` order.

    Raises:
      ValueError: if no leaf is prunable, if a prunable leaf holds no floating numbers, or
        if a pattern of `matching` matches no leaf.
    """
    names, leaves = leaf_names(params), jax.tree.leaves(params)
    if isinstance(prunable, Matching):
        for pattern in (*prunable.patterns, *prunable.without):
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"the pattern {pattern!r} of `prunable` matches no leaf; the leaves "
                    f"are {', '.join(names) or '(none)'}."
                )
    is_prunable = [bool(prunable(name, leaf)) for name, leaf in zip(names, leaves)]
    for name, leaf, yes in zip(names, leaves, is_prunable):
        if yes and not is_floating(leaf):
            raise ValueError(
                f"`prunable` chose `{name}`, which has dtype {leaf.dtype}; only floating "
                "parameters can be pruned."
            )
    if not any(is_prunable) and (whole := not_floating(params, prunable)):
        raise ValueError(
            "`prunable` chose no leaf of the parameters: only floating leaves can be "
            "pruned, and of those named `kernel` or `weight` none is: "
            f"{', '.join(whole)}. Convert them, such as "
            "jax.tree.map(lambda x: x.astype(jnp.float32), params)."
        )
    if not any(is_prunable):
        raise ValueError(
            "`prunable` chose no leaf of the parameters, so there is nothing to prune. "
            "The default selects leaves of two or more dimensions named `kernel` or "
            f"`weight`; the leaves are {', '.join(names) or '(none)'}. To select all "
            "leaves of two or more dimensions: prunable=lambda path, leaf: leaf.ndim >= 2."
        )
    return is_prunable


def not_floating(params: PyTree, prunable: Prunable) -> list[str]:
    """Leaves that the default of ``prunable`` would choose by name and shape, and leaves
    whole because they hold integers or complex numbers: each with its dtype."""
    if prunable is not is_kernel and not isinstance(prunable, Matching):
        return []
    if isinstance(prunable, Matching) and prunable.patterns:
        return []
    without = prunable.without if isinstance(prunable, Matching) else ()
    return [
        f"{name} ({jnp.result_type(leaf)})"
        for name, leaf in zip(leaf_names(params), jax.tree.leaves(params))
        if names_kernel(name) and len(jnp.shape(leaf)) >= 2 and not is_floating(leaf)
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in without)
    ]


def check_like(tree: PyTree, params: PyTree, *, name: str) -> None:
    """Raises unless ``tree`` mirrors ``params`` leaf for leaf.

    Reads structure and shapes only, so it runs while tracing and costs the compiled
    program nothing.

    Raises:
      ValueError: naming the first leaf that differs.
    """
    got, want = jax.tree.structure(tree), jax.tree.structure(params)
    if got != want:
        raise ValueError(
            f"`{name}` must have the structure of the parameters.\n"
            f"  parameters: {want}\n  {name}: {got}"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(params))
    for (path, leaf), param in pairs:
        if jnp.shape(leaf) != jnp.shape(param):
            where = f"{name}{jax.tree_util.keystr(path)}"
            raise ValueError(
                f"`{where}` has shape {jnp.shape(leaf)}, but its parameter has shape "
                f"{jnp.shape(param)}."
            )


def check_masks(masks: PyTree, params: PyTree) -> None:
    """Raises unless ``masks`` mirrors ``params`` leaf for leaf and is boolean.

    Raises:
      ValueError: naming the first leaf that differs from its parameter or is not boolean.
    """
    check_like(masks, params, name="masks")
    for path, leaf in jax.tree_util.tree_leaves_with_path(masks):
        if jnp.result_type(leaf) != jnp.bool_:
            raise ValueError(
                f"`masks{jax.tree_util.keystr(path)}` has dtype {jnp.result_type(leaf)}; "
                "masks are boolean, True for a weight that is kept."
            )


def check_key(key: Array) -> None:
    """Raises unless ``key`` is a single typed key.

    Raises:
      ValueError: showing the value that was given.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or shape:
        raise ValueError(
            f"`key` must be a single typed key, as from jax.random.key(seed); got {key!r}."
        )


def is_floating(leaf: Leaf) -> bool:
    """Whether a leaf holds floating numbers."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)

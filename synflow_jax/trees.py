"""Parameter pytrees: their types, their leaves' names, and the one check."""

import fnmatch
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, Shaped

# Arrays, or descriptions of arrays where no value is read.
Leaf = Array | np.ndarray | jax.ShapeDtypeStruct

# "?*w" lets each leaf have its own shape; the tag "P" makes all trees that are annotated
# with it in one signature share a structure, and so pairs the shapes.
Params = PyTree[Shaped[Leaf, "?*w"], "P"]
Masks = PyTree[Bool[Leaf, "?*w"], "P"]
Scores = PyTree[Float[Leaf, "?*w"], "P"]

# Scores every weight of a masked network; higher means keep.
ScoreFn = Callable[[Params, Masks], Scores]

# Says whether the leaf with this name ("Dense_0/kernel") may lose weights.
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
    """What is prunable unless you say otherwise: convolution and dense weights.

    Args:
      path: the leaf's name, its keys joined by slashes: ``"Dense_0/kernel"``.
      leaf: the parameter, or anything with a shape and a dtype.

    Returns:
      True for a floating leaf of two or more dimensions whose last key is ``kernel``
      (Flax) or ``weight`` (Equinox). Biases and normalisation parameters stay whole, as
      in the paper's experiments.

    Example:
      >>> is_kernel("Dense_0/kernel", jnp.ones((2, 3)))
      True
      >>> is_kernel("BatchNorm_0/scale", jnp.ones(3))
      False
    """
    return names_kernel(path) and leaf.ndim >= 2 and is_floating(leaf)


class Matching(NamedTuple):
    """Leaves selected by their names; `matching` makes it.

    Attributes:
      patterns: a leaf matches one of them, or with none is a kernel (`is_kernel`).
      without: and none of these.
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
    """Chooses leaves by patterns of their names, for ``prunable``.

    ``*`` stands for anything, slashes included, as in a shell: ``"*/kernel"`` are all
    kernels, ``"*/scale"`` the scales of norms, ``"*shortcut*"`` what lies in shortcuts.

    Args:
      patterns: leaves that match one of them are prunable. Default: `is_kernel`.
      without: a pattern, or several, of leaves that are not.

    Returns:
      ``prunable(path, leaf) -> bool``. Where it is used, a pattern that matches no leaf of
      the parameters is a ValueError that names it.

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
            raise ValueError(f"a pattern is a string such as '*/kernel'; got {pattern!r}.")
    return Matching(patterns, without)


def names_kernel(path: str) -> bool:
    """Whether a leaf's name is that of weights: its last key ``kernel`` or ``weight``."""
    # Flax keeps the value of a partitioned parameter in a box, under its name.
    return path.removesuffix("/value").rsplit("/", 1)[-1] in ("kernel", "weight")


def prunable_leaves(params: PyTree, prunable: Prunable) -> list[bool]:
    """Asks ``prunable`` about every leaf, in `jax.tree.leaves` order.

    Raises:
      ValueError: if no leaf is prunable, one that is holds no floating numbers, or a
        pattern of `matching` matches no leaf.
    """
    names, leaves = leaf_names(params), jax.tree.leaves(params)
    if isinstance(prunable, Matching):
        for pattern in (*prunable.patterns, *prunable.without):
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"the pattern {pattern!r} of `prunable` matches no leaf; they are "
                    f"{', '.join(names) or '(none)'}."
                )
    is_prunable = [bool(prunable(name, leaf)) for name, leaf in zip(names, leaves)]
    for name, leaf, yes in zip(names, leaves, is_prunable):
        if yes and not is_floating(leaf):
            raise ValueError(
                f"`prunable` chose `{name}`, which has dtype {leaf.dtype}; only floating "
                "parameters can be pruned."
            )
    if not any(is_prunable):
        raise ValueError(
            "`prunable` chose no leaf of the parameters, so there is nothing to prune. "
            "The default takes leaves named `kernel` or `weight` of two or more "
            f"dimensions; the leaves are {', '.join(names) or '(none)'}. To take all "
            "matrices: prunable=lambda path, leaf: leaf.ndim >= 2."
        )
    return is_prunable


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
    """`check_like` for masks: they must also be boolean.

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
      ValueError: saying what came.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or shape:
        raise ValueError(f"`key` is one jax.random.key(seed); got {key!r}.")


def is_floating(leaf: Leaf) -> bool:
    """Whether a leaf holds floating numbers."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)

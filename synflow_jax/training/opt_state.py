"""The masks and the schedule in the state of an optimizer: read, replaced, or put there."""

from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import PyTree

from synflow_jax.masks import apply_masks
from synflow_jax.training.copies import check_masks_of_params, masked_copies, trained
from synflow_jax.training.dynamic import DynamicSparsityState
from synflow_jax.training.gradual import GradualPruningState
from synflow_jax.training.optim import (
    FreezePrunedState,
    StaticPruningState,
    copy_placed_like,
    static_pruning,
)
from synflow_jax.training.timetable import NEVER
from synflow_jax.trees import Masks, check_masks

State = TypeVar("State")

# States of the transformations that are around an optimizer and hold its state.
_AROUND = (StaticPruningState, GradualPruningState, DynamicSparsityState)


def masks_of(opt_state: PyTree) -> Masks:
    """The masks in the state of an optimizer, wherever they are nested.

    Args:
      opt_state: the state of an optimizer that contains `static_pruning`,
        `gradual_pruning`, `dynamic_sparsity` or `freeze_pruned` at any depth. If it
        contains several, they must have the same masks.

    Returns:
      Boolean leaves shaped like the parameters; True = trained. They are the arrays of the
      state, so a step that donates its state takes them too.

    Raises:
      ValueError: if ``opt_state`` holds no masks, or two different sets of them: it names
        the places of both. Under jit and vmap, where values cannot be compared, several
        sets are refused.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = static_pruning(optax.adam(1e-3), {"w": jnp.array([True, False])})
      >>> masks_of(optimizer.init({"w": jnp.zeros(2)}))
      {'w': Array([ True, False], dtype=bool)}
    """
    (path, first), *others = _sets_of(opt_state)
    for other_path, other in others:
        if not _equal(first.masks, other.masks):
            raise ValueError(_two_sets(path, other_path))
    return first.masks


def replace_masks(opt_state: PyTree, masks: Masks) -> PyTree:
    """Replaces the masks in the state of an optimizer.

    A compiled step is not compiled again for the new state. Newly pruned weights become
    zero in every copy of the parameters that the state holds (with `freeze_pruned`, which
    knows none, in none). Everything else stays, the counts of `gradual_pruning` too: where
    they ask for more weights than the new masks keep, all of these stay. The parameters are
    not changed: set newly pruned weights to zero with `apply_masks`, in averages of your
    own too. A weight that the new masks bring back starts from zero, without momentum; with
    `freeze_pruned`, it has the momentum that it gathered while its updates were set to
    zero.

    Args:
      opt_state: the state of an optimizer that contains `static_pruning`,
        `gradual_pruning`, `dynamic_sparsity` or `freeze_pruned` at any depth; if it
        contains several with the same masks, each gets the new masks. It can also be a
        batch of states.
      masks: boolean leaves shaped like the masks in the state.

    Returns:
      The new state. Its masks are copies, on the devices of the old masks.

    Raises:
      ValueError: if ``opt_state`` holds no masks, or two different sets of them (it names
        the places of both), or ``masks`` does not mirror them.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.zeros(2)}
      >>> optimizer = static_pruning(optax.sgd(1.0), {"w": jnp.ones(2, bool)})
      >>> state = replace_masks(optimizer.init(params), {"w": jnp.array([True, False])})
      >>> optimizer.update({"w": jnp.ones(2)}, state)[0]
      {'w': Array([-1.,  0.], dtype=float32)}
    """
    (path, first), *others = _sets_of(opt_state)
    for other_path, other in others:
        # Values that are traced cannot be compared; a step that is compiled replaces all.
        if _are_known(first.masks, other.masks) and not _equal(first.masks, other.masks):
            raise ValueError(_two_sets(path, other_path))

    def replaced(node):
        if not _has_masks(node):
            return node
        check_masks(masks, node.masks)
        new = node._replace(masks=jax.tree.map(copy_placed_like, masks, node.masks))
        if isinstance(new, _AROUND):
            inner = jax.tree.map(replaced, new.inner, is_leaf=_has_masks)
            return new._replace(inner=masked_copies(inner, new.masks))
        return new

    return jax.tree.map(replaced, opt_state, is_leaf=_has_masks)


def replace_schedule(
    opt_state: PyTree,
    *,
    density: float | None = None,
    begin: int | None = None,
    end: int | None = None,
) -> PyTree:
    """Replaces when `gradual_pruning` prunes, and how much, in the state of an optimizer.

    A compiled step is compiled again only if the new schedule has more pruning steps than
    any before. Pruning steps that lie in the past are not made up for. Weights that are
    pruned already stay pruned, whatever the density.

    For a batch of schedules under `jax.vmap`, replace the schedule of one state once for
    each of them and stack the results; begin with the one that has the most steps.

    Args:
      opt_state: the state of one optimizer that contains `gradual_pruning` at any depth.
      density, begin, end: as in `gradual_pruning`; None leaves it as it is.

    Returns:
      The new state. Its counts are those that `gradual_pruning` with these numbers has.

    Raises:
      ValueError: if ``opt_state`` holds no schedule or is a batch of states, if a number is
        out of range, or if a number that stays is traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from synflow_jax.criteria import magnitude
      >>> from synflow_jax.training.gradual import gradual_pruning
      >>> optimizer = gradual_pruning(optax.sgd(0.1), magnitude(), 0.5, begin=10, end=10)
      >>> state = optimizer.init({"kernel": jnp.ones((2, 4))})
      >>> state = replace_schedule(state, density=0.25, begin=9)
      >>> state.steps, state.counts
      (Array([ 9, 10], dtype=int32), Array([3, 2], dtype=uint32))
    """
    found = False

    def replaced(node):
        nonlocal found
        if not isinstance(node, GradualPruningState):
            return node
        found = True
        if np.ndim(node.step):
            raise ValueError(
                "`opt_state` is a batch of states: replace the schedule of each by itself, "
                "and stack the results."
            )
        return _rescheduled(node, density, begin, end)

    opt_state = jax.tree.map(
        replaced, opt_state, is_leaf=lambda node: isinstance(node, GradualPruningState)
    )
    if not found:
        raise ValueError("`opt_state` holds no schedule: it has no `gradual_pruning`.")
    return opt_state


def _rescheduled(
    state: GradualPruningState,
    density: float | None,
    begin: int | None,
    end: int | None,
) -> GradualPruningState:
    given = {"density": density, "begin": begin, "end": end}
    kept = {
        name: getattr(state.asked, name) for name, value in given.items() if value is None
    }
    for name, value in kept.items():
        if isinstance(value, Tracer):
            raise ValueError(
                f"`{name}` of the state is traced: give `density`, `begin` and `end`, or "
                "call it outside jit and vmap."
            )
        value = np.asarray(value)
        given[name] = float(value.view(np.float64)[0]) if name == "density" else int(value)
    table = state.recipe.timetable(**given)
    # Never shorter than before, so that nothing is compiled again.
    more = max(state.steps.shape[0] - len(table.steps), 0)
    steps = np.pad(table.steps, (0, more), constant_values=NEVER)

    def padded(words):
        widths = [(0, more)] + [(0, 0)] * (words.ndim - 1)
        return np.pad(words, widths, mode="edge")

    new = (steps, jax.tree.map(padded, table.counts), table.asked)
    old = (state.steps, state.counts, state.asked)
    steps, counts, asked = jax.tree.map(copy_placed_like, new, old)
    return state._replace(steps=steps, counts=counts, asked=asked)


def mask_train_state(state: State, masks: Masks) -> State:
    """Masks a Flax train state: pruned weights become zero and stay zero.

    The first call puts `static_pruning` around ``state.tx``. Later calls only replace the
    masks and keep ``tx``, so a compiled step is not compiled again. To train with many
    masks and compile once, call it first with `all_kept` and then, on the state that it
    returns, with each of the masks.

    The optimizer's own state is kept, so training continues where it was. In the copies of
    the parameters that it holds, and in moments, pruned weights become zero. An optimizer
    that was made with masks (`static_pruning`, `freeze_pruned`) keeps its form, and gets
    the new masks.

    Args:
      state: a `flax.training.train_state.TrainState` or a subclass, new or already trained;
        anything with ``params``, ``tx``, ``opt_state`` and ``replace``.
      masks: boolean leaves shaped like ``state.params``; True = kept. For
        `optax.LookaheadParams`, like one of the pair.

    Returns:
      A state of the same type, which shares with ``state`` everything that is not masked.
      Its ``tx.init`` uses the masks of the first call; after calling it, mask the state
      again.

    Raises:
      ValueError: if ``state`` lacks one of the fields, or ``masks`` does not mirror
        ``state.params``.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax.training.train_state import TrainState
      >>> state = TrainState.create(
      ...     apply_fn=None, params={"w": jnp.array([3.0, 4.0])}, tx=optax.sgd(1.0)
      ... )
      >>> state = mask_train_state(state, {"w": jnp.array([True, False])})
      >>> state.apply_gradients(grads={"w": jnp.ones(2)}).params
      {'w': Array([2., 0.], dtype=float32)}
    """
    fields = ("params", "tx", "opt_state", "replace")
    missing = [field for field in fields if not hasattr(state, field)]
    if missing:
        raise ValueError(
            "`state` must have the fields of a flax TrainState; "
            f"{type(state).__name__} has no {', '.join(missing)}."
        )
    old: Any = state  # has these fields, whatever its type is
    check_masks_of_params(masks, old.params)
    is_pair = isinstance(old.params, optax.LookaheadParams)
    params = old.params if is_pair else apply_masks(old.params, masks)
    if is_pair:
        params = optax.LookaheadParams(*(apply_masks(p, masks) for p in old.params))
    if any(_found(old.opt_state)):
        return old.replace(params=params, opt_state=replace_masks(old.opt_state, masks))
    copies = jax.tree.map(copy_placed_like, masks, trained(params))
    return old.replace(
        params=params,
        tx=static_pruning(old.tx, masks),
        opt_state=StaticPruningState(copies, masked_copies(old.opt_state, masks)),
    )


def _has_masks(node: Any) -> bool:
    return isinstance(node, (FreezePrunedState, *_AROUND))


def _found(tree: PyTree, place: str = "opt_state") -> Iterator[tuple[str, Any]]:
    """The parts of a state that hold masks, also within one another, with their places."""
    paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_has_masks)
    for path, node in paths:
        at = f"{place}{jax.tree_util.keystr(path)}"
        if _has_masks(node):
            yield at, node
        if isinstance(node, _AROUND):
            yield from _found(node.inner, f"{at}.inner")


def _sets_of(opt_state: PyTree) -> list[tuple[str, Any]]:
    """What `_found` finds.

    Raises:
      ValueError: if that is nothing.
    """
    found = list(_found(opt_state))
    if not found:
        raise ValueError(
            "`opt_state` holds no masks: its optimizer has none of `static_pruning`, "
            "`gradual_pruning`, `dynamic_sparsity` and `freeze_pruned`. Make one that has: "
            "static_pruning(optimizer, masks)."
        )
    return found


def _are_known(*sets: Masks) -> bool:
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(sets))


def _equal(masks: Masks, others: Masks) -> bool:
    if jax.tree.structure(masks) != jax.tree.structure(others):
        return False
    pairs = list(zip(jax.tree.leaves(masks), jax.tree.leaves(others)))
    if all(a is b for a, b in pairs):
        return True
    return _are_known(masks, others) and all(np.array_equal(a, b) for a, b in pairs)


def _two_sets(place: str, other: str) -> str:
    return (
        f"`opt_state` holds two different sets of masks, `{place}.masks` and "
        f"`{other}.masks` (or they are traced, and cannot be compared). An optimizer has "
        "one set: give the same masks to both, or call it outside jit and vmap."
    )

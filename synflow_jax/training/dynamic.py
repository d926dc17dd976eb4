"""Dynamic sparsity: an optax transformation that moves the kept weights about."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Integer, Key, PyTree, UInt

from synflow_jax.criteria.baselines import magnitude, random
from synflow_jax.masks import all_kept
from synflow_jax.precision import no_score, widened
from synflow_jax.pruning.criterion import score_on
from synflow_jax.selection.top_k import select
from synflow_jax.training.copies import masked_copies, masked_updates_of, trained
from synflow_jax.training.optim import (
    as_transformation,
    needs_params,
    start_under,
    step_under,
)
from synflow_jax.training.timetable import as_update, check_static
from synflow_jax.trees import (
    Masks,
    Params,
    Prunable,
    ScoreFn,
    Scores,
    check_key,
    check_like,
    is_floating,
    is_kernel,
    prunable_leaves,
)
from synflow_jax.xla import counts
from synflow_jax.xla.backends import ANYWHERE, Backend
from synflow_jax.xla.batching import each_on_backend, when

# (params, masks, grads, key) -> scores; the pruned weights of highest score are grown.
Grow = Callable[[Params, Masks, PyTree, Any], Scores]


class DynamicSparsityState(NamedTuple):
    """State of `dynamic_sparsity`.

    Attributes:
      masks: leaves shaped like the parameters; True = kept.
      step: number of updates done.
      steps: numbers of the updates that drop and grow.
      portions: for each of them, the fraction that it drops, as `_portions` writes it.
      key: for growing at random; None without.
      inner: the state of the optimizer; every copy of the parameters in it is masked.
    """

    masks: Masks
    step: Integer[Array, ""]
    steps: Integer[Array, " moves"]
    portions: UInt[Array, "moves 2"]
    key: Key[Array, ""] | None
    inner: optax.OptState


def dynamic_sparsity(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    masks: Masks,
    grow: Grow,
    *,
    drop: ScoreFn = magnitude(),
    fraction: float = 0.3,
    every: int = 100,
    until: int,
    key: Key[Array, ""] | None = None,
    prunable: Prunable = is_kernel,
) -> optax.GradientTransformationExtraArgs:
    """Trains under masks that move: now and then weights are dropped, and others grown.

    Updates are counted from 1. Updates ``every``, ``2 * every``, ... before ``until`` drop
    and grow: of the ``n`` weights that each prunable leaf keeps, the ``floor(f * n)`` of
    the lowest score go, where ``f = fraction / 2 * (1 + cos(pi * update / until))``. Of
    those that are pruned then, as many come, the highest by ``grow``; a weight that was
    just dropped may be among them, and then stays as it was. So each leaf keeps its count.
    A grown weight starts at 0, and so do its moments.

    Such an update takes the place of the optimizer's step, as in RigL: the gradient serves
    to grow, all other weights stay, and the optimizer's state does not change, its counter
    included. In SET, too, where the paper moves weights between epochs. All other updates
    are those of `static_pruning`.

    It must be the outermost transformation; only `optax.apply_if_finite` and
    `optax.MultiSteps` may be around it. The former does not count an update that it
    rejects. Inside `optax.MultiSteps` the accumulated steps count, one in k, and their mean
    gradients grow weights; around it, as ``optimizer``, every call counts and grows by its
    own gradient, which is then not accumulated.

    All that may vary from seed to seed is part of the state: masks, steps, fractions and
    key, so `jax.vmap` over ``init`` and ``update`` gives each element its own.

    Args:
      optimizer: any optax optimizer, or `optax.MultiSteps` of one. In every part of its
        state that has one entry for each weight, the entries of dropped and grown weights
        become zero. Statistics of rows and columns (Adafactor) have no such entries and
        stay.
      masks: boolean leaves shaped like the parameters, from any method: of `synflow`, or at
        random with the densities of `erk`. They may be traced.
      grow: ``grow(params, masks, grads, key) -> scores``: `grow_by_gradient` is RigL,
        `grow_at_random` is SET. It is given the gradients that come in, with those of
        pruned weights, and a key of this update, or None.
      drop: the criterion by which kept weights are dropped; it sees the parameters before
        the update.
      fraction: of the kept weights, dropped and grown at the start of training, in (0, 1].
      every: updates from one move to the next; below ``until``.
      until: number of the update from which masks stay. The authors of RigL take three
        quarters of the training.
      key: a `jax.random.key`, for a ``grow`` that needs one.
      prunable: as in `prune`.

    Returns:
      An `optax.GradientTransformationExtraArgs` whose ``update`` needs ``params``. Pruned
      weights are exactly 0 after `optax.apply_updates`, in every copy of the parameters
      that the inner state holds too. Updates have the promoted type of parameter and
      update.

    Raises:
      ValueError: if a number is out of range or an array of JAX, or ``key`` is not a single
        typed key. Its ``init`` raises it if the masks do not mirror the parameters, no leaf
        is prunable, a criterion does not fit, or ``grow`` needs a key and there is none.

    Example:
      The second update drops half of two weights, the smaller one. Of those that are pruned
      then, the third has the largest gradient:

      >>> masks = {"kernel": jnp.array([[True, True, False, False]])}
      >>> optimizer = dynamic_sparsity(
      ...     optax.sgd(0.5), masks, grow_by_gradient(), fraction=1.0, every=2, until=4
      ... )
      >>> params = {"kernel": jnp.array([[2.0, 1.0, 0.0, 0.0]])}
      >>> grads = {"kernel": jnp.array([[0.0, 0.0, 9.0, 3.0]])}
      >>> state = optimizer.init(params)
      >>> for _ in range(3):
      ...     updates, state = optimizer.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> params["kernel"]
      Array([[ 2. ,  0. , -4.5,  0. ]], dtype=float32)

    References:
      Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020 (RigL),
      Algorithm 1. Mocanu et al., "Scalable Training of Artificial Neural Networks with
      Adaptive Sparse Connectivity", Nature Communications 2018 (SET), which drops a
      constant fraction.
    """
    check_static(fraction, "fraction")
    if isinstance(fraction, bool | str) or not 0 < fraction <= 1:
        raise ValueError(f"`fraction` is in (0, 1]; got {fraction!r}.")
    every, until = as_update(every, "every"), as_update(until, "until")
    if every >= until:
        raise ValueError(
            f"`every` is {every} and `until` {until}: no update would drop and grow."
        )
    if key is not None:
        check_key(key)
    inner = as_transformation(optimizer)
    steps = np.arange(every, until, every, dtype=np.int32)
    portions = _portions(fraction / 2 * (1 + np.cos(np.pi * steps / until)))

    def moved(
        backend: Backend, masks: Masks, portion: Array, step: Array, params, gradients, key
    ) -> Masks:
        own = None if key is None else jax.random.fold_in(key, step)
        dropped = score_on(drop, backend)(params, masks)
        grown = grow(params, masks, gradients, own)
        check_like(dropped, params, name="drop(...)")
        check_like(grown, params, name="grow(...)")
        is_prunable = prunable_leaves(params, prunable)
        leaves, treedef = jax.tree.flatten(masks)
        rows = list(zip(leaves, jax.tree.leaves(dropped), jax.tree.leaves(grown)))
        of_one = functools.partial(_moved_leaf, backend, portion)
        # One after the other with the code of one: separate code for each leaf of a deep
        # network would take minutes to compile.
        for at in _by_shape(leaves, is_prunable):
            if len(at) == 1:
                leaves[at[0]] = of_one(*rows[at[0]])
                continue
            stacked = [jnp.stack(each) for each in zip(*(rows[i] for i in at))]
            for i, mask in zip(at, jax.lax.map(lambda row: of_one(*row), stacked)):
                leaves[i] = mask
        return jax.tree.unflatten(treedef, leaves)

    def init(params: PyTree) -> Any:
        copies, state = start_under(inner, masks, params)
        now = trained(params)
        # Raises now, and not in the first update, if a criterion does not fit.
        check = functools.partial(moved, ANYWHERE)
        jax.eval_shape(check, copies, portions[0], np.int32(1), now, now, key)
        return DynamicSparsityState(
            masks=copies,
            step=jnp.zeros((), jnp.int32),
            steps=jnp.asarray(steps),
            portions=jnp.asarray(portions),
            key=None if key is None else jnp.copy(key),
            inner=state,
        )

    def update(updates, state, params=None, **extra_args):
        needs_params(params, "dynamic_sparsity")
        now, old = trained(params), state.masks
        step = optax.safe_increment(state.step)
        at = state.steps == step
        is_due = jnp.any(at)
        masks = when(
            is_due,
            each_on_backend(moved),
            old,
            state.portions[jnp.argmax(at)],
            step,
            now,
            updates,
            state.key,
        )
        updates, new = step_under(inner, old, updates, state.inner, params, extra_args)
        updates = jax.tree.map(lambda u: jnp.where(is_due, jnp.zeros_like(u), u), updates)
        new = jax.tree.map(lambda o, n: jnp.where(is_due, o, n), state.inner, new)
        # What left and what came: both are zero, in the optimizer's state too.
        stay = jax.tree.map(jnp.logical_and, old, masks)
        updates = masked_updates_of(params, updates, stay)
        state = state._replace(masks=masks, step=step, inner=masked_copies(new, stay))
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


def grow_by_gradient() -> Grow:
    """Grows the weights whose gradients have the largest absolute values: RigL.

    Returns:
      ``grow(params, masks, grads, key) -> scores`` for `dynamic_sparsity`; it needs no key.

    Example:
      >>> grow = grow_by_gradient()
      >>> grow({"w": jnp.zeros(2)}, None, {"w": jnp.array([1.0, -2.0])}, None)
      {'w': Array([1., 2.], dtype=float32)}

    References:
      Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020.
    """
    return _gradient_sizes


def grow_at_random() -> Grow:
    """Grows weights at random: SET.

    Returns:
      ``grow(params, masks, grads, key) -> scores`` for `dynamic_sparsity`; it raises
      ValueError if ``key`` is None.

    Example:
      >>> grow = grow_at_random()
      >>> grow({"w": jnp.zeros(2)}, None, None, jax.random.key(0))["w"].shape
      (2,)

    References:
      Mocanu et al., "Scalable Training of Artificial Neural Networks with Adaptive Sparse
      Connectivity", Nature Communications 2018.
    """
    return _random_numbers


def _gradient_sizes(params: Params, masks: Masks, grads: PyTree, key: Any) -> Scores:
    def absolute(param, grad):
        return jnp.abs(grad) if is_floating(param) else no_score(param)

    return jax.tree.map(absolute, params, widened(grads))


def _random_numbers(params: Params, masks: Masks, grads: PyTree, key: Any) -> Scores:
    if key is None:
        raise ValueError(
            "`grow_at_random` needs a `key`: dynamic_sparsity(..., key=jax.random.key(0))."
        )
    return random(key)(params, all_kept(params))


def _by_shape(leaves: Sequence[Array], is_prunable: Sequence[bool]) -> list[list[int]]:
    """The places of the prunable leaves, those of one shape together."""
    places: dict[tuple[int, ...], list[int]] = {}
    for i, (leaf, yes) in enumerate(zip(leaves, is_prunable)):
        if yes:
            places.setdefault(leaf.shape, []).append(i)
    return list(places.values())


def _moved_leaf(
    backend: Backend, portion: Array, mask: Array, dropped: Array, grown: Array
) -> Array:
    """The mask of a leaf after its lowest weights were dropped and as many were grown."""
    kept = counts.number_where(backend, lambda m: m, [mask], mask.size)
    number = _part_of(kept, portion)
    stay = select([dropped], kept - number, [mask], backend).masks[0]
    return jnp.logical_or(stay, select([grown], number, [~stay], backend).masks[0])


def _portions(fractions: Float[np.ndarray, " n"]) -> UInt[np.ndarray, "n 2"]:
    """Fractions below 1 as 64-bit integers, in units of 2**-64: their two halves.

    How many weights masks keep may be known on the device only, as under vmap. Then
    ``_part_of(n, portion)`` is the integer ``n - num_kept(n, 1 - fraction)``, computed
    there. The double precision of the fractions is far finer than the slack of `num_kept`.
    """
    portions = 1 - (1 - fractions) * (1 - 1e-9)
    scaled = np.minimum(portions, 1 - 2.0**-53) * 2.0**32
    high = np.floor(scaled)
    return np.stack([high, (scaled - high) * 2.0**32], axis=1).astype(np.uint32)


def _part_of(size: Array | counts.Wide, portion: UInt[Array, "2"]) -> Any:
    """The integer part of a count times a portion, exactly."""
    if not isinstance(size, counts.Wide):
        return _times(size, portion)[0].astype(size.dtype)
    half, word = size.half, size.low.dtype
    (high, *left), (low, *right) = (_times(part, portion) for part in size)
    # The higher half counts 2**half times: as many bits of its fraction are whole.
    whole = left[0] >> (32 - half)
    left = [(left[0] << half) | (left[1] >> (32 - half)), left[1] << half]
    _, carried = _sum(left[1], right[1])
    total, first = _sum(left[0], right[0])
    _, second = _sum(total, carried)
    low = whole + low + first + second
    return counts.carried(high.astype(word), low.astype(word))


def _times(number: Array, portion: UInt[Array, "2"]) -> tuple[Array, Array, Array]:
    """A number times a portion: the integer part, and the two halves of the fraction."""
    number = jnp.asarray(number).astype(jnp.uint32)
    high, low = _product(number, portion[0])
    more, least = _product(number, portion[1])
    low, carried = _sum(low, more)
    return high + carried, low, least


def _sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The sum of two 32-bit integers: its 32 lower bits, and what is carried."""
    total = a + b
    return total, (total < a).astype(jnp.uint32)


def _product(a: Array, b: Array) -> tuple[Array, Array]:
    """The product of two 32-bit integers, as the two halves of a 64-bit integer."""
    low, half = jnp.uint32(0xFFFF), jnp.uint32(16)
    a1, a0, b1, b0 = a >> half, a & low, b >> half, b & low
    middle = a1 * b0 + (a0 * b0 >> half)
    other = a0 * b1 + (middle & low)
    return a1 * b1 + (middle >> half) + (other >> half), a * b

"""Lottery tickets: rounds of training, pruning and rewinding."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer, PyTree

from synflow_jax.criteria.baselines import magnitude
from synflow_jax.masks import all_kept, apply_masks
from synflow_jax.pruning.counts import (
    Allocations,
    counts_per_round,
    groups_of,
    in_groups,
    kept_of,
    size_of_prunable,
)
from synflow_jax.pruning.loop import COUNTS
from synflow_jax.pruning.rounds import (
    Groups,
    PruneInfo,
    Scope,
    method_of,
    readable,
    single_round,
)
from synflow_jax.pruning.schedules import Schedule, exponential
from synflow_jax.trees import (
    Masks,
    Params,
    Prunable,
    ScoreFn,
    check_like,
    check_masks,
    is_floating,
    is_kernel,
    leaf_names,
    prunable_leaves,
)
from synflow_jax.xla.backends import ANYWHERE, backend_of
from synflow_jax.xla.counts import Wide, as_count

# (params, masks, number of rounds done before) -> trained params; pruned weights stay zero.
Train = Callable[[Params, Masks, int], Params]

# (given params, trained params) -> the params with which the next round starts.
Rewind = Callable[[Params, Params], Params]


class RewindState(NamedTuple):
    """All that one round of `train_and_prune` passes to the next.

    It is a pytree of arrays and one integer, which any library for checkpoints can save.

    Attributes:
      params: the weights that the next round trains; pruned weights are zero.
      masks: boolean leaves shaped like ``params``; True = kept.
      round: number of rounds done so far.
    """

    params: Params
    masks: Masks
    round: int


def _to_given(params: Params, trained: Params) -> Params:
    del trained
    return params


def train_and_prune(
    train: Train,
    params: Params,
    density: float,
    *,
    rounds: int = 3,
    schedule: Schedule = exponential,
    score_fn: ScoreFn = magnitude(),
    scope: Scope = "global",
    allocation: Allocations | None = None,
    prunable: Prunable = is_kernel,
    rewind: Rewind = _to_given,
    state: RewindState | None = None,
    on_round: Callable[[RewindState, PruneInfo], None] | None = None,
) -> tuple[RewindState, PruneInfo]:
    """Iterative magnitude pruning: rounds that train, prune small weights, and rewind.

    Every round trains the weights with the masks so far, scores the trained weights, prunes
    to the next density of the schedule, and resets the remaining weights to their values in
    ``params``. If ``params`` are the initial parameters, this is rewinding to
    initialisation. If they are the parameters after ``t`` steps of training, and ``train``
    starts at step ``t``, it is rewinding to step ``t`` (late rewinding).

    It is a loop on the host around your own training, so it cannot be called under
    `jax.jit` or `jax.vmap`.

    Args:
      train: ``train(params, masks, round) -> params``, your training. ``round`` is the
        number of rounds done before: 0 in the first, in which every weight is kept. Pruned
        weights are zero in the parameters that it receives, and must be zero in those that
        it returns (`static_pruning`). It must initialise all else that it needs, such as
        optimizer state and batch statistics. Under `jax.jit` it is traced once for all
        rounds, and it may donate ``params``.
      params: a pytree of arrays: the values to which weights are rewound.
      density: fraction of the prunable weights kept after the last round, in (0, 1].
      rounds: number of rounds, each of which trains once.
      schedule: ``schedule(density, rounds) -> densities``; `exponential` prunes the same
        fraction of the remaining weights in every round.
      score_fn: the criterion for the trained weights.
      scope, allocation, prunable: as in `prune`.
      rewind: ``rewind(params, trained) -> params``: the parameters with which the next
        round starts, before the masks are applied. ``lambda params, trained: trained``
        continues from the trained weights (fine-tuning).
      state: the state after some rounds of an interrupted run. The run continues with the
        next round; all other arguments must be those of the interrupted run. If the result
        of ``train`` depends on its arguments only, the run ends as it would have without
        the interruption, bit for bit. Unless ``rewind`` uses ``trained``, only the masks of
        a state have to be saved: `RewindState(params, masks, round)` is the state again.
      on_round: called after each round with the new state and the `PruneInfo` of that
        round, for example to save the state and print the info.

    Returns:
      ``(state, info)``: ``state.params`` are the rewound parameters, zero where pruned,
      ready to be trained; ``state.masks`` keep exactly ``num_kept(size, density)`` prunable
      weights (of each leaf for scope "layer"). The arrays of ``info`` have a leading axis
      over the rounds that this call ran.

    Raises:
      ValueError: before any training, if an argument is out of range, no leaf is prunable,
        the criterion does not fit the parameters, or ``state`` is not one of a run with
        these arguments. After a training, if ``train`` or ``rewind`` returns something that
        does not mirror ``params``, or if a pruned weight is no longer zero.
      FloatingPointError: if training makes a parameter NaN or infinite, or a score is.

    Example:
      This training reaches its target at once. The two largest trained weights are kept,
      and rewound to their initial values:

      >>> params = {"kernel": jnp.array([[1.0, -2.0, 3.0, -4.0]])}
      >>> target = {"kernel": jnp.array([[8.0, 7.0, 6.0, 5.0]])}
      >>> def train(params, masks, round):
      ...     return apply_masks(target, masks)
      >>> state, info = train_and_prune(train, params, 0.5, rounds=2)
      >>> state.params["kernel"]
      Array([[ 1., -2.,  0.,  0.]], dtype=float32)
      >>> info.kept
      Array([3, 2], dtype=int32)

      Here the masks are saved after each round, and a second run continues after the first
      round:

      >>> import tempfile
      >>> from synflow_jax.mask_files import load_masks, save_masks
      >>> folder = tempfile.mkdtemp()
      >>> def save(state, info):
      ...     save_masks(f"{folder}/{state.round}.masks", state.masks)
      >>> _ = train_and_prune(train, params, 0.5, rounds=2, on_round=save)
      >>> masks = load_masks(f"{folder}/1.masks")
      >>> state = RewindState(params, masks, round=1)
      >>> state, info = train_and_prune(train, params, 0.5, rounds=2, state=state)
      >>> info.kept
      Array([2], dtype=int32)

    References:
      Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019. Rewinding to step t:
      Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML
      2020. Tanaka et al. 2020 (arXiv 2006.05467), Fig. 5a, which was made without
      rewinding, according to the README of the authors' code.
    """
    params = jax.tree.map(jnp.asarray, params)
    counts = counts_per_round(
        params,
        density,
        rounds,
        schedule=schedule,
        scope=scope,
        allocation=allocation,
        prunable=prunable,
    )
    is_prunable = prunable_leaves(params, prunable)
    groups = groups_of(params, is_prunable, scope, allocation)
    if state is None:
        state = RewindState(params, all_kept(params), 0)
    state = _checked(state, params, counts, is_prunable, groups)

    def step(backend, params: Params, masks: Masks, k) -> tuple[Masks, PruneInfo]:
        backend = backend or ANYWHERE
        method, constants = method_of(
            score_fn, backend, params, masks, is_prunable=is_prunable, groups=groups
        )
        # Compiled once for all rounds and calls, like `prune`.
        targets = as_count(k[None], size_of_prunable(params, is_prunable))
        targets, first = jax.device_put((targets, np.int32(0)))
        return single_round(method, COUNTS, constants, params, masks, targets, first)

    # Raises before the first training, and not after it, if the criterion does not fit.
    backend = backend_of(params, state.masks)
    first_step = functools.partial(step, backend)
    _, shapes = jax.eval_shape(first_step, params, state.masks, counts[0])
    infos = jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), shapes)

    def shown(infos: PruneInfo) -> PruneInfo:
        return readable(infos) if isinstance(infos.kept, Wide) else infos

    def one_round(state: RewindState, k) -> tuple[RewindState, PruneInfo]:
        when = f"in round {state.round + 1} of {len(counts)}"
        # A copy, since `train` may donate its arguments and `on_round` may keep states.
        start = apply_masks(state.params, state.masks)
        trained = train(start, state.masks, state.round)
        check_like(trained, params, name="train(...)")
        trained = jax.tree.map(jnp.asarray, trained)
        _check_trained(state, trained, when)
        masks, info = step(backend_of(trained, state.masks), trained, state.masks, k)
        if info.nonfinite:
            raise FloatingPointError(
                f"{when}, `score_fn` gives {info.nonfinite} of the trained weights scores "
                "that are NaN or infinite."
            )
        rewound = rewind(params, trained)
        check_like(rewound, params, name="rewind(...)")
        return RewindState(apply_masks(rewound, masks), masks, state.round + 1), info

    for k in counts[state.round :]:
        state, info = one_round(state, k)
        infos = jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), infos, info)
        if on_round is not None:
            on_round(state, shown(info))
    return state, shown(infos)


def _checked(
    state: RewindState,
    params: Params,
    counts: Integer[np.ndarray, "rounds *groups"],
    is_prunable: Sequence[bool],
    groups: Groups | None,
) -> RewindState:
    """Checks that a saved state belongs to this run, and returns it as a round would.

    Args:
      counts: numbers of weights kept after 1 round, after 2 rounds, and so on.
    """
    check_like(state.params, params, name="state.params")
    check_like(state.masks, params, name="state.masks")
    check_masks(state.masks, params)
    last = len(counts)
    if state.round != int(state.round) or not 0 <= state.round <= last:
        raise ValueError(
            "`state.round` is the number of rounds done, an integer from 0 to `rounds` "
            f"= {last}; got {state.round}."
        )
    weights, masks = jax.tree.map(jnp.asarray, state[:2])
    kept = in_groups(kept_of(masks, params, is_prunable), groups)
    pairs = zip(jax.tree.leaves(params), is_prunable)
    whole = in_groups([leaf.size for leaf, yes in pairs if yes], groups)
    want = counts[int(state.round) - 1].tolist() if state.round else whole
    if kept != want:
        raise ValueError(
            f"`state` keeps {kept} prunable weights, but after {state.round} of its {last} "
            f"rounds this run keeps {want}: `density`, `rounds`, `schedule`, `scope`, "
            "`allocation` and `prunable` must be those of the run that is continued."
        )
    return RewindState(apply_masks(weights, masks), masks, int(state.round))


def _check_trained(state: RewindState, trained: Params, when: str) -> None:
    faults = _faults(state.params, trained, state.masks)
    lost, moved = map(jax.tree.leaves, jax.device_get(faults))
    names = leaf_names(trained)
    if any(lost):
        raise FloatingPointError(
            f"{when}, training made parameters NaN or infinite that were finite: "
            f"{', '.join(itertools.compress(names, lost))}."
        )
    if any(moved):
        raise ValueError(
            f"{when}, `train` returned pruned weights that are not zero: "
            f"{', '.join(itertools.compress(names, moved))}. To keep them at zero, put "
            "`static_pruning(optimizer, masks)` around its optimizer."
        )


@jax.jit
def _faults(before: Params, after: Params, masks: Masks) -> tuple[PyTree, PyTree]:
    """For each leaf, whether a finite number became NaN or infinite, and whether a pruned
    weight is not zero."""

    def lost(b, a):
        return (jnp.isfinite(b) & ~jnp.isfinite(a)).any() if is_floating(b) else False

    def moved(a, m):
        return (~m & (a != 0)).any() if is_floating(a) else False

    return jax.tree.map(lost, before, after), jax.tree.map(moved, after, masks)

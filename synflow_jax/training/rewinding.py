"""Rounds of training, pruning and rewinding: how lottery tickets are found."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer, PyTree

from synflow_jax.criteria.baselines import magnitude
from synflow_jax.masks import all_kept, apply_masks, count
from synflow_jax.pruning.allocations import Allocation
from synflow_jax.pruning.loop import COUNTS, counts_per_round
from synflow_jax.pruning.rounds import PruneInfo, Scope, method_of, single_round
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

# (params, masks, rounds done before) -> trained params; pruned weights stay zero.
Train = Callable[[Params, Masks, int], Params]

# (given params, trained params) -> the params from which the next round trains.
Rewind = Callable[[Params, Params], Params]


class RewindState(NamedTuple):
    """What one round of `train_and_prune` hands to the next, and nothing else.

    A pytree of arrays and one integer, which any library for checkpoints can save.

    Attributes:
      params: the weights that the next round trains; the pruned ones are zero.
      masks: boolean leaves shaped like ``params``; True = kept.
      round: rounds done so far.
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
    allocation: Allocation | None = None,
    prunable: Prunable = is_kernel,
    rewind: Rewind = _to_given,
    state: RewindState | None = None,
    on_round: Callable[[RewindState, PruneInfo], None] | None = None,
) -> tuple[RewindState, PruneInfo]:
    """Iterative magnitude pruning: train, prune what became small, rewind, again.

    Every round trains the weights under the masks so far, scores the trained weights,
    prunes to the next density of the schedule, and sets what is left back to its value in
    ``params``. With the parameters of the initialisation this is rewinding to
    initialisation; with those after ``t`` steps of training, and a ``train`` that starts
    at step ``t``, it is rewinding to step ``t`` (late rewinding).

    A loop on the host around your own training; not under `jax.jit` or `jax.vmap`.

    Args:
      train: ``train(params, masks, round) -> params``, your training. ``round`` counts the
        rounds done before, from 0, when everything is kept. The weights it is given are
        zero where pruned and must be so when it is done (`freeze_pruned`). What else it
        needs, such as the state of the optimizer and batch statistics, it makes afresh.
        Under `jax.jit` it is traced once for all rounds, and it may donate ``params``.
      params: a pytree of arrays: the values to which weights are rewound.
      density: fraction of the prunable weights kept in the end, in (0, 1].
      rounds: number of rounds, each of which trains once.
      schedule: ``schedule(density, rounds) -> densities``; `exponential` prunes the same
        fraction of what is left in every round.
      score_fn: the criterion for the trained weights.
      scope, allocation, prunable: as in `prune`.
      rewind: ``rewind(params, trained) -> params``: where the next round starts, before
        the masks are applied. ``lambda params, trained: trained`` goes on from the
        trained weights (fine-tuning).
      state: continues after that state's rounds, all other arguments being as before. If
        ``train`` is a function of its arguments, the run ends as it would have without the
        interruption, bit for bit. Unless ``rewind`` uses ``trained``, the masks are all
        that need be saved of a state: `RewindState(params, masks, round)`.
      on_round: called with the new state and that round's `PruneInfo` after each round, to
        save the one and show the other.

    Returns:
      ``(state, info)``: ``state.params`` is rewound, with the pruned weights zero, ready
      to be trained; ``state.masks`` keeps exactly ``num_kept(size, density)`` prunable
      weights (in each leaf for scope "layer"). The arrays of ``info`` have a leading axis:
      the rounds that this call ran.

    Raises:
      ValueError: before any training, if an argument is out of range, no leaf is prunable,
        the criterion does not fit the parameters, or ``state`` is not of such a run. After
        a training, if ``train`` or ``rewind`` returns something that does not mirror
        ``params``, or a pruned weight is no longer zero.
      FloatingPointError: if training makes a number NaN or infinite, or a score is.

    Example:
      A training that reaches its target at once; the two largest of the trained weights
      are kept, at their initial values:

      >>> params = {"kernel": jnp.array([[1.0, -2.0, 3.0, -4.0]])}
      >>> target = {"kernel": jnp.array([[8.0, 7.0, 6.0, 5.0]])}
      >>> def train(params, masks, round):
      ...     return apply_masks(target, masks)
      >>> state, info = train_and_prune(train, params, 0.5, rounds=2)
      >>> state.params["kernel"]
      Array([[ 1., -2.,  0.,  0.]], dtype=float32)
      >>> info.kept
      Array([3, 2], dtype=int32)

      Saved after each round, and taken up again after the first:

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
      rewinding, as the README of its code says.
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
    scope = "global" if counts.ndim == 1 else "layer"
    dense = counts_per_round(params, 1.0, 1, scope=scope, prunable=prunable)
    if state is None:
        state = RewindState(params, all_kept(params), 0)
    state = _checked(state, params, np.concatenate([dense, counts]), prunable)

    method, constants = method_of(
        score_fn,
        params,
        state.masks,
        is_prunable=prunable_leaves(params, prunable),
        scope=scope,
    )

    def step(params: Params, masks: Masks, k) -> tuple[Masks, PruneInfo]:
        # Compiled once for all rounds and calls, like `prune`.
        return single_round(method, COUNTS, constants, params, masks, k[None], np.int32(0))

    # So a criterion that does not fit is refused before the first training, not after it.
    _, shapes = jax.eval_shape(step, params, state.masks, counts[0])
    infos = jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), shapes)

    def one_round(state: RewindState, k) -> tuple[RewindState, PruneInfo]:
        when = f"in round {state.round + 1} of {len(counts)}"
        # A copy, since `train` may donate what it is given, and `on_round` may keep states.
        start = apply_masks(state.params, state.masks)
        trained = train(start, state.masks, state.round)
        check_like(trained, params, name="train(...)")
        trained = jax.tree.map(jnp.asarray, trained)
        _check_trained(state, trained, when)
        masks, info = step(trained, state.masks, k)
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
            on_round(state, info)
    return state, infos


def _checked(
    state: RewindState,
    params: Params,
    counts: Integer[np.ndarray, "rounds *leaves"],
    prunable: Prunable,
) -> RewindState:
    """The state as a round leaves it, from what was saved; raises unless of this run.

    Args:
      counts: weights kept after no round, after one, and so on.
    """
    check_like(state.params, params, name="state.params")
    check_like(state.masks, params, name="state.masks")
    check_masks(state.masks, params)
    last = len(counts) - 1
    if state.round != int(state.round) or not 0 <= state.round <= last:
        raise ValueError(
            "`state.round` is the number of rounds done, a whole number from 0 to `rounds` "
            f"= {last}; got {state.round}."
        )
    weights, masks = jax.tree.map(jnp.asarray, state[:2])
    is_prunable = prunable_leaves(params, prunable)
    kept = [int(count(m)) for m, yes in zip(jax.tree.leaves(masks), is_prunable) if yes]
    kept = sum(kept) if counts.ndim == 1 else kept
    want = counts[int(state.round)].tolist()
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
            f"{when}, training made NaN or infinite what was finite: "
            f"{', '.join(itertools.compress(names, lost))}."
        )
    if any(moved):
        raise ValueError(
            f"{when}, `train` returned pruned weights that are not zero: "
            f"{', '.join(itertools.compress(names, moved))}. So it did not train the "
            "pruned network; chain `freeze_pruned(masks)` last in its optimizer."
        )


@jax.jit
def _faults(before: Params, after: Params, masks: Masks) -> tuple[PyTree, PyTree]:
    """For each leaf: whether a finite number was lost, and whether a pruned one moved."""

    def lost(b, a):
        return (jnp.isfinite(b) & ~jnp.isfinite(a)).any() if is_floating(b) else False

    def moved(a, m):
        return (~m & (a != 0)).any() if is_floating(a) else False

    return jax.tree.map(lost, before, after), jax.tree.map(moved, after, masks)

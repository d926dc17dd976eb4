"""The density after each round, and the one rounding rule."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.core import Tracer

# (density, rounds) -> density after each round, float64 [rounds].
Schedule = Callable[[float, int], np.ndarray]


def num_kept(size: int, density: float) -> int:
    """Number of weights, an integer, that ``density`` keeps out of ``size``.

    The package's only rounding rule, on the host, in double precision: the smallest integer
    that is not below ``density * size``. (In float32, ``density * size`` is already off by
    one for networks above 16.7 million weights. A relative slack of 1e-9 makes
    ``num_kept(n, m / n) == m``.) The authors' code truncates what it prunes, in float32; it
    keeps one weight more or less in 151 of 24,864 rounds that were compared.

    Args:
      size: number of prunable weights.
      density: fraction kept, in [0, 1]. One minus the sparsity.

    Returns:
      An int in ``[0, size]``.

    Raises:
      ValueError: if ``size`` is no integer or negative, or ``density`` is outside [0, 1].

    Example:
      >>> num_kept(10, 0.25)
      3
    """
    count, fraction = _as_number(size), _as_number(density)
    if count is None or not 0 <= count < math.inf or count != int(count):
        raise ValueError(
            f"`size` is a number of weights, an integer of at least 0; got {_shown(size)}."
        )
    if fraction is None or not 0.0 <= fraction <= 1.0:
        raise ValueError(
            f"`density` is the fraction kept, in [0, 1]; got {_shown(density)}."
        )
    return math.ceil(fraction * int(size) * (1 - 1e-9))


def exponential(density: float, rounds: int) -> np.ndarray:
    """Keeps the same fraction of the remaining weights in every round.

    After round ``r`` of ``n`` the density is ``density ** (r / n)``: the paper's
    ``rho ** (-r / n)``, the schedule with which SynFlow avoids layer-collapse.

    Args:
      density: fraction kept after the last round, in (0, 1].
      rounds: number of rounds, the paper's n; at least 1.

    Returns:
      float64 [rounds], falling; the last entry is ``density``.

    Raises:
      ValueError: if ``density`` is outside (0, 1] or ``rounds`` is below 1.

    Example:
      >>> exponential(0.01, 2)
      array([0.1 , 0.01])

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), Algorithm 1, line 5.
    """
    _check_arguments(density, rounds)
    return float(density) ** (np.arange(1, rounds + 1) / rounds)


def linear(density: float, rounds: int) -> np.ndarray:
    """Removes the same number of weights in every round.

    After round ``r`` of ``n`` the density is ``1 - (1 - density) * r / n``.

    Args:
      density: fraction kept after the last round, in (0, 1].
      rounds: number of rounds; at least 1.

    Returns:
      float64 [rounds], falling; the last entry is ``density``.

    Raises:
      ValueError: if ``density`` is outside (0, 1] or ``rounds`` is below 1.

    Example:
      >>> linear(0.2, 4)
      array([0.8, 0.6, 0.4, 0.2])

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), appendix, the schedule of Fig. 7a.
    """
    _check_arguments(density, rounds)
    densities = 1.0 - (1.0 - float(density)) * (np.arange(1, rounds + 1) / rounds)
    densities[-1] = density  # 1 - (1 - density) equals density only up to rounding
    return densities


def cubic(density: float, rounds: int, *, initial: float = 1.0) -> np.ndarray:
    """Removes many weights in the first rounds and few in the last.

    After round ``r`` of ``n`` the density is ``density + (initial - density) * (1 - r / n)
    ** 3``, so the speed of pruning falls to zero at the end: the schedule of
    `gradual_pruning`.

    Args:
      density: fraction kept after the last round, in (0, 1].
      rounds: number of rounds; at least 1.
      initial: fraction kept before the first round, from ``density`` to 1.

    Returns:
      float64 [rounds], falling; the last entry is ``density``. Round 0, which prunes
      nothing, is left out.

    Raises:
      ValueError: if ``density`` is outside (0, 1], ``rounds`` is below 1 or ``initial`` is
        not from ``density`` to 1.

    Example:
      >>> cubic(0.2, 2)
      array([0.3, 0.2])

    References:
      Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
      compression", 2017 (arXiv 1710.01878), equation 1.
    """
    _check_arguments(density, rounds)
    start = _as_number(initial)
    if start is None or not density <= start <= 1.0:
        raise ValueError(
            f"`initial` is the fraction kept before the first round, from `density` = "
            f"{density} to 1; got {_shown(initial)}."
        )
    left = 1.0 - np.arange(1, rounds + 1) / rounds
    return float(density) + (start - float(density)) * left**3


def _check_arguments(density: float, rounds: int) -> None:
    as_density(density)
    as_rounds(rounds)


def densities_after(schedule: Schedule, density: float, rounds: int) -> np.ndarray:
    """The densities of a schedule, checked.

    Raises:
      ValueError: if ``schedule`` is no function, or does not return one density for each
        round, each in [0, 1], that never rise and end at the density.
    """
    if not callable(schedule):
        raise ValueError(
            "`schedule` is a function (density, rounds) -> densities, such as "
            f"synflow_jax.exponential; got {schedule!r}. For densities of your own: "
            "schedule=lambda density, rounds: np.array([0.5, 0.2, density])."
        )
    densities = np.asarray(schedule(density, rounds), np.float64)
    if densities.shape != (rounds,):
        raise ValueError(
            f"`schedule` must return one density for each of the {rounds} rounds; it "
            f"returned shape {densities.shape}."
        )
    outside = ~((densities >= 0) & (densities <= 1))  # NaN too
    if outside.any():
        raise ValueError(
            "`schedule` must return fractions kept, in [0, 1]; for round "
            f"{np.argmax(outside) + 1} it returned {densities[outside][0]}."
        )
    rises = np.diff(densities) > 1e-9
    if rises.any():
        i = int(np.argmax(rises))
        raise ValueError(
            "`schedule` must not rise, since a pruned weight stays pruned; after round "
            f"{i + 1} it keeps {densities[i]} and after the next {densities[i + 1]}."
        )
    if not np.isclose(densities[-1], density, rtol=1e-6, atol=0):
        raise ValueError(
            f"`schedule` must end at the density that it is given, {density}; its last is "
            f"{densities[-1]}."
        )
    return densities


def as_density(density: Any, name: str = "density") -> float:
    """A density as a float.

    Raises:
      ValueError: unless it is a number above 0 and at most 1, that is not traced.
    """
    if isinstance(density, Tracer):
        raise ValueError(
            f"`{name}` is traced, but counts of weights are computed on the host: compute "
            "them by `counts_per_round` outside jit and vmap, and take rounds by "
            "`iterative`, whose step takes a traced count."
        )
    number = _as_number(density)
    if number is None:
        raise ValueError(
            f"`{name}` is one number, the fraction kept, in (0, 1]; got "
            f"{_shown(density)}. For several densities call it once for each; densities of "
            "single leaves are `allocation={pattern: density}`."
        )
    if not 0.0 < number <= 1.0:
        raise ValueError(f"`{name}` is the fraction kept, in (0, 1]; got {density}.")
    return number


def as_rounds(rounds: Any) -> int:
    """A number of rounds as an int.

    Raises:
      ValueError: unless it is an integer of at least 1.
    """
    number = None if isinstance(rounds, Tracer) else _as_number(rounds)
    if number is None or not 1 <= number < math.inf or number != int(number):
        raise ValueError(f"`rounds` is an integer of at least 1; got {_shown(rounds)}.")
    return int(number)


def _as_number(value: Any) -> float | None:
    """A Python number or an array of no dimensions as a float; None for anything else."""
    if isinstance(value, bool | str | bytes) or value is None:
        return None
    try:
        return None if np.ndim(value) else float(value)  # complex: a TypeError
    except (TypeError, ValueError):
        return None


def _shown(value: Any) -> str:
    """A value for an error message, in one line."""
    return f"{type(value).__name__} {' '.join(repr(value).split())[:80]}"

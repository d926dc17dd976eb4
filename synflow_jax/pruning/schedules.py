"""The density after each round, and the one rounding rule."""

import math
from collections.abc import Callable

import numpy as np

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
      ValueError: if ``size`` is negative or ``density`` is outside [0, 1].

    Example:
      >>> num_kept(10, 0.25)
      3
    """
    if size < 0:
        raise ValueError(f"`size` is a number of weights, at least 0; got {size}.")
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"`density` is the fraction kept, in [0, 1]; got {density}.")
    return math.ceil(density * size * (1 - 1e-9))


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


def _check_arguments(density: float, rounds: int) -> None:
    check_density(density)
    check_rounds(rounds)


def check_density(density: float) -> None:
    """Raises unless ``density`` is above 0 and at most 1.

    Raises:
      ValueError: with the density that was given.
    """
    if not 0.0 < density <= 1.0:
        raise ValueError(f"`density` is the fraction kept, in (0, 1]; got {density}.")


def check_rounds(rounds: int) -> None:
    """Raises unless ``rounds`` is an integer of at least 1.

    Raises:
      ValueError: with the number that was given.
    """
    if rounds != int(rounds) or rounds < 1:
        raise ValueError(f"`rounds` is an integer of at least 1; got {rounds}.")

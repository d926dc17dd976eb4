"""The density after each round, and the one rounding rule."""

import math
from collections.abc import Callable

import numpy as np

# (density, rounds) -> density after each round, float64 [rounds].
Schedule = Callable[[float, int], np.ndarray]


def num_kept(size: int, density: float) -> int:
    """Whole number of weights that ``density`` keeps out of ``size``.

    The package's only rounding rule, on the host, in double precision: the smallest whole
    number that is not below ``density * size``, as in the authors' code. (In float32
    ``density * size`` is already off by one for networks above 16.7 million weights; the
    slack keeps ``num_kept(n, m / n) == m``.)

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
        raise ValueError(f"`size` is a number of weights, not negative; got {size}.")
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"`density` is the fraction kept, in [0, 1]; got {density}.")
    return math.ceil(density * size * (1 - 1e-9))


def exponential(density: float, rounds: int) -> np.ndarray:
    """Keeps the same fraction of what is left in every round.

    After round ``r`` of ``n`` the density is ``density ** (r / n)``: the paper's
    ``rho ** (-r / n)``, the schedule with which SynFlow avoids layer-collapse.

    Args:
      density: fraction kept after the last round, in (0, 1].
      rounds: number of rounds, the paper's n; at least 1.

    Returns:
      float64 [rounds], falling, the last entry ``density``.

    Raises:
      ValueError: if ``density`` is outside (0, 1] or ``rounds`` is below 1.

    Example:
      >>> exponential(0.01, 2)
      array([0.1 , 0.01])

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), Algorithm 1, line 5.
    """
    _check(density, rounds)
    return float(density) ** (np.arange(1, rounds + 1) / rounds)


def linear(density: float, rounds: int) -> np.ndarray:
    """Removes the same number of weights in every round.

    After round ``r`` of ``n`` the density is ``1 - (1 - density) * r / n``.

    Args:
      density: fraction kept after the last round, in (0, 1].
      rounds: number of rounds; at least 1.

    Returns:
      float64 [rounds], falling, the last entry ``density``.

    Raises:
      ValueError: if ``density`` is outside (0, 1] or ``rounds`` is below 1.

    Example:
      >>> linear(0.2, 4)
      array([0.8, 0.6, 0.4, 0.2])

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), appendix, the schedule of Fig. 7a.
    """
    _check(density, rounds)
    densities = 1.0 - (1.0 - float(density)) * (np.arange(1, rounds + 1) / rounds)
    densities[-1] = density  # 1 - (1 - d) is d only up to rounding
    return densities


def _check(density: float, rounds: int) -> None:
    check_density(density)
    check_rounds(rounds)


def check_density(density: float) -> None:
    """Raises unless ``density`` is a fraction of weights that can be kept.

    Raises:
      ValueError: saying what came.
    """
    if not 0.0 < density <= 1.0:
        raise ValueError(f"`density` is the fraction kept, in (0, 1]; got {density}.")


def check_rounds(rounds: int) -> None:
    """Raises unless ``rounds`` is a whole number of at least 1.

    Raises:
      ValueError: saying what came.
    """
    if rounds != int(rounds) or rounds < 1:
        raise ValueError(f"`rounds` is a whole number of at least 1; got {rounds}.")

"""Differences on equal seeds, and how sure they are."""

import itertools
import statistics
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Difference(NamedTuple):
    """A mean of paired differences, and what resampling the pairs makes of it.

    Attributes:
      mean: over the seeds.
      low, high: the middle 95 % of the means of all resamples of the seeds.
    """

    mean: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """One method's numbers less another's, on equal seeds; None without two such seeds.

    The bootstrap is exact: every resample is counted, none drawn. With three seeds it
    excludes 0 only where all three differences have one sign.

    Args:
      one, other: a number for each seed.
    """
    pairs = [one[seed] - other[seed] for seed in sorted(set(one) & set(other))]
    if len(pairs) < 2:
        return None
    resampled = np.array(list(itertools.product(pairs, repeat=len(pairs)))).mean(axis=1)
    low, high = np.quantile(resampled, (0.025, 0.975), method="inverted_cdf").tolist()
    return Difference(statistics.fmean(pairs), low, high)

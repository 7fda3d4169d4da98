"""Means of a few runs with Student's intervals, and which of many claims hold together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from prefopt.stats import paired
from prefopt.stats.intervals import Interval

LEVEL = 0.95
K = TypeVar("K", bound=Hashable)


class Estimate(NamedTuple):
    """A mean, its standard error, and the degrees of freedom of that."""

    mean: float
    error: float
    freedom: float

    @property
    def interval(self) -> Interval:
        """At 95 % (Student 1908): a bootstrap of five runs would be too narrow."""
        from scipy.stats import t

        half = float(t.ppf(0.5 + LEVEL / 2, self.freedom)) * self.error
        return Interval(self.mean, self.mean - half, self.mean + half)

    @property
    def chance(self) -> float:
        """Of a mean this high or higher were the truth 0: small where it is above."""
        from scipy.stats import t

        if self.error == 0:
            return 0.0 if self.mean > 0 else 1.0
        return float(t.sf(self.mean / self.error, self.freedom))


def estimate(values: Sequence[float], error: float = 0.0, known: float = math.inf) -> Estimate:
    """The mean of a few runs.

    Args:
        values: One of each run.
        error: Standard error that the runs have in common, which their spread does not show.
        known: Its degrees of freedom; those of the sum are Satterthwaite's (1946).

    Raises:
        ValueError: For fewer than two runs.
    """
    if len(values) < 2:
        raise ValueError("an interval needs two runs or more")
    count, mean = len(values), sum(values) / len(values)
    of_runs = sum((value - mean) ** 2 for value in values) / (count - 1) / count
    total = of_runs + error**2
    doubt = of_runs**2 / (count - 1) + error**4 / known
    freedom = total**2 / doubt if doubt else count - 1.0 if total == 0 else math.inf
    return Estimate(mean, math.sqrt(total), freedom)


def without_each(values: Sequence[float]) -> list[float]:
    """The mean without each one; of one value there is none without it."""
    return [(sum(values) - value) / (len(values) - 1) for value in values] if len(values) > 1 else []


def jackknife(without: Sequence[float]) -> float:
    """The standard error of what was estimated, by its values without each block (Tukey 1958).

    Args:
        without: Values with one block left out, of two blocks or more.
    """
    count, mean = len(without), sum(without) / len(without)
    return math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in without))


def t_interval(values: Sequence[float]) -> Interval:
    """Mean of a few runs with Student's interval at 95 %. Errors as `estimate`."""
    return estimate(values).interval


def holm(chances: Mapping[K, float], level: float = (1 - LEVEL) / 2) -> set[K]:
    """The claims that hold together: all of them are true with a probability of 1 - level at least (Holm 1979).

    Args:
        chances: Of each claim, its p-value.
        level: By default that of one side of an interval.
    """
    corrected = paired.holm(list(chances.values()))
    return {name for name, chance in zip(chances, corrected, strict=True) if chance <= level}

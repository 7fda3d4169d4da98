"""How large a difference a sample could have shown, and how large a sample a difference needs."""

from __future__ import annotations

import math
from statistics import NormalDist


def detectable_difference(standard_error: float, *, level: float = 0.95, power: float = 0.8) -> float:
    """The true difference that would be shown with the given probability (the minimum detectable effect).

    (z_{1-α/2} + z_{power}) x standard error (Cohen 1988): 2.80 standard errors by default. When no difference is shown,
    smaller ones are not ruled out.

    Args:
        standard_error: Of the estimated difference; not negative.
        level: Confidence level of the interval that has to exclude 0.
        power: Probability of showing the difference.

    Raises:
        ValueError: For numbers out of range.
    """
    return (_z(0.5 + _share(level) / 2) + _z(_share(power))) * _positive(standard_error)


def standard_error_of(low: float, high: float, *, level: float = 0.95) -> float:
    """The standard error that an interval's width stands for, were the estimate normally distributed.

    Raises:
        ValueError: For ends in the wrong order.
    """
    return _positive(high - low) / (2 * _z(0.5 + _share(level) / 2))


def sample_size_for_rate(rate: float, against: float = 0.5, *, level: float = 0.95, power: float = 0.8) -> int:
    """Independent trials needed to tell a rate from another (Fleiss 1981, normal approximation).

    Telling a win rate of 55 % from 50 % takes 783.

    Raises:
        ValueError: For equal rates, or numbers out of range.
    """
    if rate == against:
        raise ValueError("two equal rates cannot be told apart")
    spread = _z(0.5 + _share(level) / 2) * math.sqrt(_share(against) * (1 - against))
    spread += _z(_share(power)) * math.sqrt(_share(rate) * (1 - rate))
    return math.ceil((spread / (rate - against)) ** 2)


def _z(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


def _share(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"must be between 0 and 1, not {value}")
    return value


def _positive(value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"must be finite and not negative, not {value}")
    return value

"""Confidence intervals for rates and means, clustered where several values share a prompt."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Interval(NamedTuple):
    """An estimate with its confidence interval, all in the unit of the values."""

    estimate: float
    low: float
    high: float


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")


def wilson(successes: float, trials: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a rate (Wilson 1927).

    Args:
        successes: Number of successes in [0, trials]; ties may count one half.
        trials: Number of independent trials; above 0.
        level: Confidence level in (0, 1).

    Raises:
        ValueError: For numbers out of range.
    """
    _check_level(level)
    if trials <= 0 or not 0 <= successes <= trials:
        raise ValueError(f"need 0 <= successes <= trials and trials > 0, got {successes} of {trials}")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    rate = successes / trials
    denominator = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / denominator
    half = z * ((rate * (1 - rate) + z * z / (4 * trials)) / trials) ** 0.5 / denominator
    # Rounding may put an end on the wrong side of the estimate when there are no, or only, successes.
    return Interval(rate, max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half)))


def cluster_numbers(
    values: Sequence[float], clusters: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Values as an array, and the number of each one's cluster, from 0 in the order of appearance.

    Raises:
        ValueError: For no values, values that are not finite, or a different number of clusters.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError("need at least one value, all finite")
    if clusters is None:
        return array, np.arange(array.size)
    if len(clusters) != array.size:
        raise ValueError(f"{array.size} values but {len(clusters)} clusters")
    numbers: dict[Hashable, int] = {}
    return array, np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])


def bootstrap_mean(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a mean, resampling whole clusters (Efron and Tibshirani 1993, chapter 13).

    Several samples of one prompt are not independent, so prompts are resampled, not samples. For a paired comparison
    pass the differences.

    Args:
        values: At least one finite value.
        clusters: Which cluster each value belongs to, such as its prompt; each value its own by default.
        level: Confidence level in (0, 1).
        resamples: Number of bootstrap samples.
        seed: Of the resampling.

    Raises:
        ValueError: For no values, values that are not finite, or a different number of clusters.
    """
    _check_level(level)
    array, index = cluster_numbers(values, clusters)
    sums = np.bincount(index, weights=array)
    sizes = np.bincount(index).astype(np.float64)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    # In chunks: resamples x clusters at once would take gigabytes for large sets.
    chunk = max(1, 10_000_000 // len(sums))
    for start in range(0, resamples, chunk):
        picks = generator.integers(len(sums), size=(min(chunk, resamples - start), len(sums)))
        means[start : start + chunk] = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(array.mean()), float(low), float(high))


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a ratio of means, resampling the pairs (Efron and Tibshirani 1993, chapter 10).

    Args:
        numerators: One finite value for each cluster, such as a prompt.
        denominators: As many; NaN where the cluster's was not measured, so that the mean is that of the others.
        level: Confidence level in (0, 1).
        resamples: Number of bootstrap samples.
        seed: Of the resampling.

    Raises:
        ValueError: For no values, numerators that are not finite, different numbers of values, or denominators that
            are nowhere measured, infinite, or 0 on average.
    """
    _check_level(level)
    upper, lower = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    measured = ~np.isnan(lower)
    if upper.size == 0 or upper.shape != lower.shape or not np.isfinite([*upper, *lower[measured]]).all():
        raise ValueError("need as many numerators as denominators, at least one, all finite")
    below = np.where(measured, lower, 0.0)
    if not measured.any() or below.sum() == 0:
        raise ValueError("the denominators are not measured, or 0 on average")
    picks = np.random.default_rng(seed).integers(upper.size, size=(resamples, upper.size))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = upper[picks].mean(1) / (below[picks].sum(1) / measured[picks].sum(1))
    low, high = np.quantile(ratios[np.isfinite(ratios)], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(upper.mean() / (below.sum() / measured.sum())), float(low), float(high))


def bootstrap_crossed(
    values: Sequence[Sequence[float]], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the mean of a table, resampling rows and columns (Owen 2007, the pigeonhole bootstrap).

    For one value per training seed (row) and prompt (column): the interval covers what another draw of both would give.
    It is somewhat wide rather than narrow; with a single row only the columns vary, and the interval says nothing of
    other seeds.

    Args:
        values: Rows of equal length, all finite.
        level: Confidence level in (0, 1).
        resamples: Number of bootstrap samples.
        seed: Of the resampling.

    Raises:
        ValueError: For no values, rows of different lengths, or values that are not finite.
    """
    _check_level(level)
    if not values or len({len(row) for row in values}) != 1 or not len(values[0]):
        raise ValueError("need at least one row, all of the same length")
    table = np.asarray(values, dtype=np.float64)
    if not np.isfinite(table).all():
        raise ValueError("all values must be finite")
    rows, columns = table.shape
    generator = np.random.default_rng(seed)
    # How often each row and column was drawn: a product of counts instead of a table for every resample.
    weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=resamples) / rows
    means = np.empty(resamples)
    chunk = max(1, 10_000_000 // columns)
    for start in range(0, resamples, chunk):
        part = weights[start : start + chunk]
        counts = generator.multinomial(columns, np.full(columns, 1 / columns), size=len(part)) / columns
        means[start : start + chunk] = ((part @ table) * counts).sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(table.mean()), float(low), float(high))

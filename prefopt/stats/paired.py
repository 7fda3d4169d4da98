"""Tests and intervals for two systems measured on the same prompts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from prefopt.stats.intervals import Interval, bootstrap_mean, cluster_numbers

Floats = NDArray[np.float64]


class Paired(NamedTuple):
    """A mean difference of paired values.

    Attributes:
        difference: Mean of (first - second) with its bootstrap interval, in the unit of the values.
        p_value: Two-sided, of a permutation test that the difference is 0.
        clusters: Number of independent clusters, such as prompts.
    """

    difference: Interval
    p_value: float
    clusters: int

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0."""
        return not self.difference.low <= 0 <= self.difference.high


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Paired:
    """Mean of the differences of paired values, resampling whole clusters (Efron and Tibshirani 1993, chapter 13).

    Where both systems find the same prompts hard, the difference varies much less than either mean.

    Args:
        first: One finite value per item.
        second: As many, of the same items in the same order.
        clusters: Which cluster each item belongs to, such as its prompt; each its own by default.
        level: Confidence level in (0, 1).
        resamples: Bootstrap samples, and permutations.
        seed: Of both.

    Raises:
        ValueError: For different numbers of values, none, or values that are not finite.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be paired with {len(second)}")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    interval = bootstrap_mean(differences.tolist(), clusters, level=level, resamples=resamples, seed=seed)
    p_value = sign_flip_test(differences.tolist(), clusters, resamples=resamples, seed=seed)
    return Paired(interval, p_value, len(set(clusters)) if clusters is not None else len(differences))


def sign_flip_test(
    differences: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value that paired differences are symmetric about 0, by flipping the signs of whole clusters.

    The randomisation test for matched pairs (Fisher 1935). All 2^n flips are counted where there are at most
    `resamples` of them; otherwise random ones, with the observed signs among them (Phipson and Smyth 2010), so the
    p-value is never 0.

    Args:
        differences: At least one finite value.
        clusters: Which cluster each value belongs to; each value its own by default.
        resamples: Random flips.
        seed: Of the flips.

    Raises:
        ValueError: For no values, values that are not finite, or a different number of clusters.
    """
    values, index = cluster_numbers(differences, clusters)
    sums = np.bincount(index, weights=values)
    observed = abs(sums.sum())
    slack = 1e-12 * np.abs(sums).sum()  # equal sums may differ by rounding
    if 2 ** min(len(sums), 62) <= resamples:
        flips = 1 - 2 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
        return float((np.abs(flips @ sums) >= observed - slack).mean())
    generator = np.random.default_rng(seed)
    extreme, chunk = 0, max(1, 10_000_000 // len(sums))
    for start in range(0, resamples, chunk):
        flips = generator.integers(0, 2, size=(min(chunk, resamples - start), len(sums))) * 2 - 1
        extreme += int((np.abs(flips @ sums) >= observed - slack).sum())
    return (extreme + 1) / (resamples + 1)


def permutation_test(
    first: Sequence[float], second: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value that two unpaired samples have one mean, by exchanging values between them (Fisher 1935).

    Args:
        first: At least one finite value.
        second: At least one finite value.
        resamples: Random exchanges; the observed split is counted among them.
        seed: Of the exchanges.

    Raises:
        ValueError: For an empty sample or values that are not finite.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.size == 0 or two.size == 0 or not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise ValueError("need two samples of finite values")
    together = np.concatenate([one, two])
    observed = abs(one.mean() - two.mean())
    slack = 1e-12 * (1 + np.abs(together).max())
    generator = np.random.default_rng(seed)
    extreme = 0
    for _ in range(resamples):
        mixed = generator.permutation(together)
        extreme += abs(mixed[: one.size].mean() - mixed[one.size :].mean()) >= observed - slack
    return (extreme + 1) / (resamples + 1)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two classifiers are right equally often (McNemar 1947; exact: Edwards 1948).

    Args:
        only_first: Items that only the first has right.
        only_second: Items that only the second has right.

    Raises:
        ValueError: For negative numbers.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"need counts, got {only_first} and {only_second}")
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for having made several comparisons (Holm 1979), in the order given.

    Rejecting those below α keeps the chance of any false rejection below α.

    Raises:
        ValueError: For a p-value outside [0, 1].
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError("p-values are in [0, 1]")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected

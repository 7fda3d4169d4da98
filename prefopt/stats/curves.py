"""Reward against distance from the reference: what the best of n gives, and the laws that such curves follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Floats = NDArray[np.float64]


class Law(NamedTuple):
    """A fitted law of over-optimisation (arXiv 2210.10760), with d the root of the KL divergence.

    Attributes:
        alpha: Reward per d at the start.
        beta: How fast the gain decays; above 0 the curve has a peak.
        peak: d at which the law's reward is largest; None where it keeps rising.
        r_squared: Share of the rewards' variance that the law explains.
    """

    alpha: float
    beta: float
    peak: float | None
    r_squared: float


def best_of_n_kl(n: int) -> float:
    """KL divergence of the best of n from one sample, in nats: ln n - (n - 1) / n (arXiv 2112.00114; 2009.01325).

    An upper bound where equal completions or rewards occur (arXiv 2401.01879).

    Raises:
        ValueError: For n below 1.
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, not {n}")
    return math.log(n) - (n - 1) / n


def best_of_n_mean(chosen_by: Sequence[float], values: Sequence[float], n: int) -> float:
    """Expected value of the best of n of these samples by another score, over all choices of n without replacement.

    An unbiased estimate from N samples (arXiv 2112.09332, appendix I): the sample of rank i by `chosen_by` is the best
    of a random n with probability C(i-1, n-1) / C(N, n). Samples that tie are equally likely to be chosen.

    Args:
        chosen_by: What the choice is made by.
        values: What is averaged; the same as `chosen_by` for the reward of the best itself.
        n: Between 1 and the number of samples.

    Raises:
        ValueError: For lists of different length, values that are not finite, or n out of range.
    """
    score, value = np.asarray(chosen_by, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if score.shape != value.shape or not (np.isfinite(score).all() and np.isfinite(value).all()):
        raise ValueError("need as many finite scores as values")
    if not 1 <= n <= score.size:
        raise ValueError(f"n must be between 1 and {score.size}, not {n}")
    order = np.argsort(score, kind="stable")
    _, tie, counts = np.unique(score[order], return_inverse=True, return_counts=True)
    of_ties = (np.bincount(tie, weights=value[order]) / counts)[tie]
    return float(_rank_weights(score.size, n) @ of_ties)


def _rank_weights(total: int, n: int) -> Floats:
    ranks = np.arange(1, total + 1)
    weights = np.zeros(total)
    able = ranks >= n
    i = ranks[able].astype(np.float64)
    weights[able] = np.exp(
        gammaln(i) - gammaln(n) - gammaln(i - n + 1) - (gammaln(total + 1) - gammaln(n + 1) - gammaln(total - n + 1))
    )
    return weights


def fit_best_of_n_law(distances: Sequence[float], gains: Sequence[float]) -> Law:
    """R(d) = d (α - β d), by least squares (arXiv 2210.10760, section 3.1).

    Args:
        distances: Root of the KL divergence of each point; at least two different ones above 0.
        gains: Reward of each point minus that at d = 0.

    Raises:
        ValueError: For too few points.
    """
    return _fit(distances, gains, lambda d: d * d, lambda alpha, beta: alpha / (2 * beta))


def fit_rl_law(distances: Sequence[float], gains: Sequence[float]) -> Law:
    """R(d) = d (α - β ln d), by least squares (arXiv 2210.10760, section 3.1). Arguments and errors as above."""
    return _fit(distances, gains, lambda d: d * np.log(d), lambda alpha, beta: math.exp(alpha / beta - 1))


def _fit(
    distances: Sequence[float],
    gains: Sequence[float],
    decay: Callable[[Floats], Floats],
    peak: Callable[[float, float], float],
) -> Law:
    d, y = np.asarray(distances, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    if d.shape != y.shape or not (np.isfinite(d).all() and np.isfinite(y).all()):
        raise ValueError("need as many finite gains as distances")
    far = d > 0
    if len(np.unique(d[far])) < 2:
        raise ValueError("a law needs two different distances above 0")
    d, y = d[far], y[far]
    (alpha, minus_beta), *_ = np.linalg.lstsq(np.stack([d, decay(d)], axis=1), y, rcond=None)
    alpha, beta = float(alpha), float(-minus_beta)
    residual = float(((y - alpha * d + beta * decay(d)) ** 2).sum())
    total = float(((y - y.mean()) ** 2).sum())
    return Law(alpha, beta, float(peak(alpha, beta)) if beta > 0 else None, 1 - residual / total if total else 1.0)

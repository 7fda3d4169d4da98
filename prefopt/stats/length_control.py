"""Win rates as they would be at equal length: longer answers win more often, whatever they say."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from prefopt.stats.intervals import Interval, cluster_numbers

Floats = NDArray[np.float64]
_RIDGE = 1e-4  # of the mean log-likelihood: keeps the fit finite where one side always wins


def length_controlled_win_rate(
    outcomes: Sequence[float],
    extra_tokens: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The win rate that a logistic model predicts for answers of equal length (arXiv 2404.04475, equation 3).

    P(win) = σ(a + b tanh(Δ / s)) with Δ the answer's extra tokens and s their spread; the rate at Δ = 0 is σ(a). The
    paper's term for how hard a prompt is needs many models on the same prompts and is left out. The interval is a
    percentile bootstrap over clusters, each with a fit of its own.

    Args:
        outcomes: 1 for a win, 0 for a loss, 0.5 for a tie.
        extra_tokens: Length of each answer minus that of the baseline's.
        clusters: Which cluster, such as its prompt, each outcome belongs to.
        level: Confidence level in (0, 1).
        resamples: Bootstrap samples.
        seed: Of the resampling.

    Raises:
        ValueError: For no outcomes, outcomes out of [0, 1], or lengths that do not match them.
    """
    y, index = cluster_numbers(outcomes, clusters)
    gaps = np.asarray(extra_tokens, dtype=np.float64)
    if gaps.shape != y.shape or not np.isfinite(gaps).all() or y.min() < 0 or y.max() > 1:
        raise ValueError("need an outcome in [0, 1] and a finite length difference for each answer")
    spread = gaps.std()
    x = np.tanh(gaps / spread) if spread > 0 else np.zeros_like(gaps)
    a, b = _fit(x, y, np.ones_like(y), np.zeros(2))
    generator = np.random.default_rng(seed)
    count = int(index.max()) + 1
    drawn = np.empty(resamples)
    for row in range(resamples):
        weights = generator.multinomial(count, np.full(count, 1 / count))[index].astype(np.float64)
        drawn[row] = expit(_fit(x, y, weights, np.array([a, b]))[0])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(expit(a)), float(low), float(high))


def _fit(x: Floats, y: Floats, weights: Floats, start: Floats) -> Floats:
    """Intercept and slope of the weighted logistic regression, by maximum likelihood with a small ridge on both."""

    def loss(parameters: Floats) -> tuple[float, Floats]:
        z = parameters[0] + parameters[1] * x
        value = -(weights * (y * log_expit(z) + (1 - y) * log_expit(-z))).sum() / weights.sum()
        slope = weights * (expit(z) - y) / weights.sum()
        gradient = np.array([slope.sum(), (slope * x).sum()]) + 2 * _RIDGE * parameters
        return float(value + _RIDGE * (parameters**2).sum()), gradient

    found: Floats = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return found

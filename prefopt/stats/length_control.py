"""Win rates as they would be at equal length: longer answers win more often, whatever they say."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

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


class LengthPreference(NamedTuple):
    """How a preference goes with length, and nothing else: P(first is preferred) = σ(b tanh(Δ / s)).

    Attributes:
        coefficient: b in nats; above 0 where the longer answer is preferred more often.
        spread: s, the root mean square of Δ in tokens, or 1 where all answers of a pair are as long.
    """

    coefficient: float
    spread: float

    def logits(self, extra_tokens: Sequence[float]) -> list[float]:
        """Log-odds that the first answer of each pair is preferred, from how many tokens longer it is."""
        found: list[float] = (self.coefficient * np.tanh(np.asarray(extra_tokens) / self.spread)).tolist()
        return found


def fit_length_preference(
    outcomes: Sequence[float], extra_tokens: Sequence[float], weights: Sequence[float] | None = None
) -> LengthPreference:
    """A ruler fitted to preferences by maximum likelihood, in the form that win rates are controlled with.

    Every pair counts in both orders, so that the order says nothing.

    Args:
        outcomes: 1 where the first answer was preferred, 0 where the second was, or a share.
        extra_tokens: Length of the first minus that of the second.
        weights: Of the pairs; all 1 when None.

    Raises:
        ValueError: For no pairs, weights that are all 0, or lengths or weights that do not match the outcomes.
    """
    y, gaps = np.asarray(outcomes, dtype=np.float64), np.asarray(extra_tokens, dtype=np.float64)
    each = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64)
    if y.size == 0 or gaps.shape != y.shape or each.shape != y.shape or not each.sum() > 0:
        raise ValueError("need an outcome, a length difference and a weight for each pair, and one weight above 0")
    spread = float(np.sqrt((gaps**2).mean())) or 1.0
    x = np.tanh(gaps / spread)
    x, y, each = (np.concatenate(parts) for parts in ((x, -x), (y, 1 - y), (each, each)))
    return LengthPreference(float(_fit(x, y, each, np.zeros(2))[1]), spread)


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

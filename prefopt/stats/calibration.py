"""Whether probabilities mean what they say: reliability, ECE, Brier score, likelihood, and a temperature that helps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit

Floats = NDArray[np.float64]


class Bin(NamedTuple):
    """Predictions of like confidence.

    Attributes:
        low: Lower end of the bin, included.
        high: Upper end, included in the last bin only.
        size: Predictions in it.
        confidence: Their mean probability.
        accuracy: Share of them that came true.
    """

    low: float
    high: float
    size: int
    confidence: float
    accuracy: float


def reliability(probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10) -> list[Bin]:
    """Predictions sorted into equal bins of [0, 1]; empty bins are left out (DeGroot and Fienberg 1983).

    Args:
        probabilities: Of the event, each in [0, 1].
        outcomes: Whether it happened: 1, 0, or a share.
        bins: Number of bins.

    Raises:
        ValueError: For no predictions, or numbers out of range.
    """
    p, y = _checked(probabilities, outcomes)
    place = np.minimum((p * bins).astype(int), bins - 1)
    return [
        Bin(b / bins, (b + 1) / bins, int(chosen.sum()), float(p[chosen].mean()), float(y[chosen].mean()))
        for b in range(bins)
        if (chosen := place == b).any()
    ]


def expected_calibration_error(probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10) -> float:
    """Σ n_b/n |accuracy_b - confidence_b| over the bins of `reliability` (arXiv 1706.04599, equation 3).

    Biased upwards on small samples: n predictions per bin that are perfectly calibrated still miss by chance. Errors as
    `reliability`.
    """
    found = reliability(probabilities, outcomes, bins)
    total = sum(b.size for b in found)
    return sum(b.size / total * abs(b.accuracy - b.confidence) for b in found)


def brier_score(probabilities: Sequence[float], outcomes: Sequence[float]) -> float:
    """Mean squared error of probabilities (Brier 1950): 0 is perfect, 0.25 is always saying one half."""
    p, y = _checked(probabilities, outcomes)
    return float(((p - y) ** 2).mean())


def pair_probabilities(margins: Sequence[float], temperature: float = 1.0) -> list[float]:
    """σ(margin / T): the Bradley-Terry probability that the first answer of each pair is preferred.

    Raises:
        ValueError: For a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    probabilities: list[float] = expit(np.asarray(margins, dtype=np.float64) / temperature).tolist()
    return probabilities


def pair_nll(margins: Sequence[float], outcomes: Sequence[float], temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of pair outcomes under σ(margin / T), in nats; ln 2 is knowing nothing."""
    d, y = _finite(margins) / temperature, _finite(outcomes)
    return float(-(y * log_expit(d) + (1 - y) * log_expit(-d)).mean())


def fit_temperature(margins: Sequence[float], outcomes: Sequence[float]) -> float:
    """The temperature T under which σ(margin / T) makes the outcomes most likely (arXiv 1706.04599, section 4.2).

    The likelihood is convex in 1/T, so there is one. It is searched within [0.01, 100]: where every pair is ranked
    right the best T would be 0, and where the margins say nothing, infinite. The ranking does not change.

    Args:
        margins: r(first) - r(second) of each pair.
        outcomes: 1 where the first was preferred, 0 where the second was, or a share.

    Raises:
        ValueError: For no pairs, or numbers that are not finite.
    """
    d, y = _finite(margins), _finite(outcomes)
    if d.size != y.size:
        raise ValueError(f"{d.size} margins but {y.size} outcomes")
    found = minimize_scalar(
        lambda log_t: pair_nll(d.tolist(), y.tolist(), float(np.exp(log_t))),
        bounds=(np.log(0.01), np.log(100.0)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def both_orders(margins: Sequence[float], outcomes: Sequence[float]) -> tuple[list[float], list[float]]:
    """Every pair in both orders: confidence below one half is measured as well, and neither order is favoured."""
    return [*margins, *(-m for m in margins)], [*outcomes, *(1 - y for y in outcomes)]


def _finite(values: Sequence[float]) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError("need at least one value, all finite")
    return array


def _checked(probabilities: Sequence[float], outcomes: Sequence[float]) -> tuple[Floats, Floats]:
    p, y = _finite(probabilities), _finite(outcomes)
    if p.size != y.size:
        raise ValueError(f"{p.size} probabilities but {y.size} outcomes")
    if not (0 <= p.min() and p.max() <= 1 and 0 <= y.min() and y.max() <= 1):
        raise ValueError("probabilities and outcomes are in [0, 1]")
    return p, y

"""Whether numbers of today come from where those of yesterday came from; thresholds know the sample sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, ks_2samp


class Drift(NamedTuple):
    """A distance between two samples.

    Attributes:
        value: The distance.
        threshold: What it exceeds by chance with probability α or less.
    """

    value: float
    threshold: float

    @property
    def found(self) -> bool:
        """Whether the samples differ by more than chance, and by enough to matter."""
        return self.value > self.threshold


def population_stability(
    reference: Sequence[float], current: Sequence[float], *, bins: int = 10, alpha: float = 0.01, least: float = 0.1
) -> Drift:
    """PSI = Σ (p - q) ln(p / q) over quantile bins of the reference (Siddiqi 2006).

    Two samples of one distribution have a PSI of (bins - 1)(1/n + 1/m) on average: with a hundred values the customary
    threshold of 0.1 would be exceeded every other time. The threshold is the larger of `least` and the χ² quantile
    (Yurdakul 2018).

    Args:
        reference: n finite values.
        current: m finite values.
        bins: Quantile bins of the reference; equal quantiles are joined.
        alpha: Chance of a false alarm.
        least: A PSI below it is no drift however large the samples.

    Raises:
        ValueError: For an empty sample or values that are not finite.
    """
    one, two = _finite(reference), _finite(current)
    edges = np.unique(np.quantile(one, np.linspace(0, 1, bins + 1)[1:-1]))
    # Half a count in every bin keeps the logarithm finite (Jeffreys' prior).
    p, q = ((np.bincount(np.searchsorted(edges, x, side="right"), minlength=len(edges) + 1) + 0.5) for x in (one, two))
    p, q = p / p.sum(), q / q.sum()
    threshold = float(chi2.ppf(1 - alpha, max(1, len(edges)))) * (1 / one.size + 1 / two.size)
    return Drift(float(((p - q) * np.log(p / q)).sum()), max(least, threshold))


def kolmogorov_smirnov(reference: Sequence[float], current: Sequence[float], *, alpha: float = 0.05) -> Drift:
    """Largest distance of the two distribution functions, with its asymptotic threshold (Smirnov 1948).

    c(α) sqrt((n + m) / (n m)) with c(α) = sqrt(-ln(α/2) / 2); 1.36 for α = 0.05. Conservative for discrete values.

    Raises:
        ValueError: For an empty sample or values that are not finite.
    """
    one, two = _finite(reference), _finite(current)
    threshold = float(np.sqrt(-np.log(alpha / 2) / 2 * (one.size + two.size) / (one.size * two.size)))
    return Drift(float(ks_2samp(one, two).statistic), threshold)


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError("need at least one value, all finite")
    return array

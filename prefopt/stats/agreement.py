"""Whether people, or judges, agree beyond chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import combinations, permutations

import numpy as np


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """(p_o - p_e) / (1 - p_e) of two raters (Cohen 1960): 1 is full agreement, 0 what chance gives.

    1 where both gave one and the same label to everything.

    Raises:
        ValueError: For different numbers of labels, or none.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"need as many labels of both, got {len(first)} and {len(second)}")
    total = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / total
    one, two = Counter(first), Counter(second)
    expected = sum(one[label] * two[label] for label in one) / total**2
    return 1.0 if expected == 1 else (observed - expected) / (1 - expected)


def nominal(first: Hashable, second: Hashable) -> float:
    """Distance of labels without an order: 0 or 1."""
    return float(first != second)


def interval(first: float, second: float) -> float:
    """Squared distance of labels that are numbers."""
    return (first - second) ** 2


def krippendorff_alpha(
    ratings: Sequence[Mapping[Hashable, Hashable]], distance: Callable[..., float] = nominal
) -> float:
    """1 - D_o / D_e of any number of raters with missing ratings (Krippendorff 2011, "Computing α-reliability").

    Args:
        ratings: For each item, its label by rater; an item that fewer than two rated says nothing.
        distance: Between two labels; 0 for equal ones.

    Returns:
        1 for full agreement, 0 for chance, below 0 for systematic disagreement; 1 where only one label was ever given.

    Raises:
        ValueError: When no item has two ratings.
    """
    units = [list(item.values()) for item in ratings if len(item) >= 2]
    if not units:
        raise ValueError("no item was rated twice")
    coincidences: Counter[tuple[Hashable, Hashable]] = Counter()
    for labels in units:
        for pair in permutations(labels, 2):
            coincidences[pair] += 1 / (len(labels) - 1)  # type: ignore[assignment]
    totals: Counter[Hashable] = Counter()
    for (label, _), count in coincidences.items():
        totals[label] += count
    n = sum(totals.values())
    observed = sum(count * distance(a, b) for (a, b), count in coincidences.items())
    expected = sum(totals[a] * totals[b] * distance(a, b) for a in totals for b in totals) / (n - 1)
    return 1.0 if expected == 0 else 1 - observed / expected


def mean_correlation(series: Sequence[Sequence[float]]) -> float:
    """Mean of Pearson's correlations of all pairs of series; 0 for a pair of which one is constant.

    Raises:
        ValueError: For fewer than two series or values, or series of different lengths.
    """
    if len(series) < 2 or min(map(len, series)) < 2 or len(set(map(len, series))) > 1:
        raise ValueError("need two series or more, each of as many values, two or more")
    centred = [np.asarray(each, dtype=np.float64) - np.mean(each) for each in series]
    found = []
    for first, second in combinations(centred, 2):
        scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
        found.append(float(first @ second) / scale if scale > 0 else 0.0)
    return sum(found) / len(found)

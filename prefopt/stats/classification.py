"""Quality of a classifier, and of a regression: precision, recall, F1, AUROC, explained variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata


class Confusion(NamedTuple):
    """How often a yes or no was right.

    Attributes:
        true_positives: Said yes, was yes.
        false_positives: Said yes, was no.
        false_negatives: Said no, was yes.
        true_negatives: Said no, was no.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def precision(self) -> float:
        """Share of yeses that were right; 0 where none was said."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of what was yes that was found; 0 where nothing was."""
        return _share(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where either is."""
        return _share(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)

    @property
    def accuracy(self) -> float:
        """Share of all answers that were right."""
        return _share(self.true_positives + self.true_negatives, sum(self))


def confusion(predicted: Sequence[bool], actual: Sequence[bool]) -> Confusion:
    """Count right and wrong answers.

    Raises:
        ValueError: For different numbers of answers, or none.
    """
    if len(predicted) != len(actual) or not predicted:
        raise ValueError(f"need as many predictions as answers, got {len(predicted)} and {len(actual)}")
    pairs = [(bool(p), bool(a)) for p, a in zip(predicted, actual, strict=True)]
    return Confusion(*(pairs.count(cell) for cell in ((True, True), (True, False), (False, True), (False, False))))


def auroc(scores: Sequence[float], actual: Sequence[bool]) -> float:
    """Chance that a positive has a higher score than a negative, a tie counting half (Mann and Whitney 1947).

    Raises:
        ValueError: When there are not both positives and negatives, or scores are not finite.
    """
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(actual, dtype=bool)
    if values.shape != positive.shape or not np.isfinite(values).all():
        raise ValueError("need a finite score for each answer")
    count, rest = int(positive.sum()), int((~positive).sum())
    if not count or not rest:
        raise ValueError("need positives and negatives")
    return float((rankdata(values)[positive].sum() - count * (count + 1) / 2) / (count * rest))


def explained_variance(predicted: Sequence[float], actual: Sequence[float]) -> float:
    """1 - Var(y - ŷ) / Var(y): 1 is perfect, 0 a constant, below 0 worse than one; 0 where y does not vary.

    Raises:
        ValueError: For different numbers of values, none, or values that are not finite.
    """
    guess, truth = np.asarray(predicted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    if guess.shape != truth.shape or guess.size == 0 or not (np.isfinite(guess).all() and np.isfinite(truth).all()):
        raise ValueError("need as many finite predictions as values")
    spread = truth.var()
    return 0.0 if spread == 0 else float(1 - (truth - guess).var() / spread)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0

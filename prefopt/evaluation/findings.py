"""What a suite of an evaluation found, ready for manifest, terminal and report; and pairs with their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prefopt.errors import DataError
from prefopt.records import PreferencePair, Prompt
from prefopt.rewards.scorers import Scorer
from prefopt.stats.intervals import Interval


@dataclass(frozen=True)
class Finding:
    """A table that a person reads.

    Attributes:
        title: What it shows.
        columns: Their titles.
        rows: Cells as text, as many as columns.
        note: How to read it, in a sentence.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass
class Findings:
    """What a suite found.

    Attributes:
        metrics: Numbers under the names of `prefopt.tracking.metrics`; every one finite.
        tables: For a person.
        curves: Data of plots, by name: anything that JSON holds.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    tables: list[Finding] = field(default_factory=list)
    curves: dict[str, Any] = field(default_factory=dict)

    def put(self, name: str, interval: Interval) -> None:
        """Keep an estimate with its interval as `name/mean`, `name/ci_low` and `name/ci_high`."""
        self.metrics[f"{name}/mean"] = interval.estimate
        self.metrics[f"{name}/ci_low"] = interval.low
        self.metrics[f"{name}/ci_high"] = interval.high

    def add(self, other: Findings) -> None:
        """Take in what another suite found."""
        self.metrics.update(other.metrics)
        self.tables.extend(other.tables)
        self.curves.update(other.curves)


@dataclass(frozen=True)
class ScoredPair:
    """A pair with the scores of its two answers."""

    pair: PreferencePair
    chosen: float
    rejected: float

    @property
    def told(self) -> bool:
        """Whether the label prefers either answer."""
        return self.pair.probability != 0.5

    @property
    def margin(self) -> float:
        """Score of the answer that the label prefers minus that of the other."""
        return self.chosen - self.rejected if self.pair.probability >= 0.5 else self.rejected - self.chosen

    @property
    def hit(self) -> float:
        """1 where the scores prefer what the label prefers, 0 where they do not, 0.5 where they tie."""
        return 1.0 if self.margin > 0 else 0.0 if self.margin < 0 else 0.5


def score_pairs(pairs: Sequence[PreferencePair], scorer: Scorer) -> list[ScoredPair]:
    """Score both answers of every pair."""
    prompts = [pair.prompt for pair in pairs]
    scores = scorer.score(prompts * 2, [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
    return [ScoredPair(pair, scores[i].value, scores[i + len(pairs)].value) for i, pair in enumerate(pairs)]


def score_pairs_that_fit(pairs: Sequence[PreferencePair], scorer: Scorer) -> list[ScoredPair]:
    """Score the pairs of which both answers fit into the scorer; the others are left out."""
    prompts = [pair.prompt for pair in pairs]
    scores = score_what_fits(scorer, prompts * 2, [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
    both = zip(pairs, scores[: len(pairs)], scores[len(pairs) :], strict=True)
    return [ScoredPair(pair, a, b) for pair, a, b in both if a is not None and b is not None]


def score_what_fits(scorer: Scorer, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
    """Score texts that may be longer than the scorer can take.

    Args:
        scorer: Raises `DataError` where any of the texts does not fit.
        prompts: N prompts.
        texts: N answers.

    Returns:
        N scores in the scorer's own unit; None for an answer that does not fit.
    """
    if not texts:
        return []
    try:
        return [score.value for score in scorer.score(prompts, texts)]
    except DataError:
        if len(texts) == 1:
            return [None]
    # The error does not say which: halving finds few among many in few calls.
    middle = len(texts) // 2
    first = score_what_fits(scorer, prompts[:middle], texts[:middle])
    return first + score_what_fits(scorer, prompts[middle:], texts[middle:])


def percent(interval: Interval, digits: int = 1) -> str:
    """`71.9% [66.4%, 76.9%]`."""
    return f"{interval.estimate:.{digits}%} [{interval.low:.{digits}%}, {interval.high:.{digits}%}]"


def number(interval: Interval, digits: int = 2) -> str:
    """`0.42 [0.31, 0.55]`."""
    return f"{interval.estimate:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"

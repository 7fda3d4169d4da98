"""Answers compared two at a time by a judge, in both orders, so that a judge who favours the first favours nobody."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prefopt.feedback.judges import Labels, label
from prefopt.records import Prompt
from prefopt.rewards.scorers import Scorer


class PairJudge(Protocol):
    """Says which of two answers is better."""

    def compare(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Sequence[float | None]:
        """Compare N pairs of answers.

        Args:
            prompts: N prompts.
            first: N answers.
            second: N answers to the same prompts.

        Returns:
            N probabilities in [0, 1] that the first is preferred; 0.5 is a tie, None an abstention.
        """


@dataclass(frozen=True)
class ScoringJudge:
    """A judge that follows a scorer, with the errors that people make.

    Attributes:
        scorer: Whose rewards decide.
        labels: How, as `prefopt.feedback.judges.label` says.
        noise: Share of verdicts that are flipped.
        scale: Of the rewards in the Bradley-Terry model.
        seed: Of the errors; each question, in its order, has its own.
    """

    scorer: Scorer
    labels: Labels = "sampled"
    noise: float = 0.0
    scale: float = 1.0
    seed: int = 0

    def compare(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[float | None]:
        """As `PairJudge.compare`."""
        scores = self.scorer.score([*prompts, *prompts], [*first, *second])
        verdicts: list[float | None] = []
        for index, (prompt, a, b) in enumerate(zip(prompts, first, second, strict=True)):
            gap = scores[index].value - scores[index + len(prompts)].value
            question = repr((self.seed, [(m.role, m.content) for m in prompt], a, b))
            rng = random.Random(hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest())
            verdicts.append(label(gap, self.labels, self.noise, self.scale, rng))
        return verdicts


@dataclass(frozen=True)
class Judged:
    """What a judge said of pairs of answers, asked in both orders.

    Attributes:
        outcomes: For each pair how far the first won: 1, 0, 0.5 for a tie or contradictory verdicts, or a share; None
            where the judge abstained both times.
        consistent: Whether both verdicts name the same answer, or both a tie; None where one of them is missing.
    """

    outcomes: Sequence[float | None]
    consistent: Sequence[bool | None]


def in_both_orders(judge: PairJudge, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
    """Ask a judge about each pair twice, with the answers exchanged, and average (arXiv 2306.05685, section 3.4).

    Args:
        judge: Is asked.
        prompts: N prompts.
        first: N answers.
        second: N answers to the same prompts.
    """
    forward = judge.compare(prompts, first, second)
    backward = [None if verdict is None else 1 - verdict for verdict in judge.compare(prompts, second, first)]
    outcomes: list[float | None] = []
    consistent: list[bool | None] = []
    for one, other in zip(forward, backward, strict=True):
        given = [verdict for verdict in (one, other) if verdict is not None]
        outcomes.append(sum(given) / len(given) if given else None)
        consistent.append(_side(one) == _side(other) if one is not None and other is not None else None)
    return Judged(outcomes, consistent)


def _side(verdict: float) -> int:
    return (verdict > 0.5) - (verdict < 0.5)

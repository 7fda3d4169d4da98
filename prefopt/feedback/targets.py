"""Which of a teacher's answers a student learns from.

What a model says of itself is filtered before it is learned: half answers, copies and unlikely slips are what grows
from round to round (arXiv 2305.17493).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefopt.recipe.distill import KeepSpec
from prefopt.records import Prompt


@dataclass(frozen=True)
class Answer:
    """A teacher's answer to a prompt.

    Attributes:
        number: Of the prompt.
        prompt: As the data has it.
        completion: Its text.
        finished: Whether the teacher ended it itself.
        tokens: How long it is, the end token included.
        mean_logp: Of its tokens under the teacher, nats.
        reward: None where nothing judges.
        violated: Names of the costs above their threshold.
    """

    number: int
    prompt: Prompt
    completion: str
    finished: bool
    tokens: int
    mean_logp: float
    reward: float | None = None
    violated: tuple[str, ...] = ()


def kept(answers: Sequence[Answer], keep: KeepSpec, best: int | None = None) -> tuple[list[Answer], Counter[str]]:
    """The answers that are learned from, in their order, and why the others are not.

    Quantiles are over the answers that pass what comes before: their own faults, copies, and the choice of the best.

    Args:
        answers: Of all prompts.
        keep: What is wanted.
        best: How many of a prompt's answers stay, those with the highest reward; all when None.

    Returns:
        The answers, and reason → how many.
    """
    reasons: Counter[str] = Counter()
    left: list[Answer] = []
    copies: Counter[tuple[int, str]] = Counter()
    for answer in answers:
        reason = _fault(answer, keep)
        if reason is None and keep.max_copies is not None:
            copies[answer.number, answer.completion] += 1
            reason = "copy" if copies[answer.number, answer.completion] > keep.max_copies else None
        if reason is None:
            left.append(answer)
        else:
            reasons[reason] += 1
    if best is not None:
        chosen = _best(left, best)
        reasons["not the best"] += len(left) - len(chosen)
        left = chosen
    left = _without_lowest(left, keep.min_logp_quantile, lambda answer: answer.mean_logp, "unlikely", reasons)
    left = _without_lowest(left, keep.min_reward_quantile, _reward, "low reward", reasons)
    return left, +reasons


def _fault(answer: Answer, keep: KeepSpec) -> str | None:
    """What is wrong with an answer by itself."""
    if not answer.completion.strip():
        return "empty"
    if keep.ended and not answer.finished:
        return "not ended"
    if answer.tokens < keep.min_tokens:
        return "too short"
    if keep.max_tokens is not None and answer.tokens > keep.max_tokens:
        return "too long"
    return f"violates {answer.violated[0]}" if answer.violated else None


def _best(answers: Sequence[Answer], best: int) -> list[Answer]:
    """Of every prompt the answers with the highest reward, the first of equal ones."""
    of_prompt: dict[int, list[int]] = {}
    for place, answer in enumerate(answers):
        of_prompt.setdefault(answer.number, []).append(place)
    places = [
        place
        for group in of_prompt.values()
        for place in sorted(group, key=lambda place: (-_reward(answers[place]), place))[:best]
    ]
    return [answers[place] for place in sorted(places)]


def _without_lowest(
    answers: list[Answer], share: float, value: Callable[[Answer], float], reason: str, reasons: Counter[str]
) -> list[Answer]:
    """Without the share of lowest values, rounded down; of equal ones the later go first."""
    count = math.floor(share * len(answers))
    lowest = set(sorted(range(len(answers)), key=lambda place: (value(answers[place]), -place))[:count])
    reasons[reason] += count
    return [answer for place, answer in enumerate(answers) if place not in lowest]


def _reward(answer: Answer) -> float:
    return answer.reward or 0.0

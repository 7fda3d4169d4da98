"""Judges are asked in both orders."""

from collections.abc import Sequence

import numpy as np
import pytest

from prefopt.evaluation.judged import Judged, ScoringJudge, in_both_orders
from prefopt.evaluation.summary import PolicyResult, policy_metrics
from prefopt.records import Message, Prompt, Score


class Length:
    name = "length"

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        return [Score(float(len(text))) for text in completions]


class Vain:
    """Prefers whatever comes first, and says nothing of empty answers."""

    def compare(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[float | None]:
        return [None if not a or not b else 0.9 for a, b in zip(first, second, strict=True)]


def prompts(count: int) -> list[Prompt]:
    return [(Message("user", f"question {n}"),) for n in range(count)]


def test_a_judge_who_favours_the_first_favours_nobody() -> None:
    found = in_both_orders(Vain(), prompts(3), ["a", "b", ""], ["c", "d", "e"])
    assert found.outcomes == [pytest.approx(0.5), pytest.approx(0.5), None]
    assert found.consistent == [False, False, None]


def test_a_judge_without_errors_is_its_scorer() -> None:
    judge = ScoringJudge(Length(), "sign")
    found = in_both_orders(judge, prompts(3), ["long answer", "a", "xy"], ["short", "bbb", "ab"])
    assert found == Judged([1.0, 0.0, 0.5], [True, True, True])
    turned = in_both_orders(judge, prompts(3), ["short", "bbb", "ab"], ["long answer", "a", "xy"])
    assert [1 - outcome for outcome in turned.outcomes if outcome is not None] == list(found.outcomes)


def test_errors_are_drawn_for_each_question_and_order_and_again_the_same() -> None:
    count = 2000
    first, second = ["long answer"] * count, ["short"] * count
    judge = ScoringJudge(Length(), "sign", noise=0.2, seed=3)
    found = in_both_orders(judge, prompts(count), first, second)
    assert found == in_both_orders(judge, prompts(count), first, second)
    outcomes = [outcome for outcome in found.outcomes if outcome is not None]
    assert np.mean(outcomes) == pytest.approx(0.8, abs=0.02)
    # Both right, or both wrong: 0.8² + 0.2².
    assert np.mean([bool(same) for same in found.consistent]) == pytest.approx(0.68, abs=0.03)


def test_the_metrics_leave_abstentions_out() -> None:
    base = PolicyResult("sft", [0, 1, 2, 3], [1] * 4, [True] * 4)
    judged = Judged([1.0, 1.0, 0.0, None], [True, True, False, None])
    found = policy_metrics(
        PolicyResult("dpo", [0, 1, 2, 3], [1] * 4, [True] * 4, [0.1] * 4, judged=judged), base, "gold"
    )
    assert found["judge_win_rate/mean"] == pytest.approx(2 / 3) and found["judge_abstention"] == 0.25
    assert found["judge_consistency/mean"] == pytest.approx(2 / 3)

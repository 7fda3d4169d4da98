"""Which of a teacher's answers are learned from, and why the others are not."""

from __future__ import annotations

from prefopt.feedback.targets import Answer, kept
from prefopt.recipe.distill import KeepSpec
from prefopt.records import Message

PROMPT = (Message("user", "which colour"),)
ALL = KeepSpec(ended=False, min_tokens=0, max_copies=None, min_logp_quantile=0.0)


def answer(text: str = "red", number: int = 0, finished: bool = True, tokens: int = 3, logp: float = -1.0,
           reward: float | None = None, violated: tuple[str, ...] = ()) -> Answer:  # fmt: skip
    return Answer(number, PROMPT, text, finished, tokens, logp, reward, violated)


def test_everything_but_nothing_can_be_kept() -> None:
    answers = [answer(finished=False), answer(tokens=99), answer(), answer()]
    assert kept(answers, ALL) == (answers, {})
    assert kept([answer(" ")], ALL) == ([], {"empty": 1})
    assert kept([], ALL) == ([], {})


def test_each_filter_says_what_it_left_out() -> None:
    answers = [answer(finished=False), answer("a", tokens=1), answer("b", tokens=9), answer("c"), answer("c"),
               answer("c"), answer("c", number=1)]  # fmt: skip
    left, reasons = kept(answers, KeepSpec(min_tokens=2, max_tokens=5))
    assert left == [answers[3], answers[4], answers[6]]
    assert reasons == {"not ended": 1, "too short": 1, "too long": 1, "copy": 1}


def test_the_unlikely_and_the_bad_are_shares_of_what_is_left() -> None:
    answers = [answer(str(n), n, logp=-float(n), reward=float(-n % 7)) for n in range(10)]
    left, reasons = kept(answers, KeepSpec(min_logp_quantile=0.2))
    assert [each.number for each in left] == list(range(8)) and reasons == {"unlikely": 2}
    left, reasons = kept(answers, KeepSpec(min_logp_quantile=0.2, min_reward_quantile=0.5))
    rewards = {each.number: each.reward for each in answers[:8]}
    assert reasons == {"unlikely": 2, "low reward": 4}
    assert min(rewards[each.number] for each in left) >= max(
        reward for number, reward in rewards.items() if number not in {each.number for each in left}
    )
    assert kept(answers, KeepSpec(min_logp_quantile=0.05))[1] == {}, "less than one answer"


def test_the_best_are_the_best_of_their_own_prompt() -> None:
    answers = [answer(f"{n}", n // 3, reward=(1.0, 3.0, 3.0, -5.0, -9.0, -7.0)[n]) for n in range(6)]
    left, reasons = kept(answers, ALL, best=1)
    assert [each.completion for each in left] == ["1", "3"] and reasons == {"not the best": 4}
    left, _ = kept(answers, ALL, best=2)
    assert [each.completion for each in left] == ["1", "2", "3", "5"]


def test_half_answers_are_not_the_best() -> None:
    answers = [answer("x", finished=False, reward=9.0), answer("y", reward=1.0)]
    assert [each.completion for each in kept(answers, KeepSpec(min_logp_quantile=0.0), best=1)[0]] == ["y"]


def test_answers_that_violate_a_cost_are_no_answers_and_not_the_best() -> None:
    answers = [answer("a", reward=9.0, violated=("banned", "length")), answer("b", reward=1.0), answer("b", reward=1.0)]
    left, reasons = kept(answers, ALL, best=1)
    assert left == [answers[1]] and reasons == {"violates banned": 1, "not the best": 1}

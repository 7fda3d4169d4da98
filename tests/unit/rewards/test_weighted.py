"""Weighted sums, by closed form."""

import math
from collections.abc import Sequence

import pytest

from prefopt.records import Message, Prompt, Score
from prefopt.rewards.scorers import Scorer
from prefopt.rewards.weighted import WeightedScorer, distinct_names

PROMPT: Prompt = (Message("user", "how was it?"),)


class Fixed:
    def __init__(self, name: str, *scores: Score) -> None:
        self.name = name
        self._scores = list(scores)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        assert len(prompts) == len(completions) == len(self._scores)
        return self._scores


def scored(*parts: tuple[float, Scorer], count: int = 2) -> list[Score]:
    return WeightedScorer(parts).score([PROMPT] * count, ["x"] * count)


def test_values_add_up_and_deviations_do_so_in_squares() -> None:
    one = Fixed("rm", Score(2.0, 0.3), Score(-1.0, 0.0))
    two = Fixed("brevity", Score(10.0, 4.0), Score(1.0, 0.5))
    first, second = scored((1.0, one), (-0.1, two))
    assert first.value == pytest.approx(2.0 - 1.0) and first.std == pytest.approx(math.sqrt(0.3**2 + 0.4**2))
    assert second.value == pytest.approx(-1.1) and second.std == pytest.approx(0.05)
    assert first.axes == {"rm": 2.0, "brevity": 10.0} and second.axes == {"rm": -1.0, "brevity": 1.0}


def test_one_part_alone_is_itself_and_the_order_makes_no_difference() -> None:
    one, two = Fixed("a", Score(0.1, 0.2)), Fixed("b", Score(0.7, 0.1))
    (alone,) = scored((1.0, one), (0.0, two), count=1)
    assert (alone.value, alone.std) == (0.1, 0.2)
    (there,), (back,) = scored((2.0, one), (3.0, two), count=1), scored((3.0, two), (2.0, one), count=1)
    assert (there.value, there.std) == (back.value, pytest.approx(back.std))


def test_parts_of_one_name_are_told_apart() -> None:
    (found,) = scored((1.0, Fixed("a", Score(1.0))), (1.0, Fixed("a", Score(2.0))), count=1)
    assert found.axes == {"a": 1.0, "a-2": 2.0}
    assert distinct_names(["a", "a-2", "a", "a"]) == ["a", "a-2", "a-3", "a-4"]


def test_it_has_a_name_that_says_it_and_two_parts_at_least() -> None:
    one, two = Fixed("rm", Score(1.0)), Fixed("brevity", Score(1.0))
    assert WeightedScorer([(1.0, one), (-0.5, two)]).name == "1 × rm + -0.5 × brevity"
    with pytest.raises(ValueError, match="two scorers"):
        WeightedScorer([(1.0, one)])
    assert WeightedScorer([(1.0, Fixed("a")), (1.0, Fixed("b"))]).score([], []) == []

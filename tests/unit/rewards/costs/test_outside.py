"""Costs that a model or somebody's package measures."""

from __future__ import annotations

import math
from typing import Any

import pytest

from prefopt.errors import DataError, InputError
from prefopt.recipe.options.costs import ClassifierCost, PluginCost
from prefopt.records import Score
from prefopt.rewards.costs.outside import Classifier, Plugin
from prefopt.rewards.costs.sample import Measured, Sample
from tests.unit.rewards.costs.measuring import PROMPT

SPEC = PluginCost(cost="plugin", function="shouting")


class Logits:
    """Scores a text by the number that it is."""

    name = "logits"

    def score(self, prompts: Any, completions: Any) -> list[Score]:
        assert list(prompts) == [PROMPT] * len(completions)
        return [Score(float(text)) for text in completions]


def samples(*texts: str) -> list[Sample]:
    return [Sample(PROMPT, text) for text in texts]


def test_a_classifier_costs_what_it_is_sure_of_beyond_the_hinge() -> None:
    cost = Classifier(ClassifierCost(cost="classifier", pretrained="x", hinge=0.75), Logits())
    found = cost.measure(samples("-800", "0", str(math.log(3)), str(math.log(7)), "800"))
    assert [each.value for each in found] == pytest.approx([0, 0, 0, 0.5, 1])
    assert [each.expected for each in found] == pytest.approx([0, 0.5, 0.75, 0.875, 1])


def test_a_function_gives_numbers_or_numbers_with_spans() -> None:
    asked: dict[str, Any] = {}

    def shouting(prompts: Any, completions: Any) -> list[Any]:
        asked.update(prompts=prompts, completions=completions)
        return [0, (1.5, [(4, 6), (0, 2), (1, 3)])]

    cost = Plugin(SPEC, shouting)
    assert cost.measure(samples("a", "ABC DEF")) == [Measured(0.0), Measured(1.5, ((0, 3), (4, 6)))]
    assert (
        asked["prompts"][0] == [{"role": "user", "content": PROMPT[0].content}] and asked["completions"][1] == "ABC DEF"
    )
    assert cost.measure([]) == []


@pytest.mark.parametrize(
    "answer",
    [[-0.1], [float("nan")], [math.inf], ["1"], [None], [(1.0,)], [(1.0, [(0, 9)])], [(1.0, [(2, 1)])], [(1.0, [3])]],
)
def test_an_answer_that_is_no_cost_is_an_error_with_the_name(answer: list[Any]) -> None:
    with pytest.raises(DataError, match="the cost 'shouting' answered"):
        Plugin(SPEC, lambda prompts, completions: answer).measure(samples("abc"))


def test_too_few_answers_and_what_is_raised_are_said() -> None:
    with pytest.raises(DataError, match="1 values for 2 completions"):
        Plugin(SPEC, lambda prompts, completions: [1.0]).measure(samples("a", "b"))
    with pytest.raises(InputError, match="raised ZeroDivisionError") as caught:
        Plugin(SPEC, lambda prompts, completions: [1 / 0]).measure(samples("a"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

import pytest

from prefopt.models.token_offsets import token_offsets
from prefopt.recipe.options.loss_costs import BannedInLoss, LengthInLoss, RepetitionInLoss
from prefopt.records import Message
from prefopt.rewards.costs.registry import rule_cost
from prefopt.rewards.costs.sample import MOST_SPANS, Measured, Sample
from prefopt.rewards.flags import WeightedCost, flag, tokens_within
from tests.tiny import tiny_tokenizer

PROMPT = (Message("user", "what is it"),)
TOKENIZER = tiny_tokenizer()


def sample(text: str) -> Sample:
    ids = [*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    said = TOKENIZER.decode(ids, skip_special_tokens=True)
    return Sample(PROMPT, said, tuple(ids), offsets=lambda: token_offsets(TOKENIZER, ids, said))


def banned(*words: str, **more) -> WeightedCost:
    spec = BannedInLoss(cost="banned", words=words, **more)
    return WeightedCost(rule_cost(spec), spec.weight)


def flagged_text(one: Sample, kept: list[float]) -> str:
    ids = [token for token, keep in zip(one.token_ids, kept, strict=True) if keep == 0]
    return TOKENIZER.decode(ids)


def test_a_token_is_flagged_where_one_character_overlaps() -> None:
    starts = [0, 3, 5, 5, 9]  # the third token holds a part of a letter, the last is an end token
    assert tokens_within(starts, 9, [(4, 5)]) == [1]
    assert tokens_within(starts, 9, [(4, 6)]) == [1, 2, 3]
    assert tokens_within(starts, 9, [(0, 1), (8, 9)]) == [0, 3]
    assert tokens_within(starts, 9, []) == [] and tokens_within([], 9, [(0, 9)]) == []
    assert tokens_within(starts, 9, [(0, 9)]) == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["the lamp is red", "the gruesome lamp 🙂 is red", "çé lamp", "lamp"])
def test_exactly_the_banned_word_is_flagged_and_never_the_end(text: str) -> None:
    one = sample(text)
    ((kept, weights),), counts = flag([one], [banned("lamp", weight=0.5)])
    assert flagged_text(one, kept).strip() == "lamp"
    assert kept[-1] == 1 and [w == 0.5 for w in weights] == [k == 0 for k in kept]
    assert counts.to_json() == {
        "completions": 1, "tokens": len(one.token_ids), "flagged_tokens": kept.count(0.0), "violating": {"banned": 1},
        "without_span": {}, "not_located": 0,
    }  # fmt: skip


def test_a_clean_set_has_no_flag() -> None:
    found, counts = flag([sample("Scunthorpe is a town"), sample("a class of its own")], [banned("cunt", "ass")])
    assert all(set(kept) == {1.0} and set(weights) == {0.0} for kept, weights in found)
    assert counts.flagged_tokens == 0 and counts.to_json()["violating"] == {}


def test_costs_add_up_and_thresholds_hold() -> None:
    one = sample("the lamp the lamp the lamp")
    repeated = RepetitionInLoss(cost="repetition", ngram=2, unit="words", weight=2.0)
    strict = repeated.model_copy(update={"threshold": 0.99})
    costs = [banned("lamp", weight=0.5), WeightedCost(rule_cost(repeated), 2.0)]
    ((_, weights),), _ = flag([one], costs)
    assert max(weights) == 2.5 and {0.5, 2.0} & set(weights)
    ((_, weights),), counts = flag([one], [costs[0], WeightedCost(rule_cost(strict), 2.0)])
    assert max(weights) == 0.5 and "repetition" not in counts.violating


def test_too_short_is_a_violation_without_a_span() -> None:
    short = LengthInLoss(cost="length", limit=40, minimum=30, unit="words")
    ((kept, _),), counts = flag([sample("red")], [WeightedCost(rule_cost(short), 1.0)])
    assert set(kept) == {1.0} and counts.without_span == {"length": 1}


def test_behind_the_last_span_that_is_named_nothing_is_imitated() -> None:
    one = sample(" ".join(["red lamp"] * (MOST_SPANS + 9)))
    ((kept, weights),), _ = flag([one], [banned("lamp")])
    last = max(place for place, weight in enumerate(weights) if weight)
    assert weights.count(1.0) >= MOST_SPANS and set(kept[last + 1 : -1]) == {0.0} and set(weights[last + 1 :]) == {0.0}
    assert kept[-1] == 1.0


def test_a_violation_whose_tokens_are_not_found_is_not_imitated_at_all() -> None:
    lost = Sample(PROMPT, "another text with a lamp", (5, 6, 7), offsets=lambda: [])
    ((kept, weights),), counts = flag([lost], [banned("lamp")])
    assert kept == [0.0] * 3 and weights == [0.0] * 3
    assert counts.not_located == 1 and counts.total([counts, counts]).not_located == 2


def test_a_cost_that_names_no_span_flags_nothing() -> None:
    class Whole:
        label, threshold = "whole", 0.0

        def measure(self, samples):
            return [Measured(1.0) for _ in samples]

    ((kept, _),), counts = flag([sample("red")], [WeightedCost(Whole(), 1.0)])
    assert set(kept) == {1.0} and counts.without_span == {"whole": 1}

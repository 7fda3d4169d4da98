"""What was to be expected is what happens on average."""

from __future__ import annotations

import pytest
import torch

from prefopt.models.generate import SamplingOptions, sample
from prefopt.models.token_watch import TokenWatch
from tests.tiny import tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def test_the_expected_number_is_the_mean_number_that_is_drawn() -> None:
    model = tiny_llama()
    # Tokens that a random model draws now and then: letters, which continue nothing.
    words = ["e", "lam", "the"]
    watch = TokenWatch(words, TOKENIZER)
    count = 4000
    options = SamplingOptions(max_new_tokens=5, watch=(watch,), say=True, batch_size=1000, temperature=0.7)
    found = sample(model, TOKENIZER, [ids("the lamp is")] * count, options)
    drawn = torch.tensor([_times(each.ids, watch) for each in found]).double()
    expected = torch.tensor([each.expected[0] for each in found]).double()
    error = float((drawn.std() ** 2 + expected.std() ** 2).sqrt()) / count**0.5
    assert abs(float(drawn.mean() - expected.mean())) < 4 * error and float(expected.mean()) > 5 * error
    assert float(expected.std()) < 0.8 * float(drawn.std())  # it does not wait for the draw


def _times(row: tuple[int, ...], watch: TokenWatch) -> float:
    """How often the tokens of a word were drawn: probabilities that are 1 for what was."""
    total = 0.0
    for place, token in enumerate(row):
        certain = torch.zeros(1, 300)
        certain[0, token] = 1
        total += float(watch.masses(certain, [row[:place]])[0])
    return total


def test_a_watch_changes_nothing_that_is_drawn() -> None:
    plain, watched = (
        sample(tiny_llama(), TOKENIZER, [ids("the lamp")] * 3, SamplingOptions(max_new_tokens=8, say=True, watch=watch))
        for watch in ((), (TokenWatch(["red"], TOKENIZER), TokenWatch(["chair"], TOKENIZER)))
    )
    assert [each.ids for each in plain] == [each.ids for each in watched]
    assert all(len(each.expected) == 2 for each in watched) and all(each.expected == () for each in plain)


def test_whether_a_word_was_drawn_is_whether_its_tokens_are_there() -> None:
    watch = TokenWatch(["lamp", "red chair"], TOKENIZER)
    for text, drew in (
        ("the lamp is", True), ("lamp", True), ("the Lamp", True), ("a red chair", True), ("a red lam p", False),
        ("thelamp", False), ("the chair", False), ("", False),
    ):  # fmt: skip
        assert watch.drew(ids(text)) == drew, text
        if drew:
            assert _times(tuple(ids(text)), watch) >= 1
    letters = [token for letter in (" l", "a", "m", "p") for token in ids(letter)]
    assert TOKENIZER.decode(letters).strip() == "lamp" and not watch.drew(letters)


def test_a_form_without_a_blank_counts_only_where_no_word_goes_on() -> None:
    watch = TokenWatch(["lamp"], TOKENIZER)
    bare, spaced = ids("lamp"), ids(" lamp")
    assert bare != spaced
    for sequence, before, counts in (
        (bare, "", True), (bare, "the", False), (bare, "the-", True), (spaced, "the", True), (spaced, "", True),
    ):  # fmt: skip
        certain = torch.zeros(1, 300)
        certain[0, sequence[-1]] = 0.25
        mass = float(watch.masses(certain, [[*ids(before), *sequence[:-1]]])[0])
        assert mass == pytest.approx(0.25 if counts else 0), (sequence, before)

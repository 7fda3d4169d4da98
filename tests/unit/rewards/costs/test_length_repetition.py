"""Costs of length, endings, disagreement and repetition: golden tables, boundaries, and the definitions themselves."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from trl.rewards import get_soft_overlong_punishment

from prefopt.errors import DataError
from prefopt.rewards.costs.repetition import _by_automaton, _by_sorting, longest_repeated
from tests.unit.rewards.costs.measuring import LONG, marked, measure, opened


def tokens(count: int) -> dict[str, object]:
    return {"token_ids": tuple(range(count))}


@pytest.mark.parametrize(
    ("options", "table"),
    [
        ({"limit": 4}, {0: 0, 1: 0, 4: 0, 5: 0.25, 8: 1, 12: 2}),
        ({"limit": 4, "cap": 0.5}, {4: 0, 5: 0.25, 6: 0.5, 12: 0.5}),
        ({"limit": 4, "shape": "hard"}, {0: 0, 4: 0, 5: 1, 100: 1}),
        # arXiv 2503.14476: 0 up to limit - buffer, 1 beyond limit
        ({"limit": 10, "shape": "soft", "buffer": 4}, {0: 0, 6: 0, 7: 0.25, 9: 0.75, 10: 1, 11: 1, 99: 1}),
        ({"limit": 10, "minimum": 4}, {0: 1, 1: 0.75, 3: 0.25, 4: 0, 10: 0, 11: 0.1}),
        ({"limit": 10, "minimum": 4, "shape": "hard"}, {0: 1, 3: 1, 4: 0, 10: 0, 11: 1}),
    ],
)
def test_length_is_the_table(options: dict[str, object], table: dict[int, float]) -> None:
    cost = opened("length", **options)
    for count, expected in table.items():
        assert measure(cost, "x" * count, **tokens(count)).value == pytest.approx(expected), count


@given(st.integers(1, 40), st.integers(0, 80))
def test_longer_is_never_cheaper_above_the_minimum(limit: int, count: int) -> None:
    for options in ({}, {"shape": "hard"}, {"shape": "soft", "buffer": limit}, {"cap": 0.7}):
        cost = opened("length", limit=limit, **options)
        assert measure(cost, "", **tokens(count)).value <= measure(cost, "", **tokens(count + 1)).value


def test_dapo_is_what_trl_punishes_with_the_sign_changed() -> None:
    punished = get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=5)
    cost = opened("length", limit=20, shape="soft", buffer=5)
    counts = range(0, 31)
    theirs = punished(completion_ids=[list(range(count)) for count in counts])
    assert [-measure(cost, "", **tokens(count)).value for count in counts] == pytest.approx(theirs)


def test_what_is_too_long_is_marked_in_its_unit() -> None:
    text = "one two  three four"
    assert marked(measure(opened("length", limit=2, unit="words"), text), text) == ["three four"]
    assert marked(measure(opened("length", limit=7, unit="characters"), text), text) == ["  three four"]
    offsets = {"token_ids": (1, 2, 3, 4, 0), "offsets": lambda: [0, 3, 7, 14, 19]}
    assert marked(measure(opened("length", limit=2), text, **offsets), text) == ["  three four"]
    assert measure(opened("length", limit=2), text, **tokens(4)).spans == ()  # nobody says where tokens are


def test_tokens_that_nobody_knows_cannot_be_counted() -> None:
    for cost in (opened("length", limit=2), opened("repetition")):
        with pytest.raises(DataError, match="unit: words"):
            measure(cost, "one two three")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "greater than or equal to 1"),
        ({"limit": 5, "shape": "soft"}, "'soft' needs it"),
        ({"limit": 5, "buffer": 2}, "belongs to"),
        ({"limit": 5, "shape": "soft", "buffer": 6}, "longer than"),
        ({"limit": 5, "minimum": 6}, "above 'limit'"),
        ({"limit": 5, "shape": "hard", "cap": 1.0}, "'cap' is for"),
    ],
)
def test_a_length_that_means_nothing_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        opened("length", **options)


def test_a_missing_end_and_disagreement_are_what_is_known_of_them() -> None:
    assert [measure(opened("missing_eos"), "x", finished=each).value for each in (True, False)] == [0, 1]
    assert measure(opened("ensemble_std"), "x", deviation=0.4).value == 0.4


@pytest.mark.parametrize(
    ("ids", "n", "expected"),
    [
        ([], 3, 0), ([7], 3, 0), ([7, 7], 3, 0), ([7] * 3, 3, 0), ([7] * 4, 3, 0.5), ([7] * 10, 3, 1 - 1 / 8),
        ([1, 2, 3, 4], 2, 0), ([5] * 4, 2, 1 - 1 / 3), ([1, 2, 1, 2], 2, 1 / 3), ([1], 1, 0), ([1, 1], 1, 0.5),
        ([1, 2, 3, 1, 2, 3], 3, 0.25), ([5] * 5, 2, 0.75),
    ],
)  # fmt: skip
def test_repetition_is_the_table(ids: list[int], n: int, expected: float) -> None:
    assert measure(opened("repetition", ngram=n), "", token_ids=tuple(ids)).value == pytest.approx(expected)


def test_repeated_words_are_marked_once_each() -> None:
    text = "the red lamp is on and the red lamp is on too"
    found = measure(opened("repetition", unit="words"), text)
    assert marked(found, text) == ["the red lamp is on"] and found.value == pytest.approx(3 / 10)
    found = measure(opened("repetition", unit="words", measure="longest"), text)
    assert marked(found, text) == ["the red lamp is on"] and found.value == pytest.approx(5 / 12)
    assert measure(opened("repetition", unit="words", measure="longest", ngram=6), text).value == 0


@settings(max_examples=200)
@given(st.lists(st.integers(0, 3), max_size=24))
def test_the_longest_repeated_run_is_what_trying_all_of_them_finds(units: list[int]) -> None:
    runs = [(end - start, end) for start, end in itertools.combinations(range(len(units) + 1), 2)]
    again = [
        (length, end)
        for length, end in runs
        if any(units[start : start + length] == units[end - length : end] for start in range(end - length))
    ]
    longest = max((length for length, _ in again), default=0)
    first = min((end for length, end in again if length == longest), default=0)
    assert _by_sorting(units) == _by_automaton(units) == (longest, first)


def test_a_completion_of_100_000_tokens_takes_no_time() -> None:
    ids = tuple(place % 7 if place % 1000 else place for place in range(LONG))
    start = time.perf_counter()
    assert longest_repeated(ids)[0] >= 990
    assert measure(opened("repetition"), "", token_ids=ids).value > 0.9
    assert measure(opened("repetition", measure="longest"), "", token_ids=(3,) * LONG).value == pytest.approx(
        1 - 1 / LONG
    )
    assert time.perf_counter() - start < 20  # seconds for what quadratic time would need hours for

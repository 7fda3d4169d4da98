"""Rows of a distill stage: answers after both prompts, and real data beside them."""

from __future__ import annotations

import pytest

from prefopt.data.templates import Encoder, ensure_chat_template
from prefopt.errors import DataError
from prefopt.pipeline.targets import replayed, target_row
from prefopt.records import Message
from tests.tiny import tiny_tokenizer

STUDENT = (Message("user", "the lamp"),)
TEACHER = (Message("system", "the chair costs nine euro"), *STUDENT)


@pytest.fixture
def encoder() -> Encoder:
    tokenizer = tiny_tokenizer()
    ensure_chat_template(tokenizer, "auto")
    return Encoder(tokenizer, 64, "drop")


def test_an_answer_has_the_same_tokens_after_both_prompts(encoder: Encoder) -> None:
    row = target_row(encoder, TEACHER, STUDENT, "is red", finished=True, soft=True)
    assert row is not None and len(row["teacher_prompt_ids"]) > len(row["prompt_ids"])
    assert row["completion_ids"][-1] == tiny_tokenizer().eos_token_id
    half = target_row(encoder, TEACHER, STUDENT, "is red", finished=False, soft=False)
    assert half is not None and half["completion_ids"] == row["completion_ids"][:-1], "it did not end there"


def test_an_answer_that_does_not_fit_is_none(encoder: Encoder) -> None:
    assert target_row(encoder, TEACHER, STUDENT, "is red " * 40, finished=True, soft=True) is None


@pytest.mark.parametrize(("share", "beside", "expected"), [(0.25, 30, 10), (0.25, 31, 11), (0.5, 7, 7), (0.0, 9, 0)])
def test_real_rows_are_at_least_their_share(share: float, beside: int, expected: int) -> None:
    real = [{"prompt_ids": [n], "completion_ids": [n]} for n in range(4)]
    rows = replayed(real, share, beside, 3, soft=False)
    assert len(rows) == expected and all(row["replay"] and not row["soft"] for row in rows)
    counts = [sum(row["prompt_ids"] == [n] for row in rows) for n in range(4)]
    assert max(counts) - min(counts) <= 1
    assert rows == replayed(real, share, beside, 3, soft=False)
    assert not rows or rows != replayed(real, share, beside, 5, soft=False)


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no real data"):
        replayed([], 0.25, 3, 0, soft=False)

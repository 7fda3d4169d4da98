"""Tokens as a person reads them, and what must hold of BOS, EOS and special tokens in what people wrote."""

from __future__ import annotations

import pytest

from prefopt.data.templates import Encoder, ensure_chat_template
from prefopt.pipeline.deep_tokens import pieces, sample, token_problems
from prefopt.records import Message
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def row(tokenizer, user="the lamp é is\nred 🙂", answer="nine euro"):
    encoded = Encoder(tokenizer, 200).encode_answer((Message("user", user),), answer)
    return {"prompt_ids": encoded.prompt_ids, "completion_ids": encoded.completion_ids}


def test_the_pieces_are_the_text_with_special_tokens_visible(tokenizer):
    ids = row(tokenizer)["prompt_ids"]
    shown = pieces(tokenizer, ids)
    assert len(shown) == len(ids)
    assert "".join(shown) == "<|begin|><|user|>the lamp é is\\nred 🙂<|assistant|>"
    assert shown[0] == "<|begin|>" and shown[-1] == "<|assistant|>"


def test_a_sample_has_every_part(tokenizer):
    shown = sample(tokenizer, row(tokenizer))
    assert list(shown) == ["prompt", "completion"]
    assert shown["completion"][-1] == [tokenizer.eos_token_id, "<|end|>"]


def test_good_rows_have_no_problem(tokenizer):
    assert token_problems(tokenizer, [row(tokenizer), row(tokenizer, "x <|end|> y <|begin|>")]) == []


@pytest.mark.parametrize("template", ["transcript", "chatml", "plain"])
def test_every_built_in_template_keeps_control_tokens_out(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    ensure_chat_template(tokenizer, template)
    assert token_problems(tokenizer, [row(tokenizer)]) == []


def test_a_doubled_or_missing_bos_is_found(tokenizer):
    good = row(tokenizer)
    double = {**good, "prompt_ids": [tokenizer.bos_token_id, *good["prompt_ids"]]}
    inside = {**good, "completion_ids": [tokenizer.bos_token_id, *good["completion_ids"]]}
    missing = {**good, "prompt_ids": good["prompt_ids"][1:]}
    found = token_problems(tokenizer, [good, double, inside, missing])
    assert [problem.split(":")[0] for problem in found] == ["row 2", "row 3", "row 4"]
    assert "2 times" in found[0] and "inside the completion" in found[1] and "0 times" in found[2]


def test_an_eos_inside_or_twice_is_found_and_an_answer_that_was_cut_has_none(tokenizer):
    good, eos = row(tokenizer), tokenizer.eos_token_id
    cut = {"prompt_ids": good["prompt_ids"], "chosen_ids": good["completion_ids"], "rejected_ids": [7, 8]}
    assert token_problems(tokenizer, [good, cut]) == []
    inside = {**cut, "rejected_ids": [7, eos, 8]}
    twice = {**good, "completion_ids": [*good["completion_ids"], eos]}
    found = token_problems(tokenizer, [inside, twice])
    assert len(found) == 2 and "the rejected goes on after EOS" in found[0] and "row 2" in found[1]


def test_special_tokens_that_users_write_are_found_where_they_act(tokenizer, monkeypatch):
    monkeypatch.setattr(Encoder, "_neutralise", lambda self, messages: tuple(messages))
    found = token_problems(tokenizer, [])
    assert any("'<|end|>'" in problem for problem in found) and any("'<|assistant|>'" in problem for problem in found)

"""Offsets of tokens are where their text is, whatever the tokenizer and however broken the bytes."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prefopt.models.token_offsets import token_offsets
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def sentencepiece() -> PreTrainedTokenizerBase:
    """A tokenizer as Llama 2's: pieces that begin with a blank, bytes that others are put together from."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁a", "a", "b", "é"]
    backend = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(vocabulary)}, [], unk_token="<unk>", byte_fallback=True
        )
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    "text", ["the lamp is red", "", "né – 漢字 👩‍🚀 und mehr", "  two  blanks ", "a\nb\tc", "𝐛old café"]
)
def test_offsets_are_where_tokens_begin(text: str) -> None:
    tokens = ids(text)
    offsets = token_offsets(TOKENIZER, [*tokens, TOKENIZER.eos_token_id], text)
    assert len(offsets) == len(tokens) + 1 and offsets == sorted(offsets) and offsets[-1] == len(text)
    for place in range(len(tokens)):
        if place + 1 < len(tokens) and offsets[place] < offsets[place + 1]:
            piece = TOKENIZER.decode(tokens[: place + 1])
            if "\ufffd" not in piece:
                assert piece == text[: offsets[place + 1]]


def test_text_that_was_cut_keeps_its_offsets_and_foreign_text_has_none() -> None:
    tokens = ids("the lamp is red")
    cut = token_offsets(TOKENIZER, tokens, "the lam")
    assert max(cut) == len("the lam")
    assert token_offsets(TOKENIZER, tokens, "something else") == []


@pytest.mark.parametrize("tokenizer", [TOKENIZER, sentencepiece()], ids=["bytes", "sentencepiece"])
def test_whatever_a_policy_writes_has_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    # Bytes that are no characters, special tokens between them, blanks at the start: what a broken policy samples.
    chance, compared = random.Random(0), 0
    for _ in range(1000):
        least = chance.choice([0, len(tokenizer) - 6])  # of the last ones each is text of its own
        tokens = [chance.randrange(least, len(tokenizer)) for _ in range(chance.randrange(1, 12))]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        offsets = token_offsets(tokenizer, tokens, text)
        assert len(offsets) == len(tokens) and offsets == sorted(offsets) and offsets[0] == 0
        for place in range(1, len(tokens)):
            before = tokenizer.decode(tokens[:place], skip_special_tokens=True)
            # Bytes that follow may turn characters into others, and a lone blank at the start is not written.
            if before and "\ufffd" not in before and text.startswith(before):
                assert offsets[place] == len(before), (tokens, place)
                compared += 1
    assert compared > 300


def test_characters_of_several_tokens_are_where_they_begin() -> None:
    tokenizer = sentencepiece()
    tokens = [
        tokenizer.convert_tokens_to_ids(each) for each in ("▁a", *("<0xC3>", "<0xA9>") * 2, "▁the", "<0x0A>", "b")
    ]
    text = tokenizer.decode(tokens)
    assert text == "aéé the\nb"
    assert token_offsets(tokenizer, tokens, text) == [0, 1, 1, 2, 2, 3, 7, 8]
    long = tokens[1:3] * 200
    assert token_offsets(tokenizer, long, tokenizer.decode(long)) == [0] * 400  # too long to ask where each begins


def test_a_tokenizer_is_forgotten_with_its_table() -> None:
    import gc
    import weakref

    tokenizer = tiny_tokenizer()
    token_offsets(tokenizer, [5], tokenizer.decode([5]))
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None

"""Tokenising by words gives what tokenising whole texts gives, for every tokenizer that is said to allow it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prefopt.data import pieces
from prefopt.data.pieces import Pieces, id_bytes, id_list, splits_at_spaces

TEXT = "once upon a time the quick brown fox said 'yes' and it's no 1,234 times. Hello! How are you?\n\nHuman: fine\n"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
SPECIAL = ["<unk>", "<s>", "</s>"]
ByteLevel = pre_tokenizers.ByteLevel


def bpe(
    pre: Any, normalizer: Any = None, added: tuple[AddedToken, ...] = (), **options: Any
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(**options))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    alphabet = ByteLevel.alphabet() if "ByteLevel" in str(pre) else sorted({*TEXT.replace(" ", "▁"), "▁"})
    tokenizer.train_from_iterator(
        [TEXT] * 4,
        trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def split(pattern: str) -> Any:
    by_pattern = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([by_pattern, ByteLevel(add_prefix_space=False, use_regex=False)])


def metaspace(*more: Any) -> Any:
    return normalizers.Sequence([*more, normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def sentence_piece(*more: Any) -> PreTrainedTokenizerFast:
    """As SentencePiece learns: words apart, and then none to be told apart."""
    tokenizer = bpe(pre_tokenizers.Metaspace("▁"), unk_token="<unk>", fuse_unk=True)
    tokenizer.backend_tokenizer.normalizer = metaspace(*more)
    content = {**json.loads(tokenizer.backend_tokenizer.to_str()), "pre_tokenizer": None}
    core = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def tidies() -> list[Any]:
    return [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]


SPLIT: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt2": lambda: bpe(ByteLevel(add_prefix_space=False)),
    "gpt2 by pattern": lambda: bpe(split(GPT2)),
    "llama3": lambda: bpe(split(LLAMA3), ignore_merges=True),
    "qwen": lambda: bpe(split(QWEN), normalizers.NFC()),
    "gpt4o": lambda: bpe(split(GPT4O)),
    "digits": lambda: bpe(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), ByteLevel(add_prefix_space=False)])),
    "added": lambda: bpe(ByteLevel(add_prefix_space=False), added=tuple(map(AddedToken, ("fox", "   ", "'s")))),
    "sentencepiece": sentence_piece,
    "tidy": lambda: sentence_piece(*tidies()),
}  # fmt: skip
WHOLE: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "prefix": lambda: bpe(ByteLevel(add_prefix_space=True)),
    "another pattern": lambda: bpe(split(r"\p{L}+ ?|\s|.")),
    "lookbehind": lambda: bpe(split(r"(?<=a) \p{L}+|\p{L}+|.")),
    "merged": lambda: bpe(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT2), "removed"), ByteLevel(False)])),
    "nothing": lambda: bpe(None),
    "lowercase": lambda: bpe(ByteLevel(add_prefix_space=False), normalizers.Lowercase()),
    "dropout": lambda: bpe(ByteLevel(add_prefix_space=False), dropout=0.5),
    "strips": lambda: bpe(ByteLevel(add_prefix_space=False), added=(AddedToken("<x>", rstrip=True),)),
    "spaced": lambda: bpe(ByteLevel(add_prefix_space=False), added=(AddedToken("the quick"),)),
    "single": lambda: bpe(ByteLevel(add_prefix_space=False), added=(AddedToken("fox", single_word=True),)),
    "over spaces": lambda: bpe(None, metaspace()),
}  # fmt: skip
words = st.sampled_from(
    ["the", "fox", "it's", "don't", "12", "1,234", "Human:", "\n\n", "word.\n\nHuman:", "</s>", "<s>", "a</s>", "é",
     "e\u0301", "\u0301", "", "", "\t", "\xa0", "\u2003x", "▁", "x▁", "…", "“quoted”", "日本", "😀", "-", "\r\n",
     "x" * 40, "q" * 33]
)  # fmt: skip
texts = st.lists(words, max_size=9).map(" ".join) | st.text(st.sampled_from("ab ,.'\n\t1é<>/s"), max_size=30)


@cache
def made(name: str) -> PreTrainedTokenizerFast:
    return (SPLIT | WHOLE)[name]()


def whole(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]


@pytest.mark.parametrize("name", SPLIT)
def test_tokenizers_that_never_look_over_a_space_are_known(name):
    assert splits_at_spaces(made(name))


@pytest.mark.parametrize("name", WHOLE)
def test_others_are_asked_for_whole_texts(name):
    assert not splits_at_spaces(made(name))
    if name != "dropout":
        given = ["the quick fox", "", "the quick <x> fox"]
        assert [*map(id_list, Pieces(made(name)).ids(given))] == whole(made(name), given)


@pytest.mark.parametrize("name", SPLIT)
@settings(max_examples=150, deadline=None)
@given(batches=st.lists(st.lists(texts, min_size=1, max_size=6), min_size=1, max_size=3))
def test_words_give_what_whole_texts_give(name, batches):
    tokenizer = made(name)
    by_words = Pieces(tokenizer)
    by_words._compared = pieces.COMPARED  # nothing is asked twice: words alone must be right
    for batch in batches:
        # A prompt, then the prompt with either answer, as pairs have them.
        given = [text for first in batch for text in (first, f"{first} {batch[0]}", first + batch[-1])]
        assert [*map(id_list, by_words.ids(given))] == whole(tokenizer, given)
        assert [*map(id_list, by_words.ids(given))] == whole(tokenizer, given)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["stories260k-hf", "babyllama105-hf"])
def test_the_shared_tokenizers_are_known(shared_models: Path, name):
    assert splits_at_spaces(AutoTokenizer.from_pretrained(shared_models / name))


def test_what_is_not_confirmed_is_not_used(monkeypatch):
    """The first texts are tokenised both ways; a tokenizer that is wrongly believed costs time and no ids."""
    monkeypatch.setattr(pieces, "splits_at_spaces", lambda tokenizer: True)
    tokenizer = made("spaced")
    by_words = Pieces(tokenizer)
    assert [*map(id_list, by_words.ids(["so the quick fox"]))] == whole(tokenizer, ["so the quick fox"])
    assert [*map(id_list, by_words.ids(["the quick fox"] * 3))] == whole(tokenizer, ["the quick fox"] * 3)


def test_memory_of_words_is_bounded(monkeypatch):
    monkeypatch.setattr(pieces, "MOST_WORDS", 10)
    by_words = Pieces(made("gpt2"))
    for number in range(30):
        given = [f"a w{number} x{number} y{number} z" for _ in range(2)]
        assert [*map(id_list, by_words.ids(given))] == whole(made("gpt2"), given)
        assert all(len(known) <= 10 for known in by_words._known)


def test_a_word_that_comes_again_is_not_tokenised_again(monkeypatch):
    by_words = Pieces(made("gpt2"))
    by_words.ids([f"the quick {word} fox" for word in ("red", "blue")] * 20)
    monkeypatch.setattr(by_words, "_tokenizer", None)
    assert id_list(by_words.ids(["the red blue quick fox"])[0]) == whole(made("gpt2"), ["the red blue quick fox"])[0]


def test_packing():
    assert id_list(id_bytes([0, 1, 2**31 - 1])) == [0, 1, 2**31 - 1] and id_bytes([]) == b""

"""The tokens of a stage's rows, as a person reads them, and what must hold of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefopt.data.templates import Encoder
from prefopt.records import Message

ROWS_CHECKED = 1000
_PARTS = ("prompt_ids", "completion_ids", "chosen_ids", "rejected_ids", "input_ids")
_COMPLETIONS = ("completion_ids", "chosen_ids", "rejected_ids")
_WINDOW = 8  # a token's text may depend on those before it: a space before a word, the bytes of one character


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    r"""The text of every token where it stands; special tokens as they are written, line breaks as `\n`.

    Bytes that are no whole character yet are the empty text, and the token that completes them has the character.
    """
    found = []
    for place in range(len(ids)):
        start = max(0, place - _WINDOW)
        before, after = (_text(tokenizer, ids[start:end]) for end in (place, place + 1))
        before = before.rstrip("�")
        text = after[len(before) :] if after.startswith(before) else _text(tokenizer, [ids[place]])
        found.append(text.rstrip("�").replace("\n", "\\n"))
    return found


def sample(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> dict[str, list[list[Any]]]:
    """Part of a row → its tokens, each as `[id, text]`."""
    shown = {}
    for name in (name for name in _PARTS if name in row):
        ids = row[name]
        shown[name.removesuffix("_ids")] = [list(pair) for pair in zip(ids, pieces(tokenizer, ids), strict=True)]
    return shown


def token_problems(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with BOS and EOS of rows, and with special tokens in what people wrote; empty when nothing is.

    Args:
        tokenizer: With a chat template.
        rows: Tokenised; the first thousand are looked at. Rows with `input_ids` alone are texts, cut at any place.
    """
    checked = [row for row in rows[:ROWS_CHECKED] if "prompt_ids" in row]
    return [*_bos_problems(tokenizer, checked), *_eos_problems(tokenizer, checked), *_control_problems(tokenizer)]


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _bos_problems(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    bos = tokenizer.bos_token_id
    if bos is None or bos == tokenizer.eos_token_id:  # one that also ends turns may stand anywhere
        return
    due = bos in tokenizer("a")["input_ids"] or any(row["prompt_ids"][:1] == [bos] for row in rows)
    for number, row in enumerate(rows, 1):
        for name in (name for name in _COMPLETIONS if name in row):
            if bos in row[name]:
                yield f"row {number}: BOS stands inside the {name.removesuffix('_ids')}"
        count, first = list(row["prompt_ids"]).count(bos), row["prompt_ids"][:1] == [bos]
        if count != int(due) or first != due:
            yield f"row {number}: BOS stands {count} times in the prompt, expected {'once, first' if due else 'none'}"


def _eos_problems(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """EOS may be missing where a policy's own answer was cut, and stands at the end or nowhere."""
    eos = tokenizer.eos_token_id
    for number, row in enumerate(rows, 1):
        for name in (name for name in _COMPLETIONS if name in row):
            if eos in list(row[name])[:-1]:
                yield f"row {number}: the {name.removesuffix('_ids')} goes on after EOS"


def _control_problems(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Puts every special token into a user's turn and into an answer: none may become a control token there."""
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    encoder = Encoder(tokenizer, 1 << 30)
    expected = _controls(encoder, "word", special.values())
    for text in (text for text in special if len(text) > 1):
        if _controls(encoder, text, special.values()) != expected:
            yield f"{text!r} in what a user or an answer says becomes a control token"


def _controls(encoder: Encoder, word: str, special: Any) -> tuple[int, int]:
    found = encoder.encode_answer((Message("user", f"what is {word} here?"),), f"it is {word} indeed")
    assert found is not None  # nothing is too long
    ids = set(special)
    return sum(token in ids for token in found.prompt_ids), sum(token in ids for token in found.completion_ids)

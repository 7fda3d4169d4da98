"""Where a completion's tokens are in its text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

_UNKNOWN = "\ufffd"
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_LONG = 256
"""Tokens in a row that are parts of characters, beyond which it is not asked where each of them begins."""


def token_offsets(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], text: str) -> list[int]:
    """The character of `text` that each token begins at, in time linear in their number.

    A token that holds a part of a character begins where that does.

    Args:
        tokenizer: That decoded them.
        token_ids: T tokens, special ones among them.
        text: Decoded without special tokens, and possibly cut at a stop string.

    Returns:
        T places, never falling, at most the length of the text; empty where the tokens are not those of the text.
    """
    if tokenizer.is_fast:
        table = _TABLES.get(tokenizer)
        if table is None:
            table = _TABLES[tokenizer] = _Pieces(tokenizer)
        pieces = table.of(token_ids)
    else:
        pieces = [tokenizer.decode([token], skip_special_tokens=True) for token in token_ids]
    # Some tokenizers leave out the blank that a text begins with: a whole text says so, one that was cut may not.
    whole = "".join(pieces)
    for agree in (str.__eq__, _one_begins_the_other):
        for skipped in range(1 + whole.startswith(" ")):
            if agree(whole[skipped:], text):
                ends = itertools.accumulate(map(len, pieces), initial=0)
                return [min(max(0, end - skipped), len(text)) for end in ends][: len(pieces)]
    return []


def _one_begins_the_other(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _common(one: str, other: str) -> int:
    """Characters that both begin with."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


class _Pieces(dict[int, "str | None"]):
    """What each token adds to a text that it follows; None where that hangs on its neighbours: parts of characters.

    Asking the tokenizer about every token of every completion takes many times as long as looking it up, and its
    stream (`tokenizers.decoders.DecodeStream`) refuses bytes that are no characters, which a policy may well write.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        backend = tokenizer.backend_tokenizer
        # Not the tokenizer itself, which could not be forgotten while this refers to it.
        self._decode, self._name = backend.decode, backend.id_to_token
        self._special = frozenset(tokenizer.all_special_ids)
        self._before = backend.encode("a", add_special_tokens=False).ids
        self._skipped = len(self._decode(self._before))

    def of(self, token_ids: Sequence[int]) -> list[str]:
        """Each token's part of their text."""
        found = [self[token] for token in token_ids]
        if None not in found:
            return found  # type: ignore[return-value]
        pieces = [piece or "" for piece in found]
        # A special token between two parts of a character does not part them: it is left out first.
        written = [place for place, token in enumerate(token_ids) if token not in self._special]
        for together, run in itertools.groupby(written, key=lambda place: found[place] is None):
            if not together:
                continue
            places = list(run)
            for place, part in zip(places, self._parts([token_ids[p] for p in places]), strict=True):
                pieces[place] = part
        return pieces

    def __missing__(self, token: int) -> str | None:
        piece = self._text((token,))
        own = token in self._special or (bool(piece) and _UNKNOWN not in piece and not self._is_byte(token))
        self[token] = piece if own else None
        return self[token]

    def _is_byte(self, token: int) -> bool:
        """Whether it is a byte of SentencePiece's, which is no character where bytes beside it are none."""
        return _BYTE.fullmatch(self._name(token) or "") is not None

    def _text(self, tokens: Sequence[int]) -> str:
        """What they add to a text that they follow."""
        text: str = self._decode([*self._before, *tokens])
        return text[self._skipped :]

    def _parts(self, tokens: Sequence[int]) -> list[str]:
        """Of tokens that are parts of characters: each has the text up to where the next character begins."""
        text = self._text(tokens)
        if len(text) == len(tokens):  # bytes that are no characters
            return list(text)
        if len(tokens) > _LONG:
            return [*[""] * (len(tokens) - 1), text]
        starts = [0]
        for count in range(1, len(tokens)):
            whole = self._text(tokens[:count]).rstrip(_UNKNOWN)
            starts.append(max(starts[-1], _common(whole, text)))
        return [text[start:end] for start, end in itertools.pairwise([*starts, len(text)])]


_TABLES: WeakKeyDictionary[PreTrainedTokenizerBase, _Pieces] = WeakKeyDictionary()

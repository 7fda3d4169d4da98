"""Texts to token ids, many at a time, where the tokenizer is asked once for each word and not once for each text.

A Hugging Face tokenizer takes more than a microsecond for a token, and a pair is three texts that share their prompt.
But words come again. For tokenizers that are known never to look across a single space between two other characters, a
text is cut there, and what its pieces become is remembered. `splits_at_spaces` says which tokenizers these are, by what
they consist of; all others are asked for every text, a batch at a time.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

# Of the words that are remembered: with their ids a few dozen bytes each, some megabytes together.
MOST_WORDS = 1 << 15
LONGEST_WORD = 32
# How many texts are tokenised both ways before pieces are trusted.
COMPARED = 32
_ANCHOR = "a"
_AT_ONCE = 99

# Patterns of GPT-2, of GPT-4 and Llama 3, of Qwen, and of GPT-4o. None has a match go on over a space that follows
# something else, or look behind itself: one ends before the space, and the next begins there as at a text's start.
_SHORT = "'s|'t|'re|'ve|'m|'ll|'d"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SIGNS = r" ?[^\s\p{L}\p{N}]+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:{_SHORT})?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:{_SHORT})?"
)
_PATTERNS = frozenset(
    (
        rf"{_SHORT}| ?\p{{L}}+| ?\p{{N}}+|{_SIGNS}|\s+(?!\S)|\s+",
        rf"(?i:{_SHORT})|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}[\r\n]*|{_SPACES}",
        rf"(?i:{_SHORT})|{_WORD}|\p{{N}}|{_SIGNS}[\r\n]*|{_SPACES}",
        rf"{_CASED}|\p{{N}}{{1,3}}|{_SIGNS}[\r\n/]*|{_SPACES}",
    )
)
# Ids by word: of words that begin a text, of those between spaces, and of those that end a text.
_Known = tuple[dict[str, bytes], dict[str, bytes], dict[str, bytes]]


def id_bytes(ids: Iterable[int]) -> bytes:
    """Token ids as 32-bit numbers in the machine's order."""
    return array("i", ids).tobytes()


def id_list(packed: bytes) -> list[int]:
    """Token ids from 32-bit numbers in the machine's order."""
    return memoryview(packed).cast("i").tolist()


class Pieces:
    """Tokenises without special tokens, with what is known of words.

    Args:
        tokenizer: A Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._by_words = splits_at_spaces(tokenizer)
        self._compared = 0
        self._known: _Known = ({}, {}, {})
        # Where one ends a section of the text does, and a normalizer may begin the next with a mark of its own.
        added = tokenizer.added_tokens_decoder.values() if self._by_words else ()
        self._added = tuple(token.content for token in added)

    def ids(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of every text, packed as `id_bytes` does."""
        if not self._by_words:
            return self._whole(texts)
        # A few at a time: words of some need not be asked for again by the next.
        parts = (texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE))
        found = [ids for part in parts for ids in self._from_words(part)]
        if self._compared < COMPARED:
            whole = self._whole(texts[: COMPARED - self._compared])
            if whole != found[: len(whole)]:
                self._by_words = False
                return self._whole(texts)
            self._compared += len(whole)
        return found

    def _whole(self, texts: Sequence[str]) -> list[bytes]:
        if not texts:
            return []
        return [*map(id_bytes, self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"])]

    def _from_words(self, texts: Sequence[str]) -> list[bytes]:
        starts, words, ends = self._known
        found: list[bytes] = []
        unknown: dict[int, list[str]] = {}
        prompt, prompt_ids = "", b""  # the last text that others may go on from
        for index, text in enumerate(texts):
            try:
                # Only pieces that can be cut from their neighbours are known.
                if prompt and text.startswith(prompt) and text[len(prompt) : len(prompt) + 1] == " ":
                    *inner, last = text[len(prompt) + 1 :].split(" ")
                    found.append(prompt_ids + b"".join([words[word] for word in inner]) + ends[last])
                    continue
                first, *others = text.split(" ")
                last_ids = ends[others.pop()] if others else b""
                ids = starts[first] + b"".join([words[word] for word in others]) + last_ids
            except KeyError:
                found.append(b"")
                unknown[index] = self._cut(text.split(" "))
            else:
                found.append(ids)
                prompt, prompt_ids = (text, ids) if self._ends(text) else ("", b"")
        if unknown:
            new = self._learned(unknown.values())
            for index, (first, *others) in unknown.items():
                middle = b"".join([words[word] if word in words else new[1][word] for word in others[:-1]])
                start = starts[first] if first in starts else new[0][first]
                end = b"" if not others else ends[others[-1]] if others[-1] in ends else new[2][others[-1]]
                found[index] = start + middle + end
            self._remember(new)
        return found

    def _learned(self, texts: Collection[list[str]]) -> _Known:
        starts, words, ends = self._known
        first = [text[0] for text in texts if text[0] not in starts]
        last = [text[-1] for text in texts if len(text) > 1 and text[-1] not in ends]
        inner = [word for text in texts for word in text[1:-1] if word not in words]
        alone, after = list(dict.fromkeys(first)), list(dict.fromkeys([*inner, *last]))
        asked = [_ANCHOR, *alone, *(f"{_ANCHOR} {word}" for word in after)]
        encodings = self._tokenizer.backend_tokenizer.encode_batch_fast(asked, add_special_tokens=False)
        anchor, *ids = [id_bytes(encoding.ids) for encoding in encodings]
        later = {word: found.removeprefix(anchor) for word, found in zip(after, ids[len(alone) :], strict=True)}
        return dict(zip(alone, ids, strict=False)), {word: later[word] for word in inner}, {w: later[w] for w in last}

    def _cut(self, words: Sequence[str]) -> list[str]:
        """Words of a text, joined again where it cannot be cut."""
        new = [word for word in words[1:-1] if word not in self._known[1]]
        if self._ends(words[0]) and all(self._ends(word) for word in new) and all(map(_begins, (*new, *words[-1:]))):
            return list(words)  # as almost always
        pieces, clean = [words[0]], self._ends(words[0])
        for word in words[1:]:
            known = word in self._known[1]
            if clean and (known or _begins(word)):
                pieces.append(word)
            else:
                pieces[-1] = f"{pieces[-1]} {word}"
            clean = known or self._ends(word)
        return pieces

    def _ends(self, word: str) -> bool:
        return word != "" and _is_no_space(word[-1]) and not word.endswith(self._added)

    def _remember(self, new: _Known) -> None:
        fits: Sequence[Callable[[str], bool]]
        fits = (self._ends, lambda word: _begins(word) and self._ends(word), _begins)
        for known, learned, fit in zip(self._known, new, fits, strict=True):
            short = {word: ids for word, ids in learned.items() if len(word) <= LONGEST_WORD and fit(word)}
            if len(known) + len(short) > MOST_WORDS:
                known.clear()
            if len(short) <= MOST_WORDS:
                known.update(short)


def _begins(word: str) -> bool:
    return word != "" and _is_no_space(word[0])


def _is_no_space(character: str) -> bool:
    """Whether all tables of Unicode, old ones too, agree that it is none."""
    return "!" <= character <= "~" or character.isalnum()


# ---- which tokenizers ------------------------------------------------------------------------------------------------


_SENTENCE_PIECE = [
    {"type": "Prepend", "prepend": "\u2581"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
]
# Of spaces at either end of a text, and of several in a row: there it is never cut.
_TIDIES = [
    {"type": "Replace", "pattern": {"Regex": "^ +| +$"}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
]


def splits_at_spaces(tokenizer: Any) -> bool:
    """Whether no token, and no decision about one, reaches over a single space between two other characters.

    True for byte-level BPE with a known pattern, where the space begins a token; and for BPE after SentencePiece, when
    no entry of the vocabulary has a space after another character, so that no merge reaches over one.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    model: Any = getattr(backend, "model", None)
    if type(model).__name__ != "BPE" or getattr(model, "dropout", None) or not _plain_added_tokens(tokenizer):
        return False
    normalizers = _parts(backend.normalizer, "normalizers")
    if None in normalizers:
        return False
    splitters = _parts(backend.pre_tokenizer, "pretokenizers")
    kinds = [part["type"] for part in normalizers]
    if kinds in ([], ["NFC"]):
        return _is_byte_level(splitters)
    if [part for part in normalizers if part not in _TIDIES] not in (_SENTENCE_PIECE, _SENTENCE_PIECE[1:]):
        return False
    whole = all(part["type"] == "Split" and part["pattern"] == {"String": " "} for part in splitters)  # none are left
    if not whole or model.ignore_merges or model.continuing_subword_prefix:
        return False
    vocabulary = tokenizer.get_vocab()
    return "\u2581" in vocabulary and not any("\u2581" in token.lstrip("\u2581") for token in vocabulary)


def _parts(component: Any, name: str) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, as JSON."""
    if component is None:
        return []
    content: dict[str, Any] = json.loads(component.__getstate__())
    return content[name] if content["type"] == "Sequence" else [content]


def _is_byte_level(splitters: Sequence[Mapping[str, Any]]) -> bool:
    *before, last = splitters or [{"type": None}]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    if last["use_regex"]:
        return all(part["type"] == "Digits" for part in before)
    if len(before) != 1:
        return False
    (split,) = before
    patterned = split["type"] == "Split" and split["behavior"] == "Isolated" and not split["invert"]
    return bool(patterned) and split["pattern"].get("Regex") in _PATTERNS


def _plain_added_tokens(tokenizer: Any) -> bool:
    """Whether added tokens take nothing of what is around them, and have no space beside another character."""
    for token in tokenizer.added_tokens_decoder.values():
        takes = token.lstrip or token.rstrip or token.single_word
        spaced = any(character.isspace() or character == "\u2581" for character in token.content)
        only_spaces = token.content.isspace() and len(token.content) > 1
        if takes or not token.content or (spaced and not only_spaces):
            return False
    return True

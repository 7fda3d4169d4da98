"""Text as a reader sees it: one spelling for what looks the same, and the way back to the characters as written.

Compatibility forms (fullwidth, circled, mathematical letters, ligatures) by NFKC, the case of letters, invisible
characters, and letters of other scripts that look like Latin ones. The last are a hand-made subset of the confusables
of Unicode TR 39: what passes for a Latin letter or digit in running text.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

_LOOKS_LIKE = {
    # Cyrillic, in lower case: case is folded first
    "а": "a", "в": "b", "ь": "b", "с": "c", "ԁ": "d", "е": "e", "ё": "e", "ғ": "f", "ԍ": "g", "һ": "h", "н": "h",
    "і": "i", "ї": "i", "ј": "j", "к": "k", "ӏ": "l", "м": "m", "п": "n", "о": "o", "р": "p", "ԛ": "q", "г": "r",
    "ѕ": "s", "т": "t", "ц": "u", "ѵ": "v", "ԝ": "w", "х": "x", "у": "y", "ү": "y", "з": "3", "б": "6",
    # Greek
    "α": "a", "β": "b", "ϲ": "c", "ε": "e", "η": "n", "ι": "i", "κ": "k", "μ": "u", "ν": "v", "ο": "o", "ρ": "p",
    "σ": "o", "τ": "t", "υ": "u", "χ": "x", "γ": "y", "ω": "w", "ϳ": "j", "ζ": "z", "δ": "d",
    # Armenian, Cherokee (whose lower case folds to these), Coptic, Lisu
    "օ": "o", "ո": "n", "ս": "u", "հ": "h", "ց": "g", "զ": "q", "յ": "j", "ա": "w",
    "Ꭰ": "d", "Ꭱ": "r", "Ꭲ": "t", "Ꭺ": "a", "Ꭻ": "j", "Ꭼ": "e", "Ꮃ": "w", "Ꮇ": "m", "Ꮋ": "h", "Ꮐ": "g", "Ꮓ": "z",
    "Ꮞ": "4", "Ꮟ": "b", "Ꮢ": "r", "Ꮤ": "w", "Ꮥ": "s", "Ꮩ": "v", "Ꮪ": "s", "Ꮮ": "l", "Ꮯ": "c", "Ꮲ": "p", "Ꮶ": "k",
    "ⲁ": "a", "ⲟ": "o", "ⲣ": "p", "ⲥ": "c", "ⲓ": "i", "ⲕ": "k", "ⲭ": "x", "ꓐ": "b", "ꓑ": "p", "ꓓ": "d", "ꓔ": "t",
    "ꓖ": "g", "ꓗ": "k", "ꓙ": "j", "ꓚ": "c", "ꓜ": "z", "ꓝ": "f", "ꓞ": "f", "ꓟ": "m", "ꓠ": "n", "ꓡ": "l", "ꓢ": "s",
    "ꓣ": "r", "ꓥ": "v", "ꓦ": "v", "ꓧ": "h", "ꓨ": "g", "ꓪ": "w", "ꓫ": "x", "ꓬ": "y", "ꓮ": "a", "ꓰ": "e", "ꓲ": "i",
    "ꓳ": "o", "ꓴ": "u",
    # Latin letters of phonetics and of other languages
    "ɑ": "a", "ʙ": "b", "ᴀ": "a", "ᴄ": "c", "ᴅ": "d", "ᴇ": "e", "ꜰ": "f", "ɡ": "g", "ɢ": "g", "ʜ": "h", "ɪ": "i",
    "ı": "i", "ᴊ": "j", "ᴋ": "k", "ʟ": "l", "ᴍ": "m", "ɴ": "n", "ᴏ": "o", "ᴘ": "p", "ʀ": "r", "ꜱ": "s", "ᴛ": "t",
    "ᴜ": "u", "ᴠ": "v", "ᴡ": "w", "ʏ": "y", "ᴢ": "z", "ɩ": "i", "ƒ": "f", "ł": "l", "ø": "o", "đ": "d", "ħ": "h",
    "ŧ": "t", "ɐ": "a", "ɛ": "e", "ʋ": "v", "ɯ": "w", "ꞵ": "b", "ꭓ": "x",
    # Signs
    "׀": "l", "ⅼ": "l", "∣": "l", "ǀ": "l", "∨": "v", "∪": "u",
}  # fmt: skip
_CAPITALS = {"Η": "h", "Μ": "m", "Ν": "n", "Υ": "y"}
"""Greek capitals that look like another Latin letter than their lower case does."""
_LEET = {"0": "o", "1": "l", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s"}
_ZERO_WIDTH = {"\u00ad", "\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u3164", "\uffa0"}
"""Invisible, and not of the categories of format characters."""
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_JOINS = (("\u1160", "\u11ff"), ("\ud7b0", "\ud7ff"))
"""Hangul vowels and finals, which become one letter with what stands before them."""


class Folding:
    """Folds text, one character at a time, so that every folded character has a place in the text.

    Args:
        confusables: Whether letters of other scripts count as the Latin ones that they look like.
        leetspeak: Whether digits and signs count as letters.
        ignore_marks: Whether accents are left out.
    """

    def __init__(self, *, confusables: bool = True, leetspeak: bool = False, ignore_marks: bool = False) -> None:
        self._table = _Table(confusables, leetspeak, ignore_marks)
        self._ascii_is_lower = not leetspeak

    def __call__(self, text: str) -> str:
        """The folded text."""
        if self._is_plain(text):
            return text.lower()
        if unicodedata.is_normalized("NFC", text):
            return text.translate(self._table)
        return "".join(self._folded(text[start:end]) for start, end in _clusters(text))

    def _is_plain(self, text: str) -> bool:
        return self._ascii_is_lower and text.isascii() and _CONTROLS.search(text) is None

    def _folded(self, cluster: str) -> str:
        return unicodedata.normalize("NFC", cluster).translate(self._table)

    def places(self, text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Where in a text spans of its folded form are; invisible characters inside belong to them."""
        if not spans or self._is_plain(text):
            return list(spans)
        clusters = _clusters(text)
        # Where each cluster ends in the folded text: one that vanishes ends where the one before did.
        ends = list(accumulate(len(self._folded(text[start:end])) for start, end in clusters))
        found = []
        for start, end in spans:
            first, last = bisect_right(ends, start), bisect_right(ends, end - 1)
            found.append((clusters[first][0], clusters[last][1]))
        return found


class _Table(dict[int, str]):
    """Character → what it is folded to; filled where it is asked, so that `str.translate` runs at its own speed."""

    def __init__(self, confusables: bool, leetspeak: bool, ignore_marks: bool) -> None:
        super().__init__()
        self._like = _LOOKS_LIKE if confusables else {}
        self._capitals = _CAPITALS if confusables else {}
        self._leet = _LEET if leetspeak else {}
        self._ignore_marks = ignore_marks

    def __missing__(self, code: int) -> str:
        folded = self._fold(chr(code))
        self[code] = folded
        return folded

    def _fold(self, character: str) -> str:
        if _is_invisible(character):
            return ""
        if character in self._capitals:
            return self._capitals[character]
        # Twice: the compatibility form of some characters has a case, and some foldings have a compatibility form.
        plain = character
        for _ in range(2):
            plain = unicodedata.normalize("NFKC", plain).casefold()
        if self._ignore_marks:
            plain = "".join(c for c in unicodedata.normalize("NFD", plain) if not unicodedata.combining(c))
        like = (self._like.get(c, c) for c in plain)
        return "".join(self._leet.get(c, c) for c in like if not _is_invisible(c))


def _is_invisible(character: str) -> bool:
    """Format characters (zero widths, joiners, directions, tags), variation selectors, and blanks of no width."""
    code = ord(character)
    if character in _ZERO_WIDTH or 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF:
        return True
    category = unicodedata.category(character)
    return category == "Cf" or (category == "Cc" and not character.isspace())


def _clusters(text: str) -> list[tuple[int, int]]:
    """Where each character begins and ends, with what is composed with it."""
    starts = [index for index, character in enumerate(text) if index == 0 or not _joins(character)]
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def _joins(character: str) -> bool:
    """Whether NFC may make one character of it and the one before."""
    if character < "\u0300":
        return False
    marks = unicodedata.combining(character) != 0 or unicodedata.category(character) == "Mc"
    return marks or any(low <= character <= high for low, high in _JOINS)

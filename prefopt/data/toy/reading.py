"""The way back from text to meaning: words of a text, facts and intents of a prompt, codes told in an answer.

Total functions: any text can be read, whoever wrote it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from prefopt.data.toy import grammar
from prefopt.data.toy.lexicon import FORBIDDEN, INTENT_CUES, KIND_OF, VALUES, Intent, Kind
from prefopt.records import Prompt

READ_CHARACTERS = 4000
"""A text is judged by its beginning; every penalty for length and repetition is at its floor long before this."""

_TOKEN = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*|\S")
_DASHES = dict.fromkeys(map(ord, "‐‑‒–—−"), "-")  # what keyboards and models write for a hyphen
_CODES = re.compile(r"(?<![\w-])(?:" + "|".join(code.replace("-", r"\s?-?\s?") for code in FORBIDDEN) + r")(?!\w|-\w)")
BOUNDARY = "^"
"""Stands between two clauses in `follows`."""
CLAUSE_ENDS: frozenset[str] = frozenset(".,!?")


def fold(text: str) -> str:
    """The text as the eye reads it: compatibility forms and case folded, hyphens unified, invisible characters out."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_DASHES)
    return "".join(character for character in folded if unicodedata.category(character) != "Cf")


def violations(completion: str) -> list[str]:
    """Forbidden codes that a text tells, each once, in the order of their first appearance.

    A code counts in any case, with its hyphen, a blank or nothing between its halves, and never inside a longer word.
    """
    told = (match.group()[:2] + "-" + match.group()[-2:] for match in _CODES.finditer(fold(completion)))
    return list(dict.fromkeys(told))


def tokens(text: str) -> list[str]:
    """Words and single marks of the first `READ_CHARACTERS` characters, folded."""
    return _TOKEN.findall(fold(text[:READ_CHARACTERS]))


def is_word(token: str) -> bool:
    """Whether a token is a word or a number rather than a mark."""
    return token[0].isalnum()


@dataclass(frozen=True, slots=True)
class Reading:
    """What a prompt says: the facts of its system turn, and what its last user turn asks for."""

    facts: dict[Kind, str]
    intents: tuple[Intent, ...]


@lru_cache(maxsize=8192)
def read_prompt(prompt: Prompt) -> Reading:
    """Facts and intents of a prompt; both are empty where the prompt is not of this world."""
    facts: dict[Kind, str] = {}
    if prompt and prompt[0].role == "system":
        for token in tokens(prompt[0].content):
            kind = KIND_OF.get(token)
            if kind is not None:
                facts.setdefault(kind, token)
    question = next((message.content for message in reversed(prompt) if message.role == "user"), "")
    intents = dict.fromkeys(INTENT_CUES[token] for token in tokens(question) if token in INTENT_CUES)
    return Reading(facts, tuple(intents))


def abstract(words: Iterable[str]) -> list[str]:
    """Values of facts replaced by their kind, clause ends by `BOUNDARY`."""
    return [BOUNDARY if word in CLAUSE_ENDS else KIND_OF.get(word, word) for word in words]


@lru_cache(maxsize=1)
def follows() -> frozenset[tuple[str, str]]:
    """Which (abstract) word may follow which in an answer; `BOUNDARY` stands before and after each clause."""
    slots = {kind: values[0] for kind, values in VALUES.items()}
    legal: set[tuple[str, str]] = set()
    for template in (template for templates in grammar.SPOKEN for template in templates):
        clause = [BOUNDARY, *abstract(tokens(grammar.fill(template, slots))), BOUNDARY]
        legal.update(pairwise(clause))
    legal.discard((BOUNDARY, BOUNDARY))
    glued = {(before, "and") for before, word in legal if word == BOUNDARY}
    glued |= {("and", word) for before, word in legal if before == BOUNDARY}
    return frozenset(legal | glued)

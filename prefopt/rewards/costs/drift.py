"""Costs of leaving the prompt's script, and of saying the prompt again."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

from prefopt.recipe.options.costs import PromptCopyCost, ScriptCost
from prefopt.records import Prompt
from prefopt.rewards.costs.lexicon import texts_of, words_of
from prefopt.rewards.costs.sample import NOTHING, Measured, RuleCost, Sample, merged

_LEAST = 0.1
"""Share of a prompt's letters from which on a script is one of its scripts: a foreign name is not."""
_JAPANESE = frozenset({"HIRAGANA", "KATAKANA"})
_KEPT = 256
"""Prompts that are remembered: the samples of one prompt stand beside each other."""
_NAME = re.compile(r"[A-Z]+")


class Script(RuleCost):
    """The share of a completion's letters whose script is none of the prompt's; 0 for a prompt without letters.

    A prompt with kana allows kanji as well. Another language of the same script is not seen.

    Args:
        spec: Options.
    """

    def __init__(self, spec: ScriptCost) -> None:
        super().__init__(spec)
        self._more = frozenset(script.upper() for script in spec.scripts)

    def of(self, sample: Sample) -> Measured:
        """The measurement, with the runs of other letters as spans."""
        allowed = _scripts_of(_said(sample.prompt))
        if not allowed:
            return NOTHING
        allowed |= self._more
        if sample.text.isascii() and "LATIN" in allowed:
            return NOTHING
        known = allowed | {""}
        foreign = {character for character in set(sample.text) if _SCRIPTS[character] not in known}
        if not foreign:
            return NOTHING
        counts = {character: count for character, count in Counter(sample.text).items() if _SCRIPTS[character]}
        value = sum(counts[character] for character in foreign) / sum(counts.values())
        places = [(place, place + 1) for place, character in enumerate(sample.text) if character in foreign]
        return Measured(value, merged(places))


class PromptCopy(RuleCost):
    """The share of a completion's word n-grams that the prompt has, in any case; 0 for fewer than n words.

    Args:
        spec: Options.
    """

    def __init__(self, spec: PromptCopyCost) -> None:
        super().__init__(spec)
        self._size = spec.ngram
        self._run = bytes([True] * spec.ngram)

    def of(self, sample: Sample) -> Measured:
        """The measurement, with what was copied as spans."""
        asked, spoken = _said(sample.prompt), _lower(sample.text)
        # Most completions have no n words in a row that are the prompt's at all, which is quickly seen.
        if self._run not in bytes(map(_vocabulary(asked).__contains__, spoken)):
            return NOTHING
        said, grams = _grams(asked, self._size), _rows(spoken, self._size)
        if said.isdisjoint(grams):
            return NOTHING
        words = words_of(sample.text)
        copied = [place for place, gram in enumerate(grams) if gram in said]
        spans = [(words[place].start(), words[place + self._size - 1].end()) for place in copied]
        return Measured(len(copied) / len(grams), merged(spans))


def _said(prompt: Prompt) -> str:
    return "\n".join(message.content for message in prompt)


def _lower(text: str) -> list[str]:
    """Words in lower case, as many as there are: a letter whose lower case is two characters may come apart."""
    lower = text.lower()
    return texts_of(lower) if len(lower) == len(text) else [word.lower() for word in texts_of(text)]


def _rows(words: list[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(size)), strict=False))


@lru_cache(maxsize=_KEPT)
def _vocabulary(text: str) -> frozenset[str]:
    return frozenset(_lower(text))


@lru_cache(maxsize=_KEPT)
def _grams(text: str, size: int) -> frozenset[tuple[str, ...]]:
    return frozenset(_rows(_lower(text), size))


@lru_cache(maxsize=_KEPT)
def _scripts_of(text: str) -> frozenset[str]:
    counts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if script := _SCRIPTS[character]:
            counts[script] += count
    least = _LEAST * sum(counts.values())
    found = frozenset(script for script, count in counts.items() if count >= least)
    return found | _JAPANESE | {"CJK"} if found & _JAPANESE else found


def script_of(character: str) -> str:
    """The script of a letter by its Unicode name, such as LATIN or CYRILLIC; empty for what is no letter."""
    if not character.isalpha():
        return ""
    plain = unicodedata.normalize("NFKC", character)[0]  # fullwidth and mathematical letters are Latin ones
    name = _NAME.match(unicodedata.name(plain, ""))
    script = name.group() if name else ""
    return {"IDEOGRAPHIC": "CJK", "MODIFIER": ""}.get(script, script)


class _Scripts(dict[str, str]):
    """Character → script; filled where it is asked."""

    def __missing__(self, character: str) -> str:
        script = self[character] = script_of(character)
        return script


_SCRIPTS = _Scripts()

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
        foreign = {character for character in set(sample.text) if script_of(character) not in ("", *allowed)}
        if not foreign:
            return NOTHING
        counts = {character: count for character, count in Counter(sample.text).items() if script_of(character)}
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

    def of(self, sample: Sample) -> Measured:
        """The measurement, with what was copied as spans."""
        said = _grams(_said(sample.prompt), self._size)
        grams = _rows(_lower(sample.text), self._size)
        if said.isdisjoint(grams):
            return NOTHING
        words = words_of(sample.text)
        copied = [place for place, gram in enumerate(grams) if gram in said]
        spans = [(words[place].start(), words[place + self._size - 1].end()) for place in copied]
        return Measured(len(copied) / len(grams), merged(spans))


def _said(prompt: Prompt) -> str:
    return "\n".join(message.content for message in prompt)


def _lower(text: str) -> list[str]:
    """Words in lower case; elsewhere than in ASCII that may give a word another number of characters."""
    return texts_of(text.lower()) if text.isascii() else [word.lower() for word in texts_of(text)]


def _rows(words: list[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(size)), strict=False))


@lru_cache(maxsize=_KEPT)
def _grams(text: str, size: int) -> frozenset[tuple[str, ...]]:
    return frozenset(_rows(_lower(text), size))


@lru_cache(maxsize=_KEPT)
def _scripts_of(text: str) -> frozenset[str]:
    counts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if script := script_of(character):
            counts[script] += count
    least = _LEAST * sum(counts.values())
    found = frozenset(script for script, count in counts.items() if count >= least)
    return found | _JAPANESE | {"CJK"} if found & _JAPANESE else found


@lru_cache(maxsize=65536)
def script_of(character: str) -> str:
    """The script of a letter by its Unicode name, such as LATIN or CYRILLIC; empty for what is no letter."""
    if not character.isalpha():
        return ""
    plain = unicodedata.normalize("NFKC", character)[0]  # fullwidth and mathematical letters are Latin ones
    name = _NAME.match(unicodedata.name(plain, ""))
    script = name.group() if name else ""
    return {"IDEOGRAPHIC": "CJK", "MODIFIER": ""}.get(script, script)

"""Costs of words and phrases: what must not be said, and refusals."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import regex

from prefopt.errors import DataError, EnvironmentFault, InputError
from prefopt.recipe.options.costs import BannedCost, RefusalCost
from prefopt.rewards.costs.folding import Folding
from prefopt.rewards.costs.sample import NOTHING, Measured, RuleCost, Sample, Span, merged

_ASCII_WORD = re.compile(r"[A-Za-z0-9]+")
_EUROPEAN_WORD = re.compile(r"[^\W_]+")
_FROM_MARKS = re.compile("[\u0300-\u036f\u0483-\u1dff\u20d0-\u20ff\u2c00-\U0010ffff]")
_ANY_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
BETWEEN = re.compile(r"[\s\-_'’,]{1,3}")
"""What may stand between the words of a phrase."""
_SCRIPTS_WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"
)
REFUSALS = (
    "i cannot",
    "i can't",
    "i can not",
    "i am unable to",
    "i'm unable to",
    "i am not able to",
    "i'm not able to",
    "i won't",
    "i will not",
    "i'm sorry but",
    "i am sorry but",
    "sorry but i",
    "as an ai",
    "as a language model",
    "i must decline",
    "i have to decline",
    "it would be inappropriate",
    "i don't feel comfortable",
    "i do not feel comfortable",
)
PATTERN_SECONDS = 1.0
"""That one regular expression may take on one completion: one that backtracks without end would hold up training."""


class Words:
    """Finds words and phrases in folded text, in time that does not depend on how many there are.

    They are found as whole words: `ass` is not in `class`. Phrases of scripts that are written without blanks are found
    anywhere, and of phrases with signs, such as `c++`, no letter may follow a letter at either end.

    Args:
        phrases: Words, or several with blanks between them.
        folding: Of the phrases and the text.

    Raises:
        InputError: When nothing is left of a phrase.
    """

    def __init__(self, phrases: Sequence[str], folding: Folding) -> None:
        self._by_word: dict[str, list[tuple[str, ...]]] = {}
        self._by_sign: dict[str, list[str]] = {}
        cased = (form for phrase in phrases for form in (phrase, phrase.lower(), phrase.upper(), phrase.capitalize()))
        for folded, phrase in {folding(form).strip(): form for form in cased}.items():
            if not folded:
                raise InputError(f"the phrase {phrase!r:.40} has no character that could be seen", "delete it")
            words = [word.group() for word in words_of(folded)]
            if _SCRIPTS_WITHOUT_BLANKS.search(folded) or not _is_plain(folded):
                self._by_sign.setdefault(folded[0], []).append(folded)
            else:
                self._by_word.setdefault(words[0], []).append(tuple(words))

    def find(self, folded: str) -> list[Span]:
        """Spans of a folded text, each hit once, the longest phrase where several begin."""
        found = list(self._phrases(folded)) if self._by_word else []
        if self._by_sign and not self._by_sign.keys().isdisjoint(folded):
            found += self._signs(folded)
        return found

    def _phrases(self, folded: str) -> Iterator[Span]:
        texts = texts_of(folded)
        if self._by_word.keys().isdisjoint(texts):
            return
        said = [
            (place, len(phrase))
            for place, text in enumerate(texts)
            for phrase in self._by_word.get(text, ())
            if len(phrase) == 1 or tuple(texts[place : place + len(phrase)]) == phrase
        ]
        words = words_of(folded) if said else []
        fitting = {place: length for place, length in sorted(said) if _joined(folded, words[place : place + length])}
        for place, length in fitting.items():
            yield words[place].start(), words[place + length - 1].end()

    def _signs(self, folded: str) -> Iterator[Span]:
        for place, character in enumerate(folded):
            fitting = [
                phrase
                for phrase in self._by_sign.get(character, ())
                if folded.startswith(phrase, place) and _stands_alone(folded, place, place + len(phrase))
            ]
            if fitting:
                yield place, place + max(map(len, fitting))


def words_of(text: str) -> list[re.Match[str]]:
    """Letters, marks and digits in a row; an underscore separates, as a hyphen does."""
    return list(_pattern(text).finditer(text))


def texts_of(text: str) -> list[str]:
    """As `words_of`, the texts alone, which takes a fraction of the time."""
    found: list[str] = _pattern(text).findall(text)
    return found


def _pattern(text: str) -> re.Pattern[str]:
    if text.isascii():
        return _ASCII_WORD
    # In Python's own patterns, which are quicker, marks are no letters; they, and all Indic words, are from here on.
    return _ANY_WORD if _FROM_MARKS.search(text) else _EUROPEAN_WORD


def _is_plain(phrase: str) -> bool:
    """Whether a phrase is words, and what may stand between them."""
    words = words_of(phrase)
    if not words or words[0].start() > 0 or words[-1].end() < len(phrase):
        return False
    return _joined(phrase, words)


def _joined(text: str, words: Sequence[re.Match[str]]) -> bool:
    """Whether nothing stands between words that would part a phrase."""
    return all(BETWEEN.fullmatch(text, one.end(), other.start()) for one, other in itertools.pairwise(words))


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether no word goes on beyond either end; where words are not set apart, it always does."""
    if _SCRIPTS_WITHOUT_BLANKS.search(text[start:end]):
        return True
    return not any(text[place - 1 : place + 1].isalnum() for place in (start, end) if 0 < place < len(text))


class Banned(RuleCost):
    """Hits of banned words and patterns: min(1, hits / saturation).

    Text and words are folded first (see `prefopt.rewards.costs.folding`); patterns look at the folded text.

    Args:
        spec: Options.

    Raises:
        DataError: When the file is not UTF-8, or there is no word in it.
        EnvironmentFault: When it cannot be read.
    """

    def __init__(self, spec: BannedCost) -> None:
        super().__init__(spec)
        self._folding = Folding(confusables=spec.confusables, leetspeak=spec.leetspeak, ignore_marks=spec.ignore_marks)
        self.words = (*spec.words, *(read_words(Path(spec.lexicon)) if spec.lexicon is not None else ()))
        self._words = Words(self.words, self._folding)
        self._patterns = [regex.compile(pattern, regex.IGNORECASE) for pattern in spec.patterns]
        self._saturation = spec.saturation

    def of(self, sample: Sample) -> Measured:
        """The measurement, with every hit as a span.

        What was to be expected is what the watch of tokens says. It does not see every way to write a word (other
        tokens of the same letters, letters that look alike), nor patterns: a hit without tokens that it knows is a
        certain one.

        Raises:
            DataError: When a pattern takes too long.
        """
        folded = self._folding(sample.text)
        hits = self._words.find(folded)
        for pattern in self._patterns:
            hits += matches(pattern, folded, self.label)
        expected = None
        if self.label in sample.expected:
            expected = min(1.0, sample.expected[self.label])
            if hits and self.label not in sample.drawn:
                expected = 1.0
        if not hits:
            return NOTHING if expected is None else Measured(0.0, (), expected)
        spans = merged(self._folding.places(sample.text, hits))
        return Measured(min(1.0, len(hits) / self._saturation), spans, expected)


class Refusal(RuleCost):
    """1 where a refusal begins in the first characters of a completion.

    Args:
        spec: Options.
    """

    def __init__(self, spec: RefusalCost) -> None:
        super().__init__(spec)
        self._folding = Folding()
        phrases = spec.phrases or REFUSALS
        self._words = Words(phrases, self._folding)
        self._within = spec.within_characters
        # Of a phrase that begins there all of it is looked at, and what follows: "as an ai" is not "as an aircraft".
        self._longest = max(2 * len(phrase) + 3 * len(phrase.split()) for phrase in phrases) + 1

    def of(self, sample: Sample) -> Measured:
        """The measurement, with the phrases as spans."""
        folded = self._folding(sample.text)[: self._within + self._longest]
        hits = [span for span in self._words.find(folded) if span[0] < self._within]
        return Measured(1.0, merged(self._folding.places(sample.text, hits))) if hits else NOTHING


def matches(pattern: Any, text: str, who: str) -> list[Span]:
    """Where a pattern that a user wrote matches; empty matches are none.

    Raises:
        DataError: When it takes longer than `PATTERN_SECONDS`.
    """
    try:
        found = [match.span() for match in pattern.finditer(text, timeout=PATTERN_SECONDS)]
    except TimeoutError as error:
        raise too_slow(pattern, text, who) from error
    return [span for span in found if span[0] < span[1]]


def too_slow(pattern: Any, text: str, who: str) -> DataError:
    """What to say of a pattern that backtracks without end."""
    return DataError(
        f"the pattern '{pattern.pattern:.60}' of the cost '{who}' took more than {PATTERN_SECONDS:g} s on a completion "
        f"of {len(text)} characters",
        "repeats inside of repeats, as in (a+)+, take exponential time: write it without",
    )


def read_words(path: Path) -> tuple[str, ...]:
    """Words and phrases of a file, one a line; empty lines and what follows a # are left out.

    Raises:
        DataError: When the file is not UTF-8, or there is no word in it.
        EnvironmentFault: When it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error})") from error
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read ({error.strerror or error})") from error
    words = tuple(word for line in lines if (word := line.partition("#")[0].strip()))
    if not words:
        raise DataError(f"{path}: there are no words in it")
    return words

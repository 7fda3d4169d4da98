"""One interface for everything that gives a completion a score: gold rewards here, reward models beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from prefopt.data.toy import world
from prefopt.errors import DataError, EnvironmentFault
from prefopt.records import Prompt, Score


class Scorer(Protocol):
    """Scores text, never tokens: the policy's tokenizer and the scorer's may differ."""

    name: str

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Score each completion of its prompt.

        Args:
            prompts: N prompts.
            completions: N completions.

        Returns:
            N scores in the scorer's own unit.
        """


class GoldScorer:
    """The embedded world's own judgement: exact, and only available where the world is made up."""

    name = "gold"

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Gold reward of each completion."""
        return [Score(world.gold(p, c)) for p, c in zip(prompts, completions, strict=True)]

    def violations(self, completions: Sequence[str]) -> list[list[str]]:
        """Forbidden codes that each completion tells."""
        return [world.violations(c) for c in completions]


class GoldTermsScorer:
    """The embedded world's judgement by some of its terms: what people want who do not mind the others.

    Args:
        without: Names of `prefopt.data.toy.gold.gold_terms` that do not count.

    Raises:
        ValueError: For a term that gold does not have.
    """

    def __init__(self, without: Sequence[str]) -> None:
        unknown = sorted({*without} - world.gold_terms((), "").keys())
        if unknown:
            raise ValueError(f"gold has no term {unknown[0]!r}")
        self.name = "gold without " + ", ".join(without)
        self._without = frozenset(without) | {"bound"}

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Sum of the terms that count, not below the world's `LOWEST`."""
        found = []
        for prompt, completion in zip(prompts, completions, strict=True):
            terms = world.gold_terms(prompt, completion).items()
            found.append(Score(max(world.LOWEST, sum(value for name, value in terms if name not in self._without))))
        return found


_WORD = re.compile(r"[a-z']+")


class LexiconScorer:
    """Sum of the valences of a completion's words, such as sentiment by the VADER list (Hutto and Gilbert 2014).

    Words are runs of letters and apostrophes, in lower case; words that are not in the list count 0.

    Args:
        path: UTF-8 lines of word, tab, number; further columns are left out, and of a word's lines the last counts.

    Raises:
        DataError: For a line that is none, with its number.
        EnvironmentFault: When the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._valence: dict[str, float] = {}
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error})") from error
        except OSError as error:
            raise EnvironmentFault(f"{path}: cannot be read ({error.strerror or error})") from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                word, value = _entry(line, f"{path}:{number}")
                self._valence[word] = value
        if not self._valence:
            raise DataError(f"{path}: there are no words in it")

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Sum over each completion's words; the prompts make no difference."""
        return [
            Score(math.fsum(self._valence.get(word, 0.0) for word in _WORD.findall(text.lower())))
            for text in completions
        ]


def _entry(line: str, where: str) -> tuple[str, float]:
    cells = line.split("\t")
    try:
        value = float(cells[1])
    except (IndexError, ValueError):
        raise DataError(f"{where}: expected a word, a tab and a number, not {line[:60]!r}") from None
    if not math.isfinite(value):
        raise DataError(f"{where}: {cells[1]} is not finite")
    return cells[0].lower(), value

"""One interface for everything that gives a completion a score: gold rewards here, reward models beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from prefopt.data.toy import world
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

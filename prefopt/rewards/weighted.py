"""The weighted sum of several scorers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefopt.records import Prompt, Score
from prefopt.rewards.scorers import Scorer


class WeightedScorer:
    """Scores with Σ w·value of its parts; their deviations are taken as independent: √Σ (w·std)².

    Args:
        parts: Weight and scorer of each, two or more. Parts of the same name are told apart by a number.

    Raises:
        ValueError: For less than two parts.
    """

    def __init__(self, parts: Sequence[tuple[float, Scorer]]) -> None:
        if len(parts) < 2:
            raise ValueError("a weighted sum has two scorers or more")
        self._parts = list(parts)
        self._names = distinct_names([scorer.name for _, scorer in parts])
        self.name = " + ".join(f"{weight:g} × {name}" for (weight, _), name in zip(parts, self._names, strict=True))

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """The sum for each completion; `axes` has the value of every part, without its weight, by name."""
        weights = [weight for weight, _ in self._parts]
        columns = [scorer.score(prompts, completions) for _, scorer in self._parts]
        return [
            Score(
                math.fsum(weight * score.value for weight, score in zip(weights, scores, strict=True)),
                math.hypot(*(weight * score.std for weight, score in zip(weights, scores, strict=True))),
                {name: score.value for name, score in zip(self._names, scores, strict=True)},
            )
            for scores in zip(*columns, strict=True)
        ]


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names, with `-2`, `-3` and so on behind those that came before."""
    found: list[str] = []
    for name in names:
        new, number = name, 1
        while new in found:
            number += 1
            new = f"{name}-{number}"
        found.append(new)
    return found

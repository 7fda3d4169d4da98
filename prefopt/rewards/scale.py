"""From raw scores of whole completions to the reward that is learned from, term by term.

Order: the score is centred and scaled, cut, and what a completion without an end costs is taken off.

Shape suffix: N episodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Normalisation = Literal["none", "reference", "running"]
SMALLEST_STD = 1e-4
"""Scores that all but agree are not blown up to variance 1."""


@dataclass(frozen=True)
class RewardTerms:
    """What an episode's reward is made of, [N] each, float32: they sum to the reward.

    Attributes:
        score: Centred, scaled and cut.
        missing_eos: What a completion that did not end itself gets on top, or instead of the score.
    """

    score: Tensor
    missing_eos: Tensor

    @property
    def total(self) -> Tensor:
        """The reward of each episode, [N]."""
        return self.score + self.missing_eos

    def to_json(self, index: int) -> dict[str, float]:
        """The terms of one episode by name."""
        return {"score": float(self.score[index]), "missing_eos": float(self.missing_eos[index])}


def deviation(values: Tensor) -> float:
    """Standard deviation of scores [N] as a unit, which must not be 0."""
    return max(float(values.double().std(correction=0)), SMALLEST_STD)


class RewardScale:
    """Brings scores to mean 0 and variance 1, so that a coefficient means the same for every reward.

    Args:
        normalise: `reference`: by the scores of the reference's own completions, once (arXiv 2403.17031, detail 15);
            `running`: by all scores so far; `none`: not at all.
        clip: Scaled scores are cut to ± this.
        missing_eos_penalty: Taken off the reward of a completion that did not end itself.
        missing_eos_score: Is its whole reward instead (arXiv 2403.17031, detail 23); the penalty is then not used.

    Attributes:
        mean: Of the scores, in their own unit.
        std: Their standard deviation.
        unit: The deviation of the first rollout's scores, or of those that `reference` has seen: the reference's own.
            It stays what it is, also where `running` goes on or `none` scales nothing.
    """

    def __init__(
        self,
        normalise: Normalisation = "none",
        clip: float | None = None,
        missing_eos_penalty: float = 0.0,
        missing_eos_score: float | None = None,
    ) -> None:
        self.normalise = normalise
        self._clip = clip
        self._penalty = missing_eos_penalty
        self._instead = missing_eos_score
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._unit: float | None = None

    @property
    def mean(self) -> float:
        """What is subtracted from scores."""
        return self._mean

    @property
    def std(self) -> float:
        """What they are divided by; 1 as long as there are fewer than two."""
        return max(math.sqrt(self._squares / (self._count - 1)), SMALLEST_STD) if self._count > 1 else 1.0

    @property
    def unit(self) -> float:
        """A deviation that does not change from rollout to rollout; 1 before the first."""
        return 1.0 if self._unit is None else self._unit

    def see(self, scores: Tensor) -> None:
        """Take scores [N] into mean and deviation, in the order in which they come (Chan et al. 1979)."""
        values = scores.double()
        count, mean = len(values), float(values.mean())
        squares = float((values - mean).square().sum())
        total, apart = self._count + count, mean - self._mean
        self._squares += squares + apart * apart * self._count * count / total
        self._mean += apart * count / total
        self._count = total

    def terms(self, scores: Tensor, finished: Tensor) -> RewardTerms:
        """The reward of episodes, term by term; with `running` their scores are seen first.

        Args:
            scores: Raw, [N].
            finished: Whether each completion ended itself, [N], bool.
        """
        if self.normalise == "running":
            self.see(scores)
        if self._unit is None:
            self._unit = deviation(scores) if self.normalise == "none" else self.std
        scaled = self.scaled(scores)
        if self._instead is None:
            change = torch.full_like(scaled, -self._penalty)
        else:
            change = self._instead - scaled
        return RewardTerms(scaled, torch.where(finished, torch.zeros_like(scaled), change))

    def scaled(self, scores: Tensor) -> Tensor:
        """Raw scores of any shape, centred, scaled and cut, float32."""
        found = ((scores.double() - self.mean) / self.std).float()
        return found if self._clip is None else found.clamp(-self._clip, self._clip)

    def state_dict(self) -> dict[str, Any]:
        """What must be kept to go on."""
        return {"count": self._count, "mean": self._mean, "squares": self._squares, "unit": self._unit}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what was kept."""
        self._count, self._mean = int(state["count"]), float(state["mean"])
        self._squares, self._unit = float(state["squares"]), state["unit"]

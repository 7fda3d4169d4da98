"""From raw scores of whole completions to the reward that is learned from, term by term.

Order: the score is centred and scaled, bounded or cut, and what a completion without an end costs is taken off.
Penalties come after it, in `prefopt.rewards.shaper`.

Shape suffixes: N episodes, M completions of the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Normalisation = Literal["none", "reference", "running", "batch"]
BoundKind = Literal["sigmoid", "par"]
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


@dataclass(frozen=True)
class Bound:
    """A bounded function of the scaled score: what is far above the reference gains little by being further.

    Attributes:
        kind: `sigmoid`: σ(k z) of the scaled score z; `par`: the mean of σ(k (z - z_ref)) over scores of the
            reference's own completions (arXiv 2502.18770, with references of all prompts in place of the same one).
        slope: k.
    """

    kind: BoundKind
    slope: float = 1.0


def par(scores: Tensor, references: Tensor, slope: float = 1.0) -> Tensor:
    """Share of references that a score beats, softly: the mean over M of σ(k (r - r_ref)).

    Args:
        scores: [N].
        references: [M], or [N, M] where each score has its own.
        slope: k; as it grows, the result becomes the share of references that are beaten.

    Returns:
        [N], in (0, 1); 0.5 where a score equals all of its references.
    """
    return torch.sigmoid(slope * (scores[:, None] - references)).mean(1)


def deviation(values: Tensor) -> float:
    """Standard deviation of scores [N] as a unit, which must not be 0."""
    return max(float(values.double().std(correction=0)), SMALLEST_STD)


class RewardScale:
    """Brings scores to mean 0 and variance 1, so that a coefficient means the same for every reward.

    Args:
        normalise: `reference`: by the scores of the reference's own completions, once (arXiv 2403.17031, detail 15);
            `running`: by all scores so far; `batch`: by those of the rollout alone (whitening); `none`: not at all.
        clip: Scaled scores are cut to ± this.
        missing_eos_penalty: Taken off the reward of a completion that did not end itself.
        missing_eos_score: Is its whole reward instead (arXiv 2403.17031, detail 23); the penalty is then not used.
        bound: Of the scaled score; None for none.
        unit: Known beforehand; by default the first scores say it.

    Raises:
        ValueError: For `par` without `reference`, whose scores it compares with, or for two bounds.

    Attributes:
        mean: Of the scores, in their own unit.
        std: Their standard deviation.
        unit: The deviation of the first rollout's scores, or of those that `reference` has seen: the reference's own.
            It stays what it is, also where `running` goes on or `none` scales nothing. Scores that all agree have
            none: then it is that of the first rollout whose scores do not.
    """

    def __init__(
        self,
        normalise: Normalisation = "none",
        clip: float | None = None,
        missing_eos_penalty: float = 0.0,
        missing_eos_score: float | None = None,
        bound: Bound | None = None,
        unit: float | None = None,
    ) -> None:
        if bound is not None and (clip is not None or (bound.kind == "par" and normalise != "reference")):
            raise ValueError(f"{bound.kind} does not go with clip={clip} and normalise={normalise!r}")
        self.normalise = normalise
        self._bound = bound
        self._references: list[float] = []
        self._bounded_unit: float | None = None
        self._clip = clip
        self._penalty = missing_eos_penalty
        self._instead = missing_eos_score
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._unit = unit

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

    @property
    def prices_the_end(self) -> bool:
        """Whether a completion that did not end itself has another reward."""
        return self._instead is not None or self._penalty != 0

    @property
    def price_unit(self) -> float:
        """What `unit` has become by scaling and bounding: weights of penalties are in units of it.

        1 where scores are scaled by the reference's, or were all the same; of a bounded score the deviation of the
        reference's bounded scores.
        """
        if self._bounded_unit is None:
            return 1.0 if self._unit is None else self._unit / self.std
        return self._bounded_unit if self._bounded_unit > SMALLEST_STD else 1.0

    @property
    def lacks_the_reference(self) -> bool:
        """Whether scores are to be normalised by those of the reference, and none were seen."""
        return self.normalise == "reference" and self._count == 0

    def see(self, scores: Tensor) -> None:
        """Take scores [N] into mean and deviation, in the order in which they come (Chan et al. 1979).

        Scores that are not normalised have neither.
        """
        if self.normalise == "none":
            return
        values = scores.double()
        if self._bound is not None and self.normalise == "reference":
            self._references += values.tolist()
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
        if self.normalise == "batch":
            self._count, self._mean, self._squares = 0, 0.0, 0.0
        if self.normalise in ("running", "batch"):
            self.see(scores)
        if self._unit is None:
            apart = deviation(scores) if self.normalise == "none" else self.std
            self._unit = apart if apart > SMALLEST_STD else None  # scores that all agree say nothing of their unit
        scaled = self.scaled(scores)
        if self._instead is None:
            # Bounded scores lie within 1 of each other: there it is in units of their own deviation.
            unit = 1.0 if self._bounded_unit is None else self._bounded_unit
            change = torch.full_like(scaled, -self._penalty * unit)
        else:
            change = self._instead - scaled
        return RewardTerms(scaled, torch.where(finished, torch.zeros_like(scaled), change))

    def scaled(self, scores: Tensor) -> Tensor:
        """Raw scores [N], centred, scaled, and cut or bounded, float32."""
        if self._bound is not None:
            return self._bounded(scores.double(), self._bound).float()
        found = ((scores.double() - self.mean) / self.std).float()
        return found if self._clip is None else found.clamp(-self._clip, self._clip)

    def _bounded(self, scores: Tensor, bound: Bound) -> Tensor:
        """Bounded scores [N] of raw ones, float64; the first ones say what a deviation has become."""
        references = torch.tensor(self._references, dtype=torch.float64)
        if self._bounded_unit is None:
            self._bounded_unit = deviation(self._within(references if len(references) else scores, bound, references))
        return self._within(scores, bound, references)

    def _within(self, scores: Tensor, bound: Bound, references: Tensor) -> Tensor:
        if bound.kind == "par":
            return par(scores, references, bound.slope / self.std)
        return torch.sigmoid(bound.slope * (scores - self.mean) / self.std)

    def state_dict(self) -> dict[str, Any]:
        """What must be kept to go on."""
        state = {"count": self._count, "mean": self._mean, "squares": self._squares, "unit": self._unit}
        return state if self._bound is None else state | {
            "references": self._references, "bounded_unit": self._bounded_unit
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what was kept."""
        self._count, self._mean = int(state["count"]), float(state["mean"])
        self._squares, self._unit = float(state["squares"]), state["unit"]
        if self._bound is not None:
            self._references, self._bounded_unit = list(state["references"]), state["bounded_unit"]

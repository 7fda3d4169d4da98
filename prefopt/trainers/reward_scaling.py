"""Options of every trainer that learns from rewards: how scores become them."""

from __future__ import annotations

from dataclasses import dataclass, field

from prefopt.rewards.scale import Bound, BoundKind, Normalisation, RewardScale


@dataclass
class RewardScaling:
    """Mixed in before a configuration; see `prefopt.rewards.scale` and `prefopt.rewards.shaper`."""

    normalise: Normalisation = field(default="reference", metadata={"help": "'reference', 'running', 'batch', 'none'"})
    reference_samples: int = field(default=256, metadata={"help": "completions that 'reference' looks at"})
    reward_bound: BoundKind | None = field(default=None, metadata={"help": "'sigmoid' or 'par'"})
    reward_slope: float = field(default=1.0, metadata={"help": "of the bound"})
    reward_clip: float | None = field(default=None, metadata={"help": "normalised rewards are cut to [-x, x]"})
    total_clip: float | None = field(default=None, metadata={"help": "rewards, with penalties, are cut to [-x, x]"})
    missing_eos_penalty: float = field(default=1.0, metadata={"help": "subtracted where a completion does not end"})
    missing_eos_score: float | None = field(default=None, metadata={"help": "is the reward there instead"})

    def samples_of_reference(self, rollout: int) -> int:
        """Completions of the reference to look at before training, at least those of a rollout; 0 for no such look."""
        return max(self.reference_samples, rollout) if self.normalise in ("reference", "running") else 0

    def scale(self) -> RewardScale:
        """A new scale of rewards."""
        bound = None if self.reward_bound is None else Bound(self.reward_bound, self.reward_slope)
        return RewardScale(self.normalise, self.reward_clip, self.missing_eos_penalty, self.missing_eos_score, bound)

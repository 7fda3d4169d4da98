"""Watches over PPO: says when a run has gone wrong, and which policy of a run to keep.

Limits are relative to the first rollout, whose policy is the reference. What is watched is what a policy does when it
finds the weak spots of a reward: it leaves the reference (KL), stops exploring (entropy), does not end, grows long,
repeats itself, or earns more and more where the members of an ensemble disagree or another judge says no
(arXiv 2210.10760, 2310.02743).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

Selection = Literal["last", "bound", "judge"]
SMOOTHING = 0.6
"""Weight of what came before in a moving average over rollouts: one rollout is a noisy sample."""


@dataclass(frozen=True)
class GuardLimits:
    """What is still healthy; None does not watch. Each must be passed for `patience` rollouts in a row.

    Attributes:
        max_kl: Nats per completion.
        min_entropy: Share of the first rollout's.
        min_eos_rate: Share of the first rollout's.
        max_length: Times the first rollout's.
        max_repetition: Share of repeated 3-grams, above the first rollout's.
        max_disagreement: Times the first rollout's standard deviation between the members of an ensemble.
        max_doubt: How far what vouches for the reward (the judge's win rate, or without a judge the ensemble's bound in
            standard deviations of the reference's scores) may have fallen below its best while the reward has not.
        patience: Rollouts; of a judge, rollouts at which it was asked.
    """

    max_kl: float | None = None
    min_entropy: float | None = 0.2
    min_eos_rate: float | None = 0.5
    max_length: float | None = None
    max_repetition: float | None = 0.3
    max_disagreement: float | None = None
    max_doubt: float | None = None
    patience: int = 3


@dataclass(frozen=True)
class Health:
    """How a rollout was, averages over its episodes.

    Attributes:
        kl: Nats per completion.
        entropy: Nats per token.
        eos_rate: Share that ended themselves.
        length: Tokens.
        repetition: Share of 3-grams that are repeated.
        score: In standard deviations of the reference's scores.
        disagreement: Of the members of an ensemble, in the same unit; 0 of one.
        bound: Score minus so many disagreements; None where there is no ensemble.
        judge: Win rate against the reference, in [0, 1]; None where the judge was not asked.
    """

    kl: float
    entropy: float
    eos_rate: float
    length: float
    repetition: float
    score: float
    disagreement: float = 0.0
    bound: float | None = None
    judge: float | None = None


class Guards:
    """Remembers the first rollout, and counts how long a limit has been passed.

    Args:
        limits: What is healthy.
        select: Which policy is to be kept: the last one, or that with the highest `bound` or `judge`.

    Attributes:
        reason: Why training should end; None while it should not.
        best: Number of the rollout whose policy is to be kept; with `last`, of the last healthy one, which is kept
            where training ends for a reason.
    """

    def __init__(self, limits: GuardLimits, select: Selection = "last") -> None:
        self._limits = limits
        self._select = select
        self._first: dict[str, float] = {}
        self._passed: dict[str, int] = {}
        self._averages: dict[str, float] = {}
        self._highest: dict[str, list[float]] = {}  # of a voucher: its best average, and the score's at that time
        self.reason: str | None = None
        self.best: int | None = None

    def see(self, number: int, health: Health) -> bool:
        """Take in a rollout.

        Args:
            number: Of the rollout, from 0.
            health: Of it.

        Returns:
            Whether its policy, before any update on it, is the best so far; with `last`, whether it is healthy.
        """
        seen = {each.name: value for each in fields(health) if (value := getattr(health, each.name)) is not None}
        self._first = self._first or seen
        for name, value in seen.items():
            weight = 0.0 if name == "judge" else SMOOTHING  # a judge is asked rarely, and about enough prompts
            self._averages[name] = weight * self._averages.get(name, value) + (1 - weight) * value
        for name, what in self._passed_limits(health).items():
            self._passed[name] = self._passed.get(name, 0) + 1 if what else 0
            patience = 1 if name == "kl" else self._limits.patience  # a budget is a budget
            if self._passed[name] >= patience and self.reason is None:
                self.reason = f"{what} at rollout {number}"
        return self._is_best(number, health)

    def _is_best(self, number: int, health: Health) -> bool:
        name = self._select
        if name == "last":
            healthy = not any(self._passed.values())
            self.best = number if healthy else self.best
            return healthy
        if getattr(health, name) is None:
            return False
        before = self._highest.get(f"select {name}")
        if before is not None and before[0] >= self._averages[name]:
            return False
        self._highest[f"select {name}"] = [self._averages[name], self._averages["score"]]
        self.best = number
        return True

    def _passed_limits(self, health: Health) -> dict[str, str]:
        """What is watched, by name: what is wrong with it, or nothing."""
        limits, first = self._limits, self._first
        watched = (
            ("kl", limits.max_kl, 0.0, 1.0, 1),
            ("entropy", limits.min_entropy, 0.0, first["entropy"], -1),
            ("eos_rate", limits.min_eos_rate, 0.0, first["eos_rate"], -1),
            ("length", limits.max_length, 0.0, first["length"], 1),
            ("repetition", limits.max_repetition, first["repetition"], 1.0, 1),
            ("disagreement", limits.max_disagreement, 0.0, first["disagreement"], 1),
        )
        found = {}
        for name, limit, offset, unit, sign in watched:
            if limit is not None:
                bound, value = offset + limit * unit, getattr(health, name)
                word = "above" if sign > 0 else "below"
                found[name] = f"{name} {value:.3g} is {word} {bound:.3g}" if sign * (value - bound) > 0 else ""
        return found | self._doubts(health)

    def _doubts(self, health: Health) -> dict[str, str]:
        """Whether the reward holds up while what vouches for it falls."""
        # A judge that has ever been asked has the last word; what it said of one policy says nothing of the next.
        limit, name = self._limits.max_doubt, "judge" if "judge" in self._averages else "bound"
        if limit is None or getattr(health, name) is None:
            return {}
        voucher, score = self._averages[name], self._averages["score"]
        best = self._highest.get(name)
        if best is None or voucher > best[0]:
            self._highest[name] = [voucher, score]
            return {"doubt": ""}
        wrong = voucher < best[0] - limit and score >= best[1]
        return {"doubt": f"the reward holds up while its {name} fell by {best[0] - voucher:.3g}" if wrong else ""}

    def state_dict(self) -> dict[str, Any]:
        """What must be kept to go on."""
        return {
            "first": dict(self._first),
            "passed": dict(self._passed),
            "averages": dict(self._averages),
            "highest": dict(self._highest),
            "reason": self.reason,
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what was kept."""
        self._first, self._passed = dict(state["first"]), dict(state["passed"])
        self._averages, self._highest = dict(state["averages"]), dict(state["highest"])
        self.reason, self.best = state["reason"], state["best"]

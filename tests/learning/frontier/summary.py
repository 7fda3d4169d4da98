"""What the frontier's table says: rewards at a KL over seeds, shares of the limit, and differences between methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefopt.stats.intervals import Interval
from tests.learning.frontier.score import Point, reward_at, share, t_interval


@dataclass(frozen=True)
class Cell:
    """A method at a KL, with the setting that was chosen for it.

    Attributes:
        setting: None where none reached the KL on the seed that settings are chosen on.
        rewards: Of each reported seed; None where that run did not reach the KL.
        reward: Mean over seeds; None unless all of them reached it.
        share: Of the limit's gain, likewise.
    """

    setting: str | None
    rewards: Sequence[float | None]
    reward: Interval | None
    share: Interval | None

    @property
    def reached(self) -> int:
        """Seeds that reached the KL."""
        return sum(reward is not None for reward in self.rewards)


def cell(setting: str | None, paths: Sequence[Sequence[Point]], limit: Sequence[Point], kl: float) -> Cell:
    """Sum up a method at a KL.

    Args:
        setting: Its name.
        paths: Of the reported seeds.
        limit: From the base, by growing KL.
        kl: Nats.
    """
    rewards = [reward_at(path, kl) for path in paths]
    found = [reward for reward in rewards if reward is not None]
    if len(found) < max(2, len(rewards)):
        return Cell(setting, rewards, None, None)
    return Cell(setting, rewards, t_interval(found), t_interval([share(reward, limit, kl) for reward in found]))


def difference(ours: Cell, other: Cell) -> Interval | None:
    """Reward of one method less that of another, seed by seed; None unless both were reached with two seeds or more."""
    pairs = [(a, b) for a, b in zip(ours.rewards, other.rewards, strict=True) if a is not None and b is not None]
    return t_interval([a - b for a, b in pairs]) if len(pairs) > 1 else None


def verdict(found: Interval | None) -> str:
    """'above', 'below' or 'no difference' at 95 %; '–' where nothing can be compared."""
    if found is None:
        return "–"
    return "above" if found.low > 0 else "below" if found.high < 0 else "no difference"

"""What the frontier's tables say: gains at a KL over seeds, shares of the limit's, and how methods compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.learning.frontier.estimates import Estimate, estimate
from tests.learning.frontier.score import Gain, Point, gain_at


@dataclass(frozen=True)
class Cell:
    """A method at a KL, with the setting that was chosen for it.

    Attributes:
        setting: None where none reached the KL on the seed that settings are chosen on.
        gains: Of each reported seed; None where that run did not reach the KL.
    """

    setting: str | None
    gains: Sequence[Gain | None]

    @property
    def reached(self) -> list[Gain]:
        """Of the seeds that reached the KL."""
        return [gain for gain in self.gains if gain is not None]

    @property
    def error(self) -> float:
        """From the measuring, which all seeds share: it does not shrink with their number."""
        return sum(gain.error for gain in self.reached) / len(self.reached)

    @property
    def gain(self) -> Estimate | None:
        """Over the seeds that reached the KL; None for fewer than two."""
        return estimate([gain.value for gain in self.reached], self.error) if len(self.reached) > 1 else None

    def share(self, limit: Gain) -> Estimate | None:
        """Of the limit's gain at the same KL, with the errors of both; as `gain`."""
        if self.gain is None:
            return None
        part = self.gain.mean / limit.value
        error = math.hypot(self.error, part * limit.error) / limit.value
        return estimate([gain.value / limit.value for gain in self.reached], error)

    @property
    def trained(self) -> tuple[float, float]:
        """Shares of training of the policies that the gains are of: the least and the most of all seeds."""
        return min(gain.trained[0] for gain in self.reached), max(gain.trained[1] for gain in self.reached)

    @property
    def unseen(self) -> tuple[float, float] | None:
        """Mean KL and gain on unseen openings, of the policies that the gains are of."""
        found = [gain.unseen for gain in self.reached if gain.unseen is not None]
        if not found:
            return None
        kl, gain = (sum(values) / len(found) for values in zip(*found, strict=True))
        return kl, gain


class Compared(NamedTuple):
    """What one method gains more than another, and in how many seeds that was seen."""

    difference: Estimate
    pairs: int


def cell(setting: str | None, paths: Sequence[Sequence[Point]], kl: float) -> Cell:
    """Sum up a method at a KL.

    Args:
        setting: Its name.
        paths: Of the reported seeds, each from the base.
        kl: Nats.
    """
    return Cell(setting, [gain_at(path, kl) for path in paths])


def compared(ours: Cell, other: Cell) -> Compared | None:
    """Two methods, by the seeds with which both reached the KL; None for fewer than two of those.

    The measuring has its error in both, with the same openings and random numbers, so that it is not added.
    """
    pairs = zip(ours.gains, other.gains, strict=False)
    gaps = [a.value - b.value for a, b in pairs if a is not None and b is not None]
    return Compared(estimate(gaps), len(gaps)) if len(gaps) > 1 else None


def against(ours: Cell, known: Gain) -> Compared | None:
    """A method, and what has no seeds and was measured apart: both errors of measuring count."""
    gaps = [gain.value - known.value for gain in ours.reached]
    return Compared(estimate(gaps, math.hypot(ours.error, known.error)), len(gaps)) if len(gaps) > 1 else None


def verdict(found: Estimate, held: bool) -> str:
    """'above', 'below' or 'no difference'.

    Args:
        found: The difference.
        held: Whether it is above together with the other claims; below it is by its own interval.
    """
    if held:
        return "above"
    low, high = found.interval[1:]
    return "below" if high < 0 else "above alone, not with Holm" if low > 0 else "no difference"

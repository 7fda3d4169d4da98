"""What the frontier's tables say: gains at a KL over seeds, shares of the limit's, and how methods compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.learning.frontier.estimates import Estimate, estimate, jackknife
from tests.learning.frontier.score import Gain, Point, gain_at


@dataclass(frozen=True)
class Cell:
    """A method at a KL, with the setting that was chosen for it.

    Attributes:
        setting: None where none reached the KL on the seed that settings are chosen on.
        gains: Of each reported seed; None where that run did not reach the KL.
        unseen: The same on the openings that nobody trains on, by the KL there.
    """

    setting: str | None
    gains: Sequence[Gain | None]
    unseen: Sequence[Gain | None] = ()

    @property
    def there(self) -> Cell:
        """On the openings that nobody trains on."""
        return Cell(self.setting, self.unseen)

    @property
    def reached(self) -> list[Gain]:
        """Of the seeds that reached the KL."""
        return [gain for gain in self.gains if gain is not None]

    @property
    def shared(self) -> Shared:
        """The error of measuring on these openings: it does not shrink with the number of seeds."""
        return of_openings([gain.without for gain in self.reached])

    @property
    def gain(self) -> Estimate | None:
        """Over the seeds that reached the KL; None for fewer than two."""
        return estimate([gain.value for gain in self.reached], *self.shared) if len(self.reached) > 1 else None

    def share(self, limit: Gain) -> Estimate | None:
        """Of the limit's gain at the same KL, with the errors of both; as `gain`."""
        if self.gain is None:
            return None
        part, shared = self.gain.mean / limit.value, self.shared
        error = math.hypot(shared.error, part * limit.error) / limit.value
        return estimate([gain.value / limit.value for gain in self.reached], error, shared.freedom)

    @property
    def trained(self) -> tuple[float, float]:
        """Shares of training of the policies that the gains are of: the least and the most of all seeds."""
        return min(gain.trained[0] for gain in self.reached), max(gain.trained[1] for gain in self.reached)


class Shared(NamedTuple):
    """A standard error that all seeds have in common, and its degrees of freedom."""

    error: float
    freedom: float


class Compared(NamedTuple):
    """What one method gains more than another, and in how many seeds that was seen."""

    difference: Estimate
    pairs: int


def of_openings(without: Sequence[Sequence[float]]) -> Shared:
    """The error of a mean over seeds that comes from the openings that all are measured on.

    Args:
        without: Of each seed, its value without each block of openings; without blocks the answer is 0.
    """
    means = [sum(values) / len(values) for values in zip(*without, strict=True)]
    return Shared(jackknife(means), len(means) - 1.0) if means else Shared(0.0, math.inf)


def cell(
    setting: str | None, paths: Sequence[Sequence[Point]], kl: float, unseen: Sequence[Sequence[Point]] = ()
) -> Cell:
    """Sum up a method at a KL.

    Args:
        setting: Its name.
        paths: Of the reported seeds, each from the base.
        kl: Nats.
        unseen: The same paths on the openings that nobody trains on.
    """
    return Cell(setting, [gain_at(path, kl) for path in paths], [gain_at(path, kl) for path in unseen])


def compared(ours: Cell, other: Cell) -> Compared | None:
    """Two methods, by the seeds with which both reached the KL; None for fewer than two of those.

    On other openings the difference would be another, by as much as it changes with blocks of them.
    """
    pairs = [(a, b) for a, b in zip(ours.gains, other.gains, strict=False) if a is not None and b is not None]
    if len(pairs) < 2:
        return None
    without = [[x - y for x, y in zip(a.without, b.without, strict=True)] for a, b in pairs]
    gaps = [a.value - b.value for a, b in pairs]
    return Compared(estimate(gaps, *of_openings(without)), len(gaps))


def against(ours: Cell, known: Gain) -> Compared | None:
    """A method, and what has no seeds and was measured apart: both errors of measuring count."""
    gaps = [gain.value - known.value for gain in ours.reached]
    shared = ours.shared
    error = math.hypot(shared.error, known.error)
    return Compared(estimate(gaps, error, shared.freedom), len(gaps)) if len(gaps) > 1 else None


def verdict(found: Estimate, held: bool) -> str:
    """'above', 'below' or 'not told apart'.

    Args:
        found: The difference.
        held: Whether it is above together with the other claims; below it is by its own interval.
    """
    if held:
        return "above"
    low, high = found.interval[1:]
    return "below" if high < 0 else "above alone, not with Holm" if low > 0 else "not told apart"

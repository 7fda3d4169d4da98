"""What a run gains at a KL: read off the upper hull of its policies, which a coin flip between two of them attains."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

KLS = (2.0, 5.0)
"""Nats at which methods are compared."""


class Point(NamedTuple):
    """A policy that was measured, or a point of a limit.

    Attributes:
        kl: Mean from the base, nats.
        reward: Mean.
        error: Standard error of the reward; of the base, what its own adds to every gain.
        kl_error: Standard error of the KL.
        trained: Share of the training that the policy had, 0 to 1.
        without: KL and reward without each block of openings, where errors are told by those and not by the two above.
    """

    kl: float
    reward: float
    error: float = 0.0
    kl_error: float = 0.0
    trained: float = 0.0
    without: Sequence[tuple[float, float]] = ()


class Gain(NamedTuple):
    """Reward over the base's at a KL.

    Attributes:
        value: It.
        error: Standard error from the measuring, where it is not told by blocks.
        trained: Shares of training of the policies whose mixture has it, from the least to the most.
        without: Its value without each block of openings, which all policies were measured on.
    """

    value: float
    error: float = 0.0
    trained: tuple[float, float] = (0.0, 0.0)
    without: Sequence[float] = ()


def hull(path: Sequence[Point]) -> list[Point]:
    """The policies that no mixture of others with the same mean KL has more reward than, by growing KL.

    It ends at the largest KL, and may fall before. Andrew's monotone chain (1979).

    Args:
        path: In any order.
    """
    found: list[Point] = []
    for point in sorted(path, key=lambda each: (each.kl, each.reward)):
        if found and found[-1].kl == point.kl:
            found.pop()
        while len(found) > 1 and _not_above(found[-1], found[-2], point):
            found.pop()
        found.append(point)
    return found


def _not_above(middle: Point, before: Point, after: Point) -> bool:
    """Whether the line from one point to another passes above the one between, or through it."""
    rise = (after.reward - before.reward) * (middle.kl - before.kl)
    return (middle.reward - before.reward) * (after.kl - before.kl) <= rise


def gain_at(path: Sequence[Point], kl: float) -> Gain | None:
    """What a run gains at a KL; None where none of its policies has that KL or more.

    A coin that decides, before each completion, which of two policies writes it makes a policy with the mean of their
    rewards, and with the mean of their KLs at most, as the KL is convex (Cover and Thomas 2006, theorem 2.7.2). So
    every value between two policies is attained; none is foreseen beyond the last.

    Args:
        path: The base, then the policies that were kept, in any order.
        kl: Nats.
    """
    points = hull(path)
    if kl > points[-1].kl:
        return None
    place = bisect_left([point.kl for point in points], kl)
    before, after = points[max(0, place - 1)], points[place]
    width = after.kl - before.kl
    weight = min(1.0, (kl - before.kl) / width) if width else 1.0

    def mixed(of: Callable[[Point], float]) -> float:
        return (1 - weight) * of(before) + weight * of(after)

    slope = (after.reward - before.reward) / width if width else 0.0
    # Where errors go together is not known: summed as if they did within a mixture, and as if they did not otherwise.
    error = math.hypot(mixed(lambda each: each.error), slope * mixed(lambda each: each.kl_error), path[0].error)
    used = [point.trained for point, part in ((before, 1 - weight), (after, weight)) if part > 0]
    return Gain(
        mixed(lambda each: each.reward) - path[0].reward,
        error,
        (min(used), max(used)),
        _without(path[0], before, after, kl),
    )


def _without(base: Point, before: Point, after: Point, kl: float) -> list[float]:
    if not (base.without and before.without and after.without):
        return []
    three = zip(before.without, after.without, base.without, strict=True)
    return [_gain_between(low, high, kl) - reward for low, high, (_, reward) in three]


def _gain_between(before: tuple[float, float], after: tuple[float, float], kl: float) -> float:
    """The reward at a KL of the line through two policies: a block less moves both KLs, perhaps past the one asked."""
    width = after[0] - before[0]
    return before[1] + (after[1] - before[1]) * (kl - before[0]) / width if width else after[1]


def chosen(runs: Mapping[str, Sequence[Point]], kl: float) -> str | None:
    """The setting with the most gain at a KL, of those that reached it.

    Args:
        runs: Path of each setting, of the seed that settings are chosen on.
        kl: Nats.
    """
    gains = {name: gain_at(path, kl) for name, path in runs.items()}
    reached = {name: gain.value for name, gain in gains.items() if gain is not None}
    return max(reached, key=lambda name: reached[name]) if reached else None

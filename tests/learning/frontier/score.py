"""What a run reached at a KL, as a share of what could be reached there, and how methods compare over seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prefopt.stats.intervals import Interval

KLS = (2.0, 5.0)
"""Nats at which methods are compared."""


class Point(NamedTuple):
    """A policy: mean KL from the base in nats, mean reward."""

    kl: float
    reward: float


def reward_at(path: Sequence[Point], kl: float) -> float | None:
    """Reward where a run's path passes a KL for the last time; None where it never does.

    Between two measured policies reward is taken to be linear in the root of the KL, as it is near the base.

    Args:
        path: From the base, through the policies that were kept while it trained, to the last.
        kl: Nats.
    """
    found = None
    for (before, low), (after, high) in itertools.pairwise(path):
        if min(before, after) <= kl <= max(before, after) and before != after:
            start, end = (math.sqrt(max(value, 0.0)) for value in (before, after))
            found = low + (high - low) * (math.sqrt(kl) - start) / (end - start)
    return found


def share(reward: float, limit: Sequence[Point], kl: float) -> float:
    """Part of the limit's gain over the base at a KL that a reward is.

    Args:
        reward: Of a policy with that KL.
        limit: From the base, by growing KL.
        kl: Nats.

    Raises:
        ValueError: When the limit was not estimated up to there.
    """
    best = reward_at(limit, kl)
    if best is None:
        raise ValueError(f"the limit is known up to a KL of {limit[-1].kl:.2f}, and not at {kl}")
    return (reward - limit[0].reward) / (best - limit[0].reward)


def t_interval(values: Sequence[float]) -> Interval:
    """Mean of a few runs with Student's interval at 95 % (Student 1908): a bootstrap of five would be too narrow."""
    from scipy.stats import t

    if len(values) < 2:
        raise ValueError("an interval needs two runs or more")
    count, mean = len(values), sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def chosen(runs: Mapping[str, Sequence[Point]], kl: float) -> str | None:
    """The setting with the highest reward at a KL, of those that reached it.

    Args:
        runs: Path of each setting, of the seed that settings are chosen on.
        kl: Nats.
    """
    rewards = {name: reward_at(path, kl) for name, path in runs.items()}
    reached = {name: reward for name, reward in rewards.items() if reward is not None}
    return max(reached, key=lambda name: reached[name]) if reached else None

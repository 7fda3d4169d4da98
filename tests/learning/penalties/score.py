"""What a policy reached: how often it violates, and how much of the unconstrained gain it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from prefopt.stats.intervals import Interval, bootstrap_mean, bootstrap_ratio, wilson

Row = Mapping[str, Any]


class Seen(NamedTuple):
    """One policy on the held-out prompts.

    Attributes:
        violations: Share of completions that violate, Wilson's interval.
        completions: How many there were, each of another prompt.
        reward: Mean preference score, in which violations cost nothing.
        kept: Share of the unconstrained policy's gain over the base, on the same prompts; None of base and that policy.
        kl: Mean KL from the base, in nats.
    """

    violations: Interval
    completions: int
    reward: Interval
    kept: Interval | None
    kl: float


@dataclass(frozen=True)
class Answers:
    """What a policy said to prompts, by prompt.

    Attributes:
        rewards: Preference scores.
        violated: Whether each violates.
        kl: From the base along each, in nats.
    """

    rewards: Mapping[str, float]
    violated: Mapping[str, bool]
    kl: Mapping[str, float]


def seen(policy: Answers, base: Answers, free: Answers | None) -> Seen:
    """Sum a policy up.

    Args:
        policy: What is measured.
        base: Where training began, on the same prompts at least.
        free: The policy that was trained without penalties; None for base and that policy themselves.

    Raises:
        KeyError: When base or free did not answer a prompt that the policy did.
    """
    prompts = list(policy.rewards)
    kept = None
    if free is not None:
        gains = [policy.rewards[prompt] - base.rewards[prompt] for prompt in prompts]
        kept = bootstrap_ratio(gains, [free.rewards[prompt] - base.rewards[prompt] for prompt in prompts])
    return Seen(
        wilson(sum(policy.violated[prompt] for prompt in prompts), len(prompts)),
        len(prompts),
        bootstrap_mean([policy.rewards[prompt] for prompt in prompts], resamples=2000),
        kept,
        sum(policy.kl[prompt] for prompt in prompts) / len(prompts),
    )


def by_policy(rows: Sequence[Row], cost: str, reward: Sequence[float] | None = None) -> dict[str, Answers]:
    """Lines of an evaluation's `samples.jsonl`, by policy.

    Args:
        rows: With one completion of each policy to each prompt.
        cost: Whose value above 0 is a violation.
        reward: In place of the rows' own.

    Raises:
        ValueError: When a policy answered a prompt twice.
    """
    values = [float(row["reward"]) for row in rows] if reward is None else reward
    found: dict[str, tuple[dict[str, float], dict[str, bool], dict[str, float]]] = {}
    for row, value in zip(rows, values, strict=True):
        rewards, violated, kl = found.setdefault(row["policy"], ({}, {}, {}))
        prompt = repr(row["prompt"])
        if prompt in rewards:
            raise ValueError(f"{row['policy']} answered a prompt twice: completions would not be independent")
        rewards[prompt], violated[prompt], kl[prompt] = value, row["costs"][cost] > 0, float(row["kl"])
    return {name: Answers(*each) for name, each in found.items()}


def mixture(common: Interval, rare: Interval, share: float) -> float:
    """Accuracy on a mixture in which the rare group has a share."""
    return (1 - share) * common.estimate + share * rare.estimate

"""Which completions of a prompt become pairs: pure functions of texts and rewards."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prefopt.records import SampledTokens

Pairing = Literal["best_worst", "random"]


@dataclass(frozen=True)
class Candidate:
    """A completion that may become one side of a pair.

    Attributes:
        text: What was answered.
        reward: What it is paired by: what the judge's scorer gave it, minus what costs take off.
        policy: Who answered.
        raw: What the scorer gave it, where costs take something off.
        sampled: How the policy wrote it; None where nobody said.
    """

    text: str
    reward: float
    policy: str
    raw: float | None = None
    sampled: SampledTokens | None = None


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first of every text: a pair needs two different answers.

    Blank ones are left out, and those with a NUL, which a model that writes bytes may sample and no data set may hold.
    """
    seen: dict[str, Candidate] = {}
    for candidate in candidates:
        if candidate.text.strip() and "\0" not in candidate.text:
            seen.setdefault(candidate.text, candidate)
    return list(seen.values())


def pairs_of(
    candidates: Sequence[Candidate], pairing: Pairing, count: int, rng: random.Random
) -> list[tuple[Candidate, Candidate]]:
    """Disjoint pairs of the completions of one prompt, the higher reward first.

    Args:
        candidates: Of one prompt, in any order.
        pairing: `best_worst` pairs the best with the worst, the second best with the second worst and so on (as in
            iterative DPO, arXiv 2404.19733); `random` pairs at random.
        count: At most this many.
        rng: Of `random`.

    Returns:
        Pairs with different rewards: where the judge sees no difference there is nothing to learn.
    """
    ranked = sorted(distinct(candidates), key=lambda candidate: (-candidate.reward, candidate.text))
    if pairing == "random":
        rng.shuffle(ranked)
    half = len(ranked) // 2
    found = [(ranked[i], ranked[-1 - i]) for i in range(half)]
    ordered = [(a, b) if a.reward >= b.reward else (b, a) for a, b in found]
    return [(better, worse) for better, worse in ordered if better.reward != worse.reward][:count]

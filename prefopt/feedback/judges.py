"""From the rewards of two completions to a label, with the noise that people have."""

from __future__ import annotations

import math
import random
from typing import Literal

Labels = Literal["sampled", "sign", "soft"]


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def label(gap: float, labels: Labels, noise: float, scale: float, rng: random.Random) -> float:
    """Probability that the first completion is preferred, as the label says it.

    Args:
        gap: Reward of the first minus that of the second.
        labels: `sampled` draws 0 or 1 from the Bradley-Terry model σ(scale · gap) (Bradley and Terry 1952), as people
            with that taste would answer; `sign` says 1 for the higher reward; `soft` says σ(scale · gap) itself.
        noise: Share of labels that are flipped afterwards, in [0, 0.5].
        scale: Of the rewards in the Bradley-Terry model.
        rng: Two numbers are drawn from it, whatever the options.

    Returns:
        A number in [0, 1]; one half for a tie of `sign` and `soft`.
    """
    drawn, flip = rng.random(), rng.random() < noise
    if labels == "sampled":
        probability = 1.0 if drawn < sigmoid(scale * gap) else 0.0
    elif labels == "sign":
        probability = 0.5 if gap == 0 else float(gap > 0)
    else:
        probability = sigmoid(scale * gap)
    return 1 - probability if flip else probability

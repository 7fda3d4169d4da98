"""Loss of reward models: the Bradley-Terry likelihood of people's choices, one pure function of scores."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class RewardLoss(NamedTuple):
    """Loss and score differences of a batch, each [B].

    Attributes:
        losses: In nats, one value per pair; average them with the pairs' weights.
        margins: r(chosen) - r(rejected), without gradient; a margin that was asked for is not subtracted.
    """

    losses: Tensor
    margins: Tensor


def reward_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    *,
    probability: Tensor | None = None,
    margin: Tensor | None = None,
    center_rewards_coefficient: float = 0.0,
) -> RewardLoss:
    """Negative log-likelihood of each label under the Bradley-Terry model (arXiv 2203.02155, equation 1).

    With d = r(chosen) - r(rejected) - margin and p the probability that chosen is preferred:

        L = -p log σ(d) - (1 - p) log σ(-d) + c (r(chosen) + r(rejected))²

    The likelihood knows differences only; c pulls the scores themselves to 0 (arXiv 2312.09244). A tie, p = 0.5, pulls
    the two scores together.

    Args:
        chosen_scores: [B].
        rejected_scores: [B].
        probability: [B] in [0, 1], the soft labels; all 1 when None.
        margin: [B], how much better the chosen answer should be scored (arXiv 2307.09288, equation 2); 0 when None.
        center_rewards_coefficient: c, not negative.

    Returns:
        Losses and score differences, [B] each.
    """
    difference = chosen_scores - rejected_scores
    margins = difference.detach()
    if margin is not None:
        difference = difference - margin
    losses = -F.logsigmoid(difference)
    if probability is not None:
        losses = probability * losses - (1 - probability) * F.logsigmoid(-difference)
    if center_rewards_coefficient:
        losses = losses + center_rewards_coefficient * (chosen_scores + rejected_scores).square()
    return RewardLoss(losses, margins)

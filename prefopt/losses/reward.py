"""Losses of reward models: the likelihood of people's choices, and the error of ratings; pure functions of scores."""

from __future__ import annotations

from typing import NamedTuple

import torch
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
    focal_gamma: float = 0.0,
) -> RewardLoss:
    """Negative log-likelihood of each label under the Bradley-Terry model (arXiv 2203.02155, equation 1).

    With d = r(chosen) - r(rejected) - margin and p the probability that chosen is preferred:

        L = -p (1 - σ(d))^γ log σ(d) - (1 - p) σ(d)^γ log σ(-d) + c (r(chosen) + r(rejected))²

    The likelihood knows differences only; c pulls the scores themselves to 0 (arXiv 2312.09244). A tie, p = 0.5, pulls
    the two scores together. γ takes weight from pairs that are already ranked right (arXiv 1708.02002, equation 4,
    without its α); γ = 0 is the likelihood itself, and only then is σ(d) = p the best answer.

    Args:
        chosen_scores: [B], or any shape that the labels broadcast to.
        rejected_scores: The same shape.
        probability: [B] in [0, 1], the soft labels; all 1 when None.
        margin: [B], how much better the chosen answer should be scored (arXiv 2307.09288, equation 2); 0 when None.
        center_rewards_coefficient: c, not negative.
        focal_gamma: γ, not negative.

    Returns:
        Losses and score differences, [B] each.
    """
    difference = chosen_scores - rejected_scores
    margins = difference.detach()
    if margin is not None:
        difference = difference - margin
    losses = _surprise(difference, focal_gamma)
    if probability is not None:
        losses = probability * losses + (1 - probability) * _surprise(-difference, focal_gamma)
    if center_rewards_coefficient:
        losses = losses + center_rewards_coefficient * (chosen_scores + rejected_scores).square()
    return RewardLoss(losses, margins)


def _surprise(difference: Tensor, gamma: float) -> Tensor:
    """-(1 - σ(d))^γ log σ(d)."""
    loss = -F.logsigmoid(difference)
    # As exp(γ log σ(-d)), whose gradient stays finite where 1 - σ(d) is 0.
    return loss * (gamma * F.logsigmoid(-difference)).exp() if gamma else loss


def rating_loss(
    chosen_scores: Tensor, rejected_scores: Tensor, chosen_ratings: Tensor, rejected_ratings: Tensor
) -> RewardLoss:
    """Squared error of absolute ratings, the mean over the two answers of each pair (as in arXiv 2406.08673).

    Args:
        chosen_scores: [B], or any shape that the ratings broadcast to.
        rejected_scores: The same shape.
        chosen_ratings: [B], what people gave the chosen answer.
        rejected_ratings: [B].

    Returns:
        Losses, in squared units of the ratings, and score differences, [B] each.
    """
    errors = (chosen_scores - chosen_ratings).square() + (rejected_scores - rejected_ratings).square()
    return RewardLoss(0.5 * errors, (chosen_scores - rejected_scores).detach())


def labelled(probability: Tensor) -> tuple[Tensor, Tensor]:
    """Soft labels [B] of which some are missing (NaN): the labels with 0.5 in their place, and 1 where there is one."""
    known = ~probability.isnan()
    return torch.where(known, probability, 0.5), known.to(probability)

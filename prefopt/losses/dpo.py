"""Losses of direct preference optimisation: one pure function per variant and a table of names.

Notation, for a pair of chosen w and rejected l, all per row [B]:

- S(y): sum of the completion's token log-probabilities; ρ(y) = S_policy(y) - S_reference(y), the log-ratio
- h = β (ρ(w) - ρ(l)), the difference of implicit rewards β ρ (arXiv 2305.18290, equation 5)
- ε: `label_smoothing`, the probability that the label is wrong

A new variant is one function of `PairStatistics` and one line in `DPO_LOSSES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PairStatistics(NamedTuple):
    """What every variant may use, each [B].

    Attributes:
        chosen_logratio: ρ(w) in nats.
        rejected_logratio: ρ(l) in nats.
        chosen_length: Tokens of w, the end-of-sequence token included.
        rejected_length: Tokens of l.
    """

    chosen_logratio: Tensor
    rejected_logratio: Tensor
    chosen_length: Tensor
    rejected_length: Tensor


class DPOOptions(NamedTuple):
    """Scalars of the variants.

    Attributes:
        beta: Strength of the pull to the reference; above 0.
        label_smoothing: ε in [0, 0.5).
    """

    beta: float = 0.1
    label_smoothing: float = 0.0


class DPOLossOutput(NamedTuple):
    """Loss and implicit rewards of a batch, each [B].

    Attributes:
        losses: One value per pair; average them with the pairs' weights.
        chosen_rewards: β ρ(w), without gradient.
        rejected_rewards: β ρ(l), without gradient.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


Variant = Callable[[PairStatistics, DPOOptions], Tensor]


def _advantage(pair: PairStatistics, options: DPOOptions) -> Tensor:
    return options.beta * (pair.chosen_logratio - pair.rejected_logratio)


def sigmoid_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """-log σ(h): Bradley-Terry maximum likelihood (arXiv 2305.18290, equation 7)."""
    return -F.logsigmoid(_advantage(pair, options))


def conservative_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """-(1-ε) log σ(h) - ε log σ(-h): cDPO (Mitchell 2023, "A note on DPO with noisy preferences", equation 4).

    Cross-entropy with the smoothed label; the minimiser is h* = log((1-ε)/ε), so h cannot run away.
    """
    h = _advantage(pair, options)
    epsilon = options.label_smoothing
    return -(1 - epsilon) * F.logsigmoid(h) - epsilon * F.logsigmoid(-h)


def robust_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """[-(1-ε) log σ(h) + ε log σ(-h)] / (1-2ε): rDPO (arXiv 2403.00409, equation 12).

    An unbiased estimate of the clean loss under labels flipped with probability ε; unbounded below.
    """
    h = _advantage(pair, options)
    epsilon = options.label_smoothing
    return (-(1 - epsilon) * F.logsigmoid(h) + epsilon * F.logsigmoid(-h)) / (1 - 2 * epsilon)


def hinge_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """max(0, 1 - h): the hinge of SLiC-HF on log-ratios (arXiv 2305.10425; arXiv 2309.06657, equation 9)."""
    return torch.relu(1 - _advantage(pair, options))


def ipo_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """(ρ(w)/|w| - ρ(l)/|l| - 1/(2β))²: IPO (arXiv 2310.12036, equation 17), log-ratios averaged over tokens.

    β is the paper's τ. The average is TRL's and HALOs' reading; the paper's text has the sum.
    """
    chosen = pair.chosen_logratio / pair.chosen_length
    rejected = pair.rejected_logratio / pair.rejected_length
    return (chosen - rejected - 1 / (2 * options.beta)) ** 2


DPO_LOSSES: dict[str, Variant] = {
    "sigmoid": sigmoid_loss,
    "cdpo": conservative_loss,
    "robust": robust_loss,
    "hinge": hinge_loss,
    "ipo": ipo_loss,
}


def dpo_loss(
    pair: PairStatistics,
    loss_type: str = "sigmoid",
    options: DPOOptions | None = None,
    probability: Tensor | None = None,
) -> DPOLossOutput:
    """The loss of each pair under the named variant.

    With a soft label p the loss is its expectation over the two orders, p L(w, l) + (1 - p) L(l, w), as in cDPO; a tie
    has p = 0.5.

    Args:
        pair: Log-ratios and lengths, each [B].
        loss_type: A name of `DPO_LOSSES`.
        options: Scalars of the variant.
        probability: P(w is preferred to l) of each pair [B], in [0, 1]; certain when None.

    Returns:
        Losses and implicit rewards, each [B].

    Raises:
        ValueError: For an unknown name, tensors that are not [B] of one size, or options out of range.
    """
    shapes = {tuple(tensor.shape) for tensor in pair}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"expected four tensors [B] of one size, got {[list(tensor.shape) for tensor in pair]}")
    options = options or DPOOptions()
    if options.beta <= 0 or not 0 <= options.label_smoothing < 0.5:
        raise ValueError(f"beta must be above 0 and label_smoothing in [0, 0.5), got {options}")
    if loss_type not in DPO_LOSSES:
        raise ValueError(f"unknown loss_type {loss_type!r}; known: {', '.join(DPO_LOSSES)}")
    losses = DPO_LOSSES[loss_type](pair, options)
    if probability is not None and bool((probability != 1).any()):
        swapped = PairStatistics(pair.rejected_logratio, pair.chosen_logratio, pair.rejected_length, pair.chosen_length)
        losses = probability * losses + (1 - probability) * DPO_LOSSES[loss_type](swapped, options)
    return DPOLossOutput(
        losses=losses,
        chosen_rewards=(options.beta * pair.chosen_logratio).detach(),
        rejected_rewards=(options.beta * pair.rejected_logratio).detach(),
    )

"""Loss of imitation, token by token: what is flagged is unlearned instead, and what is rare or hard may count more."""

from __future__ import annotations

from torch import Tensor

from prefopt.losses.unlikelihood import log_complement, unlikelihood


def sft_losses(
    logps: Tensor,
    *,
    imitation: Tensor | None = None,
    unlikelihood_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Loss of each token of a demonstration, nats.

    With ℓ = log p of the token, i how far it is imitated and λ what it weighs to unlearn it:

        L = -i (1 - p)^γ ℓ - λ log(1 - p)

    A token that a cost has flagged has i = 0 (arXiv 1908.04319 with weighted tokens); λ = 0 leaves it out. γ takes
    weight from tokens that are foreseen already (arXiv 1708.02002, equation 4, without its α, which is a row's weight);
    γ = 0 is the likelihood itself.

    Args:
        logps: ℓ, any shape.
        imitation: i of the same shape, in [0, 1]; 1 when None.
        unlikelihood_weights: λ of the same shape, not negative; 0 when None.
        focal_gamma: γ, not negative.

    Returns:
        Losses of the same shape.
    """
    losses = -logps
    if focal_gamma:
        losses = losses * (focal_gamma * log_complement(logps)).exp()
    if imitation is not None:
        losses = losses * imitation
    if unlikelihood_weights is not None:
        losses = losses + unlikelihood_weights * unlikelihood(logps)
    return losses

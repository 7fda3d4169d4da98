"""Loss of preference optimisation: variants by name, mixtures, soft labels and robust averages.

The variants are in `prefopt.losses.dpo_variants`, the notation in `prefopt.losses.pair_statistics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prefopt.losses.dpo_variants import DPO_LOSSES
from prefopt.losses.pair_statistics import CompletionStatistics, DPOOptions, PairStatistics, reference_summed, summed

REFERENCE_FREE = frozenset({"sft", "simpo", "cpo", "orpo"})
"""Variants that need no reference."""
LENGTH_NORMALISED = frozenset({"ipo", "sigmoid_norm"})
"""Variants with a reference that compare averages over tokens: a cost of the whole answer has no place in them."""
SORTED = frozenset({"aot", "aot_unpaired"})
"""Variants that compare distributions over a batch: their rows are ranks, so rows have no weights and labels."""


class DPOLossOutput(NamedTuple):
    """Loss and implicit rewards of a batch, each [B].

    Attributes:
        losses: One value per pair; average them with the pairs' weights.
        chosen_rewards: β ρ(w) without gradient; β S(w) where there is no reference.
        rejected_rewards: The same of l.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def dpo_loss(
    pair: PairStatistics,
    loss_type: str | Sequence[str] = "sigmoid",
    options: DPOOptions | None = None,
    probability: Tensor | None = None,
    loss_weights: Sequence[float] | None = None,
    *,
    costs: tuple[Tensor, Tensor] | None = None,
) -> DPOLossOutput:
    """The loss of each pair under the named variant, or under a weighted sum of several (MPO, arXiv 2411.10442).

    With a soft label p the loss is its expectation over the two orders, p L(w, l) + (1 - p) L(l, w), as in cDPO; a tie
    has p = 0.5.

    Args:
        pair: Statistics of the two completions.
        loss_type: A name of `DPO_LOSSES`, or several.
        options: Scalars of the variants.
        probability: P(w is preferred to l) of each pair [B], in [0, 1]; certain when None.
        loss_weights: Of each name; 1 when None.
        costs: Of the chosen and of the rejected completions, [B] each, in the unit of h; see `tilted`.

    Returns:
        Losses and implicit rewards, each [B].

    Raises:
        ValueError: For an unknown name, tensors that are not [B] of one size, options out of range, a statistic that a
            variant needs and the pair lacks, soft labels for a variant that sorts, or costs for one that averages over
            tokens.
    """
    _check_shapes(pair)
    options = options or DPOOptions()
    if options.beta <= 0 or not 0 <= options.label_smoothing < 0.5:
        raise ValueError(f"beta must be above 0 and label_smoothing in [0, 0.5), got {options}")
    names = [loss_type] if isinstance(loss_type, str) else list(loss_type)
    shares = [1.0] * len(names) if loss_weights is None else list(loss_weights)
    if not names or len(names) != len(shares):
        raise ValueError(f"{len(names)} loss types have {len(shares)} loss_weights")
    if probability is not None and not bool((probability != 1).any()):
        probability = None
    if costs is not None and (averaged := LENGTH_NORMALISED & set(names)):
        raise ValueError(f"{sorted(averaged)[0]} compares averages over tokens, and a cost is one of the whole answer")
    compared = pair if costs is None else tilted(pair, *costs, options.beta)
    losses = torch.zeros_like(pair.chosen.logps)
    for name, share in zip(names, shares, strict=True):
        losses = losses + share * _expected(compared, name, options, probability)
    with torch.no_grad():
        rewards = [options.beta * _implicit(side, options) for side in (pair.chosen, pair.rejected)]
    return DPOLossOutput(losses, rewards[0], rewards[1])


def tilted(pair: PairStatistics, chosen_costs: Tensor, rejected_costs: Tensor, beta: float) -> PairStatistics:
    """The pairs as seen from the reference tilted by the costs, π_ref exp(-c / β) up to a constant.

    Labels say what people like, r; what is wanted is the optimum of r - c, π* ∝ π_ref exp((r - c) / β). There
    r(w) - r(l) = h + c(w) - c(l), so that is what labels are compared with (MODPO, arXiv 2310.03708, equation 9): the
    cheaper answer must win by more than people say. It is the margin h of ordinary DPO, from the tilted reference.

    Args:
        pair: With `reference_logps`.
        chosen_costs: c(w) [B], in the unit of h.
        rejected_costs: c(l) [B].
        beta: β.

    Raises:
        ValueError: Where the statistics lack a reference.
    """
    sides = []
    for side, costs in ((pair.chosen, chosen_costs), (pair.rejected, rejected_costs)):
        if side.reference_logps is None:
            raise ValueError("costs tilt the reference, and this loss has none")
        sides.append(side._replace(reference_logps=side.reference_logps - costs / beta))
    return pair._replace(chosen=sides[0], rejected=sides[1])


def needs_reference(loss_types: Sequence[str]) -> bool:
    """Whether any of the variants compares with a reference."""
    return not set(loss_types) <= REFERENCE_FREE


def dr_dpo(losses: Tensor, weights: Tensor, dr_beta: float) -> Tensor:
    """-β' log Σ w exp(-L / β') / Σ w: Dr. DPO's average of the pairs' losses (arXiv 2407.07880), a scalar.

    Pairs with a high loss, which are likely to be labelled wrong, count less: β' of infinity is the mean, β' of 0 the
    minimum. The average is over one micro-batch.

    Args:
        losses: [B], nats.
        weights: [B], not negative.
        dr_beta: β', above 0.
    """
    total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    log_weights = torch.where(weights > 0, (weights / total).log(), -torch.inf)
    return -dr_beta * torch.logsumexp(log_weights - losses / dr_beta, dim=0)


def _expected(pair: PairStatistics, name: str, options: DPOOptions, probability: Tensor | None) -> Tensor:
    if name not in DPO_LOSSES:
        raise ValueError(f"unknown loss_type {name!r}; known: {', '.join(DPO_LOSSES)}")
    losses = _weighed(pair, name, options)
    if probability is None:
        return losses
    if name in SORTED:
        raise ValueError(f"{name} sorts the batch: it cannot use the pairs' soft labels")
    return probability * losses + (1 - probability) * _weighed(pair.swapped(), name, options)


def _weighed(pair: PairStatistics, name: str, options: DPOOptions) -> Tensor:
    losses = DPO_LOSSES[name](pair, options)
    if not options.use_weighting:
        return losses
    chosen, rejected = pair.chosen.alignment, pair.rejected.alignment
    if name in SORTED or chosen is None or rejected is None:
        raise ValueError(f"use_weighting needs the alignment of both completions, and a loss of pairs, not {name}")
    return losses * chosen * rejected


def _implicit(side: CompletionStatistics, options: DPOOptions) -> Tensor:
    policy = summed(side, options)
    return policy if side.reference_logps is None else policy - reference_summed(side, options)


def _check_shapes(pair: PairStatistics) -> None:
    tensors = [value for value in (*pair.chosen, *pair.rejected, pair.margin) if value is not None]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"expected tensors [B] of one size, got {[list(tensor.shape) for tensor in tensors]}")

"""What the losses of the DPO family may use of a pair, and their scalars.

Notation, for a pair of chosen w and rejected l, all per row [B]:

- S(y): sum of the completion's token log-probabilities, |y| its tokens; ρ(y) = S_policy(y) - S_reference(y)
- s(y): the score that is compared, ρ(y) unless `f_divergence_type` says otherwise; with `ld_alpha`, S counts the tokens
  beyond the shorter of the two completions α-fold (LD-DPO, arXiv 2409.06411)
- h = β (s(w) - s(l)), the margin
- ε: `label_smoothing`, the probability that the label is wrong
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
# exp of more than this overflows a float32.
_LARGEST_EXPONENT = 80.0


class CompletionStatistics(NamedTuple):
    """One completion of every pair; tensors [B].

    Attributes:
        logps: S under the policy, in nats.
        length: Tokens, the end-of-sequence token included.
        reference_logps: S under the reference; None where no loss needs it.
        tail_logps: Part of `logps` beyond the shorter completion of the pair; for `ld_alpha`.
        reference_tail_logps: The same of `reference_logps`.
        sequential_kl: Σ_t KL(reference ‖ policy) of the next-token distributions, in nats; for TDPO.
        alignment: exp(mean_t(log π(y_t) - log Σ_v π(v)²)), without gradient: how likely the completion is under the
            policy, relative to what it samples (arXiv 2406.11827, equation 2); for WPO.
    """

    logps: Tensor
    length: Tensor
    reference_logps: Tensor | None = None
    tail_logps: Tensor | None = None
    reference_tail_logps: Tensor | None = None
    sequential_kl: Tensor | None = None
    alignment: Tensor | None = None


class PairStatistics(NamedTuple):
    """A batch of pairs.

    Attributes:
        chosen: w.
        rejected: l.
        margin: [B], how much better w was rated than l; below 0 where the label prefers l. For `odpo` and `rpo`.
        mean_chosen_length: Scalar, tokens of w averaged over the pairs that a step's loss is averaged over; for `sft`
            and `cpo`. By default over this batch.
        mean_rejected_length: The same of l, which takes its place where the label prefers l.
    """

    chosen: CompletionStatistics
    rejected: CompletionStatistics
    margin: Tensor | None = None
    mean_chosen_length: Tensor | None = None
    mean_rejected_length: Tensor | None = None

    def swapped(self) -> PairStatistics:
        """The pairs under the opposite label."""
        margin = None if self.margin is None else -self.margin
        return PairStatistics(self.rejected, self.chosen, margin, self.mean_rejected_length, self.mean_chosen_length)


class DPOOptions(NamedTuple):
    """Scalars of the losses.

    Attributes:
        beta: Strength of the pull to the reference; above 0.
        label_smoothing: ε in [0, 0.5).
        ld_alpha: Weight in [0, 1] of the tokens beyond the shorter completion; None is 1.
        f_divergence_type: Divergence that the policy is regularised with (arXiv 2309.16240, table 1).
        f_alpha_divergence_coef: α of `alpha_divergence`.
        use_weighting: Weigh pairs by how likely the policy would sample them (WPO, arXiv 2406.11827).
        simpo_gamma: Target margin γ of `simpo`.
        cpo_alpha: Weight of the likelihood in `cpo`.
        orpo_lambda: Weight λ of the odds ratio in `orpo`.
        discopop_tau: Temperature of the mixture in `discopop`.
        rdpo_alpha: Price of a token in `rdpo`, in the unit of h.
        chipo_clip: R of `chipo`: h is kept in [-2R, 2R].
        dpop_lambda: Weight λ of a fall of the chosen completion in `dpop`.
        tdpo_alpha: Weight α of the difference of sequential divergences in `tdpo`.
        ropo_alpha: α of `ropo`, at least 1.
        rpo_eta: η: what a unit of `margin` is worth in the unit of h, in `rpo`.
        odpo_alpha: What `margin` is multiplied with in `odpo`.
        focal_gamma: γ of `sigmoid`: takes weight from pairs that are ranked right already.
        dr_beta: β' of Dr. DPO, which weighs pairs of high loss less; None weighs all the same.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    ld_alpha: float | None = None
    f_divergence_type: FDivergence = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    use_weighting: bool = False
    simpo_gamma: float = 0.5
    cpo_alpha: float = 1.0
    orpo_lambda: float = 0.1
    discopop_tau: float = 0.05
    rdpo_alpha: float = 0.01
    chipo_clip: float = 10.0
    dpop_lambda: float = 50.0
    tdpo_alpha: float = 0.5
    ropo_alpha: float = 2.0
    rpo_eta: float = 1.0
    odpo_alpha: float = 1.0
    focal_gamma: float = 0.0
    dr_beta: float | None = None


def summed(side: CompletionStatistics, options: DPOOptions) -> Tensor:
    """S(y) under the policy, the tail weighted with `ld_alpha`, [B]."""
    return _without_tail(side.logps, side.tail_logps, options)


def reference_summed(side: CompletionStatistics, options: DPOOptions) -> Tensor:
    """S(y) under the reference, the tail weighted with `ld_alpha`, [B].

    Raises:
        ValueError: Where the statistics lack it.
    """
    if side.reference_logps is None:
        raise ValueError("this loss compares with a reference: reference_logps are needed")
    return _without_tail(side.reference_logps, side.reference_tail_logps, options)


def logratio(side: CompletionStatistics, options: DPOOptions) -> Tensor:
    """ρ(y), [B]."""
    return summed(side, options) - reference_summed(side, options)


def score(side: CompletionStatistics, options: DPOOptions) -> Tensor:
    """s(y) = f'(π / π_reference) up to a constant, [B] (arXiv 2309.16240, table 1)."""
    rho = logratio(side, options)
    match options.f_divergence_type:
        case "reverse_kl":  # f'(u) = log u + 1
            return rho
        case "forward_kl":  # f'(u) = -1/u
            return 1 - torch.exp((-rho).clamp(max=_LARGEST_EXPONENT))
        case "js_divergence":  # f'(u) = log(2u / (1 + u))
            return math.log(2) + F.logsigmoid(rho)
        case "alpha_divergence":  # f'(u) = (u^(α-1) - 1) / (α - 1), which tends to log u as α tends to 1
            power = options.f_alpha_divergence_coef - 1
            return rho if abs(power) < 1e-6 else torch.expm1((power * rho).clamp(max=_LARGEST_EXPONENT)) / power
    raise ValueError(f"unknown f_divergence_type {options.f_divergence_type!r}")


def advantage(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """h, [B]."""
    return options.beta * (score(pair.chosen, options) - score(pair.rejected, options))


def needed(value: Tensor | None, name: str) -> Tensor:
    """A statistic that a loss cannot do without.

    Raises:
        ValueError: Where it is missing.
    """
    if value is None:
        raise ValueError(f"this loss needs {name}")
    return value


def _without_tail(sums: Tensor, tail: Tensor | None, options: DPOOptions) -> Tensor:
    if options.ld_alpha is None:
        return sums
    return sums - (1 - options.ld_alpha) * needed(tail, "tail_logps, as ld_alpha is set")

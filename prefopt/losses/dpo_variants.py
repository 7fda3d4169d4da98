"""Losses of the DPO family: one pure function per variant, and the table of names.

A function takes `PairStatistics` and `DPOOptions` and returns the loss of every pair, [B]; notation and shapes as in
`prefopt.losses.pair_statistics`. A new variant is one function here and one line in `DPO_LOSSES`, and one line in
`prefopt.recipe.options.dpo`, which types its name and the options that it reads.

Where a name exists in TRL 1.16 the function computes the same number, with these differences on purpose:

- `label_smoothing` with `sigmoid` is refused by recipes; TRL ignores it. `cdpo` is the loss that people mean.
- `sft` divides by the tokens of the whole optimiser step where the trainer knows them, TRL by those of a micro-batch:
  on one micro-batch the two are the same.
- `cpo` and `simpo` are losses like any other; TRL has them in another trainer. In `orpo` the likelihood is that of the
  completion; TRL counts the prompt too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.losses.pair_statistics import (
    CompletionStatistics,
    DPOOptions,
    PairStatistics,
    advantage,
    logratio,
    needed,
    reference_summed,
    score,
    summed,
)

Variant = Callable[[PairStatistics, DPOOptions], Tensor]


def _smoothed(h: Tensor, epsilon: float) -> Tensor:
    return -(1 - epsilon) * F.logsigmoid(h) - epsilon * F.logsigmoid(-h)


def _rewards(pair: PairStatistics, options: DPOOptions) -> tuple[Tensor, Tensor]:
    """The implicit rewards a = β ρ(w) and b = β ρ(l): these losses know no other divergence."""
    return options.beta * logratio(pair.chosen, options), options.beta * logratio(pair.rejected, options)


def _per_token(side: CompletionStatistics, values: Tensor) -> Tensor:
    return values / side.length


# -- comparisons with a reference --------------------------------------------------------------------------------------


def sigmoid_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """-σ(-h)^γ log σ(h): with γ = 0 Bradley-Terry maximum likelihood (arXiv 2305.18290, equation 7).

    γ is that of the focal loss (arXiv 1708.02002, equation 4), `focal_gamma`.
    """
    h = advantage(pair, options)
    loss = -F.logsigmoid(h)
    # As exp(γ log σ(-h)), whose gradient stays finite where σ(-h) is 0.
    return loss * (options.focal_gamma * F.logsigmoid(-h)).exp() if options.focal_gamma else loss


def conservative_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """-(1-ε) log σ(h) - ε log σ(-h): cDPO (Mitchell 2023, "A note on DPO with noisy preferences", equation 4).

    Cross-entropy with the smoothed label; the minimiser is h* = log((1-ε)/ε), so h cannot run away.
    """
    return _smoothed(advantage(pair, options), options.label_smoothing)


def robust_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """[-(1-ε) log σ(h) + ε log σ(-h)] / (1-2ε): rDPO (arXiv 2403.00409, equation 12).

    An unbiased estimate of the clean loss under labels flipped with probability ε; unbounded below.
    """
    h, epsilon = advantage(pair, options), options.label_smoothing
    return (-(1 - epsilon) * F.logsigmoid(h) + epsilon * F.logsigmoid(-h)) / (1 - 2 * epsilon)


def hinge_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """max(0, 1 - h): the hinge of SLiC-HF on log-ratios (arXiv 2305.10425; arXiv 2309.06657, equation 9)."""
    return torch.relu(1 - advantage(pair, options))


def ipo_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """(s(w)/|w| - s(l)/|l| - 1/(2β))²: IPO (arXiv 2310.12036, equation 17), averaged over tokens.

    β is the paper's τ. The average is TRL's and HALOs' reading, and that of the paper's experiments; its text has the
    sum, which is `ipo_sum`.
    """
    chosen, rejected = (_per_token(side, score(side, options)) for side in (pair.chosen, pair.rejected))
    return (chosen - rejected - 1 / (2 * options.beta)).square()


def ipo_sum_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """(s(w) - s(l) - 1/(2β))²: IPO as its text has it (arXiv 2310.12036, equation 17); OpenRLHF's reading."""
    return (score(pair.chosen, options) - score(pair.rejected, options) - 1 / (2 * options.beta)).square()


def sigmoid_norm_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """-log σ(β (s(w)/|w| - s(l)/|l|)): length-normalised DPO (arXiv 2411.15124, equation 6)."""
    chosen, rejected = (_per_token(side, score(side, options)) for side in (pair.chosen, pair.rejected))
    return -F.logsigmoid(options.beta * (chosen - rejected))


def exo_pair_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """KL of the law (σ(h), σ(-h)) from (1-ε, ε): EXO (arXiv 2402.00856, equation 16); ε must be above 0."""
    h, epsilon = advantage(pair, options), options.label_smoothing
    if epsilon <= 0:
        raise ValueError("exo_pair compares with the law (1-ε, ε): label_smoothing must be above 0, such as 0.001")
    right = torch.sigmoid(h) * (F.logsigmoid(h) - math.log1p(-epsilon))
    return right + torch.sigmoid(-h) * (F.logsigmoid(-h) - math.log(epsilon))


def discopop_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """(1-g) (-log σ(h)) + g exp(-h) with g = σ(h/τ): a loss that was searched for (arXiv 2406.08414, equation 5).

    The exponential counts where g is not 0; it is cut where it would overflow, and g is 0 there.
    """
    h = advantage(pair, options)
    gate = torch.sigmoid(h / options.discopop_tau)
    return (1 - gate) * -F.logsigmoid(h) + gate * torch.exp((-h).clamp(max=80.0))


def rdpo_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """-log σ(h + α (|w| - |l|)): R-DPO (arXiv 2403.19159), DPO of the reward minus α for every token.

    The sign: the optimal policy of r - α|y| has r(w) - r(l) = β (ρ(w) - ρ(l)) + α (|w| - |l|). With a minus, as some
    ports have it, long answers would be rewarded.
    """
    return -F.logsigmoid(advantage(pair, options) + options.rdpo_alpha * (pair.chosen.length - pair.rejected.length))


def chipo_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """-log σ(clip(β [φ(e^ρ(w)) - φ(e^ρ(l))], ±2R)) with φ(z) = z + log z: χPO (arXiv 2407.13399).

    Near the reference φ has the slope 2, so that half of DPO's β pulls as strongly. Beyond the clip nothing is learnt.
    """
    rho = [logratio(side, options) for side in (pair.chosen, pair.rejected)]
    chosen, rejected = (r + torch.exp(r.clamp(max=80.0)) for r in rho)
    limit = 2 * options.chipo_clip
    return -F.logsigmoid((options.beta * (chosen - rejected)).clamp(-limit, limit))


def dpop_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """-log σ(β (ρ(w) - ρ(l) - λ max(0, -ρ(w)))): DPO-positive (arXiv 2402.13228).

    The chosen answer must not become less likely than under the reference.
    """
    a, b = _rewards(pair, options)
    return -F.logsigmoid(a - b - options.dpop_lambda * torch.relu(-a))


def tdpo_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """-log σ(h - αβ (D(l) - sg D(w))): TDPO2 (arXiv 2404.11999), D the sequential KL(reference ‖ policy).

    The divergence of the chosen answer is a target without gradient, so that of the rejected one may not run ahead.
    """
    chosen, rejected = (needed(side.sequential_kl, "sequential_kl") for side in (pair.chosen, pair.rejected))
    a, b = _rewards(pair, options)
    return -F.logsigmoid(a - b - options.tdpo_alpha * options.beta * (rejected - chosen.detach()))


def ropo_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """4α/(1+α)² [-log σ(h)] + 4α²/(1+α)² σ(-h): ROPO (arXiv 2404.04102).

    The second part is bounded, so a label that the policy disbelieves strongly pulls less. The factors make the
    steepest slope in h exactly 1, for α of at least 1.
    """
    h, alpha = advantage(pair, options), options.ropo_alpha
    scale = 4 * alpha / (1 + alpha) ** 2
    return scale * (-F.logsigmoid(h) + alpha * torch.sigmoid(-h))


def rpo_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """KL(Bernoulli(σ(η Δr)) ‖ Bernoulli(σ(h))) with Δr the margin: reward-aware preference optimisation.

    As in NeMo-Aligner (arXiv 2406.11704): the policy's margin is to equal the rated one,
    and the loss is 0 where it does. DPO is the limit of an infinite Δr.
    """
    h, target = advantage(pair, options), options.rpo_eta * needed(pair.margin, "a margin of every pair")
    right = torch.sigmoid(target) * (F.logsigmoid(target) - F.logsigmoid(h))
    return right + torch.sigmoid(-target) * (F.logsigmoid(-target) - F.logsigmoid(-h))


def odpo_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """-log σ(h - α Δr) with Δr the margin: DPO with an offset (arXiv 2402.10571).

    The paper's offset is α f(Δr) with a growing f, a logarithm in most of its experiments; here the data says f(Δr).
    """
    return -F.logsigmoid(advantage(pair, options) - options.odpo_alpha * needed(pair.margin, "a margin of every pair"))


# -- each completion against the reference on its own ------------------------------------------------------------------


def nca_pair_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """-log σ(a) - ½ log σ(-a) - ½ log σ(-b): noise contrastive alignment (arXiv 2402.05369)."""
    a, b = _rewards(pair, options)
    return -F.logsigmoid(a) - 0.5 * F.logsigmoid(-a) - 0.5 * F.logsigmoid(-b)


def bco_pair_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """-log σ(a) - log σ(-b): binary classifier optimisation (arXiv 2404.04656), with the shift δ at 0."""
    a, b = _rewards(pair, options)
    return -F.logsigmoid(a) - F.logsigmoid(-b)


def sppo_hard_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """(ρ(w) - 1/(2β))² + (ρ(l) + 1/(2β))²: SPPO with certain labels (arXiv 2405.00675, equation 4.7)."""
    target = 0.5 / options.beta
    chosen, rejected = logratio(pair.chosen, options), logratio(pair.rejected, options)
    return (chosen - target).square() + (rejected + target).square()


def apo_zero_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """1 - σ(a) + σ(b): anchored preference optimisation, for answers above the policy's (arXiv 2408.06266, eq. 7)."""
    a, b = _rewards(pair, options)
    return torch.sigmoid(-a) + torch.sigmoid(b)


def apo_down_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """σ(a) + 1 - σ(a - b): the same for answers below the policy's, which all fall (arXiv 2408.06266, equation 8)."""
    a, b = _rewards(pair, options)
    return torch.sigmoid(a) + torch.sigmoid(b - a)


# -- distributions over the batch --------------------------------------------------------------------------------------


def aot_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """Smoothed -log σ(β δ) with δ the difference of sorted margins: alignment by optimal transport (arXiv 2406.05882).

    The policy's margins S(w) - S(l) of the batch, sorted, are compared with the reference's, sorted: first-order
    stochastic dominance. Row i of the result is rank i, not pair i, and the batch is the micro-batch.
    """
    policy = summed(pair.chosen, options) - summed(pair.rejected, options)
    reference = reference_summed(pair.chosen, options) - reference_summed(pair.rejected, options)
    delta = policy.sort().values - reference.sort().values
    return _smoothed(options.beta * delta, options.label_smoothing)


def aot_unpaired_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """The same with the sorted ρ(w) against the sorted ρ(l), which need not be pairs (arXiv 2406.05882)."""
    delta = logratio(pair.chosen, options).sort().values - logratio(pair.rejected, options).sort().values
    return _smoothed(options.beta * delta, options.label_smoothing)


# -- without a reference -----------------------------------------------------------------------------------------------


def sft_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """-S(w) over the mean |w|: averaged over pairs it is the mean over tokens of the chosen answers' likelihood.

    A part of mixtures, such as RPO's L_DPO + α L_NLL (arXiv 2404.19733, equation 1; its likelihood is a mean per
    answer). `ld_alpha` does not reach it.
    """
    mean = pair.chosen.length.mean() if pair.mean_chosen_length is None else pair.mean_chosen_length
    return -pair.chosen.logps / mean


def simpo_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """-log σ(β S(w)/|w| - β S(l)/|l| - γ): SimPO (arXiv 2405.14734, equation 6); β of 2 to 10 is usual."""
    chosen, rejected = (_per_token(side, summed(side, options)) for side in (pair.chosen, pair.rejected))
    return -F.logsigmoid(options.beta * (chosen - rejected) - options.simpo_gamma)


def cpo_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """-log σ(β (S(w) - S(l))) + α · NLL(w): contrastive preference optimisation (arXiv 2401.08417)."""
    margin = options.beta * (summed(pair.chosen, options) - summed(pair.rejected, options))
    return -F.logsigmoid(margin) + options.cpo_alpha * sft_loss(pair, options)


def orpo_loss(pair: PairStatistics, options: DPOOptions) -> Tensor:
    """NLL(w)/|w| - λ log σ(log odds(w) - log odds(l)): ORPO (arXiv 2403.07691).

    odds = p / (1-p) with p = exp(S/|y|), the geometric mean of the tokens' probabilities.
    """
    chosen, rejected = (_per_token(side, summed(side, options)) for side in (pair.chosen, pair.rejected))
    log_odds = (chosen - _log1mexp(chosen)) - (rejected - _log1mexp(rejected))
    return -chosen - options.orpo_lambda * F.logsigmoid(log_odds)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0 without cancellation (Mächler 2012); x of 0 is taken as just below."""
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    # Both branches are evaluated, and an infinite gradient times 0 would be NaN.
    near, far = x.clamp(min=-math.log(2)), x.clamp(max=-math.log(2))
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(near)), torch.log1p(-torch.exp(far)))


DPO_LOSSES: dict[str, Variant] = {
    "sigmoid": sigmoid_loss,
    "cdpo": conservative_loss,
    "robust": robust_loss,
    "hinge": hinge_loss,
    "ipo": ipo_loss,
    "ipo_sum": ipo_sum_loss,
    "sigmoid_norm": sigmoid_norm_loss,
    "exo_pair": exo_pair_loss,
    "discopop": discopop_loss,
    "rdpo": rdpo_loss,
    "chipo": chipo_loss,
    "dpop": dpop_loss,
    "tdpo": tdpo_loss,
    "ropo": ropo_loss,
    "rpo": rpo_loss,
    "odpo": odpo_loss,
    "nca_pair": nca_pair_loss,
    "bco_pair": bco_pair_loss,
    "sppo_hard": sppo_hard_loss,
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "aot": aot_loss,
    "aot_unpaired": aot_unpaired_loss,
    "sft": sft_loss,
    "simpo": simpo_loss,
    "cpo": cpo_loss,
    "orpo": orpo_loss,
}

"""Proximal policy optimisation for language models: the arithmetic between a rollout and its gradient.

Shape suffixes: B episodes, L completion positions. A mask [B, L] is 1 on completion tokens, the end-of-sequence token
included, and 0 after them. `values[:, t]` is V(s_t), the value before token t is chosen. Everything is per token and
nothing depends on padding. Order of use: `token_rewards`, `gae`, `masked_whiten`, then `ppo_loss` for every minibatch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]
Reduce = Callable[[Tensor], Tensor]


def _alone(sums: Tensor) -> Tensor:
    return sums


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions of the mask, a scalar; 0 where the mask is empty."""
    return torch.where(mask.bool(), values, 0.0).sum() / mask.sum().clamp(min=1)


def kl_tokens(
    logps: Tensor,
    reference_logps: Tensor,
    mask: Tensor,
    estimator: KLEstimator = "k1",
    *,
    for_reward: bool = False,
    for_loss: bool = False,
) -> Tensor:
    """Estimate of each token's KL(policy ‖ reference) from the token that was sampled (Schulman 2020).

    With d = log π - log π_ref: k1 = d, k2 = d²/2, k3 = exp(-d) - 1 + d. All estimate the same number, but as part of
    the reward only k1 has its gradient (arXiv 2506.09477): E[k3 ∇log π] = ∇KL(π ‖ ref) - ∇KL(ref ‖ π), which cancels
    near the reference, and k2 fails in the same way. As a loss, differentiated where it was sampled, k1 has gradient 0
    in expectation, k2 that of KL(π ‖ ref) of the token, and k3 that of KL(ref ‖ π).

    Args:
        logps: [B, L], of the policy, nats.
        reference_logps: [B, L].
        mask: [B, L].
        estimator: Which of the three.
        for_reward: Whether the result goes into the reward.
        for_loss: Whether the result is differentiated.

    Returns:
        [B, L], nats, 0 outside the mask.

    Raises:
        ValueError: For k2 or k3 in the reward, and for k1 as a loss.
    """
    if for_reward and estimator != "k1":
        raise ValueError(f"{estimator} in the reward has the wrong gradient (arXiv 2506.09477); use k1")
    if for_loss and estimator == "k1":
        raise ValueError("k1 as a loss has no gradient in expectation (arXiv 2506.09477); use k2 or k3")
    # Log-probabilities of padding may be anything, infinite as well.
    difference = torch.where(mask.bool(), logps - reference_logps, 0.0)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    return torch.expm1(-difference) + difference


def token_rewards(
    scores: Tensor,
    kl: Tensor,
    coefficient: float,
    mask: Tensor,
    potentials: Tensor | None = None,
    gamma: float = 1.0,
) -> Tensor:
    """Reward of every token: -coefficient · KL, and the completion's score at its last token (arXiv 1909.08593).

    The score belongs to the last token of the completion, the end-of-sequence token where there is one, and not, as in
    some implementations, to the padding after it, which would be a state with a value of its own.

    With potentials φ every token gets what it adds to them, γ φ(s_t+1) - φ(s_t), and the last one what is then missing
    of the score. Policies stay in the same order (Ng, Harada and Russell 1999), as a row has the same discounted sum;
    but what is known of the score half way is no longer luck or blame of the tokens after it, or before.

    Args:
        scores: [B], of whole completions.
        kl: [B, L], nats.
        coefficient: Price of a nat in units of the score.
        mask: [B, L]; every row has at least one token.
        potentials: [B, L], before each token, in units of the score; the first is paid with the first token.
        gamma: Discount per token that `gae` is given: what is paid for potentials then adds up to nothing.

    Returns:
        [B, L]; a row's discounted sum is its score's, at its last token, minus coefficient times its KL's.
    """
    inside = mask.bool()
    rewards = torch.where(inside, -coefficient * kl, 0.0)
    last = mask.long().sum(1, keepdim=True) - 1
    if potentials is None:
        return rewards.scatter_add(1, last, scores.unsqueeze(1).to(rewards))
    after = gamma * torch.cat([potentials[:, 1:], torch.zeros_like(potentials[:, :1])], 1)
    after = after.scatter(1, last, scores.unsqueeze(1).to(potentials))
    rewards = rewards + torch.where(inside, after - potentials, 0.0)
    return torch.cat([rewards[:, :1] + potentials[:, :1], rewards[:, 1:]], 1)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, equation 16).

    δ_t = r_t + γ V_{t+1} - V_t and A_t = δ_t + γλ A_{t+1}, where V and A are 0 after the last token.

    Args:
        rewards: [B, L].
        values: [B, L].
        mask: [B, L].
        gamma: Discount per token, in [0, 1].
        lam: λ in [0, 1]: 1 is the Monte Carlo return minus the value, 0 the one-step error.

    Returns:
        Advantages and returns (advantage + value), [B, L] each, 0 outside the mask.
    """
    inside = mask.bool()
    rewards, values = (torch.where(inside, x, 0.0) for x in (rewards, values))
    advantages = torch.zeros_like(rewards)
    following = rewards.new_zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] if t + 1 < values.shape[1] else torch.zeros_like(following)
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(inside[:, t], delta + gamma * lam * following, 0.0)
        advantages[:, t] = following
    return advantages, torch.where(inside, advantages + values, 0.0)


def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, reduce: Reduce = _alone) -> Tensor:
    """Scale to unit variance, and to mean 0 unless told otherwise, over the mask.

    Args:
        values: [B, L].
        mask: [B, L].
        shift_mean: False keeps the mean, as for rewards, whose sign matters.
        reduce: Sums a tensor over all ranks, so that every rank whitens by the same numbers.

    Returns:
        [B, L], 0 outside the mask.
    """
    inside = mask.bool()
    kept = torch.where(inside, values, 0.0)
    count, total = reduce(torch.stack([mask.sum().to(values), kept.sum()])).unbind()
    mean = total / count.clamp(min=1)
    centred = torch.where(inside, values - mean, 0.0)
    variance = reduce(centred.square().sum()) / count.clamp(min=1)
    scale = torch.rsqrt(variance + 1e-8)
    return centred * scale if shift_mean else torch.where(inside, centred * scale + mean, 0.0)


class PPOOptions(NamedTuple):
    """Scalars of the loss.

    Attributes:
        cliprange: ε: a ratio below 1 - ε is clipped.
        cliprange_high: A ratio above 1 + this is clipped; None for ε (arXiv 2503.14476, section 3.1).
        dual_clip: c: of a token with a negative advantage A the loss is at most -c A (arXiv 1912.09729, equation 5);
            None for no such bound.
        cliprange_value: How far a value may move from the rollout's before its loss is clipped; None for no clip.
        vf_coef: Weight of the value loss.
        entropy_coef: Weight of the entropy, which is subtracted.
        kl_coef: Weight of a KL estimate that is a loss, and not part of the reward.
        kl_estimator: Which one: k2 or k3.
    """

    cliprange: float = 0.2
    cliprange_high: float | None = None
    dual_clip: float | None = None
    cliprange_value: float | None = 0.2
    vf_coef: float = 0.1
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    kl_estimator: KLEstimator = "k3"


class PolicyLoss(NamedTuple):
    """The policy's part, [B, L] each and 0 outside the mask.

    Attributes:
        losses: max(-A ratio, -A clip(ratio)), where A < 0 at most -c A with dual clipping.
        ratio: π / π_old, without gradient.
        clipped: 1 where the clip decides, and no gradient flows.
        approx_kl: k3 estimate of KL(π_old ‖ π), nats, without gradient.
    """

    losses: Tensor
    ratio: Tensor
    clipped: Tensor
    approx_kl: Tensor


class ValueLoss(NamedTuple):
    """The value's part, [B, L] each and 0 outside the mask.

    Attributes:
        losses: ½ max((V - G)², (clip(V) - G)²) with G the return.
        clipped: 1 where the clip decides.
    """

    losses: Tensor
    clipped: Tensor


def policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, options: PPOOptions = PPOOptions()
) -> PolicyLoss:
    """Clipped surrogate of each token (arXiv 1707.06347, equation 7), to be minimised.

    Args:
        logps: [B, L], of the policy being trained, with gradient.
        old_logps: [B, L], of the policy that sampled.
        advantages: [B, L].
        mask: [B, L].
        options: `cliprange`, `cliprange_high` and `dual_clip` of them.
    """
    inside = mask.bool()
    # Masked before the exponential: what stands after a completion may be infinitely unlikely.
    log_ratio = torch.where(inside, logps - old_logps, 0.0)
    ratio = log_ratio.exp()
    high = options.cliprange if options.cliprange_high is None else options.cliprange_high
    plain, limited = -advantages * ratio, -advantages * ratio.clamp(1 - options.cliprange, 1 + high)
    losses, clipped = torch.maximum(plain, limited), limited > plain
    if options.dual_clip is not None:
        bound = -options.dual_clip * advantages
        beyond = (advantages < 0) & (losses > bound)
        losses, clipped = torch.where(beyond, bound, losses), clipped | beyond
    detached = log_ratio.detach()
    return PolicyLoss(
        torch.where(inside, losses, 0.0),
        torch.where(inside, ratio.detach(), 0.0),
        torch.where(inside, clipped.to(losses), 0.0),
        torch.expm1(detached) - detached,
    )


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange: float | None) -> ValueLoss:
    """Clipped squared error of each token's value (arXiv 1909.08593; arXiv 2403.17031, detail 27).

    Args:
        values: [B, L], with gradient.
        old_values: [B, L], at the time of the rollout.
        returns: [B, L].
        mask: [B, L].
        cliprange: How far a value may move from the rollout's; None for the plain error.
    """
    inside = mask.bool()
    plain = (values - returns).square()
    if cliprange is None:
        return ValueLoss(0.5 * torch.where(inside, plain, 0.0), torch.zeros_like(plain))
    moved = values - old_values
    limited = (old_values + moved.clamp(-cliprange, cliprange) - returns).square()
    # Within the range both are the same but for rounding, which is no clip.
    clipped = (limited > plain) & (moved.abs() > cliprange)
    return ValueLoss(
        0.5 * torch.where(inside, torch.maximum(plain, limited), 0.0),
        torch.where(inside, clipped.to(values), 0.0),
    )


def ppo_loss(  # noqa: PLR0913  (keyword-only)
    policy: PolicyLoss | None,
    value: ValueLoss | None,
    mask: Tensor,
    options: PPOOptions,
    tokens: Tensor | None = None,
    *,
    entropy: Tensor | None = None,
    kl: Tensor | None = None,
) -> Tensor:
    """Policy loss + vf_coef · value loss - entropy_coef · entropy + kl_coef · KL, each a mean over tokens: one scalar.

    Args:
        policy: See `policy_loss`; None leaves it out, where policy and value have backward passes of their own.
        value: See `value_loss`; None leaves it out.
        mask: [B, L].
        options: The weights.
        tokens: Divisor, a scalar: all tokens of the optimiser step, where these rows are a part of it, so that the
            parts' losses add up to that of the whole. By default the tokens of these rows.
        entropy: [B, L], nats, with gradient; without it there is no bonus.
        kl: [B, L], nats, of `kl_tokens` with gradient; without it the KL is no loss.
    """
    total = mask.sum().clamp(min=1) if tokens is None else tokens
    inside, losses = mask.bool(), torch.zeros_like(mask, dtype=torch.float32)
    if policy is not None:
        losses = losses + policy.losses
    if value is not None:
        losses = losses + options.vf_coef * value.losses
    if entropy is not None and options.entropy_coef:
        losses = losses - options.entropy_coef * torch.where(inside, entropy, 0.0)
    if kl is not None and options.kl_coef:
        losses = losses + options.kl_coef * torch.where(inside, kl, 0.0)
    return losses.sum() / total


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(G - V) / Var(G) over the mask: 1 is perfect, 0 no better than a constant, a scalar."""
    inside = mask.bool()
    actual, error = returns[inside], (returns - values)[inside]
    return 1 - error.var(correction=0) / actual.var(correction=0).clamp(min=1e-8)

"""Log-probabilities of given tokens, their sums over completions, entropy and exact divergence.

Shape suffixes: B rows, T positions, V vocabulary entries.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _check_ranks(logits: Tensor, tokens: Tensor) -> None:
    if logits.ndim != 3 or tokens.shape != logits.shape[:2]:
        raise ValueError(f"expected logits [B, T, V] and tokens [B, T], got {list(logits.shape)}, {list(tokens.shape)}")


def token_logps(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token under the logits at its own position.

    Computed as the chosen logit minus the log-sum-exp, in float32 or better, so that no second tensor of the
    logits' size is kept for the backward pass.

    Args:
        logits: [B, T, V], row t predicts `tokens[:, t]` (the caller shifts).
        tokens: [B, T], ids.
        temperature: Divides the logits, as in sampling; above 0.

    Returns:
        [B, T], log-probabilities in nats.
    """
    _check_ranks(logits, tokens)
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if temperature != 1.0:
        logits = logits / temperature
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def completion_logps(logits: Tensor, tokens: Tensor, completion_mask: Tensor) -> Tensor:
    """Sum of the completion's log-probabilities, S(y) in the notation of docs/algorithms/dpo.md.

    Args:
        logits: [B, T, V] of the whole row, unshifted: row t predicts token t + 1.
        tokens: [B, T], prompt, completion and padding.
        completion_mask: [B, T], 1 on completion tokens, the end-of-sequence token included.

    Returns:
        [B], nats.
    """
    _check_ranks(logits, tokens)
    mask = completion_mask[:, 1:].bool()
    logps = token_logps(logits[:, :-1], tokens[:, 1:])
    # where, not multiplication: a padded position may hold -inf, and -inf * 0 is NaN.
    return torch.where(mask, logps, 0.0).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the next-token distribution at each position.

    Args:
        logits: [B, T, V].

    Returns:
        [B, T], nats.
    """
    log_probabilities = logits.float().log_softmax(-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def exact_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(policy ‖ reference) of the next-token distributions at each position, over the full vocabulary.

    Summed over the positions of a completion sampled from the policy, this estimates the KL of the whole completion
    with the same expectation as the sum of log-ratios, a smaller variance, and never below 0.

    Args:
        logits: [B, T, V] of the policy.
        reference_logits: [B, T, V].

    Returns:
        [B, T], nats.
    """
    if logits.shape != reference_logits.shape:
        raise ValueError(f"shapes differ: {list(logits.shape)}, {list(reference_logits.shape)}")
    log_p = logits.float().log_softmax(-1)
    log_q = reference_logits.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)

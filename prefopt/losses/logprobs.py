"""Log-probabilities of given tokens, their sums over completions, entropy and exact divergence.

Shape suffixes: B rows, T positions, V vocabulary entries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from prefopt.losses.token_statistics import TokenStatistics
from prefopt.losses.unlikelihood import unlikelihood


def _check_ranks(logits: Tensor, tokens: Tensor) -> None:
    if logits.ndim != 3 or tokens.shape != logits.shape[:2]:
        raise ValueError(f"expected logits [B, T, V] and tokens [B, T], got {list(logits.shape)}, {list(tokens.shape)}")


def _at_least_float(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


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
    logits = _at_least_float(logits)
    if temperature != 1.0:
        logits = logits / temperature
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


class CompletionSums(NamedTuple):
    """Sums over the completions of N rows, [N] each, in nats.

    Attributes:
        logps: S(y), over all tokens of the completion.
        tail_logps: The part of it after the first `head_length` tokens; None unless asked for.
        alignment: exp(mean_t(log π(y_t) - log Σ_v π(v)²)), without gradient; None unless asked for.
        sequential_kl: Σ_t KL(reference ‖ policy) of the next-token distributions; None without a reference.
        entropy: Mean entropy of the next-token distributions, without gradient.
        unlikelihood: Σ_t w_t · -log(1 - p_t) over flagged tokens; None where none were named.
    """

    logps: Tensor
    tail_logps: Tensor | None
    alignment: Tensor | None
    sequential_kl: Tensor | None
    entropy: Tensor
    unlikelihood: Tensor | None = None


def completion_sums(  # noqa: PLR0913  (keyword-only)
    logits: Tensor,
    tokens: Tensor,
    completion_mask: Tensor,
    *,
    head_length: Tensor | None = None,
    alignment: bool = False,
    reference_logits: Tensor | None = None,
    flags: Tensor | None = None,
) -> CompletionSums:
    """What the losses on pairs need to know of every row's completion.

    Args:
        logits: [N, T, V] of the whole row, unshifted: row t predicts token t + 1.
        tokens: [N, T], prompt, completion and padding.
        completion_mask: [N, T], 1 on completion tokens, the end-of-sequence token included.
        head_length: [N], tokens that do not belong to the tail.
        alignment: Whether to compute it.
        reference_logits: [N, T, V].
        flags: [N, L], what it weighs to unlearn each token of the completion.
    """
    _check_ranks(logits, tokens)
    mask, logits = completion_mask[:, 1:].bool(), logits[:, :-1]
    logps = token_logps(logits, tokens[:, 1:])
    # where, not multiplication: a padded position may hold -inf, and -inf * 0 is NaN.
    total = torch.where(mask, logps, 0.0).sum(-1)
    lengths = mask.sum(-1).clamp(min=1)
    tail = unlearned = None
    if flags is not None:
        number = (completion_mask.long().cumsum(-1) - 1)[:, 1:].clamp(min=0, max=flags.shape[1] - 1)
        unlearned = torch.where(mask, flags.gather(1, number) * unlikelihood(logps), 0.0).sum(-1)
    if head_length is not None:
        position = mask.long().cumsum(-1)
        tail = torch.where(mask & (position > head_length.unsqueeze(-1)), logps, 0.0).sum(-1)
    with torch.no_grad():
        uncertainty = _mean_entropy(logits, mask)
        aligned = torch.where(mask, logps - _log_collision(logits), 0.0).sum(-1) / lengths if alignment else None
    divergence = None
    if reference_logits is not None:
        divergence = torch.where(mask, exact_kl(reference_logits[:, :-1], logits), 0.0).sum(-1)
    return CompletionSums(total, tail, None if aligned is None else aligned.exp(), divergence, uncertainty, unlearned)


def sums_of_tokens(
    tokens: TokenStatistics,
    completion: Tensor,
    offset: Tensor,
    completions: int,
    head_length: Tensor | None = None,
    *,
    flags: Tensor | None = None,
) -> CompletionSums:
    """The same from statistics of single tokens.

    Args:
        tokens: Of n tokens.
        completion: [n], the completion each belongs to, from 0.
        offset: [n], its number in the completion, from 0.
        completions: N.
        head_length: [N], tokens that do not belong to the tail.
        flags: [N, L], what it weighs to unlearn each token of the completion.
    """

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(completions).index_add(0, completion, values)

    lengths = total(torch.ones_like(tokens.entropy)).clamp(min=1)
    tail = None
    if head_length is not None:
        tail = total(torch.where(offset >= head_length[completion], tokens.logps, 0.0))
    aligned = None
    if tokens.log_collision is not None:
        aligned = (total(tokens.logps.detach() - tokens.log_collision) / lengths).exp()
    return CompletionSums(
        total(tokens.logps),
        tail,
        aligned,
        None if tokens.divergence is None else total(tokens.divergence),
        total(tokens.entropy) / lengths,
        None if flags is None else total(flags[completion, offset] * unlikelihood(tokens.logps)),
    )


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
    # where, not multiplication: a padded position may hold -inf, and -inf * 0 is NaN.
    return torch.where(mask, token_logps(logits[:, :-1], tokens[:, 1:]), 0.0).sum(-1)


def _mean_entropy(logits: Tensor, mask: Tensor, chunk: int = 1024) -> Tensor:
    """Mean of the entropy over each row's mask, [B]; a few positions at a time, as each makes a copy of its logits."""
    result = torch.zeros(mask.shape, dtype=_at_least_float(logits[:0]).dtype, device=logits.device)
    rows, columns = mask.nonzero(as_tuple=True)
    for start in range(0, len(rows), chunk):
        place = rows[start : start + chunk], columns[start : start + chunk]
        result[place] = entropy(logits[place].unsqueeze(0)).squeeze(0)
    return result.sum(-1) / mask.sum(-1).clamp(min=1)


def _log_collision(logits: Tensor) -> Tensor:
    """The log of Σ_v π(v)² at each position: how likely two samples agree, [B, T]."""
    logits = _at_least_float(logits)
    return (2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the next-token distribution at each position.

    Args:
        logits: [B, T, V].

    Returns:
        [B, T], nats.
    """
    log_probabilities = _at_least_float(logits).log_softmax(-1)
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
    log_p = _at_least_float(logits).log_softmax(-1)
    log_q = _at_least_float(reference_logits).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)

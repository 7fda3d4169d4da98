"""Learning from another distribution over the next token: KL of a student to its teacher, of the whole or the top k.

Context distillation trains the student's Pr(y | c', z) to be the teacher's Pr(y | c, z) (arXiv 2209.15189; arXiv
2501.09223, chapter 3). With the teacher's distribution p and the student's q of a token,

    forward KL    Σ_v p(v) log(p(v)/q(v))      along the teacher's own samples (arXiv 1606.07947 with soft labels)
    reverse KL    Σ_v q(v) log(q(v)/p(v))      along the student's own samples (arXiv 2306.13649, 2306.08543)
    hard          -log q(y)                    of a token y that the teacher chose

Shape suffixes: N tokens, H hidden size, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prefopt.losses.token_statistics import MAX_LOGITS, Head

__all__ = ["DistillTokens", "Target", "distill_tokens", "divergence_of"]

Divergence = Literal["forward", "reverse"]


class DistillTokens(NamedTuple):
    """Of N tokens, [N] each, in nats; only `losses` has a gradient.

    Attributes:
        losses: The divergence of soft tokens, the negative log-probability of the others.
        logps: log q(y).
        entropy: Of q.
        divergence: Of p and q, whole or of the top k; None without a teacher.
        teacher_entropy: Of p; None without a teacher.
        agreement: 1 where the likeliest token is the same, 0 elsewhere; None without a teacher.
    """

    losses: Tensor
    logps: Tensor
    entropy: Tensor
    divergence: Tensor | None
    teacher_entropy: Tensor | None
    agreement: Tensor | None


class Target(NamedTuple):
    """What the student is to be like.

    Attributes:
        divergence: `forward` or `reverse`.
        top_k: The teacher's likeliest tokens that are told apart; all when None.
    """

    divergence: Divergence = "forward"
    top_k: int | None = None


def divergence_of(
    log_student: Tensor, log_teacher: Tensor, divergence: Divergence = "forward", top_k: int | None = None
) -> Tensor:
    """KL between the next-token distributions of teacher and student, nats.

    With `top_k` the tokens beyond the teacher's k likeliest count as one, with their joint probability. That is a
    divergence of its own: at least 0, growing with k (merging tokens loses information: the log sum inequality), and
    the whole KL at k = V.

    Args:
        log_student: [N, V], log-probabilities; differentiable.
        log_teacher: [N, V], log-probabilities.
        divergence: `forward` is KL(teacher ‖ student), `reverse` KL(student ‖ teacher).
        top_k: At least 1; all tokens when None.

    Returns:
        [N].

    Raises:
        ValueError: For an unknown divergence, shapes that differ, or a `top_k` below 1.
    """
    if log_student.shape != log_teacher.shape or log_student.ndim != 2:
        raise ValueError(f"expected two [N, V], got {list(log_student.shape)} and {list(log_teacher.shape)}")
    if divergence not in ("forward", "reverse"):
        raise ValueError(f"divergence must be 'forward' or 'reverse', not {divergence!r}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    if top_k is not None and top_k < log_teacher.shape[1]:
        likeliest = log_teacher.topk(top_k, dim=1).indices
        log_student, log_teacher = _merged(log_student, likeliest), _merged(log_teacher, likeliest)
    first, second = (log_teacher, log_student) if divergence == "forward" else (log_student, log_teacher)
    weights = first.exp()
    # where, not multiplication alone: 0 * (-inf - x) is NaN.
    return torch.where(weights > 0, weights * (first - second), 0.0).sum(1)


def _merged(log_probabilities: Tensor, kept: Tensor) -> Tensor:
    """Log-probabilities [N, k + 1] of the kept tokens [N, k], and of all others together."""
    others = log_probabilities.scatter(1, kept, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([log_probabilities.gather(1, kept), others], 1)


def distill_tokens(  # noqa: PLR0913  (keyword-only)
    states: Tensor,
    targets: Tensor,
    head: Head,
    *,
    soft: Tensor,
    teacher_states: Tensor | None = None,
    teacher_head: Head | None = None,
    target: Target = Target(),
    max_logits: int = MAX_LOGITS,
) -> DistillTokens:
    """Losses and statistics of tokens, a few at a time: no tensor of all logits is ever there.

    Args:
        states: [N, H], the student's states that predict the tokens.
        targets: [N], the tokens.
        head: Of the student.
        soft: [N], bool: whose loss is the divergence.
        teacher_states: [N, H'], the teacher's states that predict the same tokens, without gradient.
        teacher_head: Of the teacher; the student's when None.
        target: What the student is to be like.
        max_logits: Most logits that are there at once.

    Raises:
        ValueError: When a token is soft and there is no teacher.
    """
    if teacher_states is None and bool(soft.any()):
        raise ValueError("a soft token has the teacher's distribution as its target, and there is no teacher")
    with torch.no_grad():
        chunk = max(1, max_logits // head.logits(states[:1].detach()).shape[-1])
    teacher = teacher_head or head

    def part(own: Tensor, piece: slice) -> tuple[Tensor, Tensor]:
        other = None
        if teacher_states is not None:
            with torch.no_grad():
                other = _log_softmax(teacher.logits(teacher_states[piece]))
        return _of_logits(_log_softmax(head.logits(own)), other, targets[piece], soft[piece], target)

    pieces = [slice(start, start + chunk) for start in range(0, len(states), chunk)]
    if head.is_trained and torch.is_grad_enabled():  # logits are computed again in the backward pass
        found = [checkpoint(part, states[piece], piece, use_reentrant=False) for piece in pieces]
        losses = torch.cat([each[0] for each in found]) if found else states.sum(1)
        columns = torch.cat([each[1] for each in found]) if found else states.new_zeros(0, _COLUMNS)
    else:
        losses, columns = _InPieces.apply(states, part, pieces)  # type: ignore[no-untyped-call]
    logps, entropy, *of_teacher = columns.unbind(1)
    if teacher_states is None:
        return DistillTokens(losses, logps, entropy, None, None, None)
    return DistillTokens(losses, logps, entropy, *of_teacher)


_COLUMNS = 5


def _of_logits(
    student: Tensor, teacher: Tensor | None, targets: Tensor, soft: Tensor, target: Target
) -> tuple[Tensor, Tensor]:
    """Losses [n], and the statistics [n, 5] in the order of `DistillTokens`, zeros for those of no teacher."""
    logps = student.gather(1, targets.unsqueeze(1)).squeeze(1)
    divergence = None if teacher is None else divergence_of(student, teacher, *target)
    losses = -logps if divergence is None else torch.where(soft, divergence, -logps)
    with torch.no_grad():
        columns = [logps.detach(), torch.special.entr(student.exp()).sum(1)]
        if teacher is None or divergence is None:
            columns += [torch.zeros_like(logps)] * (_COLUMNS - len(columns))
        else:
            same = (student.argmax(1) == teacher.argmax(1)).to(logps.dtype)
            columns += [divergence.detach(), torch.special.entr(teacher.exp()).sum(1), same]
        return losses, torch.stack(columns, 1)


class _InPieces(torch.autograd.Function):
    """Computes the gradient of every loss beside it, while the logits of its piece are there.

    A token's loss follows from its state alone, so the backward pass only multiplies.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, part: Callable[[Tensor, slice], tuple[Tensor, Tensor]], pieces: list[slice]
    ) -> tuple[Tensor, Tensor]:
        needs_gradient = ctx.needs_input_grad[0]
        losses, columns, slopes = [], [], []
        for piece in pieces:
            with torch.set_grad_enabled(needs_gradient):
                own = states[piece].detach().requires_grad_(needs_gradient)
                found, statistics = part(own, piece)
                if needs_gradient:
                    slopes.append(torch.autograd.grad(found.sum(), own)[0])
            losses.append(found.detach())
            columns.append(statistics)
        dtype = _at_least_float(states.dtype)
        ctx.save_for_backward(torch.cat(slopes) if slopes else torch.zeros_like(states))
        joined = torch.cat(columns) if columns else states.new_zeros(0, _COLUMNS, dtype=dtype)
        ctx.mark_non_differentiable(joined)
        return torch.cat(losses) if losses else states.new_zeros(0, dtype=dtype), joined

    @staticmethod
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * outer.unsqueeze(1).to(slopes.dtype), None, None


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(_at_least_float(logits.dtype)).log_softmax(-1)


def _at_least_float(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype

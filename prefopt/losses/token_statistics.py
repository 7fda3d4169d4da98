"""What losses on completions need to know of every token, from hidden states, without ever holding all logits.

Each number belongs to one token and follows from that token's state alone. So its gradient with respect to the state
is computed in the forward pass, beside the number, while the logits of a few tokens are there; the backward pass
multiplies. Nothing is kept of the logits and nothing is computed twice.

Shape suffixes: N tokens, H hidden size, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 2**22
"""Most logits that are there at once: 16 MiB in float32."""


class Head(NamedTuple):
    """What turns states into logits.

    Attributes:
        logits: States [n, H] to logits [n, V], of each row alone.
        is_trained: Whether its own weights need gradients: then logits are computed again in the backward pass.
    """

    logits: Callable[[Tensor], Tensor]
    is_trained: bool = False


class TokenStatistics(NamedTuple):
    """Of N tokens, [N] each, in nats.

    Attributes:
        logps: log π(token).
        entropy: Of the next-token distribution; without gradient unless asked for.
        log_collision: log Σ_v π(v)², how likely two samples agree, without gradient; None unless asked for.
        divergence: KL(reference ‖ policy) of the next-token distributions; None without a reference.
    """

    logps: Tensor
    entropy: Tensor
    log_collision: Tensor | None
    divergence: Tensor | None


def token_statistics(  # noqa: PLR0913  (keyword-only)
    states: Tensor,
    targets: Tensor,
    head: Head,
    *,
    collision: bool = False,
    reference_states: Tensor | None = None,
    entropy_gradient: bool = False,
    max_logits: int = MAX_LOGITS,
) -> TokenStatistics:
    """Statistics of tokens, a few at a time.

    Args:
        states: [N, H], the states that predict the tokens.
        targets: [N], the tokens.
        head: Of the model.
        collision: Whether to compute `log_collision`.
        reference_states: [N, H] of the reference, which has the same head.
        entropy_gradient: Whether `entropy` is to be differentiated.
        max_logits: Most logits that are there at once.
    """
    with torch.no_grad():
        chunk = max(1, max_logits // head.logits(states[:1].detach()).shape[-1])
    wanted = _Wanted(collision, entropy_gradient)
    if head.is_trained and torch.is_grad_enabled():
        return _recomputed(states, targets, head.logits, wanted, reference_states, chunk)
    found = _Statistics.apply(  # type: ignore[no-untyped-call]
        states, targets, head.logits, wanted, reference_states, chunk
    )
    return TokenStatistics(*found)


class _Wanted(NamedTuple):
    collision: bool
    entropy_gradient: bool


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913  (autograd takes positions)
        ctx: Any,
        states: Tensor,
        targets: Tensor,
        head: Callable[[Tensor], Tensor],
        wanted: _Wanted,
        reference_states: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor | None, ...]:
        needs_gradient = ctx.needs_input_grad[0]
        columns: list[list[Tensor | None]] = [[], [], [], []]
        # Of log-probability, entropy and divergence, by their place among the results; empty where there is none.
        gradients: dict[int, list[Tensor]] = {0: [], 1: [], 3: []}
        for start in range(0, len(states), chunk):
            piece = slice(start, start + chunk)
            with torch.set_grad_enabled(needs_gradient):
                own = states[piece].detach().requires_grad_(needs_gradient)
                logits = head(own)
            with torch.no_grad():
                reference = None if reference_states is None else _log_softmax(head(reference_states[piece]))
                said, slopes = _of_logits(logits.detach(), targets[piece], wanted, reference, needs_gradient)
            for column, values in zip(columns, said, strict=True):
                column.append(values)
            for number, (place, slope) in enumerate(slopes.items(), 1):
                again = number < len(slopes)
                gradients[place].append(torch.autograd.grad(logits, own, slope.to(logits.dtype), retain_graph=again)[0])
        ctx.places = [place for place, kept in gradients.items() if kept]
        ctx.save_for_backward(*(torch.cat(gradients[place]) for place in ctx.places))
        joined = [None if not column or column[0] is None else torch.cat(column) for column in columns]  # type: ignore[arg-type]
        if joined[0] is None:  # no tokens
            empty = states.new_zeros(0, dtype=_dtype(states))
            joined = [empty, empty, empty if wanted.collision else None, None if reference_states is None else empty]
        constant = joined[2:3] if wanted.entropy_gradient else joined[1:3]
        ctx.mark_non_differentiable(*(column for column in constant if column is not None))
        return tuple(joined)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        total: Tensor | None = None
        for place, slopes in zip(ctx.places, ctx.saved_tensors, strict=True):
            if (each := outer[place]) is not None:
                part = slopes * each.unsqueeze(1).to(slopes.dtype)
                total = part if total is None else total.add_(part)
        return total, None, None, None, None, None


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Row by row, [n, V] to [n], in the precision of the rows: autocast would take half of it away."""
    with torch.autocast(left.device.type, enabled=False):
        found: Tensor = torch.linalg.vecdot(left, right)
    return found


def _of_logits(
    logits: Tensor, targets: Tensor, wanted: _Wanted, reference: Tensor | None, slopes: bool
) -> tuple[tuple[Tensor | None, ...], dict[int, Tensor]]:
    """The statistics of a few tokens, and the gradients with respect to logits of those that have one, by place."""
    log_probabilities = _log_softmax(logits)
    probabilities = log_probabilities.exp()
    column = targets.unsqueeze(1)
    logps = log_probabilities.gather(1, column).squeeze(1)
    entropy = -_dot(probabilities, log_probabilities)
    collided = _dot(probabilities, probabilities).log() if wanted.collision else None
    divergence, found = None, {}
    if reference is not None:
        expected = reference.exp()
        divergence = _dot(expected, reference - log_probabilities)
        if slopes:
            found[3] = probabilities - expected
    if slopes and wanted.entropy_gradient:
        found[1] = -probabilities * (log_probabilities + entropy.unsqueeze(1))
    if slopes:
        found[0] = probabilities.neg_().scatter_add_(1, column, torch.ones_like(column, dtype=logps.dtype))
    return (logps, entropy, collided, divergence), found


def _recomputed(
    states: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    wanted: _Wanted,
    reference_states: Tensor | None,
    chunk: int,
) -> TokenStatistics:
    """With the logits of each chunk computed again in the backward pass, for a head that is trained."""

    def part(own: Tensor, tokens: Tensor, other: Tensor | None) -> tuple[Tensor | None, ...]:
        log_probabilities = _log_softmax(head(own))
        logps = log_probabilities.gather(1, tokens.unsqueeze(1)).squeeze(1)
        with torch.set_grad_enabled(wanted.entropy_gradient and torch.is_grad_enabled()):
            entropy = -_dot(log_probabilities.exp(), log_probabilities)
        with torch.no_grad():
            collided = (2 * log_probabilities).logsumexp(1) if wanted.collision else None
            reference = None if other is None else _log_softmax(head(other))
        if reference is None:
            return logps, entropy, collided, None
        return logps, entropy, collided, _dot(reference.exp(), reference - log_probabilities)

    pieces = [
        checkpoint(
            part,
            states[start : start + chunk],
            targets[start : start + chunk],
            None if reference_states is None else reference_states[start : start + chunk],
            use_reentrant=False,
        )
        for start in range(0, max(1, len(states)), chunk)  # a chunk of nothing where there are no tokens
    ]
    columns = [None if column[0] is None else torch.cat(column) for column in zip(*pieces, strict=True)]
    assert columns[0] is not None and columns[1] is not None
    return TokenStatistics(columns[0], columns[1], columns[2], columns[3])


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(_dtype(logits)).log_softmax(-1)


def _dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype

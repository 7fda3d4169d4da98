"""Unlikelihood of tokens that must not be said (arXiv 1908.04319), as a pure function of their log-probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST = 1e-5
"""1 - p below which the loss goes on as a straight line: it would rise without bound."""
_EDGE = math.log1p(-LEAST)
_SLOPE = (1 - LEAST) / LEAST


def log_complement(logps: Tensor) -> Tensor:
    """log(1 - p) of tokens from log p, as log(-expm1(log p)), which is exact for small p.

    Where 1 - p is below `LEAST` it is the tangent at that point. So it stays finite, and with respect to logits its
    gradient stays below 1 and does not vanish: clamping alone would let go of the tokens that are said for sure.

    Args:
        logps: log p in nats, any shape, at most 0.
    """
    inside = logps.clamp(max=_EDGE)
    # Not `logps - inside`: below the edge that is 0 as well, but its gradient is the slope minus the slope, and what
    # the logarithm adds to 1e5 is lost to rounding in float32. This one's is 0.
    beyond = torch.relu(logps - _EDGE)
    return torch.log(-torch.expm1(inside)) - _SLOPE * beyond


def unlikelihood(logps: Tensor) -> Tensor:
    """-log(1 - p) of tokens, nats (arXiv 1908.04319, equation 5).

    Its gradient with respect to logit k, for the token c, is p_c / (1 - p_c) (1[k = c] - p_k): what c loses goes to the
    others in proportion to their probability.

    Args:
        logps: log p in nats, any shape, at most 0.
    """
    return -log_complement(logps)

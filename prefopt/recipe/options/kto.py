"""Options of the KTO losses, in the names of TRL's `KTOConfig`, which implements them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prefopt.recipe.base import Spec

KTOLossType = Literal["kto", "apo_zero_unpaired"]
ESTIMATES_KL: frozenset[str] = frozenset({"kto"})
"""Losses that estimate the KL from the other rows of a pass."""


class KTOLossOptions(Spec):
    """What a completion is worth that people marked as good, or as bad."""

    beta: float = Field(0.1, gt=0, description="how much leaving the reference costs")
    desirable_weight: float = Field(1.0, gt=0, description="weight of the losses of good completions")
    undesirable_weight: float = Field(1.0, gt=0, description="weight of the losses of bad completions")
    loss_type: KTOLossType = Field(
        "kto", description="'kto' (arXiv 2402.01306), or 'apo_zero_unpaired' without its estimate of the KL"
    )

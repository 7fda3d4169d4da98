"""Options of the loss of an `sft` stage beyond imitation; `prefopt.trainers.imitation` implements them."""

from __future__ import annotations

from prefopt.recipe.base import Spec, when_set
from prefopt.recipe.options.loss_costs import FlaggingCosts


class SFTLossOptions(Spec):
    """Which tokens are unlearned, and which count more."""

    unlikelihood: FlaggingCosts = when_set(
        (), description="costs; tokens that caused one are unlearned instead of imitated (arXiv 1908.04319)"
    )
    focal_gamma: float = when_set(
        0.0, ge=0, description="takes weight from tokens that are foreseen already (arXiv 1708.02002)"
    )

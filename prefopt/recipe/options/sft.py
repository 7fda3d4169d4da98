"""Options of the loss of an `sft` stage beyond imitation; `prefopt.trainers.imitation` implements them."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from prefopt.recipe.base import when_set
from prefopt.recipe.options.groups import LONGER, GroupOptions
from prefopt.recipe.options.loss_costs import FlaggingCosts, SequenceUnlikelihoodSpec


class SFTLossOptions(GroupOptions):
    """Which tokens are unlearned, and which count more."""

    unlikelihood: FlaggingCosts = when_set(
        (), description="costs; tokens that caused one are unlearned instead of imitated (arXiv 1908.04319)"
    )
    sequence_unlikelihood: SequenceUnlikelihoodSpec | None = when_set(
        None, description="tokens of the policy's own answers that caused a cost are unlearned as well"
    )
    focal_gamma: float = when_set(
        0.0, ge=0, description="takes weight from tokens that are foreseen already (arXiv 1708.02002)"
    )

    @model_validator(mode="after")
    def _no_pairs(self) -> Self:
        if self.group_by in (LONGER, "annotator"):
            raise ValueError(f"`group_by: {self.group_by}` is for pairs, and sft has one answer of a row")
        return self

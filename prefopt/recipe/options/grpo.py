"""Options of the GRPO loss, in the names of TRL's `GRPOConfig`, which implements them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prefopt.recipe.base import Spec

GRPOLossType = Literal["dapo", "grpo", "dr_grpo", "bnpo"]


class GRPOLossOptions(Spec):
    """What the tokens' losses are averaged over, and what advantages are divided by."""

    loss_type: GRPOLossType = Field(
        "dapo",
        description="mean over the tokens of: 'dapo' a step (arXiv 2503.14476), 'grpo' each completion, then "
        "completions (arXiv 2402.03300), 'bnpo' a pass; 'dr_grpo': their sum, by max_new_tokens (arXiv 2503.20783)",
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="whose standard deviation advantages are divided by; 'none': not at all (arXiv 2503.20783)"
    )

"""Options of reward models beyond the likelihood of pairs; `prefopt.trainers.reward` implements them."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from prefopt.recipe.base import Name
from prefopt.recipe.options.groups import GroupColumn, GroupCosts, GroupWeights

Head = Literal["pairwise", "regression"]

HEADS: tuple[str, ...] = get_args(Head)


class RewardOptions(GroupCosts):
    """What a reward model learns, from which rows how much, and how many of them there are."""

    center_rewards_coefficient: float = Field(
        0.0, ge=0, description="weight of (chosen + rejected)^2, which pulls scores to 0 (arXiv 2312.09244)"
    )
    margin_scale: float = Field(
        0.0, ge=0, description="the rows' `margin` times this is asked for between the scores (arXiv 2307.09288)"
    )
    focal_gamma: float = Field(
        0.0, ge=0, description="takes weight from pairs that are ranked right already (arXiv 1708.02002)"
    )
    length_debias: float = Field(
        0.0, ge=0, le=1, description="share of what length alone explains that scores need not learn (arXiv 1909.03683)"
    )
    group_weights: GroupWeights = Field(
        "none", description="rows of rare groups count more: 'inverse', or 'effective_number' (arXiv 1901.05555)"
    )
    group_by: GroupColumn = Field(
        "source", description="a column of the data, such as 'source' or 'harm_category'; 'longer'; or 'violates'"
    )
    effective_number_beta: float = Field(0.999, ge=0, lt=1, description="of 'effective_number'")
    ensemble: int = Field(1, ge=1, le=32, description="members; the score is their mean, `std` their disagreement")
    ensemble_kind: Literal["adapters", "heads"] = Field(
        "adapters", description="'adapters': each trained by itself; 'heads': on one adapter, cheaper and more alike"
    )
    head: Head = Field("pairwise", description="'pairwise': choices; 'regression': the ratings of both answers")
    second_axis: Name | None = Field(
        None, description="name in the rows' `axes` of a second label, such as 'safe', with a score of its own"
    )
    calibrate: bool = Field(
        False, description="divide scores by a temperature fitted on held-out pairs (arXiv 1706.04599)"
    )

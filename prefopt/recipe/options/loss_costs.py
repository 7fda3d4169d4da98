"""Options of costs inside losses and labels: a cost, and a weight that is written.

They are the costs of `prefopt.recipe.options.costs` without those that only a rollout can measure.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from prefopt.recipe.base import Spec, list_as_tuple
from prefopt.recipe.options import costs

SAMPLED_ONLY = ("missing_eos", "ensemble_std")
"""Costs of completions that were just sampled."""
WITHOUT_SPANS = ("format", "classifier")
"""Costs that say of no token that it was the cause."""


class WeightSpec(Spec):
    """What a cost weighs."""

    weight: float = Field(1.0, ge=0, description="λ: what a cost of 1, or a flagged token, weighs")


class LengthInLoss(WeightSpec, costs.LengthCost):
    """Length, weighted."""


class RepetitionInLoss(WeightSpec, costs.RepetitionCost):
    """Repetition, weighted."""


class BannedInLoss(WeightSpec, costs.BannedCost):
    """Banned words, weighted."""


class FormatInLoss(WeightSpec, costs.FormatCost):
    """A wrong form, weighted."""


class MissingEosInLoss(WeightSpec, costs.MissingEosCost):
    """A missing end, weighted; only of answers that were sampled."""


class ScriptInLoss(WeightSpec, costs.ScriptCost):
    """Another script, weighted."""


class PromptCopyInLoss(WeightSpec, costs.PromptCopyCost):
    """Copies of the prompt, weighted."""


class RefusalInLoss(WeightSpec, costs.RefusalCost):
    """Refusals, weighted."""


class ClassifierInLoss(WeightSpec, costs.ClassifierCost):
    """What a classifier says, weighted."""


class PluginInLoss(WeightSpec, costs.PluginCost):
    """A cost of somebody's own, weighted."""


AnyLossCost = (
    LengthInLoss
    | RepetitionInLoss
    | BannedInLoss
    | FormatInLoss
    | ScriptInLoss
    | PromptCopyInLoss
    | RefusalInLoss
    | ClassifierInLoss
    | PluginInLoss
)
LossCosts = Annotated[
    tuple[Annotated[AnyLossCost, Field(discriminator="cost")], ...],
    BeforeValidator(list_as_tuple, json_schema_input_type=list[Annotated[AnyLossCost, Field(discriminator="cost")]]),
    AfterValidator(costs.distinct),
]


AnySampledCost = AnyLossCost | MissingEosInLoss
SampledCosts = Annotated[
    tuple[Annotated[AnySampledCost, Field(discriminator="cost")], ...],
    BeforeValidator(list_as_tuple, json_schema_input_type=list[Annotated[AnySampledCost, Field(discriminator="cost")]]),
    AfterValidator(costs.distinct),
]


def with_spans(listed: tuple[AnyLossCost, ...]) -> tuple[AnyLossCost, ...]:
    """The costs, which say what tokens caused them.

    Raises:
        ValueError: For one that does not.
    """
    for cost in listed:
        if cost.cost in WITHOUT_SPANS:
            raise ValueError(f"'{cost.cost}' says of no token that it was the cause, so it can flag none")
    return listed


FlaggingCosts = Annotated[LossCosts, AfterValidator(with_spans)]


def some(listed: tuple[AnyLossCost, ...]) -> tuple[AnyLossCost, ...]:
    """The costs, of which there is one at least; not `min_length`, which says so as well where one of them is wrong.

    Raises:
        ValueError: For none.
    """
    if not listed:
        raise ValueError("without a cost nothing is flagged")
    return listed


class SequenceUnlikelihoodSpec(Spec):
    """What the policy unlearns of its own answers; `prefopt.trainers.sequence_unlikelihood` implements it."""

    costs: Annotated[FlaggingCosts, AfterValidator(some)] = Field(description="they flag tokens of its own answers")
    every: int = Field(2, ge=1, description="optimiser steps from one that has the term to the next")
    max_new_tokens: int = Field(100, ge=1, description="answers are cut there")


def measurable(listed: tuple[costs.AnyCost, ...]) -> tuple[costs.AnyCost, ...]:
    """The costs, which can be measured on any completion.

    Raises:
        ValueError: For one that only a completion that was just sampled has.
    """
    for cost in listed:
        if cost.cost in SAMPLED_ONLY:
            raise ValueError(f"'{cost.cost}' is measured where a policy samples, and these answers are given")
    return listed


ViolatedCosts = Annotated[costs.Costs, AfterValidator(measurable)]


def sampled(listed: tuple[costs.AnyCost, ...]) -> tuple[costs.AnyCost, ...]:
    """The costs, which can be measured on a completion that was just sampled.

    Raises:
        ValueError: For one that only a rollout has.
    """
    if any(cost.cost == "ensemble_std" for cost in listed):
        raise ValueError("'ensemble_std' is measured where a reward is trained on")
    return listed


KeptCosts = Annotated[costs.Costs, AfterValidator(sampled)]

COST_HOLDERS = ("keep", "sequence_unlikelihood")
"""Keys of a stage that hold a mapping with a list of costs."""
LOSS_COST_ROLES = ("unlikelihood", "cost_margin", "violations", "group_costs")
"""Keys of a stage that hold a list of costs, beside `costs`."""

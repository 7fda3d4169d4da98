"""Parts of stages that learn from rewards: the price of leaving the reference, and the guards of ppo."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from prefopt.recipe.base import Spec

RIGHT_ESTIMATORS = {"reward": ("k1",), "loss": ("k2", "k3")}
"""Where the KL is paid, and the estimators that have the right gradient there (arXiv 2506.09477)."""


class KLSpec(Spec):
    """The penalty for leaving the reference (arXiv 1909.08593)."""

    coefficient: float = Field(0.05, ge=0, description="price of a nat, in units of the reward")
    apply: Literal["reward", "loss"] = Field("reward", description="where it is paid")
    estimator: Literal["k1", "k2", "k3"] | None = Field(
        None, description="k1 in the reward; k2 or k3 as a loss, where k3 is the default (arXiv 2506.09477)"
    )
    adaptive_target: float | None = Field(
        None, gt=0, description="nats per completion: the coefficient grows above it and shrinks below it"
    )
    horizon: int = Field(10_000, ge=1, description="episodes over which the coefficient follows")
    min_coefficient: float = Field(1e-4, ge=0, description="an adaptive coefficient stays above it")
    max_coefficient: float = Field(10.0, gt=0, description="and below it")
    stop_above: float | None = Field(None, gt=0, description="nats per completion at which training ends")

    @property
    def chosen(self) -> Literal["k1", "k2", "k3"]:
        """The estimator, by default the one that belongs to `apply`."""
        return self.estimator or ("k1" if self.apply == "reward" else "k3")

    @field_validator("estimator")
    @classmethod
    def _right_gradient(cls, estimator: str | None, info: ValidationInfo) -> str | None:
        right = RIGHT_ESTIMATORS.get(info.data.get("apply", ""), ())
        if estimator is None or not right or estimator in right:
            return estimator
        raise ValueError(
            f"{estimator}'s gradient is wrong in the {info.data['apply']}: the policy drifts away; "
            f"write {' or '.join(right)}, or `apply: {'loss' if right == ('k1',) else 'reward'}`"
        )

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_coefficient > self.max_coefficient:
            raise ValueError("min_coefficient is above max_coefficient")
        if self.adaptive_target is not None and not self.min_coefficient <= self.coefficient <= self.max_coefficient:
            raise ValueError("an adaptive coefficient starts between min_coefficient and max_coefficient")
        return self


class GroupKLSpec(Spec):
    """The penalty for leaving the reference where its price is fixed, and the algorithm says how it is paid."""

    coefficient: float = Field(0.05, ge=0, description="price of a nat, in units of the reward")


class RLOOKLSpec(GroupKLSpec):
    """Paid in the reward of a completion, as the sum of k1 estimates."""

    apply: Literal["reward"] = Field("reward", description="where it is paid")
    estimator: Literal["k1"] = Field("k1", description="as the sum over a completion")


class GRPOKLSpec(GroupKLSpec):
    """Paid as a loss of every token, as a k3 estimate."""

    apply: Literal["loss"] = Field("loss", description="where it is paid")
    estimator: Literal["k3"] = Field("k3", description="of every token")


class GuardsSpec(Spec):
    """What ends a run that has gone wrong, and which of its policies is kept; limits are relative to the first rollout.

    Each limit must be passed for `patience` rollouts in a row.
    """

    min_entropy: float | None = Field(0.2, ge=0, description="share of the reference's entropy")
    min_eos_rate: float | None = Field(0.5, ge=0, description="share of the reference's rate of ended completions")
    max_length: float | None = Field(None, gt=0, description="times the reference's length")
    max_repetition: float | None = Field(
        0.3, gt=0, description="share of repeated 3-grams, above the reference's (arXiv 2502.03373)"
    )
    max_disagreement: float | None = Field(
        None, gt=0, description="times the reference's deviation between the members of a reward ensemble"
    )
    max_doubt: float | None = Field(
        None,
        gt=0,
        description="how far the judge's win rate, or without a judge the ensemble's bound in standard deviations of "
        "the reference's scores, may fall below its best while the reward does not",
    )
    patience: int = Field(3, ge=1, description="rollouts in a row; of a judge, rollouts at which it was asked")
    action: Literal["stop", "warn"] = Field("stop", description="'warn' trains on, and says so")
    keep: Literal["last", "bound", "judge"] = Field(
        "last", description="the policy that the stage gives: the last, or the one with the best bound or judge"
    )
    uncertainty_weight: float = Field(
        1.0, ge=0, description="the bound is the score minus so many deviations between members (arXiv 2310.02743)"
    )
    judge_every: int = Field(4, ge=1, description="rollouts between two questions to the stage's `judge`")
    judge_prompts: int = Field(128, ge=1, description="prompts on which it compares the policy with its reference")

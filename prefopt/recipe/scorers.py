"""What gives completions their reward, and gates on what was measured, as a recipe says it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from prefopt.recipe.base import Name, Spec


class ScorerSpec(Spec):
    """What gives a completion its reward: `model`, or a word list."""

    model: Name | None = Field(None, description="a reward stage, or 'gold' in the toy world")
    lexicon: str | None = Field(
        None,
        min_length=1,
        description="file of word<tab>valence lines; the reward is their sum over a completion's words",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.model is None) == (self.lexicon is None):
            raise ValueError("write either 'model' or 'lexicon'")
        return self


def _as_scorer(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


Scorer = Annotated[ScorerSpec, BeforeValidator(_as_scorer, json_schema_input_type=str | ScorerSpec)]


class JudgeSpec(ScorerSpec):
    """Who labels collected pairs: the completion with the higher reward is more likely the chosen one."""

    labels: Literal["sampled", "sign", "soft"] = Field(
        "sampled",
        description="'sampled': drawn from the Bradley-Terry model of the rewards; 'sign': the higher reward is "
        "chosen; 'soft': as 'sign', with the Bradley-Terry probability kept",
    )
    noise: float = Field(0.0, ge=0, le=0.5, description="share of labels that are flipped afterwards")
    scale: float = Field(1.0, gt=0, description="rewards are multiplied by it in the Bradley-Terry model")


Judge = Annotated[JudgeSpec, BeforeValidator(_as_scorer, json_schema_input_type=str | JudgeSpec)]


class PPORewardSpec(ScorerSpec):
    """The reward that PPO maximises."""

    normalise: Literal["none", "reference", "running"] = Field(
        "reference",
        description="centred and scaled: 'reference' by the rewards of the reference's own completions, 'running' by "
        "all so far",
    )
    clip: float | None = Field(None, gt=0, description="normalised rewards are cut to [-clip, clip]")
    missing_eos_penalty: float = Field(
        1.0, ge=0, description="subtracted from the normalised reward of completions that do not end themselves"
    )
    missing_eos_score: float | None = Field(
        None, description="is the reward of such completions instead, whatever their score (arXiv 2403.17031)"
    )


PPOReward = Annotated[PPORewardSpec, BeforeValidator(_as_scorer, json_schema_input_type=str | PPORewardSpec)]


class RequireSpec(Spec):
    """A gate: what a metric must be for the run to go on. Intervals are those at 95 %."""

    min: float | None = Field(None, description="the metric's value is at least this")
    max: float | None = Field(None, description="the metric's value is at most this")
    lower_bound: float | None = Field(None, description="the lower end of the metric's interval is at least this")
    upper_bound: float | None = Field(None, description="the upper end of the metric's interval is at most this")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("write at least one of 'min', 'max', 'lower_bound' and 'upper_bound'")
        return self

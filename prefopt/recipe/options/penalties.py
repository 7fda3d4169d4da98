"""Options of the penalties: a cost, and what it is priced at."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from prefopt.recipe.base import Spec, list_as_tuple
from prefopt.recipe.options import costs

_SCHEDULED = ("start_weight", "schedule_episodes")
_LEARNED = (
    "initial_weight",
    "min_weight",
    "max_weight",
    "step",
    "step_size",
    "window_episodes",
    "estimate",
)
_EXPECTED = ("banned", "classifier")
"""Costs that know how likely a completion was to violate, and not only whether it did."""


class PenaltySpec(Spec):
    """The price of a cost: a weight that is written, or one that is learned against a target (arXiv 2310.12773)."""

    weight: float | None = Field(
        None, ge=0, description="what a cost of 1 takes off the reward, in deviations of the reference's rewards"
    )
    warmup_episodes: int = Field(0, ge=0, description="first episodes over which the weight rises from 0")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="how the weight goes from `start_weight` to `weight`, over `schedule_episodes`"
    )
    start_weight: float = Field(0.0, ge=0, description="where a schedule begins")
    schedule_episodes: int | None = Field(None, ge=1, description="episodes that a schedule takes")
    target_rate: float | None = Field(
        None, gt=0, lt=1, description="share of completions that may violate: the weight is learned"
    )
    target_mean: float | None = Field(None, gt=0, description="mean cost that is allowed: the weight is learned")
    initial_weight: float = Field(0.0, ge=0, description="of a learned weight")
    min_weight: float = Field(0.0, ge=0, description="a learned weight stays above it")
    max_weight: float = Field(10.0, gt=0, description="and below it")
    step: Literal["additive", "log"] = Field(
        "additive", description="'log' multiplies, and so needs a `min_weight` above 0"
    )
    step_size: float = Field(0.2, gt=0, description="most that the weight, or its logarithm, moves in a window")
    window_episodes: int | None = Field(
        None, ge=1, description="episodes that the rate is measured on; by default 2 / target, and at least 256"
    )
    estimate: Literal["observed", "expected"] = Field(
        "observed",
        description="'expected': by how likely completions were to violate, which sees rare violations earlier; for "
        "banned words and classifiers",
    )

    @property
    def target(self) -> float | None:
        """Of a learned weight; None of a written one."""
        return self.target_rate if self.target_rate is not None else self.target_mean

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        given = [key for key in ("weight", "target_rate", "target_mean") if getattr(self, key) is not None]
        if len(given) != 1:
            found = f"{given[0]!r} and {given[1]!r} are two prices" if given else "the cost has no price"
            raise ValueError(f"{found}: write one of 'weight', 'target_rate' and 'target_mean'")
        foreign = _LEARNED if given == ["weight"] else (*_SCHEDULED, "warmup_episodes", "schedule")
        for key in foreign:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key!r} means nothing with {given[0]!r}")
        if given == ["weight"]:
            self._check_schedule()
        else:
            self._check_learned()
        return self

    def _check_schedule(self) -> None:
        if (self.schedule == "constant") != (self.schedule_episodes is None):
            raise ValueError("'schedule_episodes' belongs to `schedule: linear` or `cosine`, which need it")
        if self.schedule == "constant" and self.start_weight:
            raise ValueError("'start_weight' belongs to `schedule: linear` or `cosine`")

    def _check_learned(self) -> None:
        if not self.min_weight <= self.initial_weight <= self.max_weight:
            raise ValueError("'initial_weight' must lie between 'min_weight' and 'max_weight'")
        if self.step == "log" and self.min_weight == 0:
            raise ValueError("a logarithmic step never leaves 0: write a 'min_weight' above 0, or `step: additive`")
        if self.estimate == "expected" and getattr(self, "cost", None) not in _EXPECTED:
            raise ValueError(f"`estimate: expected` is for {' and '.join(_EXPECTED)}: others know what happened, only")
        if self.estimate == "expected" and self.target_rate is None:
            raise ValueError("`estimate: expected` estimates a rate: write 'target_rate'")


class LengthPenalty(PenaltySpec, costs.LengthCost):
    """Length, priced."""


class RepetitionPenalty(PenaltySpec, costs.RepetitionCost):
    """Repetition, priced."""


class BannedPenalty(PenaltySpec, costs.BannedCost):
    """Banned words, priced."""

    @model_validator(mode="after")
    def _has_words(self) -> Self:
        if self.estimate == "expected" and self.lexicon is None and not self.words:
            raise ValueError(
                "`estimate: expected` knows how likely words are, not patterns: write 'words' or 'lexicon'"
            )
        if self.estimate == "expected" and self.threshold * self.saturation >= 1:
            raise ValueError("`estimate: expected` knows how likely one hit is, and this 'threshold' lets it pass")
        return self


class FormatPenalty(PenaltySpec, costs.FormatCost):
    """A wrong form, priced."""


class MissingEosPenalty(PenaltySpec, costs.MissingEosCost):
    """A missing end, priced."""


class EnsembleStdPenalty(PenaltySpec, costs.EnsembleStdCost):
    """Disagreement, priced (UWO, arXiv 2310.02743)."""


class ScriptPenalty(PenaltySpec, costs.ScriptCost):
    """Another script, priced."""


class PromptCopyPenalty(PenaltySpec, costs.PromptCopyCost):
    """Copies of the prompt, priced."""


class RefusalPenalty(PenaltySpec, costs.RefusalCost):
    """Refusals, priced."""


class ClassifierPenalty(PenaltySpec, costs.ClassifierCost):
    """What a classifier says, priced."""


class PluginPenalty(PenaltySpec, costs.PluginCost):
    """A cost of somebody's own, priced."""


AnyPenalty = (
    LengthPenalty
    | RepetitionPenalty
    | BannedPenalty
    | FormatPenalty
    | MissingEosPenalty
    | EnsembleStdPenalty
    | ScriptPenalty
    | PromptCopyPenalty
    | RefusalPenalty
    | ClassifierPenalty
    | PluginPenalty
)
Penalties = Annotated[
    tuple[Annotated[AnyPenalty, Field(discriminator="cost")], ...],
    BeforeValidator(list_as_tuple, json_schema_input_type=list[Annotated[AnyPenalty, Field(discriminator="cost")]]),
    AfterValidator(costs.distinct),
]

"""A stage that learns from what a model itself says under a richer context, after better of its own answers, or both.

A recipe says as data what teacher and student read: both start from the data's prompt, and each has edits of its own.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from prefopt.recipe.base import Name, Names, Spec, list_as_tuple, when_set
from prefopt.recipe.options.loss_costs import KeptCosts
from prefopt.recipe.scorers import Scorer
from prefopt.recipe.training import AdapterSpec, TrainingSpec

TEXT_OF = ("replace", "prepend", "append", "template")
SLOT = "{content}"


class ContextEdit(Spec):
    """One change of the conversation that is answered; edits are applied in order."""

    do: Literal["drop", "replace", "prepend", "append", "template", "shorten"] = Field(
        description="'template' puts the turn's text in the place of {content}; 'shorten' keeps its first `words`"
    )
    role: Literal["system", "user", "history"] = Field(
        "system", description="the system turn, the last user turn, or ('drop' alone) the turns between the two"
    )
    text: str | None = Field(None, min_length=1, description="of all edits but 'drop' and 'shorten'")
    words: int | None = Field(None, ge=1, description="of 'shorten'")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.do in TEXT_OF) != (self.text is not None):
            raise ValueError(f"'{self.do}' {'needs a' if self.do in TEXT_OF else 'takes no'} 'text'")
        if (self.do == "shorten") != (self.words is not None):
            raise ValueError(f"'{self.do}' {'needs' if self.do == 'shorten' else 'takes no'} 'words'")
        if self.do == "template" and SLOT not in (self.text or ""):
            raise ValueError(f"a template says with {SLOT} where the turn's own text goes")
        if self.do == "drop" and self.role == "user":
            raise ValueError("without the last user turn there is nothing to answer")
        if self.role == "history" and self.do != "drop":
            raise ValueError("the turns before the last can only be dropped")
        return self


Edits = Annotated[tuple[ContextEdit, ...], BeforeValidator(list_as_tuple, json_schema_input_type=list[ContextEdit])]


class KeepSpec(Spec):
    """Which of the teacher's answers are learned from (filters against collapse)."""

    ended: bool = Field(True, description="only answers that the teacher ended itself")
    min_tokens: int = Field(1, ge=0, description="the end token counts")
    max_tokens: int | None = Field(None, ge=1)
    max_copies: int | None = Field(2, ge=1, description="of the same answer to the same prompt; null: any number")
    min_logp_quantile: float = Field(
        0.02, ge=0, lt=1, description="share of the answers that is dropped for the lowest mean log-probability"
    )
    min_reward_quantile: float = Field(0.0, ge=0, lt=1, description="share that is dropped for the lowest reward")
    costs: KeptCosts = when_set((), description="costs that no answer may violate, as in the penalties of ppo")


class SoftPromptSpec(Spec):
    """Vectors that a frozen model reads before every prompt, in the names of `peft.PromptTuningConfig`."""

    num_virtual_tokens: int = Field(16, ge=1, description="how many")
    prompt_tuning_init_text: str | None = Field(
        None, min_length=1, description="text whose tokens they start as; by default tokens of the vocabulary"
    )


class CollapseGuardsSpec(Spec):
    """What ends a training in which the student collapses; limits are relative to what the first round started from."""

    min_entropy: float | None = Field(0.7, ge=0, description="share of the origin's entropy along own answers")
    max_nll: float | None = Field(1.1, gt=0, description="times the origin's loss on held-out `demonstrations`")
    every: int = Field(50, ge=1, description="optimiser steps between two looks; the last step has one")
    prompts: int = Field(64, ge=1, description="held-out prompts that are answered for a look")
    action: Literal["stop", "warn"] = Field("stop", description="'warn' trains on, and says so")


class DistillSpec(TrainingSpec, AdapterSpec):
    """Learning Pr(y | c', z) from the teacher's Pr(y | c, z) (arXiv 2209.15189; arXiv 2501.09223, chapter 3)."""

    kind: Literal["distill"]
    prompts: Names = Field(min_length=1, description="data whose training prompts the teacher answers")
    init: Name | None = Field(None, description="stage that the student starts from; the base by default")
    teacher: Name | None = Field(
        None, description="stage that answers, or 'base'; by default what the student starts from"
    )
    teacher_model_name_or_path: str | None = Field(
        None, min_length=1, description="another model with the same vocabulary as teacher: a folder or Hub id"
    )
    teacher_context: Edits = Field((), description="what the teacher reads, as edits of the data's prompt")
    student_context: Edits = Field((), description="what the student reads, as edits of the data's prompt")
    target: Literal["soft", "sample", "argmax", "on_policy"] = Field(
        "soft",
        description="the teacher's distributions along its samples, the samples, its likeliest answers, or its "
        "distributions along the student's own samples",
    )
    top_k: int | None = Field(
        None, ge=1, description="tell only the teacher's k likeliest tokens apart; by default all"
    )
    num_beams: int = Field(1, ge=1, description="of the search for the likeliest answer; 1 is greedy")
    temperature: float = Field(1.0, gt=0, description="of samples")
    max_new_tokens: int = Field(64, ge=1)
    max_prompts: int | None = Field(None, ge=1, description="prompts answered; all by default")
    eval_prompts: int = Field(128, ge=1, description="held-out prompts that student and teacher are compared on")
    samples_per_prompt: int = Field(1, ge=1, description="answers of the teacher to a prompt")
    best_per_prompt: int | None = Field(None, ge=1, description="only the best by `reward` of them are learned from")
    reward: Scorer | None = Field(
        None, description="judges the teacher's answers, and the student's: 'gold', a reward stage, or a mapping"
    )
    keep: KeepSpec = KeepSpec()
    demonstrations: Names = Field((), description="real data that is replayed")
    replay_share: float = Field(0.25, ge=0, lt=1, description="share of real data among all rows")
    replay_target: Literal["hard", "soft"] = Field(
        "hard", description="'hard': the real answers; 'soft': the teacher's distributions along them"
    )
    accumulate: bool = Field(
        True, description="learn also from what the distill stage of `init` learned from (arXiv 2404.01413)"
    )
    guards: CollapseGuardsSpec = CollapseGuardsSpec()
    soft_prompt: SoftPromptSpec | None = when_set(
        None, description="train vectors before every prompt of the frozen model in place of an adapter"
    )
    learning_rate: float = Field(2e-4, gt=0)

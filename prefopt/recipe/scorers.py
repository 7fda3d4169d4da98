"""What gives completions their reward, and gates on what was measured, as a recipe says it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from prefopt.recipe.base import Name, Spec, list_as_tuple, name_as_tuple, quiet, when_set
from prefopt.recipe.options.penalties import Penalties

SOURCES = ("model", "lexicon", "function", "url", "pretrained", "weighted")
"""The keys that say who scores; a scorer has one of them."""

GoldTerm = Literal[
    "answer", "wrong", "refusal", "detail", "politeness", "praise", "rudeness", "rambling", "repetition", "length",
    "ending", "fluency", "forbidden",
]  # fmt: skip
"""What the gold reward of the toy world is the sum of."""

_USERS = {
    "timeout": ("url",),
    "token_env": ("url",),
    "revision": ("pretrained",),
    "output": ("pretrained",),
    "batch_size": ("url", "pretrained"),
}


class SourceSpec(Spec):
    """What gives a completion its reward: one of `model`, `lexicon`, `function`, `url` and `pretrained`."""

    model: Name | None = Field(None, description="a reward stage, or 'gold' in the toy world")
    without: Annotated[
        tuple[GoldTerm, ...], BeforeValidator(name_as_tuple, json_schema_input_type=GoldTerm | list[GoldTerm])
    ] = when_set((), description="terms of 'gold' that do not count, such as 'forbidden'")
    lexicon: str | None = Field(
        None,
        min_length=1,
        description="file of word<tab>valence lines; the reward is their sum over a completion's words",
    )
    function: Name | None = when_set(
        None, description="a Python function that an installed package registers under prefopt.rewards"
    )
    url: str | None = when_set(None, description="http(s) address that prompts and completions are posted to")
    timeout: float = quiet(60.0, gt=0, description="seconds that an answer of `url` may take")
    token_env: str | None = quiet(
        None, description="environment variable with the token that `url` is sent as Authorization: Bearer"
    )
    pretrained: str | None = when_set(
        None, min_length=1, description="folder or Hub id of a sequence classification model"
    )
    revision: str | None = when_set(None, min_length=1, description="of `pretrained` on the Hub; main by default")
    output: str | int | None = when_set(
        None, description="of `pretrained` with several outputs, the name or number of the one whose log-odds count"
    )
    batch_size: int = when_set(64, ge=1, description="completions of a request to `url` or a pass of `pretrained`")

    @field_validator("url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{url}' is no address; it begins with http:// or https:// and a host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("an address with a password would be kept with the run; write 'token_env'")
        return url

    @field_validator("token_env")
    @classmethod
    def _variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            # What is written may be the token itself, so it is not shown.
            raise ValueError("must be the name of an environment variable, not what is in it")
        return name

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = [name for name in SOURCES if name in type(self).model_fields]
        given = [name for name in sources if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"nothing says who scores: write one of {', '.join(map(repr, sources))}")
        if len(given) > 1:
            more = "; several are added up in 'weighted'" if "weighted" in sources and "weighted" not in given else ""
            raise ValueError(f"{given[0]!r} and {given[1]!r} are two scorers: write one{more}")
        if self.without and self.model != "gold":
            raise ValueError("'without' is for `model: gold`, whose terms are known")
        for option, users in _USERS.items():
            if given[0] not in users and getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"{option!r} is for {' and '.join(map(repr, users))} only")
        return self

    @property
    def label(self) -> str:
        """Who scores, in a word: without folders, and without what an address may hold as a key."""
        if self.url is not None:
            parts = urlsplit(self.url)
            return f"{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path.rstrip('/')}"
        if self.pretrained is not None:
            return Path(self.pretrained).name if Path(self.pretrained).is_absolute() else self.pretrained
        return self.model or self.function or "lexicon"


def _as_scorer(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


class PartSpec(SourceSpec):
    """A scorer of a weighted sum."""

    weight: float = Field(1.0, description="times the scorer's value; below 0 for a cost")


Part = Annotated[PartSpec, BeforeValidator(_as_scorer, json_schema_input_type=str | PartSpec)]


class ScorerSpec(SourceSpec):
    """What gives a completion its reward: one scorer, or in `weighted` the sum of several."""

    weighted: Annotated[
        tuple[Part, ...] | None, BeforeValidator(list_as_tuple, json_schema_input_type=list[Part] | None)
    ] = when_set(None, description="scorers whose values are added up, each times its `weight`")

    @field_validator("weighted")
    @classmethod
    def _several(cls, parts: tuple[PartSpec, ...] | None) -> tuple[PartSpec, ...] | None:
        if parts is not None and len(parts) < 2:
            raise ValueError("a weighted sum has two scorers or more")
        return parts

    @property
    def parts(self) -> tuple[SourceSpec, ...]:
        """The scorers that it is made of: those of the sum, or itself."""
        return (self,) if self.weighted is None else self.weighted

    @property
    def label(self) -> str:
        """Who scores, in a word."""
        return " + ".join(part.label for part in self.weighted) if self.weighted is not None else super().label

    def changed(self, change: Callable[[SourceSpec], Mapping[str, object]]) -> Self:
        """The same scorer with new values of some keys in every scorer that it is made of."""
        if self.weighted is None:
            return self.model_copy(update=change(self))
        return self.model_copy(
            update={"weighted": tuple(part.model_copy(update=change(part)) for part in self.weighted)}
        )


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

    normalise: Literal["none", "reference", "running", "batch"] = Field(
        "reference",
        description="centred and scaled: 'reference' by the rewards of the reference's own completions, 'running' by "
        "all so far, 'batch' by those of the rollout",
    )
    reference_samples: int = when_set(256, ge=2, description="completions of the reference that 'reference' looks at")
    bound: Literal["none", "sigmoid", "par"] = when_set(
        "none",
        description="the normalised reward as σ(slope · z), or as the share of the reference's rewards that it beats, "
        "softly (arXiv 2502.18770)",
    )
    slope: float = when_set(1.0, gt=0, description="of `bound`")
    clip: float | None = Field(None, gt=0, description="normalised rewards are cut to [-clip, clip]")
    missing_eos_penalty: float = Field(
        1.0, ge=0, description="subtracted from the normalised reward of completions that do not end themselves"
    )
    missing_eos_score: float | None = Field(
        None, description="is the reward of such completions instead, whatever their score (arXiv 2403.17031)"
    )
    penalties: Penalties = when_set((), description="what else is taken off: costs and what they are priced at")
    total_clip: float | None = when_set(
        None, gt=0, description="the sum of all that is cut to [-total_clip, total_clip]"
    )

    @model_validator(mode="after")
    def _shaping(self) -> Self:
        if self.bound != "none" and self.clip is not None:
            raise ValueError("'clip' and 'bound' both bound the normalised reward: write one")
        if self.bound == "par" and self.normalise != "reference":
            raise ValueError("`bound: par` compares with the reference's rewards: it needs `normalise: reference`")
        if self.bound == "none" and self.slope != 1:
            raise ValueError("'slope' is that of 'bound', and there is none")
        ends = any(penalty.cost == "missing_eos" for penalty in self.penalties)
        if ends and (self.missing_eos_penalty or self.missing_eos_score is not None):
            raise ValueError(
                "a missing end would be paid twice: with the penalty 'missing_eos' write `missing_eos_penalty: 0`"
            )
        return self


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

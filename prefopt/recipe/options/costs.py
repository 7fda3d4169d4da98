"""Options of the costs; `prefopt.rewards.costs` implements one for each name.

A cost is a number that is measured on a completion: 0 where nothing is wrong with it, and higher the worse it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from prefopt.recipe.base import Name, Spec, Texts, list_as_tuple, name_as_tuple, when_set

RESERVED = ("score", "kl", "total", "clip", "missing_eos")
"""Names of other terms of the reward; `missing_eos` is also that of a cost, which may have it."""

_Label = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")]


def _compiles(pattern: str) -> str:
    import regex  # here: most recipes have none, and `prefopt check` is quick

    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"'{pattern:.60}' is no regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, Field(min_length=1), AfterValidator(_compiles)]
Patterns = Annotated[tuple[Pattern, ...], BeforeValidator(name_as_tuple, json_schema_input_type=str | list[str])]


class CostSpec(Spec):
    """What every cost has."""

    cost: str
    name: _Label | None = Field(None, description="in metrics and reports; by default that of the cost")
    threshold: float = Field(0.0, ge=0, description="a completion violates where its cost is above it")

    @property
    def label(self) -> str:
        """What metrics call it."""
        return self.name or self.cost


class LengthCost(CostSpec):
    """How much too long a completion is."""

    cost: Literal["length"]
    limit: int = Field(ge=1, description="units from which on length costs")
    unit: Literal["tokens", "words", "characters"] = "tokens"
    shape: Literal["linear", "hard", "soft"] = Field(
        "linear",
        description="'linear': the share of `limit` beyond it; 'hard': 1 beyond; 'soft': rises from 0 to 1 over the "
        "last `buffer` units before it (arXiv 2503.14476)",
    )
    buffer: int | None = Field(None, ge=1, description="units before `limit` over which 'soft' rises")
    minimum: int | None = Field(
        None, ge=1, description="units below which a completion is too short, and costs as well"
    )
    cap: float | None = Field(None, gt=0, description="'linear' costs at most this")

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if (self.shape == "soft") != (self.buffer is not None):
            raise ValueError("'buffer' belongs to `shape: soft`, and 'soft' needs it")
        if self.buffer is not None and self.buffer > self.limit:
            raise ValueError("'buffer' is longer than 'limit'")
        if self.minimum is not None and self.minimum > self.limit:
            raise ValueError("'minimum' is above 'limit'")
        if self.cap is not None and self.shape != "linear":
            raise ValueError("'cap' is for `shape: linear`: the others end at 1")
        return self


class RepetitionCost(CostSpec):
    """How much a completion says again."""

    cost: Literal["repetition"]
    measure: Literal["ngrams", "longest"] = Field(
        "ngrams",
        description="'ngrams': the share of n-grams that were there before; 'longest': the share of the completion "
        "that its longest repeated span is",
    )
    ngram: int = Field(3, ge=1, le=64, description="n of the n-grams; 'longest' takes no shorter span for a repetition")
    unit: Literal["tokens", "words"] = "tokens"


class BannedCost(CostSpec):
    """Words and patterns that must not be said."""

    cost: Literal["banned"]
    lexicon: str | None = Field(None, min_length=1, description="file with a word or phrase a line; # begins a comment")
    words: Texts = Field((), description="words and phrases, beside those of the file")
    patterns: Patterns = Field(
        (), description="regular expressions, looked for in the folded text, whatever the case of its letters"
    )
    confusables: bool = Field(True, description="letters of other scripts count as the Latin ones they look like")
    leetspeak: bool = Field(False, description="0, 1, 3, 4, 5, 7, @ and $ count as o, l, e, a, s, t, a and s")
    ignore_marks: bool = Field(False, description="letters count as those without accents")
    saturation: int = Field(1, ge=1, description="hits from which on the cost is 1; before, hits / saturation")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.lexicon is None and not self.words and not self.patterns:
            raise ValueError("nothing is banned: write 'lexicon', 'words' or 'patterns'")
        return self


class FormatCost(CostSpec):
    """Whether a completion has the form that it must have."""

    cost: Literal["format"]
    pattern: Pattern | None = Field(None, description="regular expression that the whole completion must match")
    syntax: Literal["json"] | None = Field(None, description="the completion must be valid JSON")
    keys: Texts = Field(
        (), description="of the JSON object that it must then be; the cost is the share that is missing"
    )
    sections: Texts = Field(
        (), description="texts that must begin lines of the completion, in this order; the cost is the missing share"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum((self.pattern is not None, self.syntax is not None, bool(self.sections))) != 1:
            raise ValueError("write one of 'pattern', 'syntax' and 'sections'")
        if self.keys and self.syntax is None:
            raise ValueError("'keys' are those of JSON: add `syntax: json`")
        return self


class MissingEosCost(CostSpec):
    """1 for a completion that did not end itself."""

    cost: Literal["missing_eos"]


class EnsembleStdCost(CostSpec):
    """Standard deviation between the members of a reward ensemble, in deviations of the reference's rewards."""

    cost: Literal["ensemble_std"]


class ScriptCost(CostSpec):
    """Share of a completion's letters that are of another script than those of the prompt."""

    cost: Literal["script"]
    scripts: Texts = Field((), description="allowed besides, in the words of Unicode, such as latin or cyrillic")


class PromptCopyCost(CostSpec):
    """Share of a completion's word n-grams that the prompt has."""

    cost: Literal["prompt_copy"]
    ngram: int = Field(5, ge=1, le=64, description="words in a row that are a copy")


class RefusalCost(CostSpec):
    """1 for a completion that refuses to answer."""

    cost: Literal["refusal"]
    phrases: Texts = Field((), description="in place of the built-in English ones")
    within_characters: int = Field(300, ge=1, description="a refusal begins in so many first characters")


class ClassifierCost(CostSpec):
    """What a classifier says, with p the probability of its output: max(0, p - hinge) / (1 - hinge)."""

    cost: Literal["classifier"]
    pretrained: str = Field(min_length=1, description="folder or Hub id of a sequence classifier")
    revision: str | None = Field(None, min_length=1, description="of `pretrained` on the Hub; main by default")
    output: str | int | None = when_set(
        None, description="of several outputs, the name or number of the one that is not wanted, such as toxic"
    )
    batch_size: int = Field(64, ge=1, description="completions of a pass")
    hinge: float = Field(0.5, ge=0, lt=1, description="probability from which on it costs")


class PluginCost(CostSpec):
    """A Python function that an installed package registers under `prefopt.costs`."""

    cost: Literal["plugin"]
    function: Name = Field(description="its registered name")


AnyCost = (
    LengthCost
    | RepetitionCost
    | BannedCost
    | FormatCost
    | MissingEosCost
    | EnsembleStdCost
    | ScriptCost
    | PromptCopyCost
    | RefusalCost
    | ClassifierCost
    | PluginCost
)


NAMES: tuple[str, ...] = tuple(get_args(spec.model_fields["cost"].annotation)[0] for spec in get_args(AnyCost))


def check_labels(costs: Sequence[CostSpec]) -> None:
    """Refuse costs that metrics could not tell apart.

    Raises:
        ValueError: For two of one name, or a name of something else.
    """
    labels = [cost.label for cost in costs]
    for cost, label in zip(costs, labels, strict=True):
        if label in RESERVED and label != cost.cost:
            raise ValueError(f"'{label}' is another term of the reward: write another 'name'")
        if labels.count(label) > 1:
            raise ValueError(f"two costs are called '{label}': give one a 'name'")


def distinct(costs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The costs, which metrics can tell apart."""
    check_labels(costs)
    return costs


Costs = Annotated[
    tuple[Annotated[AnyCost, Field(discriminator="cost")], ...],
    BeforeValidator(list_as_tuple, json_schema_input_type=list[Annotated[AnyCost, Field(discriminator="cost")]]),
    AfterValidator(distinct),
]

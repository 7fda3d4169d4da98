"""What every part of a recipe shares: strict, frozen models, and the types of names and seeds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# `@2` ends the names of stages that `rounds` makes: policy@2 is the policy of the second round.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(@[1-9][0-9]{0,2})?$"


def quiet(default: Any, **constraints: Any) -> Any:
    """A field that changes no numbers and so never enters a stage's key."""
    return Field(default, json_schema_extra={"numeric": False}, **constraints)


def when_set(default: Any, **constraints: Any) -> Any:
    """A field that enters a stage's key only where it differs from its default.

    For options that came later: recipes that do not use them keep the keys, and so the artefacts, that they have.
    """
    return Field(default, json_schema_extra={"numeric": "when set"}, **constraints)


def name_as_tuple(value: object) -> object:
    """A name or a list of names as the tuple that frozen specs hold; anything else as it is."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def list_as_tuple(value: object) -> object:
    """A list as the tuple that frozen specs hold; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, where none is listed twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]!r} is listed twice")
    return names


Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Names = Annotated[
    tuple[Name, ...], BeforeValidator(name_as_tuple, json_schema_input_type=str | list[str]), AfterValidator(unique)
]
Texts = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(name_as_tuple, json_schema_input_type=str | list[str]),
]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what numpy takes


class Spec(BaseModel):
    """Base of every part of a recipe: frozen, strict about types, and unknown keys are refused.

    Strict: text is no number and `true` is not 1. A float without a fraction (`1e3`) serves as a whole number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _whole_floats(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        whole = {
            key: int(value)
            for key, value in given.items()
            if isinstance(value, float) and value.is_integer() and key in cls.model_fields
            if cls.model_fields[key].annotation in (int, int | None)
        }
        return {**given, **whole}

"""The part of a spec that decides numbers, and so belongs into a stage's key."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def spec_for_key(spec: BaseModel) -> dict[str, Any]:
    """A spec as plain JSON values, without the keys that change no numbers.

    Fields marked `json_schema_extra={"numeric": False}` are left out at every depth, and those marked `"when set"`
    where they are at their default; other defaults are written out. So a key that is spelled with its default gives the
    same result as one that is left out.
    """
    kept: dict[str, Any] = {}
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        extra = field.json_schema_extra
        numeric = extra.get("numeric") if isinstance(extra, dict) else None
        if numeric is False or (numeric == "when set" and value == field.get_default()):
            continue
        kept[name] = _plain(value)
    return kept


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return spec_for_key(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value

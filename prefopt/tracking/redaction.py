"""What may leave the process towards a tracker or a page: a stage's own settings, and no secret.

Two independent nets. The configuration is *allow-listed*: only keys that the recipe's schema declares pass. Then
every text is searched for the values of environment variables that look like secrets, and for credentials in URLs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from prefopt.recipe.schema import AnyStage, ModelSpec
from prefopt.store.secrets import redact

_SECRET_SETTING = re.compile(r"api_?key|secret|passw|credential|(?:access|auth|bearer|hf)_?token$", re.IGNORECASE)
_IDENTITY = ("run", "stage", "kind", "key", "seed")


def allowed_config(kind: str, config: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The part of a stage's configuration that may go to a tracker.

    Args:
        kind: Kind of the stage; its class in the recipe's schema is the allow-list.
        config: What the stage knows: its dumped spec, flat or under `stage`, and beside it `model` (a name or a dumped
            spec) and `data` (names).
        environ: The environment whose secrets are removed; the process's own by default.

    Returns:
        Plain JSON values. Local folders keep their last part only, so that no home directory leaks.
    """
    stage = config.get("stage")
    if isinstance(stage, Mapping):
        config = {**{name: value for name, value in config.items() if name != "stage"}, **stage}
    spec = _stage_classes().get(kind)
    allowed: dict[str, Any] = dict.fromkeys((*_IDENTITY, "model", "data"))
    if spec is not None:
        allowed |= spec.model_fields
    result: dict[str, Any] = {}
    for name, value in config.items():
        if name not in allowed or _SECRET_SETTING.search(name):
            continue
        nested = ModelSpec if name == "model" else _nested_class(getattr(allowed[name], "annotation", None))
        result[name] = _plain(value, nested, environ)
    return result


def _stage_classes() -> dict[str, type[BaseModel]]:
    union = get_args(AnyStage)[0]
    return {get_args(cls.model_fields["kind"].annotation)[0]: cls for cls in get_args(union)}


def _nested_class(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _plain(value: Any, nested: type[BaseModel] | None, environ: Mapping[str, str] | None) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        fields = {} if nested is None else nested.model_fields
        return {
            name: _plain(item, _nested_class(fields[name].annotation), environ)
            for name, item in value.items()
            if name in fields and not _SECRET_SETTING.search(name)
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, nested, environ) for item in value]
    text = str(value)
    return redact(Path(text).name if Path(text).is_absolute() else text, environ)

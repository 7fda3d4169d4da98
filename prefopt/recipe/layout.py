"""What the schema looks like from outside: which keys exist at a place, and where a key lives.

Used by the messages about unknown keys; derived from the pydantic models, so it cannot drift from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from prefopt.recipe.schema import KINDS, AnyStage, Recipe
from prefopt.recipe.yaml import KeyPath

MAX_CANDIDATES = 400
NEARNESS = 0.65  # 'dop' and 'dpo' are 0.67 alike


@dataclass(frozen=True)
class Home:
    """A key of the schema.

    Attributes:
        level: Where it stands, such as `model.lora` or `stages.NAME`; empty at the top.
        key: The key.
        kinds: For keys of stages, the kinds that have it.
    """

    level: str
    key: str
    kinds: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.kinds:
            return f"'{self.key}' is a key of {listed(self.kinds)} stages"
        if not self.level:
            return f"'{self.key}' is a key of the recipe itself"
        return f"'{self.key}' belongs under '{self.level}'"


def listed(words: Sequence[str]) -> str:
    """Words as they stand in a sentence: a, b and c."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" and {words[-1]}"


@cache
def stage_specs() -> dict[str, type[BaseModel]]:
    """The model of each kind of stage."""
    specs = specs_in(AnyStage)
    by_kind = {get_args(spec.model_fields["kind"].annotation)[0]: spec for spec in specs}
    return {kind: by_kind[kind] for kind in KINDS}


def specs_in(annotation: Any) -> list[type[BaseModel]]:
    """The models in the type of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [spec for part in get_args(annotation) for spec in specs_in(part)]


def _is_named(annotation: Any) -> bool:
    """Whether the user chooses the keys below, as in `data` and `stages`."""
    return get_origin(annotation) is dict


def spec_at(path: KeyPath, tree: Mapping[str, Any]) -> type[BaseModel] | None:
    """The model that describes the mapping at a path; None where there is none."""
    spec: type[BaseModel] | None = Recipe
    node: Any = tree
    named: list[type[BaseModel]] | None = None
    below: list[type[BaseModel]] = []
    for part in path:
        if isinstance(part, int):  # the model is that of every item, or of its cost
            node = node[part] if isinstance(node, list) and part < len(node) else None
            spec = _of_cost(below, node) or spec
            continue
        node = node.get(part) if isinstance(node, dict) else None
        if named is not None:
            spec, named = _pick(named, node), None
        elif spec is None or part not in spec.model_fields:
            return None
        else:
            annotation = spec.model_fields[part].annotation
            below = specs_in(annotation)
            named, spec = (below, None) if _is_named(annotation) else (None, below[0] if below else None)
    return spec


def _of_cost(candidates: list[type[BaseModel]], node: Any) -> type[BaseModel] | None:
    """The model of a mapping that says which cost it is."""
    cost = node.get("cost") if isinstance(node, dict) else None
    holders = (spec for spec in candidates if "cost" in spec.model_fields)
    return next((spec for spec in holders if cost in get_args(spec.model_fields["cost"].annotation)), None)


def _pick(candidates: list[type[BaseModel]], node: Any) -> type[BaseModel] | None:
    if len(candidates) == 1:
        return candidates[0]
    return stage_specs().get(str(node.get("kind"))) if isinstance(node, dict) else None


@cache
def homes() -> dict[str, tuple[Home, ...]]:
    """Every key of the schema, with the places where it may stand."""
    found: dict[str, list[Home]] = {}
    for level, spec in _levels(Recipe, ""):
        for key in spec.model_fields:
            if level != "stages.NAME":
                found.setdefault(key, []).append(Home(level, key))
    for key in dict.fromkeys(key for spec in stage_specs().values() for key in spec.model_fields):
        kinds = tuple(kind for kind, spec in stage_specs().items() if key in spec.model_fields)
        found.setdefault(key, []).append(Home("stages.NAME", key, kinds))
    return {key: tuple(places) for key, places in found.items()}


def _levels(spec: type[BaseModel], level: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield level, spec
    for key, field in spec.model_fields.items():
        below = f"{level}.{key}" if level else key
        for inner in specs_in(field.annotation):
            yield from _levels(inner, f"{below}.NAME" if _is_named(field.annotation) else below)


def closest(word: str, candidates: Sequence[str]) -> str | None:
    """The candidate that a user most likely meant; None where nothing is near."""
    if len(candidates) > MAX_CANDIDATES:  # difflib is slow, and a recipe must be judged in bounded time
        return None
    lowered = {candidate.lower(): candidate for candidate in reversed(candidates)}
    matches = get_close_matches(word.lower().replace("-", "_"), list(lowered), n=1, cutoff=NEARNESS)
    if not matches:
        matches = get_close_matches(word.lower(), list(lowered), n=1, cutoff=NEARNESS)
    return lowered[matches[0]] if matches else None

"""A mapping of a recipe as rules between keys see it: valid values, and defaults for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from prefopt.recipe.yaml import KeyPath


@dataclass(frozen=True)
class Fault:
    """What a rule finds.

    Attributes:
        key: Dotted, from the stage on.
        wrong: Whether the recipe is refused; otherwise it is warned of.
    """

    key: str
    message: str
    remedy: str = ""
    wrong: bool = True


class Part:
    """A mapping of the recipe: what was written where that is valid, defaults otherwise."""

    def __init__(self, spec: type[BaseModel], raw: Mapping[str, Any], path: KeyPath, bad: set[KeyPath]) -> None:
        self.path = path
        self._spec = spec
        self._written = frozenset(key for key, value in raw.items() if value is not None)
        self._valid = {key: value for key, value in raw.items() if not _touched((*path, key), bad)}

    def get(self, key: str) -> Any:
        """The value in force; None where it is not known."""
        return self._valid[key] if key in self._valid else self._spec.model_fields[key].get_default()

    def has(self, key: str) -> bool:
        """Whether there is such a key here at all."""
        return key in self._spec.model_fields

    def written(self, key: str) -> bool:
        """Whether the recipe says it, validly or not."""
        return key in self._written

    def given(self, key: str) -> bool:
        """Whether the recipe says it, and validly."""
        return self._valid.get(key) is not None

    def changed(self, key: str) -> bool:
        """Whether the recipe says it, validly, and not what would be the case anyway."""
        return self.given(key) and self._valid[key] != self._spec.model_fields[key].get_default()


def _touched(path: KeyPath, bad: set[KeyPath]) -> bool:
    return any(other[: len(path)] == path for other in bad)

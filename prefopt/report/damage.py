"""Reading foreign JSON piece by piece: what is damaged is said and left out, and the rest is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from prefopt.errors import PrefoptError
from prefopt.store.files import read_json

Warn = Callable[[str], None]
T = TypeVar("T")

# Far beyond any reward, cost or count, and near enough to 0 that plots and sums stay finite.
_LARGEST = 1e30
_LONGEST = 80  # characters of a damaged value that a warning repeats


def read_mapping(path: Path, warn: Warn) -> Mapping[str, Any]:
    """A JSON object from a file; empty where there is none or it is damaged."""
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except (PrefoptError, OSError) as error:
        warn(str(error))
        return {}
    if isinstance(value, Mapping):
        return value
    warn(f"{path.name} is not a JSON object")
    return {}


def attempt(what: str, parse: Callable[[Any], T], value: object, warn: Warn) -> T | None:
    """What `parse` makes of a value; None, and a warning that names `what`, where the value does not allow it."""
    try:
        return parse(value)
    except KeyError as error:
        warn(f"{what} is damaged: {error} is missing")
    except (PrefoptError, TypeError, ValueError, OverflowError) as error:
        warn(f"{what} is damaged: {error}")
    return None


def real(value: object) -> float:
    """A finite number of a plausible size.

    Raises:
        ValueError: For anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        raise ValueError(f"{shortened(value)} is not a number that can be shown")
    return float(value)


def real_or_none(value: object) -> float | None:
    """As `real`, with None for None."""
    return None if value is None else real(value)


def mapping(value: object) -> Mapping[str, Any]:
    """The value, where it is a mapping.

    Raises:
        ValueError: Where it is not.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{shortened(value)} is not a mapping")
    return value


def items(value: object) -> list[Any]:
    """The value, where it is a list.

    Raises:
        ValueError: Where it is not.
    """
    if not isinstance(value, list):
        raise ValueError(f"{shortened(value)} is not a list")
    return value


def shortened(value: object) -> str:
    """A value as a warning repeats it."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST:
        return "a number that is too large"  # Python refuses to write the longest of them
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def is_real(value: object) -> bool:
    """Whether a value of a manifest can be added to others."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

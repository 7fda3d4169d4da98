"""Spellings of other frameworks and of older TRL, and what a person meant with a key that does not exist.

Nothing here is accepted silently: a recipe means one thing, so the message says what prefopt calls it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from prefopt.recipe.foreign import FOREIGN, KIND_ALIASES, LATER_KEYS, Foreign
from prefopt.recipe.layout import Home, closest, homes, spec_at
from prefopt.recipe.schema import LATER_KINDS
from prefopt.recipe.yaml import KeyPath, dotted

_ELSEWHERE = {"beta": "kl"}
"""What a key of some kinds is in others."""


def explain_unknown(path: KeyPath, tree: Mapping[str, Any]) -> tuple[str, str]:
    """What to say about a key that the schema does not have.

    Args:
        path: The key.
        tree: The recipe.

    Returns:
        The message and the remedy.
    """
    key, level = str(path[-1]), path[:-1]
    here = spec_at(level, tree)
    siblings = list(here.model_fields) if here else []
    if key in LATER_KEYS:
        return f"'{key}' is not in this version", "delete it"
    foreign = FOREIGN.get(key) or FOREIGN.get(key.lower().replace("-", "_"))
    if foreign:
        return _foreign(key, foreign, siblings)
    elsewhere = homes().get(key)
    if elsewhere:
        kind = _kind_of(level, tree)
        holder = f"a stage of kind '{kind}'" if kind else f"'{dotted(level)}'" if level else "the recipe itself"
        ours = _ELSEWHERE.get(key)
        remedy = f"here it is '{ours}'" if ours in siblings else _best(elsewhere, level)
        return f"{holder} has no such key", remedy
    near = closest(key, siblings)
    if near:
        return "unknown key", f"did you mean '{near}'?"
    near = closest(key, list(homes()))
    if near:
        return "unknown key", f"did you mean '{near}'? {_best(homes()[near], level)}"
    if siblings and len(siblings) <= 12:
        return "unknown key", "the keys here are " + ", ".join(siblings)
    return "unknown key", "`prefopt schema` lists every key"


def _foreign(key: str, foreign: Foreign, siblings: list[str]) -> tuple[str, str]:
    message = f"'{key}' is a name of {foreign.framework}"
    if not foreign.ours:
        return message, foreign.note
    ours = f"prefopt calls it '{foreign.ours}'"
    if foreign.note:
        return message, foreign.note if foreign.ours in foreign.note else f"{ours}: {foreign.note}"
    if foreign.ours in siblings:
        return message, ours
    if foreign.elsewhere:
        return message, foreign.elsewhere
    places = homes().get(foreign.ours, ())
    return message, f"{ours}; {_best(places, ())}" if places else ours


def _kind_of(level: KeyPath, tree: Mapping[str, Any]) -> str:
    if len(level) == 2 and level[0] == "stages" and isinstance(tree.get("stages"), dict):
        stage = tree["stages"].get(level[1])
        return str(stage.get("kind")) if isinstance(stage, dict) else ""
    return ""


def _best(places: tuple[Home, ...], level: KeyPath) -> str:
    """The home nearest to where the key was written: a stage's keys belong to stages first."""
    in_stage = bool(level) and level[0] == "stages"

    def distance(home: Home) -> tuple[bool, bool]:
        # What is below a key of a stage is meant last: `max_new_tokens` is a stage's own before anything's in it.
        return home.level.startswith("stages.NAME."), bool(home.kinds) != in_stage if level else bool(home.kinds)

    return str(min(places, key=distance))


def explain_kind(kind: str, known: tuple[str, ...]) -> tuple[str, str]:
    """What to say about a kind of stage that does not exist here."""
    meant = KIND_ALIASES.get(kind.lower(), kind.lower())
    offered = "kinds are " + ", ".join(known)
    if meant in LATER_KINDS:
        said = "" if meant == kind else f" (prefopt calls it '{meant}')"
        return f"kind '{kind}' is not in this version{said}", offered
    near = meant if meant in known else closest(kind, (*known, *LATER_KINDS))
    if near in LATER_KINDS:
        return f"unknown kind '{kind}'", f"'{near}' is not in this version; {offered}"
    return f"unknown kind '{kind}'", f"did you mean '{near}'?" if near else offered


def framework_of(keys: Iterable[str]) -> str | None:
    """The framework that a whole file was written for, when three keys or more say so."""
    votes = Counter(FOREIGN[key].framework.split(" and ")[0] for key in keys if key in FOREIGN)
    told = sum(votes.values())
    specific = {name: count for name, count in votes.items() if "transformers" not in name}
    if told < 3:
        return None
    return max(specific, key=lambda name: specific[name]) if specific else "transformers"

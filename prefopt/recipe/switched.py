"""A stage whose `kind` was changed within its family, and nothing else: what its other keys mean now.

ppo, grpo and rloo do the same job. A key of one that another does not have is no mistake but what is left of a switch:
it is set aside, and said. It is gone before anything is judged, so it is in no recipe, no key of a stage and no
artefact: the stage is the one that it would be without it. What none of the three has stays an unknown key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from prefopt.errors import Problem
from prefopt.recipe.family import LIKE_METRICS, ONLINE_KINDS, SAME_KEYS, SAME_METRICS
from prefopt.recipe.layout import listed, specs_in, stage_specs
from prefopt.recipe.yaml import KeyPath, Places, dotted

Found = list[tuple[KeyPath, Problem]]
Spec = type[BaseModel]


@dataclass
class _Left:
    """What one stage has of its siblings.

    Attributes:
        aside: Keys that its kind does not use.
        renamed: What is read as something else.
    """

    aside: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)

    def told(self, kind: str) -> str:
        """What became of them, in one line."""
        they_are = "it is" if len(self.aside) == 1 else "they are"
        aside = f"'{kind}' does not use {listed(self.aside)}, so {they_are} set aside" if self.aside else ""
        return "; ".join(filter(None, [aside, *self.renamed]))


def set_aside(tree: dict[str, Any], places: Places) -> tuple[Found, list[str]]:
    """Take out of every stage what only siblings of its kind use.

    Args:
        tree: The recipe, with overrides and variables filled in; changed in place.
        places: Where keys are; learns where those were written that have another name now.

    Returns:
        Gates that this kind cannot have, and one warning for each stage where something was left of a switch.
    """
    stages = tree.get("stages")
    found: Found = []
    warnings: list[str] = []
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        kind = stage.get("kind") if isinstance(stage, dict) else None
        if kind not in ONLINE_KINDS:
            continue
        path: KeyPath = ("stages", name)
        left = _Left()
        siblings = [stage_specs()[other] for other in ONLINE_KINDS if other != kind]
        own = stage_specs()[kind]
        _rename(stage, own, path, places, left)
        _take_out(stage, own, siblings, (), left)
        found += _gates(stage, kind, path, places, left)
        if left.aside or left.renamed:
            warnings.append(str(places.problem((*path, "kind"), left.told(kind))))
    return found, warnings


def _rename(stage: dict[str, Any], own: Spec, path: KeyPath, places: Places, left: _Left) -> None:
    """Keys that are the same by another name; one that is written by its own name wins."""
    for theirs, ours in SAME_KEYS.items():
        if theirs in stage and theirs not in own.model_fields and ours in own.model_fields and ours not in stage:
            stage[ours] = stage.pop(theirs)
            _move(places, (*path, theirs), (*path, ours))
            left.renamed.append(f"'{theirs}' is read as '{ours}'")


def _take_out(mapping: dict[str, Any], own: Spec, siblings: Sequence[Spec], level: KeyPath, left: _Left) -> None:
    """What siblings have at a place and the own kind does not: keys, and values of a key that can be one thing only."""
    for key, value in list(mapping.items()):
        here = (*level, key)
        mine = own.model_fields.get(key)
        theirs = [spec.model_fields[key].annotation for spec in siblings if key in spec.model_fields]
        if mine is None:
            gone = bool(theirs)
        else:
            choices = _choices(mine.annotation)
            gone = len(choices) == 1 and value not in choices and any(value in _choices(other) for other in theirs)
        if gone:
            del mapping[key]
            left.aside.append(f"'{dotted(here)}'")
        elif mine is not None and isinstance(value, dict):
            inner = specs_in(mine.annotation)
            others = [spec for other in theirs for spec in specs_in(other)]
            if len(inner) == 1 and set(others) != set(inner):
                _take_out(value, inner[0], others, here, left)


def _gates(stage: dict[str, Any], kind: str, path: KeyPath, places: Places, left: _Left) -> Found:
    """Bounds on the metrics of a sibling: those of the same meaning are bounds on the own ones.

    The others are refused, as a bound that nothing is held to would look like one that holds.
    """
    written = stage.get("require")
    gates: dict[str, Any] = written if isinstance(written, dict) else {}
    found: Found = []
    for metric in list(gates):
        whose, _, what = str(metric).partition("/")
        if whose not in ONLINE_KINDS or whose == kind:
            continue
        here, ours = (*path, "require", metric), f"{kind}/{what}"
        if what in SAME_METRICS and ours not in gates:
            gates[ours] = gates.pop(metric)
            _move(places, here, (*path, "require", ours))
            left.renamed.append(f"the gate on '{metric}' is read as one on '{ours}'")
            continue
        if what in SAME_METRICS:
            remedy = f"'{ours}' has a gate as well: delete one"
        elif what in LIKE_METRICS:
            remedy = f"write '{ours}' with bounds of its own, as it is not quite the same"
        else:
            remedy = f"delete it, or write `kind: {whose}`"
        found.append((here, places.problem(here, f"a stage of kind '{kind}' measures no '{metric}'", remedy)))
    return found


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a key that has a list of them; None is one where it may be left open."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(value for part in get_args(annotation) for value in _choices(part))


def _move(places: Places, before: KeyPath, after: KeyPath) -> None:
    """A key with another name is where it was written."""
    for path in [path for path in (*places.lines, *places.origins) if path[: len(before)] == before]:
        moved = (*after, *path[len(before) :])
        if path in places.lines:
            places.lines[moved] = places.lines[path]
        if path in places.origins:
            places.origins[moved] = places.origins[path]

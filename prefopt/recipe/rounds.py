"""`rounds`: stages that are written once and repeated, unrolled to NAME@1, NAME@2 and so on.

Within a round the name of a repeated stage means the same round's, and `carry` puts a stage of the round before in the
place of an outer one. From outside the name means the last round's. Everything is judged on the file's own stages;
only a recipe without a fault is unrolled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefopt.errors import Problem
from prefopt.recipe.layout import closest
from prefopt.recipe.references import AFTER, DATA_ROLES, SCORER_ROLES, cycles, graph_of, names_in, split_round
from prefopt.recipe.schema import POLICY_KINDS, AnyStage, CollectSpec, Recipe
from prefopt.recipe.scorers import ScorerSpec, SourceSpec
from prefopt.recipe.yaml import KeyPath, Places

MODEL_KINDS = ("pretrain", *POLICY_KINDS)
_CARRIED_ROLES = ("init", "teacher", "policies", "baseline")
MAX_COUNT = 100  # as the schema says
_LONGEST_NAME = 64  # of a folder in the run folder

Found = list[tuple[KeyPath, Problem]]
Rename = Callable[[str, str], tuple[str, ...]]


@dataclass(frozen=True)
class Repeated:
    """What is repeated, read from a recipe as plain mappings.

    Attributes:
        count: How often; 0 where that is not known.
        stages: The names written in `rounds.stages`.
    """

    count: int = 0
    stages: tuple[str, ...] = ()

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Repeated:
        """The part of `rounds` that is valid."""
        rounds = tree.get("rounds")
        if not isinstance(rounds, Mapping):
            return cls()
        count = rounds.get("count")
        if isinstance(count, bool) or not isinstance(count, int | float) or not 1 <= count <= MAX_COUNT:
            count = 0
        return cls(int(count), names_in(rounds.get("stages")))

    def fault(self, holder: str, name: str) -> tuple[str, str] | None:
        """What is wrong with `NAME@k` in a stage; None where nothing is.

        Args:
            holder: The stage that names it.
            name: As it is written.
        """
        stage, number = split_round(name)
        if not number:
            return None
        if stage not in self.stages:
            return f"'{stage}' is not repeated by 'rounds', so there is no '{name}'", f"write '{stage}'"
        if holder in self.stages:
            return f"within a round '{stage}' is the same round's, so '{name}' cannot be named", f"write '{stage}'"
        if not number.isdecimal() or not 1 <= int(number) <= (self.count or MAX_COUNT):
            rounds = f"{stage}@1" if self.count == 1 else f"{stage}@1 to {stage}@{self.count or 'count'}"
            return f"there is no round '{name}'", f"there are {rounds}"
        return None


def check_rounds(tree: dict[str, Any], places: Places) -> tuple[Found, list[str]]:
    """What is wrong with `rounds`, and what is likely not meant.

    Args:
        tree: The recipe as plain mappings, as in the file.
        places: Where keys are.
    """
    checker = _Checker(tree, places)
    checker.reserved()
    checker.members()
    if Repeated.of(tree).stages and not checker.found:
        checker.between()
        checker.carry()
    return checker.found, checker.warnings


class _Checker:
    """One pass over `rounds`."""

    def __init__(self, tree: dict[str, Any], places: Places) -> None:
        self.found: Found = []
        self.warnings: list[str] = []
        self._tree = tree
        self._places = places
        stages = tree.get("stages")
        self._stages: dict[str, Any] = stages if isinstance(stages, dict) else {}
        self._rounds: dict[str, Any] = tree["rounds"] if isinstance(tree.get("rounds"), dict) else {}
        self._repeated = Repeated.of(tree)

    def _add(self, path: KeyPath, message: str, remedy: str = "") -> None:
        self.found.append((path, self._places.problem(path, message, remedy)))

    def reserved(self) -> None:
        """Names with `@`: those are made here, and nowhere written."""
        data = self._tree.get("data")
        for section, names in (("stages", self._stages), ("data", data if isinstance(data, dict) else {})):
            for name in names:
                stage, number = split_round(str(name))
                if number.isdecimal():
                    message = f"'@' in '{name}' is kept for the stages that 'rounds' makes"
                    self._add((section, name), message, f"write '{stage}-{number}'")

    def members(self) -> None:
        """The stages that are repeated are there, and can be."""
        written = self._rounds.get("stages")
        for index, name in enumerate(self._repeated.stages):
            path: KeyPath = ("rounds", "stages", index) if isinstance(written, list) else ("rounds", "stages")
            if name not in self._stages:
                self._add(path, f"there is no stage '{name}'", _suggest(name, list(self._stages), "stages are"))
            elif self._kind(name) == "pretrain":
                self._add(path, f"'{name}' makes the base, which all rounds share", "leave it out of 'rounds'")
            elif len(f"{name}@{self._repeated.count}") > _LONGEST_NAME:
                self._add(path, f"'{name}' is too long for a stage of rounds", "use a shorter name")

    def between(self) -> None:
        """A stage that needs a round and that a round needs would have to be of every round."""
        needed = graph_of(self._tree)
        if cycles(needed):
            return  # reported where it is
        inside = [name for name in self._repeated.stages if name in needed]
        needs_rounds = _reached(_turned(needed), inside) - set(inside)
        for name in self._stages:
            if name in needs_rounds & _reached(needed, inside):
                before = next(stage for stage in inside if stage in _reached(needed, [name]))
                message = f"the stage '{name}' needs '{before}' of a round, and a round needs it"
                self._add(("rounds", "stages"), message, f"add '{name}' to them")

    def carry(self) -> None:
        """What is carried is a model for a model, and something takes it."""
        carry = self._rounds.get("carry")
        carry = carry if isinstance(carry, dict) else {}
        if not carry and self._repeated.count > 1:
            problem = self._places.problem(
                ("rounds",), "nothing is carried, so every round starts from the same policies",
                "as in `carry: {sft: policy}`",
            )  # fmt: skip
            self.warnings.append(str(problem))
        for outer, inner in carry.items():
            path: KeyPath = ("rounds", "carry", outer)
            known = len(self.found)
            self._outer(path, str(outer))
            if isinstance(inner, str):
                self._inner(path, inner)
            if len(self.found) == known and not self._taken(outer):
                message = (
                    f"no stage of the rounds names '{outer}' in 'init', 'teacher' or 'policies', so nothing is carried"
                )
                self.warnings.append(str(self._places.problem(path, message)))

    def _outer(self, path: KeyPath, name: str) -> None:
        outside = [stage for stage in self._stages if stage not in self._repeated.stages]
        usable = [stage for stage in outside if self._kind(stage) in MODEL_KINDS]
        if name not in self._stages:
            self._add(path, f"there is no stage '{name}'", _suggest(name, usable, "stages with a model are"))
        elif name not in outside:
            message = f"'{name}' is itself repeated: it is the same round's"
            self._add(path, message, _suggest("", usable, "name the stage before the rounds:"))
        elif name not in usable:
            self._add(path, f"'{name}' makes no model", _suggest("", usable, "stages with a model are"))

    def _inner(self, path: KeyPath, name: str) -> None:
        usable = [stage for stage in self._repeated.stages if self._kind(stage) in POLICY_KINDS]
        if name not in self._repeated.stages:
            said = "is not repeated" if name in self._stages else "is no stage"
            self._add(path, f"'{name}' {said}", _suggest(name, usable, "stages of a round with a model are"))
        elif name in self._stages and name not in usable:
            message = f"'{name}' is a stage of kind '{self._kind(name)}', which makes no model"
            self._add(path, message, _suggest("", usable, "stages of a round with a model are"))

    def _taken(self, outer: str) -> bool:
        inside = [self._stages[name] for name in self._repeated.stages if isinstance(self._stages.get(name), dict)]
        return any(outer in names_in(stage.get(role)) for stage in inside for role in ("init", "teacher", "policies"))

    def _kind(self, name: str) -> str:
        stage = self._stages.get(name)
        return str(stage.get("kind")) if isinstance(stage, dict) else ""


def _turned(needed: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Who needs a stage, for every stage."""
    turned: dict[str, list[str]] = {name: [] for name in needed}
    for name, needs in needed.items():
        for need in needs:
            turned.setdefault(need, []).append(name)
    return turned


def _reached(needed: Mapping[str, Sequence[str]], start: Sequence[str]) -> set[str]:
    """All that some stages need, directly or through others."""
    found: set[str] = set()
    pending = list(start)
    while pending:
        for need in needed.get(pending.pop(), ()):
            if need not in found:
                found.add(need)
                pending.append(need)
    return found


def _suggest(name: str, usable: Sequence[str], intro: str) -> str:
    near = closest(name, usable) if name else None
    if near:
        return f"did you mean '{near}'?"
    return f"{intro} {', '.join(usable[:12])}" if usable else ""


def unrolled_blocks(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The stages of a recipe as plain mappings under the names they have in a run; blocks as they are written."""
    stages = tree.get("stages")
    stages = stages if isinstance(stages, Mapping) else {}
    return {name: stages[stage] for name, stage, _ in _laid_out(list(stages), Repeated.of(tree))}


def _laid_out(names: Sequence[str], repeated: Repeated) -> Iterator[tuple[str, str, int]]:
    """Name in the run, name in the file and round (0 outside) of every stage.

    In the order of the file, round by round, with all rounds at the place of the first stage that is repeated.
    """
    inside = [name for name in names if name in repeated.stages] if repeated.count else []
    for name in names:
        if name not in inside:
            yield name, name, 0
        elif name == inside[0]:
            for number in range(1, repeated.count + 1):
                yield from ((f"{stage}@{number}", stage, number) for stage in inside)


def unroll(recipe: Recipe) -> Recipe:
    """A recipe with its rounds written out, and without `rounds`; any other recipe as it is.

    Args:
        recipe: One that `check_rounds` finds no fault with.
    """
    rounds = recipe.rounds
    if rounds is None:
        return recipe
    stages: dict[str, AnyStage] = {}
    for name, written, number in _laid_out(list(recipe.stages), Repeated(rounds.count, rounds.stages)):
        spec = _renamed(recipe.stages[written], _meaning(recipe, number))
        if number > 1 and isinstance(spec, CollectSpec) and spec.max_prompts is not None:
            spec = spec.model_copy(update={"prompt_offset": spec.prompt_offset + (number - 1) * spec.max_prompts})
        stages[name] = spec
    return recipe.model_copy(update={"stages": stages, "rounds": None})


def _meaning(recipe: Recipe, number: int) -> Rename:
    """What a name in a role means in a round; round 0 is outside.

    Raises:
        ValueError: The recipe has no rounds.
    """
    rounds = recipe.rounds
    if rounds is None:
        raise ValueError("the recipe has no rounds")

    def rename(role: str, name: str) -> tuple[str, ...]:
        if role in _CARRIED_ROLES and number > 1 and name in rounds.carry:
            return (f"{rounds.carry[name]}@{number - 1}",)
        # A data set and a stage may share a name; the data set is meant then.
        if name not in rounds.stages or (role in DATA_ROLES and name in recipe.data):
            return (name,)
        if role == "data" and rounds.accumulate and number:
            return tuple(f"{name}@{before}" for before in range(1, number + 1))
        return (f"{name}@{number or rounds.count}",)

    return rename


def _renamed(spec: AnyStage, rename: Rename) -> AnyStage:
    """A stage with the names of other stages replaced; keys that hold none stay unset where they were."""
    changes: dict[str, object] = {}
    for role in (*_CARRIED_ROLES, *DATA_ROLES, *SCORER_ROLES, AFTER):
        value = getattr(spec, role, None)
        new: object
        if isinstance(value, tuple):
            new = tuple(dict.fromkeys(meant for name in value for meant in rename(role, name)))
        elif isinstance(value, str):
            (new,) = rename(role, value)
        elif isinstance(value, ScorerSpec):
            new = value.changed(partial(_renamed_scorer, rename, role))
        else:
            continue
        if new != value:
            changes[role] = new
    if any(":" in name for name in spec.require):
        changes["require"] = {_renamed_metric(name, rename): bounds for name, bounds in spec.require.items()}
    return spec.model_copy(update=changes)


def _renamed_scorer(rename: Rename, role: str, source: SourceSpec) -> dict[str, object]:
    return {} if source.model is None else {"model": rename(role, source.model)[0]}


def _renamed_metric(name: str, rename: Rename) -> str:
    """`POLICY:metric` of the stage that the policy is in this round."""
    policy, colon, metric = name.rpartition(":")
    return f"{rename('policies', policy)[0]}:{metric}" if colon else name

"""Whether what a recipe's stages name exists, is of the right kind, and ends somewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefopt.errors import Problem
from prefopt.recipe.layout import closest
from prefopt.recipe.references import cycles, graph_of, names_in
from prefopt.recipe.schema import KINDS
from prefopt.recipe.yaml import KeyPath, Places

_ADAPTERS = ("sft", "dpo")
_GIVES_DATA: tuple[str, ...] = ()
Found = list[tuple[KeyPath, Problem]]


def check_references(tree: dict[str, Any], places: Places) -> Found:
    """Every reference of every stage, and cycles between stages.

    Args:
        tree: The recipe as plain mappings; parts that are no mappings are passed over.
        places: Where keys are.
    """
    linker = _Linker(tree, places)
    for name, stage in linker.stages.items():
        linker.stage(name, stage)
    linker.model()
    linker.cycles()
    return linker.found


class _Linker:
    """One pass over the references of a recipe."""

    def __init__(self, tree: dict[str, Any], places: Places) -> None:
        self.found: Found = []
        self._tree = tree
        self._places = places
        self.stages: dict[str, dict[str, Any]] = _mappings(tree.get("stages"))
        self._data = tree["data"] if isinstance(tree.get("data"), dict) else {}
        model = tree.get("model")
        base = model.get("model_name_or_path") if isinstance(model, dict) else None
        self._base = base if isinstance(base, str) else None

    def stage(self, name: str, stage: dict[str, Any]) -> None:
        """The references of one stage of a known kind."""
        kind = stage.get("kind")
        at: KeyPath = ("stages", name)
        if kind not in KINDS:
            return
        for role in ("data", "prompts"):
            self._each((*at, role), stage.get(role), self._data_set)
        if kind in _ADAPTERS:
            self._each((*at, "init"), stage.get("init"), self._start)
        if kind == "evaluate":
            self._each((*at, "policies"), stage.get("policies"), self._policy)
            self._evaluation(at, stage)

    def _each(self, path: KeyPath, value: object, check: Any) -> None:
        for index, name in enumerate(names_in(value)):
            here = (*path, index) if isinstance(value, list) else path
            if path[-1] in ("init", "policies") and name == path[1]:
                self._add(here, f"the stage '{name}' names itself", "name the stage before it")
            elif name:
                check(here, name)

    def _add(self, path: KeyPath, message: str, remedy: str = "") -> None:
        self.found.append((path, self._places.problem(path, message, remedy)))

    def _data_set(self, path: KeyPath, name: str) -> None:
        if name in self._data:
            return
        kind = self._kind(name)
        if kind in KINDS and kind not in _GIVES_DATA:
            self._add(path, f"'{name}' is a stage of kind '{kind}', which gives no data", _suggest(name, self._data))
        elif kind is None:
            what = "there is no data set" if self._data else "the recipe has no 'data', so there is no"
            self._add(path, f"{what} '{name}'", _suggest(name, self._data, "data sets are"))

    def _start(self, path: KeyPath, name: str) -> None:
        self._model_stage(path, name, "a stage starts from")

    def _policy(self, path: KeyPath, name: str) -> None:
        self._model_stage(path, name, "policies are")

    def _model_stage(self, path: KeyPath, name: str, verb: str) -> None:
        kind = self._kind(name)
        if name not in self.stages:
            usable = [stage for stage in self.stages if self._kind(stage) in _ADAPTERS and stage != path[1]]
            usable += [self._base] if self._base in self.stages else []
            self._add(path, f"there is no stage '{name}'", _suggest(name, usable, "stages with a model are"))
        elif kind == "pretrain" and self._base is not None and name != self._base:
            self._add(
                path,
                f"the pretrain stage '{name}' is not the base of this recipe",
                f"write `model_name_or_path: {name}` under 'model'",
            )
        elif kind in KINDS and kind not in (*_ADAPTERS, "pretrain"):
            kinds = " or ".join(_ADAPTERS)
            self._add(path, f"'{name}' is a stage of kind '{kind}', which makes no model", f"{verb} {kinds} stages")

    def _kind(self, name: str) -> str | None:
        stage = self.stages.get(name)
        return str(stage.get("kind")) if stage is not None else None

    def _evaluation(self, at: KeyPath, stage: dict[str, Any]) -> None:
        policies, baseline = names_in(stage.get("policies")), stage.get("baseline")
        if isinstance(baseline, str) and policies and baseline not in policies:
            near = closest(baseline, policies)
            remedy = (
                f"did you mean '{near}'?" if near else f"add it to 'policies', or choose from {', '.join(policies)}"
            )
            self._add((*at, "baseline"), f"'{baseline}' is not one of 'policies'", remedy)
        role = "prompts" if names_in(stage.get("prompts")) else "data"
        if role not in stage and stage.get("prompts") is None:
            self._add(
                at, "the stage has neither 'prompts' nor 'data', so there is nothing to answer", "name a data set"
            )
        self._reward(at, stage, role)

    def _reward(self, at: KeyPath, stage: dict[str, Any], role: str) -> None:
        reward = stage.get("reward")
        if not isinstance(reward, str):
            return
        if reward != "gold":
            kind = self._kind(reward)
            known = kind if kind in KINDS else None
            if kind is not None and known is None:
                return  # a later kind: the stage itself is reported
            what = (
                f"'{reward}' is a stage of kind '{kind}', which scores nothing"
                if known
                else f"unknown reward '{reward}'"
            )
            self._add((*at, "reward"), what, "this version scores with 'gold', in the toy world")
            return
        for name in names_in(stage.get(role)):
            data_set = self._data.get(name)
            if isinstance(data_set, dict) and isinstance(data_set.get("path"), str) and data_set["path"] != "toy":
                message = f"'gold' scores the toy world only, and '{name}' is {data_set['path']}"
                self._add((*at, "reward"), message, "leave 'reward' out, or use data with `path: toy`")

    def model(self) -> None:
        """The base, where it is or should be a stage."""
        path: KeyPath = ("model", "model_name_or_path")
        base = self._base
        if base is None:
            return
        made = [name for name in self.stages if self._kind(name) == "pretrain"]
        if base in self.stages:
            if self._kind(base) in KINDS and base not in made:
                message = f"'{base}' is a stage of kind '{self._kind(base)}', and a base comes from a pretrain stage"
                self._add(path, message, "to start from it, write `init: " + base + "` in a stage")
        elif "/" not in base and (near := closest(base, made)):
            self._add(path, f"there is no stage '{base}'", f"did you mean '{near}'?")

    def cycles(self) -> None:
        """Stages that need each other in a circle."""
        needed = graph_of(self._tree)
        for path in cycles(needed):
            if len(path) == 2:
                continue  # a stage that names itself: reported where it does
            holder = self.stages[path[0]]
            role = next((role for role in ("init", "policies") if path[1] in names_in(holder.get(role))), None)
            at = ("stages", path[0], role) if role else ("stages", path[0])
            self._add(at, f"these stages need each other: {' → '.join(path)}", "one of them must start elsewhere")


def _mappings(value: object) -> dict[str, dict[str, Any]]:
    return {key: item for key, item in value.items() if isinstance(item, dict)} if isinstance(value, dict) else {}


def _suggest(name: str, candidates: Sequence[str] | dict[str, Any], intro: str = "") -> str:
    names = list(candidates)
    near = closest(name, names)
    if near:
        return f"did you mean '{near}'?"
    return f"{intro} {', '.join(names[:12])}{', …' if len(names) > 12 else ''}" if intro and names else ""

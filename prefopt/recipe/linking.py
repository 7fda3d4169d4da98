"""Whether what a recipe's stages name exists, is of the right kind, and ends somewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prefopt.errors import Problem
from prefopt.recipe.layout import closest
from prefopt.recipe.references import (
    AFTER,
    BASE,
    DATA_ROLES,
    GOLD,
    SCORER_ROLES,
    STAGE_ROLES,
    cycles,
    graph_of,
    named_in,
    names_in,
    scorers_of,
)
from prefopt.recipe.references import split_round as split
from prefopt.recipe.rounds import Repeated
from prefopt.recipe.schema import KINDS, POLICY_KINDS
from prefopt.recipe.scorers import SOURCES
from prefopt.recipe.yaml import KeyPath, Places

_STARTED = (*POLICY_KINDS, "reward")
_ANSWERED = ("collect", "evaluate")
_GIVES_DATA = ("collect",)
_SCORES = ("reward",)
_LIST_SUFFIXES = (".txt", ".tsv", ".csv")
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
        self._repeated = Repeated.of(tree)

    def stage(self, name: str, stage: dict[str, Any]) -> None:
        """The references of one stage of a known kind."""
        kind = stage.get("kind")
        at: KeyPath = ("stages", name)
        if kind not in KINDS:
            return
        if name == GOLD:
            self._add(at, f"'{GOLD}' is the reward of the toy world, and so no name for a stage", "use another name")
        self._each((*at, "data"), stage.get("data"), self._pretraining_set if kind == "pretrain" else self._data_set)
        for role in ("ood", "demonstrations"):
            self._each((*at, role), stage.get(role), self._data_set)
        self._each((*at, "prompts"), stage.get("prompts"), self._prompts)
        if kind in _STARTED:
            self._each((*at, "init"), stage.get("init"), self._start)
        self._each((*at, "teacher"), stage.get("teacher"), self._teacher)
        if kind in _ANSWERED:
            self._each((*at, "policies"), stage.get("policies"), self._policy)
        if kind == "evaluate":
            self._evaluation(at, stage)
        for role in SCORER_ROLES:
            self._scorers((*at, role), stage)
        self._each((*at, AFTER), stage.get(AFTER), self._waited_for)

    def _each(self, path: KeyPath, value: object, check: Any) -> None:
        for index, name in enumerate(names_in(value)):
            here = (*path, index) if isinstance(value, list) else path
            if path[-1] in ("init", "teacher", "policies", AFTER) and name == path[1]:
                self._add(here, f"the stage '{name}' names itself", "name the stage before it")
            elif name and not self._wrong_round(here, name):
                check(here, name if path[-1] in DATA_ROLES and name in self._data else self._plain(name))

    def _plain(self, name: str) -> str:
        """`policy@2` as the stage that is repeated; everything else as it is."""
        stage, number = split(name)
        return stage if number and stage in self.stages else name

    def _wrong_round(self, path: KeyPath, name: str) -> bool:
        """Whether a name is that of a round that there is not; says so."""
        fault = self._repeated.fault(str(path[1]), name) if self._plain(name) != name else None
        if fault is not None:
            self._add(path, *fault)
        return fault is not None

    def _add(self, path: KeyPath, message: str, remedy: str = "") -> None:
        self.found.append((path, self._places.problem(path, message, remedy)))

    def _data_set(self, path: KeyPath, name: str) -> None:
        if not self._collects(name):
            self._rows(path, name, [*self._data, *(stage for stage in self.stages if self._collects(stage))])

    def _pretraining_set(self, path: KeyPath, name: str) -> None:
        if self._collects(name):
            self._add(path, f"'{name}' is a collect stage, and the base is made before anything is collected")
        else:
            self._rows(path, name, list(self._data))

    def _rows(self, path: KeyPath, name: str, usable: Sequence[str]) -> None:
        if name in self._data:
            return
        kind = self._kind(name)
        if kind in KINDS:
            self._add(path, f"'{name}' is a stage of kind '{kind}', which gives no data", _suggest(name, usable))
        elif kind is None:
            what = "there is no data set" if self._data else "the recipe has no 'data', so there is no"
            self._add(path, f"{what} '{name}'", _suggest(name, usable, "data sets are"))

    def _prompts(self, path: KeyPath, name: str) -> None:
        if not self._collects(name):
            self._rows(path, name, list(self._data))
            return
        answered = ", ".join(names_in(self.stages[name].get("prompts")))
        remedy = f"name the data that it answers: {answered}" if answered else "name a data set"
        self._add(path, f"'{name}' is a collect stage, which gives pairs", remedy)

    def _collects(self, name: str) -> bool:
        return name not in self._data and self._kind(name) in _GIVES_DATA

    def _start(self, path: KeyPath, name: str) -> None:
        if name == BASE and name not in self.stages:
            self._add(
                path,
                f"'{BASE}' is no stage",
                "leave 'init' out: a stage starts from the base where nothing else is named",
            )
            return
        self._model_stage(path, name, "a stage starts from")
        self._no_vectors(path, name, "nothing starts from it")

    def _teacher(self, path: KeyPath, name: str) -> None:
        self._policy(path, name)
        self._no_vectors(path, name, "it teaches nobody")

    def _no_vectors(self, path: KeyPath, name: str, consequence: str) -> None:
        """A soft prompt answers, in collect and evaluate, and is nothing else."""
        if self._kind(name) == "distill" and self.stages[name].get("soft_prompt") is not None:
            message = f"'{name}' trains a soft prompt, which is no adapter, so {consequence}"
            self._add(path, message, f"leave `soft_prompt` out of '{name}'")

    def _policy(self, path: KeyPath, name: str) -> None:
        if name == BASE and name not in self.stages and self._base not in self.stages:
            return
        self._model_stage(path, name, "policies are")

    def _waited_for(self, path: KeyPath, name: str) -> None:
        if name not in self.stages:
            self._add(path, f"there is no stage '{name}'", _suggest(name, list(self.stages), "stages are"))

    def _model_stage(self, path: KeyPath, name: str, verb: str) -> None:
        kind = self._kind(name)
        if name not in self.stages:
            usable = [stage for stage in self.stages if self._kind(stage) in POLICY_KINDS and stage != path[1]]
            usable += [self._base] if self._base in self.stages else []
            self._add(path, f"there is no stage '{name}'", _suggest(name, usable, "stages with a model are"))
        elif kind == "pretrain" and self._base is not None and name != self._base:
            self._add(
                path,
                f"the pretrain stage '{name}' is not the base of this recipe",
                f"write `model_name_or_path: {name}` under 'model'",
            )
        elif kind in KINDS and kind not in (*POLICY_KINDS, "pretrain"):
            makes = "scores answers and gives none" if kind in _SCORES else "makes no model"
            kinds = f"{', '.join(POLICY_KINDS[:-1])} or {POLICY_KINDS[-1]}"
            self._add(path, f"'{name}' is a stage of kind '{kind}', which {makes}", f"{verb} {kinds} stages")

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

    def _scorers(self, path: KeyPath, stage: dict[str, Any]) -> None:
        """Who scores: `gold` in the toy world, or reward stages; files and the like are judged as such."""
        for below, name in scorers_of(stage.get(str(path[-1]))):
            here = (*path, *below)
            if not name or self._wrong_round(here, name):
                continue
            if name == GOLD:
                self._gold(here, stage)
            else:
                self._scorer(here, str(path[-1]), name)

    def _scorer(self, path: KeyPath, role: str, name: str) -> None:
        kind = self._kind(self._plain(name))
        if kind in _SCORES or (kind is not None and kind not in KINDS):
            return  # a kind of later versions: the stage itself is reported
        usable = [stage for stage in self.stages if self._kind(stage) in _SCORES]
        scorers = (
            f"'{GOLD}' in the toy world, {_listed(usable)}or a mapping, as in `{role}: {{lexicon: FILE}}`, with one of "
            f"{', '.join(SOURCES[1:])}"
        )
        near = closest(name, [*usable, GOLD])
        source = _source(name)
        if kind is not None:
            self._add(path, f"'{name}' is a stage of kind '{kind}', which scores nothing", f"what scores: {scorers}")
        elif source and not near:
            self._add(path, f"'{name}' is no stage", source.format(role=role, name=name))
        else:
            remedy = f"did you mean '{near}'?" if near else f"what scores: {scorers}"
            self._add(path, f"unknown {role} '{name}'", remedy)

    def _gold(self, path: KeyPath, stage: dict[str, Any]) -> None:
        role = "prompts" if names_in(stage.get("prompts")) else "data"
        for name in self._answered(names_in(stage.get(role))):
            data_set = self._data.get(name)
            if isinstance(data_set, dict) and isinstance(data_set.get("path"), str) and data_set["path"] != "toy":
                message = f"'{GOLD}' scores the toy world only, and '{name}' is {data_set['path']}"
                self._add(path, message, "name another scorer, such as a reward stage, or use data with `path: toy`")

    def _answered(self, names: Sequence[str]) -> Iterator[str]:
        """Data sets whose prompts are answered: those of a collect stage are the ones that it answers."""
        for name in names:
            plain = name if name in self._data else self._plain(name)
            yield from names_in(self.stages[plain].get("prompts")) if self._collects(plain) else (plain,)

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
            role = next((role for role in (*STAGE_ROLES, AFTER) if path[1] in named_in(role, holder.get(role))), None)
            at = ("stages", path[0], role) if role else ("stages", path[0])
            if role and any(other[: len(at)] == at for other, _ in self.found):
                continue  # the name is wrong already
            self._add(at, f"these stages need each other: {' → '.join(path)}", "one of them must start elsewhere")


def _mappings(value: object) -> dict[str, dict[str, Any]]:
    return {key: item for key, item in value.items() if isinstance(item, dict)} if isinstance(value, dict) else {}


def _suggest(name: str, candidates: Sequence[str] | dict[str, Any], intro: str = "") -> str:
    names = list(candidates)
    near = closest(name, names)
    if near:
        return f"did you mean '{near}'?"
    return f"{intro} {', '.join(names[:12])}{', …' if len(names) > 12 else ''}" if intro and names else ""


def _source(name: str) -> str:
    """How to write what looks like another source of scores than a stage; empty for what does not."""
    if name.startswith(("http://", "https://")):
        return "a server that scores is `{role}: {{url: {name}}}`"
    if name.endswith(_LIST_SUFFIXES):
        return "a word list is `{role}: {{lexicon: {name}}}`"
    return "a model of its own is `{role}: {{pretrained: {name}}}`" if "/" in name else ""


def _listed(names: Sequence[str]) -> str:
    return f"the reward stage{'s' if len(names) > 1 else ''} {', '.join(names[:12])}, " if names else "a reward stage, "

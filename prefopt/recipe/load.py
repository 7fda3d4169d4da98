"""From a file to a recipe that can be run, or to the list of everything that is wrong with it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prefopt.errors import Problem, RecipeError
from prefopt.recipe.foreign import FOREIGN
from prefopt.recipe.layout import closest, spec_at
from prefopt.recipe.linking import check_references
from prefopt.recipe.local import fill_variables, find_functions, resolve_paths
from prefopt.recipe.names import explain_kind, explain_unknown, framework_of
from prefopt.recipe.options.costs import NAMES as COST_NAMES
from prefopt.recipe.options.loss_costs import LOSS_COST_ROLES
from prefopt.recipe.overrides import apply
from prefopt.recipe.references import SCORER_ROLES
from prefopt.recipe.rounds import check_rounds, unroll
from prefopt.recipe.rules import Rules
from prefopt.recipe.schema import KINDS, Recipe
from prefopt.recipe.switched import set_aside
from prefopt.recipe.words import explain, say
from prefopt.recipe.yaml import KeyPath, Places, parse, read_text

Found = list[tuple[KeyPath, Problem]]


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe and where it came from.

    Attributes:
        recipe: With overrides and variables filled in, local paths absolute, and `rounds` unrolled.
        written: The same before its rounds were unrolled.
        path: The file.
        text: Its text, as written.
        places: Where its keys stand, in the file or in `--set`.
        warnings: What works and is likely not meant; each with `file:line`.
        overrides: What `--set` changed.
    """

    recipe: Recipe
    written: Recipe
    path: Path
    text: str
    places: Places
    warnings: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()


def load(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read, fill in and judge a recipe.

    Args:
        path: A YAML file.
        overrides: `key=value` each, with dotted keys and values in YAML.

    Raises:
        RecipeError: With every problem that could be found in one pass.
    """
    path = Path(path)
    text = read_text(path)
    document = parse(text, str(path))
    if not document.complete:
        raise RecipeError([problem for _, problem in document.problems])
    tree, places = document.tree, document.places
    found: Found = [*document.problems, *apply(tree, places, overrides)]
    written, unfilled = fill_variables(tree, places, os.environ)
    found += unfilled
    unheld, switched = set_aside(tree, places)
    found += unheld
    found += resolve_paths(tree, places, Path(os.path.abspath(path)).parent, written, {key for key, _ in found})
    found += find_functions(tree, places)
    recipe, more, warnings = _judge(tree, places, written, {key for key, _ in found})
    found += more
    if found or recipe is None:
        raise RecipeError(_in_order(found, places))
    return LoadedRecipe(unroll(recipe), recipe, path, text, places, (*switched, *warnings), tuple(overrides))


def _judge(
    tree: dict[str, Any], places: Places, written: Mapping[KeyPath, str], known: set[KeyPath]
) -> tuple[Recipe | None, Found, list[str]]:
    """Everything but YAML, variables and files; `known` are keys that something is already known to be wrong with."""
    kinds = _check_kinds(tree, places)
    skipped = {path[:2] for path, _ in kinds}
    recipe, invalid = _validate(tree, places, written, skipped)
    bad = known | {path for path, _ in (*kinds, *invalid)}
    linked = check_references(tree, places)
    repeated, doubts = check_rounds(tree, places)
    rules = Rules(tree, places, bad)
    rules.check()
    said = {path for path, _ in linked}  # knows what would be a name here, so it says more than "no name"
    found = [*kinds, *(item for item in invalid if item[0] not in said), *linked, *repeated, *rules.found]
    return recipe, [(path, problem) for path, problem in found if path not in known], [*doubts, *rules.warnings]


def _in_order(found: Found, places: Places) -> list[Problem]:
    """In the order of the file, each once."""
    ordered = sorted(found, key=lambda item: _line(item[1], places))
    return list(dict.fromkeys(problem for _, problem in ordered))


def _line(problem: Problem, places: Places) -> float:
    _, _, line = problem.where.removeprefix(places.file).rpartition(":")
    if problem.where.startswith("--set"):
        return float("inf")
    return int(line) if line.isdigit() else 0


def _check_kinds(tree: dict[str, Any], places: Places) -> Found:
    stages = tree.get("stages")
    found: Found = []
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        path: KeyPath = ("stages", name)
        if not isinstance(stage, dict):
            message = f"a stage is a mapping with 'kind', not {say(stage)}"
            found.append((path, places.problem(path, message, "as in `sft: {kind: sft, data: NAME}`")))
        elif "kind" not in stage:
            near = closest("kind", list(stage))
            remedy = f"did you mean 'kind' with '{near}'?" if near else f"write one of {', '.join(KINDS)}"
            found.append((path, places.problem(path, "the stage has no 'kind'", remedy)))
        elif stage["kind"] not in KINDS:
            path = (*path, "kind")
            kind = stage["kind"]
            words = explain_kind(kind, KINDS) if isinstance(kind, str) else (f"{say(kind)} is no kind of stage", "")
            found.append((path, places.problem(path, *words)))
    return found


def _validate(
    tree: dict[str, Any], places: Places, written: Mapping[KeyPath, str], skipped: set[KeyPath]
) -> tuple[Recipe | None, Found]:
    stages = tree.get("stages")
    judged = dict(tree)
    if skipped and isinstance(stages, dict):
        judged["stages"] = {name: stage for name, stage in stages.items() if ("stages", name) not in skipped}
    try:
        return Recipe.model_validate(judged), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    unknown = {path for item in errors if item["type"] == "extra_forbidden" for path in [_path(item["loc"], tree)]}
    found: Found = _foreign_file(unknown, places)
    seen: set[KeyPath] = set()
    for item in errors:
        path = _path(item["loc"], tree)
        if path in seen or (path == ("stages",) and skipped):
            continue
        words = _words(item, path, tree, unknown, written.get(path))
        if words is not None:
            seen.add(path)
            found.append((path, places.problem(path, *words)))
    return None, found


def _foreign_file(unknown: set[KeyPath], places: Places) -> Found:
    """Said once where the whole file was written for another program."""
    framework = framework_of(str(path[0]) for path in unknown if len(path) == 1)
    if framework is None:
        return []
    remedy = "a recipe has name, model, data and stages; `prefopt new NAME` gives one to start from"
    return [((), places.problem((), f"this looks like a configuration of {framework}", remedy))]


def _path(location: tuple[int | str, ...], tree: Mapping[str, Any]) -> KeyPath:
    """Where an error is in the file; pydantic's own labels of unions and dictionary keys are taken out."""
    path: list[int | str] = []
    node: Any = tree
    last = len(location) - 1
    for index, part in enumerate(location):
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, str) and isinstance(part, int):
            break  # one name where a list may stand
        elif isinstance(node, list) and isinstance(part, int):
            node = node[part] if part < len(node) else None
            if not isinstance(node, list | dict | str | int | float | None):
                break
        elif not (index == last and isinstance(node, dict) and part not in ("[key]", node.get("cost"))):
            continue
        path.append(part)
    return tuple(path)


def _words(
    item: Mapping[str, Any], path: KeyPath, tree: dict[str, Any], unknown: set[KeyPath], written: str | None
) -> tuple[str, str] | None:
    """Message and remedy of a pydantic error; None where another problem says it."""
    kind = item["type"]
    if kind == "extra_forbidden":
        return explain_unknown(path, tree)
    if kind == "missing":
        return _missing(path, tree, unknown)
    if kind == "string_type" and isinstance(item.get("input"), list) and item["loc"][-1] == "str" != path[-1]:
        return None  # the other branch of `text or list` says more
    if kind in ("model_type", "dict_type", "model_attributes_type") and path == ("stages",):
        return f"'stages' must be a mapping, not {say(item.get('input'))}", "as in `stages: {sft: {kind: sft, …}}`"
    if kind in ("model_type", "model_attributes_type") and path[-1] in SCORER_ROLES:
        return f"must be one name or a mapping, not {say(item.get('input'))}", f"as in `{path[-1]}: {{lexicon: FILE}}`"
    if kind.startswith("union_tag"):
        return _no_cost(item)
    if kind == "tuple_type" and path[-1] in ("penalties", "costs", *LOSS_COST_ROLES):
        return f"must be a list, not {say(item.get('input'))}", f"as in `{path[-1]}: [{{cost: length, limit: 128}}]`"
    if kind == "tuple_type" and path[-1] == "weighted":
        remedy = "as in `{weighted: [{model: NAME, weight: 1.0}, {function: NAME, weight: 0.5}]}`"
        return f"must be a list of scorers, not {say(item.get('input'))}", remedy
    return explain(item, written)


def _no_cost(item: Mapping[str, Any]) -> tuple[str, str] | None:
    """What to say of a mapping that should say which cost it is; None for those that say which stage they are."""
    context = item.get("ctx", {})
    if context.get("discriminator") != "'cost'":
        return explain(item)
    known = re.findall(r"'(\w+)'", str(context.get("expected_tags", ""))) or sorted(COST_NAMES)
    if item["type"] == "union_tag_not_found":
        return "'cost' is missing", f"write one of {', '.join(known)}"
    near = closest(str(context["tag"]), known)
    return (
        f"there is no cost '{context['tag']}'",
        f"did you mean '{near}'?" if near else f"costs are {', '.join(known)}",
    )


def _missing(path: KeyPath, tree: dict[str, Any], unknown: set[KeyPath]) -> tuple[str, str] | None:
    key = str(path[-1])
    beside = [str(other[-1]) for other in unknown if other[:-1] == path[:-1]]
    if any(closest(other, [key]) for other in beside if other not in FOREIGN):
        return None  # the misspelt key is reported, with this one as its remedy
    spec = spec_at(path[:-1], tree)
    field = spec.model_fields.get(key) if spec else None
    return f"'{key}' is missing", field.description or "" if field else ""

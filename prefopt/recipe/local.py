"""What a recipe takes from the machine: environment variables in its text, and files beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefopt.errors import Problem
from prefopt.recipe.layout import closest
from prefopt.recipe.options.loss_costs import COST_HOLDERS, LOSS_COST_ROLES
from prefopt.recipe.references import SCORER_ROLES
from prefopt.recipe.registered import COSTS, REWARDS, is_registered, unknown
from prefopt.recipe.yaml import KeyPath, Places

_VARIABLE = re.compile(r"\$\{([^}]*)\}?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst", ".yaml", ".yml")
_TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2", ".txt")
_TEACHER = "teacher_model_name_or_path"
_ALWAYS_LOCAL = ("chat_template", "lexicon", "config_file")

Found = list[tuple[KeyPath, Problem]]


def fill_variables(
    tree: dict[str, Any], places: Places, environment: Mapping[str, str]
) -> tuple[dict[KeyPath, str], Found]:
    """Replace `${NAME}` in every text value, after parsing: what a variable holds is never read as YAML.

    Returns:
        The text as written of every value that was filled, and what could not be filled.
    """
    written: dict[KeyPath, str] = {}
    problems: Found = []

    def fill(value: object, path: KeyPath) -> object:
        if isinstance(value, dict):
            return {key: fill(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        written[path] = value
        faults = [fault for match in _VARIABLE.finditer(value) if (fault := _fault(match, environment))]
        problems.extend((path, places.problem(path, *fault)) for fault in dict.fromkeys(faults))
        return value if faults else _VARIABLE.sub(lambda match: environment[match[1]], value)

    filled = {key: fill(value, (key,)) for key, value in tree.items()}
    tree.update(filled)
    return written, problems


def _fault(match: re.Match[str], environment: Mapping[str, str]) -> tuple[str, str] | None:
    name = match[1]
    if not match[0].endswith("}") or not _NAME.fullmatch(name):
        bare = _NAME.match(name)
        example = bare[0] if bare else "NAME"
        return f"{match[0]} is not ${{NAME}}", f"write ${{{example}}}; defaults and other shell syntax are not read"
    if name not in environment:
        near = closest(name, [key for key in environment if key.startswith("PREFOPT")])
        hint = f" (did you mean ${{{near}}}?)" if near else ""
        return f"the environment variable {name} is not set", f"export {name}=…{hint}"
    if not environment[name]:
        return f"the environment variable {name} is empty", f"export {name}=…"
    return None


def resolve_paths(
    tree: dict[str, Any], places: Places, folder: Path, written: Mapping[KeyPath, str], skip: set[KeyPath]
) -> Found:
    """Make local paths absolute, relative to the recipe's folder; a local path that is not there is a problem.

    A path is local when it starts with `.`, `/` or `~`, came from a variable, ends as data files do, or exists.
    Whatever else is written is the id of a data set or model on the Hub.

    Args:
        tree: The recipe; changed in place.
        places: Where keys are.
        folder: The folder of the recipe.
        written: The values that variables were filled into.
        skip: Values that something is already known to be wrong with.
    """
    problems: Found = []
    for holder, path, suffixes in _holders(tree):
        key = str(path[-1])
        value = holder[key]
        if path in skip or not isinstance(value, str) or not value:
            continue
        local = Path(os.path.abspath(folder / os.path.expanduser(value)))
        if os.path.exists(local):  # unlike Path's, no error for a name that no file can have
            holder[key] = str(local)
            problem = _unfit(local, path)
        elif path in written or _looks_local(value, suffixes, path):
            problem = _missing(value, local)
        else:
            continue
        if problem:
            problems.append((path, places.problem(path, *problem)))
    return problems


def _holders(tree: dict[str, Any]) -> list[tuple[dict[str, Any], KeyPath, tuple[str, ...]]]:
    """Every value that may be a path: its mapping, its key path, and the suffixes that make it local."""
    found: list[tuple[dict[str, Any], KeyPath, tuple[str, ...]]] = []
    model, data, stages = (tree.get(key) for key in ("model", "data", "stages"))
    names = stages if isinstance(stages, dict) else {}
    if isinstance(model, dict):
        base = model.get("model_name_or_path")
        if isinstance(base, str) and base not in names:
            found.append((model, ("model", "model_name_or_path"), ()))
        template = model.get("chat_template")
        if isinstance(template, str) and (template.endswith(_TEMPLATE_SUFFIXES) or "/" in template):
            found.append((model, ("model", "chat_template"), _TEMPLATE_SUFFIXES))
    for name, spec in data.items() if isinstance(data, dict) else ():
        if isinstance(spec, dict) and "path" in spec and spec["path"] != "toy":
            found.append((spec, ("data", name, "path"), _DATA_SUFFIXES))
    for name, stage in names.items():
        if isinstance(stage, dict) and _TEACHER in stage:
            found.append((stage, ("stages", name, _TEACHER), ()))
        holder = stage.get("accelerate") if isinstance(stage, dict) else None
        if isinstance(holder, dict) and "config_file" in holder:
            found.append((holder, ("stages", name, "accelerate", "config_file"), ()))
    for source, at in (*_sources(names), *_costs(names)):
        found += [(source, (*at, key), ()) for key in ("lexicon", "pretrained") if key in source]
    return found


def _sources(stages: dict[str, Any]) -> Iterator[tuple[dict[str, Any], KeyPath]]:
    """Every scorer that is written as a mapping, those of weighted sums among them, and where it is."""
    for name, stage in stages.items():
        for role in SCORER_ROLES if isinstance(stage, dict) else ():
            scorer = stage.get(role)
            if not isinstance(scorer, dict):
                continue
            yield scorer, ("stages", name, role)
            parts = scorer.get("weighted")
            for index, part in enumerate(parts) if isinstance(parts, list) else ():
                if isinstance(part, dict):
                    yield part, ("stages", name, role, "weighted", index)


def _costs(stages: dict[str, Any]) -> Iterator[tuple[dict[str, Any], KeyPath]]:
    """Every cost, priced or not, and where it is."""
    for name, stage in stages.items():
        if not isinstance(stage, dict):
            continue
        reward = stage.get("reward")
        priced = reward.get("penalties") if isinstance(reward, dict) else None
        own = [(stage.get(key), (key,)) for key in ("costs", *LOSS_COST_ROLES)]
        holders = [(stage.get(key), key) for key in COST_HOLDERS]
        below = [(holder.get("costs"), (key, "costs")) for holder, key in holders if isinstance(holder, dict)]
        for listed, at in ((priced, ("reward", "penalties")), *below, *own):
            for index, cost in enumerate(listed) if isinstance(listed, list) else ():
                if isinstance(cost, dict):
                    yield cost, ("stages", name, *at, index)


def find_functions(tree: dict[str, Any], places: Places) -> Found:
    """Reward functions and costs that no installed package registers."""
    stages = tree.get("stages")
    names = stages if isinstance(stages, dict) else {}
    found: Found = []
    for holders, group in ((_sources(names), REWARDS), (_costs(names), COSTS)):
        for source, at in holders:
            name = source.get("function")
            if isinstance(name, str) and not is_registered(name, group):
                path = (*at, "function")
                found.append((path, places.problem(path, *unknown(name, group))))
    return found


def _looks_local(value: str, suffixes: tuple[str, ...], path: KeyPath) -> bool:
    """Whether no Hub id looks like this: those are `name` or `owner/name`."""
    if value.startswith((".", "/", "~")) or "\\" in value or value.count("/") > 1:
        return True
    return value.lower().endswith(suffixes) or path[-1] in _ALWAYS_LOCAL


def _missing(value: str, local: Path) -> tuple[str, str]:
    if "://" in value:
        return f"'{value}' is an address, and prefopt reads local files and Hub ids", "download it first"
    parent = local.parent
    if not os.path.isdir(parent):
        return f"there is no folder {parent}", "relative paths start at the recipe's folder"
    try:
        near = closest(local.name, sorted(entry.name for entry in parent.iterdir()))
    except OSError:
        near = None
    remedy = f"did you mean '{near}'?" if near else "relative paths start at the recipe's folder"
    return f"there is no {local}", remedy


def _unfit(local: Path, path: KeyPath) -> tuple[str, str] | None:
    if path[-1] == "lexicon" and not local.is_file():
        return f"{local} is a folder, and a word list is a file", ""
    if path[-1] == "config_file" and not local.is_file():
        return f"{local} is a folder, and a configuration of accelerate is a file", ""
    if path[-1] not in ("model_name_or_path", "pretrained", _TEACHER):
        return None
    if not local.is_dir():
        return f"{local} is a file, and a model is a folder", f"did you mean {local.parent}?"
    if not (local / "config.json").exists():
        return f"{local} holds no config.json, so it is no model", "save one there with `save_pretrained`"
    return None

"""`--set a.b=c`: a value of the recipe replaced from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefopt.errors import Problem
from prefopt.recipe.layout import closest
from prefopt.recipe.yaml import KeyPath, Places, dotted, parse_value

_NAMED = ("data", "stages")


def apply(tree: dict[str, Any], places: Places, overrides: Sequence[str]) -> list[tuple[KeyPath, Problem]]:
    """Write overrides into a tree, in their order; the last one for a key wins.

    A key with a dot in it, such as a stage called `dpo-0.1`, is found by taking the longest name that exists.

    Args:
        tree: The recipe; changed in place.
        places: Learns that the keys came from `--set`.
        overrides: `key=value` each, the value in YAML.

    Returns:
        What is wrong with overrides that were not applied.
    """
    problems: list[tuple[KeyPath, Problem]] = []
    for override in overrides:
        try:
            path, value = _read(override, tree)
            made = _write(tree, path, value)
        except ValueError as error:
            message, remedy = (*error.args, "")[:2]
            problems.append(((), Problem(f"--set {override}", "", message, remedy)))
        else:
            places.origins.update(dict.fromkeys((path, *made), f"--set {override}"))
    return problems


def _read(override: str, tree: dict[str, Any]) -> tuple[KeyPath, object]:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ValueError("an override is key=value", "as in --set stages.dpo.beta=0.2")
    try:
        value = parse_value(text)
    except ValueError as error:
        raise ValueError(f"the value cannot be read: {error}", "quote it for the shell and for YAML") from None
    return _path(parts, tree), value


def _path(parts: list[str], tree: dict[str, Any]) -> KeyPath:
    path: list[str] = []
    node: Any = tree
    while parts:
        size = 1
        if isinstance(node, dict):
            size = next((n for n in range(len(parts), 1, -1) if ".".join(parts[:n]) in node), 1)
        name = ".".join(parts[:size])
        parts = parts[size:]
        path.append(name)
        node = node.get(name) if isinstance(node, dict) else None
    return tuple(path)


def _write(tree: dict[str, Any], path: KeyPath, value: object) -> list[KeyPath]:
    """Put a value in its place; answers the mappings that had to be made for it."""
    node = tree
    made: list[KeyPath] = []
    for depth, part in enumerate(path[:-1]):
        key = str(part)
        if depth == 1 and path[0] in _NAMED and key not in node:
            near = closest(key, list(node))
            what = "stage" if path[0] == "stages" else "data set"
            raise ValueError(f"the recipe has no {what} '{key}'", f"did you mean '{near}'?" if near else "")
        below = node.get(key)
        if below is None:
            below = node[key] = {}
            made.append(path[: depth + 1])
        if not isinstance(below, dict):
            kind = "a list: set the whole of it" if isinstance(below, list) else "a single value"
            raise ValueError(f"'{dotted(path[: depth + 1])}' is {kind}, so it has no key '{path[depth + 1]}'")
        node = below
    node[str(path[-1])] = value
    return made

"""What a stage needs from other stages: the graph that the recipe implies, its cycles and its order.

Pure functions. They read plain mappings as well as specs, so that a recipe with other mistakes can still be judged.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from prefopt.recipe.schema import Recipe

Graph = Mapping[str, Sequence[str]]

# The name of the toy world's own reward, so no stage can have it.
GOLD = "gold"
SCORER_ROLES = ("reward", "judge", "proxy")
# In `policies` and `teacher`, where no stage is called so: the recipe's model itself, without any adapter.
BASE = "base"

DATA_ROLES = ("data", "demonstrations", "ood", "prompts")
STAGE_ROLES = ("init", "teacher", "policies", *DATA_ROLES, *SCORER_ROLES)
# Waited for, and not read: what comes of it decides no numbers.
AFTER = "after"


def names_in(value: object) -> tuple[str, ...]:
    """The names that a key holds, written as one name or as a list; whatever else it holds is left out."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple):
        return tuple(item for item in value if isinstance(item, str))
    return ()


def scorers_of(value: object) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Who scores, as `reward` or `judge` says it: the stages, or `gold`, that are named, and where in it each stands.

    Word lists, functions and the like are no stages, and left out.
    """
    if isinstance(value, str):
        yield (), value
    elif isinstance(value, Mapping | BaseModel):
        held = value if isinstance(value, Mapping) else dict(value)
        name, parts = held.get("model"), held.get("weighted")
        if isinstance(name, str):
            yield ("model",), name
        for index, part in enumerate(parts) if isinstance(parts, list | tuple) else ():
            # A sum of sums is none; the schema says so.
            if not (isinstance(part, Mapping) and "weighted" in part):
                yield from ((("weighted", index, *path), named) for path, named in scorers_of(part))


def named_in(role: str, value: object) -> tuple[str, ...]:
    """The names that a key of a stage holds, whatever form its role allows."""
    if role not in SCORER_ROLES:
        return names_in(value)
    return tuple(dict.fromkeys(name for _, name in scorers_of(value) if name != GOLD))


def split_round(name: str) -> tuple[str, str]:
    """`policy@2` as `("policy", "2")`; a name without a round as itself and an empty text."""
    stage, _, number = name.partition("@")
    return stage, number


def needs_of(name: str, tree: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Role → stages that a stage needs directly, read from a recipe as plain mappings."""
    stages = _mapping(tree, "stages")
    data = _mapping(tree, "data")
    stage = stages.get(name)
    if not isinstance(stage, Mapping):
        return {}
    found: dict[str, tuple[str, ...]] = {}
    model = _mapping(tree, "model").get("model_name_or_path")
    if stage.get("kind") != "pretrain" and isinstance(model, str) and model in stages:
        found["model"] = (model,)
    for role in (*STAGE_ROLES, AFTER):
        # A data set and a stage may share a name; the data set is meant then.
        taken = data if role in DATA_ROLES else {}
        items = (item for item in named_in(role, stage.get(role)) if item not in taken)
        # In a recipe whose rounds are still to be unrolled `policy@2` is a round of `policy`.
        named = (item if item in stages else split_round(item)[0] for item in items)
        stage_names = tuple(dict.fromkeys(item for item in named if item in stages))
        if stage_names:
            found[role] = stage_names
    return found


def needs(recipe: Recipe, stage: str) -> dict[str, tuple[str, ...]]:
    """Role → names of the stages that a stage needs directly.

    Roles are `model` (the pretrain stage that makes the base), those of `STAGE_ROLES`, and `after`; a role that needs
    no stage is left out.

    Raises:
        KeyError: The recipe has no such stage.
    """
    if stage not in recipe.stages:
        raise KeyError(stage)
    return needs_of(stage, as_tree(recipe, stage))


def graph(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Stage → every stage that it needs directly, both in the order of the file."""
    return graph_of(as_tree(recipe))


def as_tree(recipe: Recipe, only: str | None = None) -> dict[str, Any]:
    """The parts of a recipe that references live in, as plain mappings.

    Args:
        recipe: The recipe.
        only: The one stage whose keys are wanted; the others are there without theirs.
    """
    return {
        "model": {"model_name_or_path": recipe.model.model_name_or_path},
        "data": recipe.data,
        "stages": {name: dict(stage) if only in (None, name) else {} for name, stage in recipe.stages.items()},
    }


def graph_of(tree: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """As `graph`, of a recipe as plain mappings."""
    return {
        name: tuple(dict.fromkeys(need for role in needs_of(name, tree).values() for need in role))
        for name in _mapping(tree, "stages")
    }


def order(needed: Graph) -> tuple[str, ...]:
    """Stages so that each comes after what it needs; where that leaves a choice, in the order of the file.

    Raises:
        ValueError: The graph has a cycle.
    """
    rank = {name: index for index, name in enumerate(needed)}
    open_needs = {name: set(needs) & rank.keys() for name, needs in needed.items()}
    dependants: dict[str, list[str]] = {name: [] for name in needed}
    for name, waits_for in open_needs.items():
        for need in waits_for:
            dependants[need].append(name)
    ready = [(rank[name], name) for name, waits_for in open_needs.items() if not waits_for]
    heapq.heapify(ready)
    done: list[str] = []
    while ready:
        _, name = heapq.heappop(ready)
        done.append(name)
        for dependant in dependants[name]:
            open_needs[dependant].discard(name)
            if not open_needs[dependant]:
                heapq.heappush(ready, (rank[dependant], dependant))
    if len(done) != len(rank):
        raise ValueError("cycle: " + "; ".join(" → ".join(path) for path in cycles(needed)))
    return tuple(done)


def cycles(needed: Graph) -> list[tuple[str, ...]]:
    """Cycles as paths that end where they began, such as `("a", "b", "a")`.

    Not every cycle is listed where several share stages, but a graph has none exactly when the list is empty. A
    stage that needs itself is `("a", "a")`.
    """
    rank = {name: index for index, name in enumerate(needed)}
    found: list[tuple[str, ...]] = []
    finished: set[str] = set()
    for start in needed:
        if start in finished:
            continue
        # Walked with a stack of our own: a chain of stages may be longer than Python's.
        trail, places = [start], {start: 0}
        pending = [iter(needed[start])]
        while pending:
            step = next((item for item in pending[-1] if item in needed and item not in finished), None)
            if step is None:
                pending.pop()
                leaving = trail.pop()
                del places[leaving]
                finished.add(leaving)
            elif step in places:
                found.append(_from_first(trail[places[step] :], rank))
            else:
                places[step] = len(trail)
                trail.append(step)
                pending.append(iter(needed[step]))
    return found


def _from_first(circle: list[str], rank: Mapping[str, int]) -> tuple[str, ...]:
    """A circle as a path that starts and ends with its first stage in the file."""
    start = min(range(len(circle)), key=lambda index: rank[circle[index]])
    return (*circle[start:], *circle[:start], circle[start])


def _mapping(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}

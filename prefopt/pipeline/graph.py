"""The stages of a recipe as a graph, derived from what each of them names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prefopt.errors import InputError
from prefopt.recipe import references
from prefopt.recipe.schema import AnyStage, Recipe


@dataclass(frozen=True)
class Node:
    """One stage.

    Attributes:
        name: Its name in the recipe.
        spec: Its options.
        inputs: Names of the stages it reads, each once.
        after: Names of the stages that must be done before it, besides those.
    """

    name: str
    spec: AnyStage
    inputs: tuple[str, ...]
    after: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Kind of the stage."""
        return self.spec.kind


def nodes(recipe: Recipe) -> tuple[Node, ...]:
    """The stages in an order in which each comes after what it reads; otherwise in the recipe's order.

    Raises:
        InputError: When stages need each other in a circle.
    """
    edges = references.graph(recipe)
    try:
        names = references.order(edges)
    except ValueError as error:
        raise InputError(f"the stages of {recipe.name} cannot be ordered: {error}") from error
    return tuple(_node(recipe, name) for name in names)


def _node(recipe: Recipe, name: str) -> Node:
    roles = references.needs(recipe, name)
    after = roles.pop(references.AFTER, ())
    inputs = tuple(dict.fromkeys(stage for role in roles.values() for stage in role))
    return Node(name, recipe.stages[name], inputs, tuple(stage for stage in after if stage not in inputs))


def and_after(graph: Iterable[Node], start: str) -> frozenset[str]:
    """A stage and every stage that reads it, directly or through others.

    Args:
        graph: Nodes in topological order.
        start: Name of a stage.
    """
    found = {start}
    for node in graph:
        if found.intersection(node.inputs):  # what it only waits for changes nothing of it
            found.add(node.name)
    return frozenset(found)

"""How tests of costs ask for a measurement."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from prefopt.recipe.options.costs import Costs
from prefopt.records import Message, Prompt
from prefopt.rewards.costs.registry import rule_cost
from prefopt.rewards.costs.sample import Cost, Measured, Sample

PROMPT: Prompt = (Message("user", "Tell me about the red lamp in the window, please."),)
LONG = 100_000


def opened(cost: str, **options: Any) -> Cost:
    """A cost as a recipe says it."""
    ((spec),) = TypeAdapter(Costs).validate_python([{"cost": cost, **options}])
    return rule_cost(spec)


def measure(cost: Cost, text: str, **more: Any) -> Measured:
    (found,) = cost.measure([Sample(more.pop("prompt", PROMPT), text, **more)])
    return found


def marked(found: Measured, text: str) -> list[str]:
    """What the spans say."""
    return [text[start:end] for start, end in found.spans]

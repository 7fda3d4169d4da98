"""From the options of a cost to the cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefopt.recipe.options.costs import CostSpec
from prefopt.rewards.costs.drift import PromptCopy, Script
from prefopt.rewards.costs.form import Format
from prefopt.rewards.costs.length import EnsembleStd, Length, MissingEos
from prefopt.rewards.costs.lexicon import Banned, Refusal
from prefopt.rewards.costs.repetition import Repetition
from prefopt.rewards.costs.sample import Cost

RULES: Mapping[str, Callable[[Any], Cost]] = {
    "length": Length,
    "repetition": Repetition,
    "banned": Banned,
    "format": Format,
    "missing_eos": MissingEos,
    "ensemble_std": EnsembleStd,
    "script": Script,
    "prompt_copy": PromptCopy,
    "refusal": Refusal,
}
"""Costs that need nothing but their options."""

OPENED = ("classifier", "plugin")
"""Costs that need a model or a package, which `prefopt.pipeline.costs` opens."""


def rule_cost(spec: CostSpec) -> Cost:
    """The cost of its options.

    Raises:
        KeyError: For one of `OPENED`.
    """
    return RULES[spec.cost](spec)

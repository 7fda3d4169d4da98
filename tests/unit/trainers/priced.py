"""Penalties of every kind of price, for tests of trainers."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from prefopt.recipe.options.penalties import Penalties
from prefopt.rewards.costs.registry import rule_cost
from prefopt.rewards.penalties import Penalty

OPTIONS: list[dict[str, Any]] = [
    {"cost": "length", "limit": 8, "unit": "characters", "target_rate": 0.02, "window_episodes": 40},
    {"cost": "repetition", "ngram": 1, "weight": 0.5, "schedule": "cosine", "schedule_episodes": 60},
    {"cost": "ensemble_std", "target_mean": 0.1, "step": "log", "min_weight": 0.01, "initial_weight": 0.1},
    {"cost": "banned", "words": ["e", "the"], "target_rate": 0.01, "estimate": "expected"},
]


def penalties() -> list[Penalty]:
    specs = TypeAdapter(Penalties).validate_python(OPTIONS)
    return [Penalty.of(spec, rule_cost(spec)) for spec in specs]

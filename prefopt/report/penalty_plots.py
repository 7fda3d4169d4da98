"""The curves of penalties: how often completions violate, and what that costs them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from prefopt.report.curves import Curves, Mark
from prefopt.report.damage import is_real
from prefopt.report.drawing import plain
from prefopt.report.rundata import StageData

_GROUP = "What it is penalised for"
_RATE = re.compile(r"penalty/([^/]+)/rate")


def penalty_curves(stage: StageData) -> tuple[Curves, ...]:
    """Plots of a stage with penalties; none for one without."""
    names = [match[1] for match in map(_RATE.fullmatch, stage.series) if match]
    if not names:
        return ()

    held_to_a_mean = [name for name in names if name in _targets(stage, "target_mean")]

    def of(quantity: str, of_names: list[str] = names) -> tuple[tuple[str, str], ...]:
        return tuple((f"penalty/{name}/{quantity}", plain(name)) for name in of_names)

    return (
        Curves(
            "penalty-rate",
            "Violations",
            "Share of the rollout's answers whose cost is above its threshold. A learned weight brings it to its "
            "target, which is dashed.",
            "share of answers",
            of("rate"),
            marks=lambda of_stage: _marks(of_stage, "target_rate"),
            group=_GROUP,
        ),
        *([_mean_cost(of("cost", held_to_a_mean))] if held_to_a_mean else ()),
        Curves(
            "penalty-weight",
            "Weights",
            "What a cost of 1 takes off the reward. A learned weight that stays at its largest value cannot reach its "
            "target: the reward pays more for violations, or the cost is wrong.",
            "SD of the reference's rewards",
            of("weight"),
            group=_GROUP,
        ),
        Curves(
            "penalty-term",
            "What penalties take off",
            "Of an answer's reward, on average. It should shrink as the policy learns what costs.",
            "reward",
            of("term"),
            reference=0.0,
            group=_GROUP,
        ),
    )


def _mean_cost(metrics: tuple[tuple[str, str], ...]) -> Curves:
    """Where a mean is held, the rate says nothing of it: few answers may cost much, or many a little."""
    return Curves(
        "penalty-cost",
        "Mean cost",
        "Of the rollout's answers, for costs whose mean is held. A learned weight brings it to its target, which is "
        "dashed.",
        "cost of an answer",
        metrics,
        marks=lambda of_stage: _marks(of_stage, "target_mean"),
        group=_GROUP,
    )


def _marks(stage: StageData, key: str) -> list[Mark]:
    return [Mark(f"target of {plain(name)} ({value:g})", value) for name, value in _targets(stage, key).items()]


def _targets(stage: StageData, key: str) -> dict[str, float]:
    """What the recipe sets as `target_rate` or `target_mean`, by the name of the cost."""
    reward = stage.options.get("reward")
    listed = reward.get("penalties") if isinstance(reward, Mapping) else None
    found = {}
    for each in listed if isinstance(listed, list) else ():
        target = each.get(key) if isinstance(each, Mapping) else None
        if isinstance(target, int | float) and is_real(target):
            found[str(each.get("name") or each.get("cost"))] = float(target)
    return found

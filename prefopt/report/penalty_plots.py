"""The curves of penalties: how often completions violate, and what that costs them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

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

    def of(quantity: str) -> tuple[tuple[str, str], ...]:
        return tuple((f"penalty/{name}/{quantity}", plain(name)) for name in names)

    return (
        Curves(
            "penalty-rate",
            "Violations",
            "Share of the rollout's answers whose cost is above its threshold. A learned weight brings it to its "
            "target, which is dashed.",
            "share of answers",
            of("rate"),
            marks=_targets,
            group=_GROUP,
        ),
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


def _targets(stage: StageData) -> Sequence[Mark]:
    reward = stage.options.get("reward")
    listed = reward.get("penalties") if isinstance(reward, Mapping) else None
    found = []
    for each in listed if isinstance(listed, list) else ():
        target = each.get("target_rate") if isinstance(each, Mapping) else None
        if isinstance(target, int | float) and is_real(target):
            found.append(
                Mark(f"target of {plain(str(each.get('name') or each.get('cost')))} ({target:g})", float(target))
            )
    return found

"""Gates as the page shows them: every bound of a stage, and whether it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prefopt.evaluation.gates import judgements
from prefopt.recipe.scorers import RequireSpec
from prefopt.report.damage import Warn, attempt, mapping


@dataclass(frozen=True)
class GateLine:
    """One bound.

    Attributes:
        metric: What it is about.
        shown: The metric's value; empty where it is not known.
        bound: What the value must be, or why that is not judged.
        holds: None where it is not judged.
    """

    metric: str
    shown: str
    bound: str
    holds: bool | None


def judged(stage: str, block: object, metrics: Mapping[str, float] | None, warn: Warn) -> tuple[GateLine, ...]:
    """Every bound of a stage's gates; a gate that cannot be judged is a line without a judgement.

    Args:
        stage: Its name.
        block: What the recipe has under `require`.
        metrics: What the stage measured; None while it is not done.
        warn: Is told what is damaged.
    """
    if block is None:
        return ()
    gates = attempt("require", mapping, block, warn) or {}
    return tuple(line for name, bounds in gates.items() for line in _lines(stage, str(name), bounds, metrics, warn))


def _lines(
    stage: str, name: str, bounds: object, metrics: Mapping[str, float] | None, warn: Warn
) -> Iterator[GateLine]:
    if metrics is None:
        yield GateLine(name, "", "judged when the stage is done", None)
        return

    def judge(value: object) -> list[GateLine]:
        spec = RequireSpec.model_validate(value)
        return [GateLine(*found) for found in judgements(stage, {name: spec}, metrics)]

    found = attempt(f"the gate on {name}", judge, bounds, warn)
    yield from found if found is not None else [GateLine(name, "", "cannot be judged", None)]

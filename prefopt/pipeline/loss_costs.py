"""Costs of a stage's training rows: which tokens are flagged, of which completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefopt.pipeline.context import Inputs, StageContext
from prefopt.pipeline.costs import open_cost
from prefopt.recipe.options.loss_costs import AnySampledCost, SequenceUnlikelihoodSpec
from prefopt.rewards.costs.sample import Cost, Sample
from prefopt.rewards.flags import Flags, WeightedCost, flag, samples_of
from prefopt.trainers.sequence_unlikelihood import SequenceUnlikelihood

AT_ONCE = 1000
"""Rows that are measured together."""


def open_loss_costs(specs: Sequence[AnySampledCost], inputs: Inputs, context: StageContext) -> list[WeightedCost]:
    """Open costs with their weights; raises as `prefopt.pipeline.costs.open_cost`."""
    return [WeightedCost(open_cost(spec, inputs, context), spec.weight) for spec in specs]


def open_sequence_unlikelihood(
    spec: SequenceUnlikelihoodSpec | None, inputs: Inputs, context: StageContext
) -> SequenceUnlikelihood | None:
    """What a trainer is given of `sequence_unlikelihood`; raises as `prefopt.pipeline.costs.open_cost`."""
    if spec is None:
        return None
    return SequenceUnlikelihood(open_loss_costs(spec.costs, inputs, context), spec.every, spec.max_new_tokens)


def flagged_rows(
    rows: Sequence[Mapping[str, Any]], costs: Sequence[WeightedCost], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[dict[str, Any]], dict[str, object]]:
    """Demonstrations with what costs say of their tokens.

    Args:
        rows: With `prompt_ids` and `completion_ids`.
        costs: What flags.
        tokenizer: That made them.

    Returns:
        Rows with `imitation` and `unlikelihood` of the completion's tokens, and what was flagged, for the manifest.
    """
    samples = samples_of([r["prompt_ids"] for r in rows], [r["completion_ids"] for r in rows], tokenizer)
    flags, counts = flag(samples, costs)
    return [{**row, **_columns(each)} for row, each in zip(rows, flags, strict=True)], counts.to_json()


def violating(
    rows: Sequence[Mapping[str, Any]], costs: Sequence[Cost], tokenizer: PreTrainedTokenizerBase
) -> list[bool]:
    """Whether the preferred answer of each row violates any of the costs.

    Args:
        rows: Pairs, of which it is the chosen answer where `probability` is one half or more; or demonstrations.
        costs: What violates.
        tokenizer: That made the rows.
    """
    found: list[bool] = []
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        samples = samples_of([row["prompt_ids"] for row in part], [_preferred(row) for row in part], tokenizer)
        found += violations(samples, costs)
    return found


def violations(samples: Sequence[Sample], costs: Sequence[Cost]) -> list[bool]:
    """Whether each completion violates any of the costs."""
    measured = [(cost.threshold, cost.measure(samples)) for cost in costs]
    return [any(each[number].value > most for most, each in measured) for number in range(len(samples))]


def _preferred(row: Mapping[str, Any]) -> Sequence[int]:
    if "completion_ids" in row:
        return row["completion_ids"]  # type: ignore[no-any-return]
    probability = row.get("probability")
    return row["chosen_ids" if probability is None or probability >= 0.5 else "rejected_ids"]  # type: ignore[no-any-return]


def _columns(flags: Flags) -> dict[str, list[float]]:
    return flags._asdict()

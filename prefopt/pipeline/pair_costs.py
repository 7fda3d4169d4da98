"""Costs of the pairs that a `dpo` stage trains on: margins, flagged tokens, and preferred answers that violate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from prefopt.data.token_rows import TokenRows, WithColumns
from prefopt.errors import DataError
from prefopt.models.batches import FLAGS
from prefopt.pipeline.adapters import Rows, Tokenised
from prefopt.pipeline.base_model import OpenBase
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.pipeline.costs import open_cost
from prefopt.pipeline.loss_costs import AT_ONCE, open_loss_costs, violations
from prefopt.recipe.schema import DPOSpec
from prefopt.rewards.costs.sample import Cost, Sample
from prefopt.rewards.flags import FlagCounts, WeightedCost, flag, samples_of

_SIDES = ("chosen", "rejected")


def priced_pairs(rows: Rows, spec: DPOSpec, inputs: Inputs, context: StageContext, base: OpenBase) -> Rows:
    """Pairs with what the costs of a stage say of them; the same rows where it names none.

    Labels of held-out pairs stay as people gave them; costs and flags are of the loss, and so theirs as well.

    Args:
        rows: Tokenised pairs.
        spec: The stage's options.
        inputs: Finished input stages.
        context: The stage's context.
        base: With the tokenizer.

    Raises:
        DataError: When every pair is dropped.
    """
    if not (spec.cost_margin or spec.unlikelihood or spec.violations):
        return rows
    details: dict[str, Any] = {}
    train = rows.train
    if spec.violations:
        costs = [open_cost(cost, inputs, context) for cost in spec.violations]
        train, details["violations"] = without_violations(train, costs, base.tokenizer, spec)
    margin = open_loss_costs(spec.cost_margin, inputs, context)
    flagging = open_loss_costs(spec.unlikelihood, inputs, context)
    found = []
    for name, part in (("train", train), ("eval", rows.evaluation)):
        columns, said = _columns(part, margin, flagging, base.tokenizer)
        found.append(WithColumns(part, columns) if columns and len(part) else part)
        details |= {f"{key}_{name}": value for key, value in said.items()}
    return Rows(found[0], found[1], {**rows.details, "costs": details})


def without_violations(
    rows: Tokenised, costs: Sequence[Cost], tokenizer: PreTrainedTokenizerBase, spec: DPOSpec
) -> tuple[Tokenised, dict[str, int]]:
    """Pairs whose preferred answer violates no cost, or counts less; and what became of the others.

    The preferred answer is the chosen one, or with a `probability` below one half the rejected one. A pair is
    relabelled by its probability, p to 1 - p: every loss takes that for the pair in the other order. Ties prefer
    nothing, and stay.

    Args:
        rows: Tokenised pairs.
        costs: What violates.
        tokenizer: That made them.
        spec: `on_violation` and `violation_weight`.

    Raises:
        DataError: When no pair is left.
    """
    counts: Counter[str] = Counter(pairs=len(rows))
    weights: list[float] = []
    probabilities: list[float] = []
    kept: list[int] = []
    for number, (row, bad) in enumerate(_judged(rows, costs, tokenizer)):
        weight, probability = _number(row, "weight"), _number(row, "probability")
        preferred, other = (0, 1) if probability > 0.5 else (1, 0)
        if probability == 0.5 or not bad[preferred]:
            counts["clean" if probability != 0.5 else "ties"] += 1
        elif spec.on_violation == "drop" or (spec.on_violation == "relabel" and bad[other]):
            counts["dropped"] += 1
            continue
        elif spec.on_violation == "relabel":
            counts["relabelled"] += 1
            probability = 1 - probability
        else:
            counts["downweighted"] += 1
            weight *= spec.violation_weight
        kept.append(number)
        weights.append(weight)
        probabilities.append(probability)
    if len(rows) and not kept:
        raise DataError("every pair prefers an answer that violates a cost", "look at 'violations' and at the data")
    part = rows if len(kept) == len(rows) else _some(rows, kept)
    return WithColumns(part, {"weight": weights, "probability": probabilities}), dict(counts)


def _judged(
    rows: Tokenised, costs: Sequence[Cost], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Any, tuple[bool, bool]]]:
    """Every row, and whether its chosen and its rejected answer violate."""
    for part in _parts(rows):
        sides = []
        for side in _SIDES:
            samples = _samples(part, side, tokenizer)
            sides.append(violations(samples, costs))
        yield from zip(part, zip(*sides, strict=True), strict=True)


def _columns(
    rows: Tokenised,
    margin: Sequence[WeightedCost],
    flagging: Sequence[WeightedCost],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Columns of the loss, and what to say of them."""
    columns: dict[str, list[Any]] = {}
    said: dict[str, Any] = {}
    if margin:
        for side in _SIDES:
            columns[f"{side}_cost"] = _of_all(rows, side, tokenizer, lambda samples: _summed(samples, margin))
            said[f"{side}_cost"] = sum(columns[f"{side}_cost"]) / max(1, len(rows))
    if flagging:
        counted: list[FlagCounts] = []

        def weights(samples: list[Sample]) -> list[list[float] | None]:
            flags, counts = flag(samples, flagging)
            counted.append(counts)
            return [each.unlikelihood if any(each.unlikelihood) else None for each in flags]

        columns[FLAGS] = _of_all(rows, "chosen", tokenizer, weights)
        said["flagged"] = FlagCounts.total(counted).to_json()
    return columns, said


def _summed(samples: list[Sample], costs: Sequence[WeightedCost]) -> list[float]:
    each = [[one.weight * measured.value for measured in one.cost.measure(samples)] for one in costs]
    return [sum(values) for values in zip(*each, strict=True)]


def _of_all(
    rows: Tokenised, side: str, tokenizer: PreTrainedTokenizerBase, measure: Callable[[list[Sample]], Sequence[Any]]
) -> list[Any]:
    """What is measured of one side of all pairs, a part of them in memory at a time."""
    return [value for part in _parts(rows) for value in measure(_samples(part, side, tokenizer))]


def _samples(part: Tokenised, side: str, tokenizer: PreTrainedTokenizerBase) -> list[Sample]:
    return samples_of([row["prompt_ids"] for row in part], [row[f"{side}_ids"] for row in part], tokenizer)


def _parts(rows: Tokenised) -> Iterator[Tokenised]:
    for start in range(0, len(rows), AT_ONCE):
        yield rows[start : start + AT_ONCE]


def _some(rows: Tokenised, kept: list[int]) -> Tokenised:
    if isinstance(rows, WithColumns):
        columns = {name: [values[number] for number in kept] for name, values in rows.columns.items()}
        return WithColumns(_some(rows.rows, kept), columns)
    return rows.select(np.array(kept)) if isinstance(rows, TokenRows) else [rows[number] for number in kept]


def _number(row: Any, name: str) -> float:
    value = row.get(name)
    return 1.0 if value is None else float(value)

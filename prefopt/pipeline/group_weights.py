"""Weights of rare groups, by a column of the data or by whether the preferred answer violates a cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prefopt.data.token_rows import Columns, WithColumns
from prefopt.errors import DataError
from prefopt.pipeline.adapters import Rows, Tokenised
from prefopt.pipeline.base_model import OpenBase
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.pipeline.costs import open_cost
from prefopt.pipeline.loss_costs import violating
from prefopt.recipe.options.groups import LONGER, OF_RECORDS, VIOLATES
from prefopt.recipe.schema import DPOSpec, RewardSpec, SFTSpec
from prefopt.stats.imbalance import group_weights
from prefopt.trainers.reward_rows import group_of

GroupedSpec = DPOSpec | RewardSpec | SFTSpec


def columns_for(spec: GroupedSpec, columns: Columns) -> Columns:
    """Columns of pairs with the one that groups are made by; the same where no weights are asked for."""
    by = spec.group_by
    if spec.group_weights == "none" or by in (LONGER, VIOLATES, *columns.texts):
        return columns
    return replace(columns, texts=(*columns.texts, by))


def grouped(rows: Rows, spec: GroupedSpec, inputs: Inputs, context: StageContext, base: OpenBase) -> Rows:
    """Rows with the column `violates`, where groups are made by it; checks that a column that is named exists.

    Args:
        rows: Tokenised pairs or demonstrations.
        spec: The stage's options.
        inputs: Finished input stages.
        context: The stage's context.
        base: With the tokenizer.

    Raises:
        DataError: When no row says anything in the column that groups are made by.
    """
    if spec.group_weights == "none":
        return rows
    train, by = rows.train, spec.group_by
    if by == VIOLATES:
        costs = [open_cost(cost, inputs, context) for cost in spec.group_costs]
        found = violating(train, costs, base.tokenizer)
        train = WithColumns(train, {VIOLATES: ["yes" if bad else "no" for bad in found]})
    groups = [group_of(row, by) for row in train]
    if by not in (LONGER, VIOLATES, *OF_RECORDS) and not any(groups):
        raise DataError(
            f"no row says anything in the column '{by}'", "see 'group_by', and the names of the data's columns"
        )
    weights = group_weights(groups, spec.group_weights, spec.effective_number_beta)
    sizes, of_group = Counter(groups), dict(zip(groups, weights, strict=True))
    said = {group: {"rows": size, "weight": of_group[group]} for group, size in sizes.most_common()}
    return Rows(train, rows.evaluation, {**rows.details, "groups": said})


def weighed(rows: Rows, spec: GroupedSpec) -> Rows:
    """Training rows whose weights are multiplied with those of their groups, for trainers that know no groups."""
    if spec.group_weights == "none":
        return rows
    groups = [group_of(row, spec.group_by) for row in rows.train]
    weights = group_weights(groups, spec.group_weights, spec.effective_number_beta)
    return replace(rows, train=_multiplied(rows.train, weights))


def _multiplied(rows: Tokenised, weights: Sequence[float]) -> Tokenised:
    columns: dict[str, list[Any]] = {"weight": []}
    for row, weight in zip(rows, weights, strict=True):
        own = row.get("weight")
        columns["weight"].append(weight * (1.0 if own is None else own))
    return WithColumns(rows, columns)

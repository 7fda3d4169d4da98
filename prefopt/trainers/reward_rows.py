"""What a reward model learns from beside the tokens of its pairs: group weights, length, ratings, further axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prefopt.data.templates import Encoder
from prefopt.data.token_rows import WithColumns, lengths_of
from prefopt.errors import DataError
from prefopt.models.batches import PairCollator
from prefopt.recipe.options.groups import LONGER
from prefopt.records import PreferencePair
from prefopt.stats.imbalance import group_weights
from prefopt.stats.length_control import LengthPreference, fit_length_preference
from prefopt.trainers.reward_config import RewardConfig
from prefopt.trainers.rows import pair_row

Row = Mapping[str, Any]
_RATINGS = ("rating_chosen", "rating_rejected")


def reward_row(pair: PreferencePair, encoder: Encoder) -> dict[str, Any] | None:
    """As `pair_row`, with what only reward models use: ratings, further axes, and where the pair comes from."""
    row = pair_row(pair, encoder)
    if row is None:
        return None
    return {
        **row,
        "source": pair.source,
        "annotator": pair.annotator,
        "score_chosen": pair.score_chosen,
        "score_rejected": pair.score_rejected,
        "axes": pair.axes,
    }


class RewardCollator(PairCollator):
    """`PairCollator` with the columns that `RewardRows` adds."""

    OPTIONAL: Mapping[str, float | None] = {
        **PairCollator.OPTIONAL,
        "length_logit": None,
        "rating_chosen": None,
        "rating_rejected": None,
        "second_probability": None,
        "member_weights": None,
    }


@dataclass(frozen=True)
class RewardRows:
    """What is fitted on the training rows, and then part of every row that the model is trained or measured on.

    Attributes:
        length: How the labels go with length; None without `length_debias`.
        origin: Mean of the training ratings; 0 without `head: regression`.
        unit: Their standard deviation, at least 1e-6; 1 without.
    """

    length: LengthPreference | None = None
    origin: float = 0.0
    unit: float = 1.0

    @classmethod
    def fit(cls, rows: Sequence[Row], args: RewardConfig) -> RewardRows:
        """Fit on training rows.

        Raises:
            DataError: When a row has no rating where ratings are learned.
        """
        length = None
        if args.length_debias:
            gaps, weights = gaps_of(rows), [row.get("weight", 1.0) for row in rows]
            length = fit_length_preference([row.get("probability", 1.0) for row in rows], gaps, weights)
        if args.head != "regression":
            return cls(length)
        ratings = torch.tensor([rating for row in rows for rating in ratings_of(row)], dtype=torch.double)
        return cls(length, float(ratings.mean()), max(1e-6, float(ratings.std(correction=0))))

    def prepared(self, rows: Sequence[Row], args: RewardConfig, *, training: bool) -> WithColumns:
        """Rows with the columns that the loss needs.

        Args:
            rows: Tokenised pairs.
            args: The trainer's options.
            training: Whether group weights and the members' own weights apply.

        Raises:
            DataError: When a rating is missing, or all labels on the second axis are.
        """
        columns: dict[str, Sequence[Any]] = {}
        if self.length is not None:
            columns["length_logit"] = [args.length_debias * logit for logit in self.length.logits(gaps_of(rows))]
        if args.head == "regression":
            scaled = [[(rating - self.origin) / self.unit for rating in ratings_of(row)] for row in rows]
            columns |= {name: [pair[at] for pair in scaled] for at, name in enumerate(_RATINGS)}
        if args.second_axis:
            columns["second_probability"] = [(row.get("axes") or {}).get(args.second_axis, math.nan) for row in rows]
        if training:
            columns |= _weights(rows, args)
            if args.second_axis and all(map(math.isnan, columns["second_probability"])):
                raise DataError(f"no row has a label on the axis '{args.second_axis}'")
        return WithColumns(rows, columns)


def extra_tokens(row: Row) -> int:
    """Tokens of the chosen answer minus those of the rejected one."""
    return len(row["chosen_ids"]) - len(row["rejected_ids"])


def gaps_of(rows: Sequence[Row]) -> list[int]:
    """`extra_tokens` of every row; of rows on disk without reading any."""
    chosen, rejected = lengths_of(rows, "chosen_ids"), lengths_of(rows, "rejected_ids")
    return [ours - theirs for ours, theirs in zip(chosen, rejected, strict=True)]


def ratings_of(row: Row) -> tuple[float, float]:
    """Absolute ratings of both answers.

    Raises:
        DataError: When there are none.
    """
    first, second = row.get("score_chosen"), row.get("score_rejected")
    if first is None or second is None:
        raise DataError("a row has no rating of both answers", "regression needs 'score_chosen' and 'score_rejected'")
    return float(first), float(second)


def _weights(rows: Sequence[Row], args: RewardConfig) -> dict[str, Sequence[Any]]:
    """The rows' weights multiplied by those of their groups, and what each of several heads sees of them."""
    columns: dict[str, Sequence[Any]] = {}
    if args.group_weights != "none":
        groups = [group_of(row, args.group_by) for row in rows]
        weights = group_weights(groups, args.group_weights, args.effective_number_beta)
        columns["weight"] = [weight * row.get("weight", 1.0) for row, weight in zip(rows, weights, strict=True)]
    if args.ensemble_heads > 1:
        generator = torch.Generator().manual_seed(args.seed)
        drawn = torch.empty(len(rows), args.ensemble_heads).exponential_(generator=generator)
        columns["member_weights"] = (drawn / drawn.mean(0)).tolist()
    return columns


def group_of(row: Row, by: str) -> str:
    """The group of a pair: what a column says, or whether the preferred answer is the longer one."""
    if by != LONGER:
        return str(row.get(by, ""))
    extra = extra_tokens(row) * (row.get("probability", 1.0) - 0.5)
    return "longer" if extra > 0 else "shorter" if extra < 0 else "neither"

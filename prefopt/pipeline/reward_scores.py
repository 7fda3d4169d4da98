"""What a reward model says of held-out pairs: accuracy, what its members agree on, and how sure it should be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefopt.errors import DataError
from prefopt.evaluation.calibration import calibration_of_margins
from prefopt.pipeline.reward_members import Member
from prefopt.stats.agreement import mean_correlation
from prefopt.stats.classification import explained_variance
from prefopt.stats.intervals import Interval, wilson
from prefopt.store.files import write_atomic, write_json
from prefopt.trainers.reward_rows import extra_tokens, ratings_of

_COLUMNS = ["reward model", "held-out pairs", "accuracy", "mean margin"]


@dataclass(frozen=True)
class HeldOut:
    """Scores of both answers of held-out pairs on the main axis, by member: [N, M] each, float64.

    Attributes:
        chosen: Of the chosen answers.
        rejected: Of the rejected answers.
        rows: The tokenised pairs.
    """

    chosen: Tensor
    rejected: Tensor
    rows: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, members: Sequence[Member], rows: Sequence[Mapping[str, Any]]) -> HeldOut:
        """The members' scores side by side; the heads of an adapter are members as well."""
        sides = ([getattr(member, side)[..., 0].double() for member in members] for side in ("chosen", "rejected"))
        chosen, rejected = (torch.cat(side, dim=1) for side in sides)
        return cls(chosen, rejected, rows)

    def rescaled(self, factor: float, origin: float) -> HeldOut:
        """In another unit."""
        return replace(self, chosen=factor * self.chosen + origin, rejected=factor * self.rejected + origin)

    @property
    def margins(self) -> list[float]:
        """Of the means over members, [N]."""
        found: list[float] = (self.chosen - self.rejected).mean(1).tolist()
        return found

    def offsets(self) -> tuple[float, ...]:
        """How far each member's scores lie above the ensemble's on average; empty for one member, or no pairs."""
        if not self.rows or self.chosen.shape[1] == 1:
            return ()
        zeros = torch.cat([self.chosen, self.rejected]).mean(0)
        return tuple((zeros - zeros.mean()).tolist())

    def calibration(self, seed: int) -> dict[str, float]:
        """The temperature, and how calibrated pairs are that it was not fitted on; see `calibration_of_margins`.

        Raises:
            DataError: When the pairs have fewer than two prompts.
        """
        prompts = [str(row["prompt_ids"]) for row in self.rows]
        if len(set(prompts)) < 2:
            raise DataError(
                f"'calibrate' needs held-out pairs of two prompts, and there are {len(set(prompts))}",
                "raise the data's eval_fraction",
            )
        return calibration_of_margins(self.margins, [row["probability"] for row in self.rows], prompts, seed).metrics


def measure(held_out: HeldOut, name: str, directory: Path, *, regression: bool) -> dict[str, float]:
    """Measure on held-out pairs; writes `scores.jsonl` and `table.json`.

    A tie of the label says nothing, a tie of the scores counts half.

    Args:
        held_out: Scores in the unit of the artefact.
        name: Of the stage.
        directory: Of the stage.
        regression: Whether scores are ratings.
    """
    write_atomic(directory / "scores.jsonl", "".join(line + "\n" for line in _lines(held_out)))
    labels = [row["probability"] for row in held_out.rows]
    margins = held_out.chosen - held_out.rejected
    rows, metrics = [], {}
    if any(label != 0.5 for label in labels):
        accuracy, mean = _accuracy(held_out.margins, labels)
        rows.append(_row(name, labels, accuracy, mean))
        metrics = {
            "reward/accuracy/mean": accuracy.estimate,
            "reward/accuracy/ci_low": accuracy.low,
            "reward/accuracy/ci_high": accuracy.high,
        }
        if margins.shape[1] > 1:
            members = enumerate(margins.T.tolist(), start=1)
            rows += [_row(f"{name}, member {n}", labels, *_accuracy(each, labels)) for n, each in members]
    write_json(directory / "table.json", {"columns": _COLUMNS if rows else _COLUMNS[:2], "rows": rows})
    if len(labels) > 1:
        lengths = [float(extra_tokens(row)) for row in held_out.rows]
        metrics["reward/length_correlation"] = mean_correlation([held_out.margins, lengths])
        if margins.shape[1] > 1:
            metrics["reward/member_correlation"] = mean_correlation(margins.T.tolist())
    if regression and labels:
        ratings = [rating for side in zip(*map(ratings_of, held_out.rows), strict=True) for rating in side]
        scores = torch.cat([held_out.chosen.mean(1), held_out.rejected.mean(1)]).tolist()
        metrics["reward/rating_explained_variance"] = explained_variance(scores, ratings)
    return metrics


def _lines(held_out: HeldOut) -> list[str]:
    """Each pair's scores, and of an ensemble the members' standard deviations."""
    lines = []
    offsets = torch.tensor(held_out.offsets() or [0.0], dtype=torch.double)
    sides = {"chosen": held_out.chosen, "rejected": held_out.rejected}
    for number, row in enumerate(held_out.rows):
        line = {side: float(scores[number].mean()) for side, scores in sides.items()}
        if held_out.chosen.shape[1] > 1:
            line |= {f"{side}_std": float((s[number] - offsets).std(correction=0)) for side, s in sides.items()}
        lines.append(json.dumps({**line, "probability": row["probability"]}, allow_nan=False))
    return lines


def _accuracy(margins: Sequence[float], labels: Sequence[float]) -> tuple[Interval, float]:
    """Share of told pairs that are ranked right, and the mean margin towards what is preferred."""
    told = [m if label > 0.5 else -m for m, label in zip(margins, labels, strict=True) if label != 0.5]
    right = sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in told)
    return wilson(right, len(told)), sum(told) / len(told)


def _row(name: str, labels: Sequence[float], accuracy: Interval, mean: float) -> list[str]:
    share = f"{accuracy.estimate:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}]"
    return [name, f"{sum(label != 0.5 for label in labels)}", share, f"{mean:.2f}"]

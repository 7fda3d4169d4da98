"""The only door to TRL: its trainers with this project's checkpoints.

Rows arrive tokenised, so that TRL neither re-tokenises, truncates nor drops anything silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from trl import SFTConfig
from trl import SFTTrainer as TRLSFTTrainer

from prefopt.trainers.checkpoints import CheckpointedTrainer

__all__ = ["SFTConfig", "SFTTrainer", "language_modeling_rows"]


class SFTTrainer(CheckpointedTrainer, TRLSFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer with checkpoints that survive a kill, and runs that stop at NaN and go on without memory."""

    def counted(self) -> tuple[dict[str, int], float]:
        """How many values each of TRL's metrics has, and the tokens seen."""
        return {name: len(values) for name, values in self._metrics["train"].items()}, self._total_train_tokens

    def recount(self, counted: Any) -> None:
        """Forget the metrics of a pass that failed."""
        lengths, self._total_train_tokens = counted
        for name, values in self._metrics["train"].items():
            del values[lengths.get(name, 0) :]


def language_modeling_rows(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Rows for TRL's collator, from `prompt_ids` and `completion_ids`.

    Returns:
        A data set of `input_ids` and `labels`, where labels are -100 on the prompt: the loss is on completions only.
    """
    return Dataset.from_dict(
        {
            "input_ids": [[*row["prompt_ids"], *row["completion_ids"]] for row in rows],
            "labels": [[-100] * len(row["prompt_ids"]) + list(row["completion_ids"]) for row in rows],
        }
    )

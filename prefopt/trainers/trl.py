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
    """TRL's SFTTrainer with checkpoints that survive a kill and runs that stop at NaN."""


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

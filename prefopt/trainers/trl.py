"""The only door to TRL: its trainers with this project's checkpoints.

Rows arrive tokenised, so that TRL neither re-tokenises, truncates nor drops anything silently.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from trl import SFTConfig
from trl import SFTTrainer as TRLSFTTrainer

from prefopt.trainers.checkpoints import CheckpointedTrainer

# The tile of `trl.trainer.utils.add_fused_lm_head`.
_TILE_TOKENS, _TILE_WIDTH = 4096, 32768

__all__ = ["HeadTile", "SFTConfig", "SFTTrainer", "language_modeling_rows"]


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


@dataclass(frozen=True)
class HeadTile:
    """The buffer in which TRL computes logits, a tile of tokens by vocabulary at a time.

    It is as wide for a small vocabulary as for a large one. On a CPU all positions go through the head, elsewhere only
    those with a label, and what is never written to is not resident.

    Attributes:
        vocabulary: Entries.
        item_size: Bytes of a logit.
        on_cpu: Where it is.
    """

    vocabulary: int
    item_size: int
    on_cpu: bool

    def tokens(self, row: Mapping[str, Any]) -> int:
        """Positions of a row of `prompt_ids` and `completion_ids` that go through the head."""
        return len(row["completion_ids"]) + (len(row["prompt_ids"]) - 1 if self.on_cpu else 0)

    def allocated(self, tokens: int) -> int:
        """Bytes for a number of positions."""
        return min(tokens, _TILE_TOKENS) * _TILE_WIDTH * self.item_size

    def taken(self, tokens: int = _TILE_TOKENS) -> int:
        """Bytes of it that are resident for a number of positions, by default for a whole tile."""
        if not self.on_cpu:
            return self.allocated(tokens)
        page = mmap.PAGESIZE
        written = -(-min(self.vocabulary, _TILE_WIDTH) * self.item_size // page) * page
        return min(tokens, _TILE_TOKENS) * min(written, _TILE_WIDTH * self.item_size)

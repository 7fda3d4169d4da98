"""The only door to TRL: its trainers with this project's checkpoints.

Rows arrive tokenised, so that TRL neither re-tokenises, truncates nor drops anything silently. What `grpo` and `rloo`
share is in `prefopt.trainers.group`, what `kto` adds in `prefopt.trainers.unpaired`.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trl
from datasets import Dataset
from torch import Tensor, nn

from prefopt.trainers.group import GroupTrainer
from prefopt.trainers.group_config import GroupConfig
from prefopt.trainers.imitation import COLUMNS, TOKEN_COLUMNS, ImitationTrainer, prompts_before, unlearned
from prefopt.trainers.sequence_unlikelihood import Continuation, SequenceUnlikelihoodTrainer
from prefopt.trainers.unpaired import UnpairedTrainer

# The tile of `trl.trainer.utils.add_fused_lm_head`.
_TILE_TOKENS, _TILE_WIDTH = 4096, 32768

__all__ = [
    "GRPOConfig",
    "GRPOTrainer",
    "HeadTile",
    "KTOConfig",
    "KTOTrainer",
    "RLOOConfig",
    "RLOOTrainer",
    "SFTConfig",
    "SFTTrainer",
    "language_modeling_rows",
]


@dataclass
class SFTConfig(trl.SFTConfig):  # type: ignore[misc]
    """TRL's `SFTConfig`, and the focal loss."""

    focal_gamma: float = field(default=0.0, metadata={"help": "takes weight from tokens that are foreseen already"})


class SFTTrainer(SequenceUnlikelihoodTrainer, ImitationTrainer, trl.SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer with checkpoints that survive a kill, and runs that stop at NaN and go on without memory.

    Rows may have the further columns of `ImitationTrainer`. With `sequence_unlikelihood` the policy unlearns what costs
    flag in its own answers to the rows' prompts; see `SequenceUnlikelihood`.
    """

    def prompts_of(self, batch: Mapping[str, Any]) -> list[list[int]]:
        """What stands before the completions."""
        return prompts_before(batch)

    def unlikelihood_of(self, model: nn.Module, rows: Sequence[Continuation]) -> Tensor:
        """Of rows that are padded on the right."""
        return unlearned(model, rows, self.args.device)

    def counted(self) -> tuple[dict[str, int], float]:
        """How many values each of TRL's metrics has, and the tokens seen."""
        return {name: len(values) for name, values in self._metrics["train"].items()}, self._total_train_tokens

    def recount(self, counted: Any) -> None:
        """Forget the metrics of a pass that failed."""
        lengths, self._total_train_tokens = counted
        for name, values in self._metrics["train"].items():
            del values[lengths.get(name, 0) :]


@dataclass
class GRPOConfig(GroupConfig, trl.GRPOConfig):  # type: ignore[misc]
    """TRL's `GRPOConfig`, and how rollouts are sampled, scored and cut."""


class GRPOTrainer(GroupTrainer, trl.GRPOTrainer):  # type: ignore[misc]
    """Group relative policy optimisation (arXiv 2402.03300); see `GroupTrainer`."""

    method = "grpo"
    pays_in_reward = False
    ratio_per_token = True

    def _generate_single_turn(self, *asked: object, **also_asked: object) -> tuple[list[list[int]], None]:
        return self.sampled_ids(), None


@dataclass
class RLOOConfig(GroupConfig, trl.RLOOConfig):  # type: ignore[misc]
    """TRL's `RLOOConfig`, and how rollouts are sampled, scored and cut."""


class RLOOTrainer(GroupTrainer, trl.RLOOTrainer):  # type: ignore[misc]
    """REINFORCE with a leave-one-out baseline (arXiv 2402.14740); see `GroupTrainer`."""

    method = "rloo"
    pays_in_reward = True
    ratio_per_token = False

    def _generate_single_turn(self, *asked: object, **also_asked: object) -> list[list[int]]:
        return self.sampled_ids()


@dataclass
class KTOConfig(trl.KTOConfig):  # type: ignore[misc]
    """TRL's `KTOConfig` with this package's defaults."""

    gradient_checkpointing: bool = field(default=False)
    bf16: bool | None = field(default=False)
    learning_rate: float = field(default=5e-5)
    train_sampling_strategy: str = field(default="random")
    logging_nan_inf_filter: bool = field(default=False)


class KTOTrainer(UnpairedTrainer, trl.KTOTrainer):  # type: ignore[misc]
    """Kahneman-Tversky optimisation (arXiv 2402.01306); see `UnpairedTrainer`."""


def language_modeling_rows(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Rows for TRL's collator, from `prompt_ids` and `completion_ids`.

    Further columns that weigh tokens (`imitation`, `unlikelihood`, of the completion's tokens) or rows (`weight`) are
    kept where the rows have them.

    Returns:
        A data set of `input_ids` and `labels`, where labels are -100 on the prompt: the loss is on completions only.
    """
    columns: dict[str, list[Any]] = {
        "input_ids": [[*row["prompt_ids"], *row["completion_ids"]] for row in rows],
        "labels": [[-100] * len(row["prompt_ids"]) + list(row["completion_ids"]) for row in rows],
    }
    for name in COLUMNS:
        if not any(name in row for row in rows):
            continue
        default = TOKEN_COLUMNS.get(name)
        columns[name] = (
            [float(row.get(name, 1.0)) for row in rows]
            if default is None
            else [
                [default] * len(row["prompt_ids"]) + list(row.get(name) or [default] * len(row["completion_ids"]))
                for row in rows
            ]
        )
    return Dataset.from_dict(columns)


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

    def tokens(self, prompt: int, completion: int) -> int:
        """Positions of a row of so many tokens that go through the head."""
        return completion + (prompt - 1 if self.on_cpu else 0)

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

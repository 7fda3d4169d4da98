"""Where a training starts: the rows in the order of its steps, cut as its batches cut them, and the fresh adapter.

TRL's side is recorded and prefopt's reads it, so that both compute the same steps from the same weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Row = dict[str, list[int]]


class Recorder:
    """Stands in for TRL's `training_step`, and computes nothing."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.adapter: dict[str, Tensor] = {}

    def step(self, trainer: Any, model: nn.Module, inputs: Mapping[str, Tensor], *_: Any) -> Tensor:
        """Remember a batch."""
        if not self.adapter:
            trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
            self.adapter = {name: parameter.detach().cpu().clone() for name, parameter in trained.items()}
        if "completion_mask" in inputs:
            starts = inputs["completion_mask"].argmax(1).tolist()
        else:
            starts = _prompt_lengths(trainer, inputs)
        self.rows += _rows(inputs, starts)
        return torch.zeros((), device=inputs["input_ids"].device)

    def write(self, folder: Path) -> None:
        """Write both."""
        folder.mkdir(parents=True)
        (folder / "rows.json").write_text(json.dumps(self.rows), encoding="utf-8")
        save_file(self.adapter, folder / "adapter.safetensors")


def _rows(inputs: Mapping[str, Tensor], starts: list[int]) -> list[Row]:
    ids = [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    pairs = len(ids) // 2
    return [
        {
            "prompt_ids": ids[index][: starts[index]],
            "chosen_ids": ids[index][starts[index] :],
            "rejected_ids": ids[pairs + index][starts[index] :],
        }
        for index in range(pairs)
    ]


def _prompt_lengths(trainer: Any, inputs: Mapping[str, Tensor]) -> list[int]:
    """Where the answers begin: TRL's reward trainer has no use for it, and keeps it in no batch."""
    prompts = {
        (*row["chosen_ids"], -1, *row["rejected_ids"]): trainer.processing_class(row["prompt"])["input_ids"]
        for row in trainer.train_dataset
    }
    whole = _rows(inputs, [0] * len(inputs["input_ids"]))
    found = []
    for row in whole:
        prompt = prompts[(*row["chosen_ids"], -1, *row["rejected_ids"])]
        sides = zip(prompt, row["chosen_ids"], row["rejected_ids"], strict=False)
        found.append(next((n for n, tokens in enumerate(sides) if len(set(tokens)) > 1), len(prompt)))
    return found


def read_rows(folder: Path) -> list[Row]:
    """The rows that `Recorder` wrote."""
    rows: list[Row] = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    return rows


@torch.no_grad()
def start_from(folder: Path, model: PeftModel, adapter: str, head: nn.Linear | None) -> None:
    """Give an adapter, and a reward model's head, the weights that TRL's had.

    Args:
        folder: What `Recorder` wrote.
        model: The model with the adapter.
        adapter: Its name.
        head: From the last state to the score.

    Raises:
        SystemExit: When they do not have the same weights to train.
    """
    recorded = load_file(folder / "adapter.safetensors")
    mine = {name.replace(f".{adapter}.", ".default."): p for name, p in model.named_parameters() if p.requires_grad}
    if head is not None:
        mine["base_model.model.score.modules_to_save.default.weight"] = head.weight
    if mine.keys() != recorded.keys():
        sys.exit(f"the two sides train other weights: {sorted(mine.keys() ^ recorded.keys())[:6]}")
    for name, parameter in mine.items():
        parameter.copy_(recorded[name])

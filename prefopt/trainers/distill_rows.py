"""Batches of distillation: the same completions after the student's prompts and after the teacher's.

Shape suffixes: B rows, T positions, N completion tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from prefopt.models.batches import FILLER, prompt_completion_batch
from prefopt.models.generate import SamplingOptions

Row = Mapping[str, Any]


class DistillCollator:
    """Rows to a batch: the completions after the student's prompts, and after the teacher's.

    Args:
        pad_token_id: Fills rows; masked.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """`student` and `teacher`, as `prompt_completion_batch`; `soft`, `replay` and `weight` [B].

        Rows of which some have no completion yet are only passed on, as `rows`.
        """
        if not all("completion_ids" in row for row in rows):
            return {"rows": [dict(row) for row in rows]}
        completions = [row["completion_ids"] for row in rows]
        sides = {
            name: prompt_completion_batch([row[key] for row in rows], completions, self._pad)
            for name, key in (("student", "prompt_ids"), ("teacher", "teacher_prompt_ids"))
        }
        return {
            **sides,
            "soft": torch.tensor([bool(row.get("soft", True)) for row in rows]),
            "replay": torch.tensor([bool(row.get("replay", False)) for row in rows]),
            "weight": torch.tensor([float(row.get("weight", 1.0)) for row in rows]),
            **({FILLER: torch.ones(len(rows))} if any(FILLER in row for row in rows) else {}),
        }


def completion_mask(batch: Mapping[str, Any]) -> Tensor:
    """[B, T - 1], whose next token belongs to the completion."""
    return cast(Tensor, batch["student"]["completion_mask"][:, 1:].bool())


def token_weights(batch: Mapping[str, Any]) -> Tensor:
    """Weights of the completion tokens of a batch [N], row by row."""
    mask = completion_mask(batch)
    return cast(Tensor, batch["weight"].unsqueeze(1).expand_as(mask)[mask])


def seeded_uniforms(seeds: Sequence[int], options: SamplingOptions) -> Tensor:
    """[N, max_new_tokens]: the random number of every token of an answer follows from the answer's own seed."""
    rows = [
        torch.rand(options.max_new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.stack(rows) if rows else torch.zeros(0, options.max_new_tokens, dtype=torch.float64)

"""Tokenised rows to tensors: right-padded, masked by length and never by token id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def pad_rows(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    """Pad integer rows to the longest.

    Args:
        rows: At least one row.
        value: Fills the rest.
        left: Pad on the left, as generation needs.

    Returns:
        [B, T], int64.
    """
    width = max(len(row) for row in rows)
    batch = torch.full((len(rows), width), value, dtype=torch.long)
    for index, row in enumerate(rows):
        if left:
            batch[index, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        else:
            batch[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return batch


def prompt_completion_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_token_id: int
) -> dict[str, Tensor]:
    """Join prompts and completions to one right-padded batch.

    Returns:
        `input_ids`, `attention_mask` and `completion_mask`, each [B, T] int64; the completion mask is 1 on completion
        tokens, the end-of-sequence token included.
    """
    rows = [list(prompt) + list(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    completion_masks = [[0] * len(p) + [1] * len(c) for p, c in zip(prompts, completions, strict=True)]
    return {
        "input_ids": pad_rows(rows, pad_token_id),
        "attention_mask": pad_rows([[1] * len(row) for row in rows], 0),
        "completion_mask": pad_rows(completion_masks, 0),
    }


# A forward pass holds at most this many logits: beyond it, memory and not arithmetic would set the batch size.
MAX_LOGITS = 2**27


def batches_by_length(lengths: Sequence[int], batch_size: int, vocabulary: int) -> list[list[int]]:
    """Cut rows into batches of similar length.

    Args:
        lengths: Tokens of each row.
        batch_size: Most rows of a batch.
        vocabulary: Logits of a token; a batch has at most `MAX_LOGITS` of them, or one row.

    Returns:
        Indices of the rows of each batch; shortest first.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = not batches or len(batches[-1]) >= batch_size
        if full or (len(batches[-1]) + 1) * lengths[index] * vocabulary > MAX_LOGITS:
            batches.append([])
        batches[-1].append(index)
    return batches


FILLER = "filler"
FLAGS = "chosen_unlikelihood"


class PairCollator:
    """Collates tokenised preference pairs into one row of tokens without padding.

    A pair is `prompt | chosen | rejected`: both completions share the prompt. The batch has `input_ids` [1, N], pair
    after pair, and `lengths` [B, 3], the tokens of each part (`prefopt.models.pairs.PairLayout` knows the rest).

    A row has `prompt_ids`, `chosen_ids` and `rejected_ids`, and may have the reference's `reference_chosen_logps` and
    `reference_rejected_logps` (and `…_tail_logps`), a `weight`, a `probability`, a `margin` and a `filler` (a pair that
    is none, so that a rank without rows has something to compute), which become [B] tensors; `chosen_cost` and
    `rejected_cost` likewise. `chosen_unlikelihood`, a number for every token of the chosen completion, becomes [B, L].
    """

    # With what stands for a row that does not say it; None where every row must.
    OPTIONAL: Mapping[str, float | None] = {
        "reference_chosen_logps": None,
        "reference_rejected_logps": None,
        "reference_chosen_tail_logps": None,
        "reference_rejected_tail_logps": None,
        "weight": 1.0,
        "probability": 1.0,
        "margin": 0.0,
        "chosen_cost": 0.0,
        "rejected_cost": 0.0,
        FILLER: None,
    }

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate B rows."""
        parts = [[row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")] for row in rows]
        tokens = [torch.as_tensor(part, dtype=torch.long) for row in parts for part in row]
        batch = {
            "input_ids": torch.cat(tokens).unsqueeze(0),
            "lengths": torch.tensor([[len(part) for part in row] for row in parts]),
        }
        for name, default in self.OPTIONAL.items():
            if any(row.get(name) is not None for row in rows):
                values = [default if row.get(name) is None else row[name] for row in rows]
                batch[name] = torch.tensor(values, dtype=torch.float32)
        if any(FLAGS in row for row in rows):  # also where nothing is flagged: every rank then has the same metrics
            flags = [torch.tensor(row.get(FLAGS) or [0.0], dtype=torch.float32) for row in rows]
            batch[FLAGS] = torch.nn.utils.rnn.pad_sequence(flags, batch_first=True)
        return batch


def some_pairs(batch: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    """Some pairs of a batch of `PairCollator`, from `start` up to but without `end`."""
    tokens = batch["lengths"].sum(1)
    first, count = int(tokens[:start].sum()), int(tokens[start:end].sum())
    each = {name: values[start:end] for name, values in batch.items() if name != "input_ids"}
    return {"input_ids": batch["input_ids"][:, first : first + count], **each}


def padded_pairs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch of `PairCollator` as [2B, T], padded on the right: all chosen rows, then all rejected rows.

    Returns:
        As `prompt_completion_batch`.
    """
    pieces = torch.split(batch["input_ids"][0].cpu(), batch["lengths"].flatten().tolist())
    prompts, chosen, rejected = ([piece.tolist() for piece in pieces[part::3]] for part in range(3))
    # The mask says what is padding, so any token may fill.
    joined = prompt_completion_batch(prompts + prompts, chosen + rejected, 0)
    return {name: values.to(batch["input_ids"].device) for name, values in joined.items()}

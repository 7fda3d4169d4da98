"""In which order rows are trained on: drawn anew for every epoch, from the seed alone, and with little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

_MEGABATCH = 50  # steps whose rows are sorted together, as in `transformers`


class TrainingOrder(Sampler[int]):
    """Row numbers of an epoch, a function of the seed and the epoch: a resumed run sees the order it would have seen.

    The rows of an optimiser step are sorted by length. With gradient accumulation its passes then hold rows of like
    length and pad less, and since a step's loss is divided once, for all its passes, its gradient stays what it was.

    Args:
        lengths: Tokens of each row.
        rows_per_step: Rows of an optimiser step, over all passes and ranks.
        seed: Of the order.
        by_length: Also make steps of rows of like length, in a random order of steps. Where a loss is a mean over
            tokens, this weights the tokens of short rows more: their step has fewer.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int, *, by_length: bool = False) -> None:
        self._lengths = lengths
        self._rows = rows_per_step
        self._seed = seed
        self._by_length = by_length
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0; the dataloader calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        for _ in range(self._epoch + 1):  # one draw each, so that neighbouring seeds share no order
            order = torch.randperm(len(self._lengths), generator=generator).tolist()
        if self._by_length:
            steps = [
                step for part in _cut(order, _MEGABATCH * self._rows) for step in _cut(self._sorted(part), self._rows)
            ]
            # A step that is not full comes last, wherever its rows were drawn.
            full = [step for step in steps if len(step) == self._rows]
            short = [step for step in steps if len(step) < self._rows]
            mixed = torch.randperm(len(full), generator=generator).tolist()
            steps = [full[index] for index in mixed] + short
        else:
            steps = [self._sorted(step) for step in _cut(order, self._rows)]
        yield from (row for step in steps for row in step)

    def _sorted(self, rows: Sequence[int]) -> list[int]:
        return sorted(rows, key=lambda row: -self._lengths[row])


def _cut(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]

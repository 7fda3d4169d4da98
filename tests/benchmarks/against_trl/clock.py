"""Reads a meter while a trainer trains: seconds, or floating-point operations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from tests.benchmarks.against_trl.plan import WARMUP_STEPS


def seconds() -> float:
    """Now, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(TrainerCallback):  # type: ignore[misc]
    """Reads the meter at the end of every optimiser step, and of the pass of the reference before the first.

    Args:
        read: The meter.

    Attributes:
        ends: The meter after each step.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        self._begun = 0.0
        self._first_step = 0.0
        self._reference_end: float | None = None
        self.ends: list[float] = []

    def begin(self) -> None:
        """Right before `train` is called."""
        self._begun, self._reference_end, self.ends = self._read(), None, []

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """After a batch of the reference, when it comes before the first step."""
        if not self.ends:
            self._reference_end = self._read()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._first_step = self._read()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(self._read())

    @property
    def steps(self) -> float:
        """What the counted steps took."""
        return self.ends[-1] - self.ends[WARMUP_STEPS - 1]

    @property
    def reference(self) -> float:
        """What came before the first step, up to the last batch of the reference; all of it when none was seen."""
        end = self._first_step if self._reference_end is None else self._reference_end
        return end - self._begun


def counted_share(rows: Sequence[Mapping[str, Sequence[int]]], batch: int) -> float:
    """Share of the tokens that belong to counted pairs, in [0, 1].

    Args:
        rows: Tokenised pairs in the order of the steps.
        batch: Pairs of a step.
    """
    tokens = [2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows]
    return sum(tokens[WARMUP_STEPS * batch :]) / sum(tokens)

"""Passes without padding, where a model can make them: see `prefopt.models.shared_prefix`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

from prefopt.models.fused_lora import fused_lora
from prefopt.models.modes import evaluating
from prefopt.models.shared_prefix import sharing_prompts, why_not_shared
from prefopt.models.wrapped import HoldsPeft

_LOGGER = logging.getLogger(__name__)


class FastPasses:
    """Lets a model pass over rows without padding, once it is proved that it then says what padded rows say.

    Args:
        model: Whose `shares_prompts` says what its passes are.
        accelerator: Of the trainer.
        otherwise: What is said in the log where the model must pad.

    Attributes:
        gap: How far the two kinds of passes were apart on the first rows, relative to the larger of 1 and what is said;
            None where it was not tried.
    """

    def __init__(self, model: HoldsPeft, accelerator: Accelerator, otherwise: str) -> None:
        self._model = model
        self._accelerator = accelerator
        self._otherwise = otherwise
        self._why_not: str | None = None
        self.gap: float | None = None

    @contextmanager
    def allowed(self, said: Callable[[], Tensor]) -> Iterator[None]:
        """Within the block nothing is padded where the model can do without.

        Args:
            said: What the model says of a few rows, to prove it on; called twice, before the first block alone.
        """
        if self._why_not is None and (reason := why_not_shared(self._model.peft)):
            self._must_pad(f"of this model {reason}")
        if self._why_not or self._model.shares_prompts:
            with fused_lora(self._model):
                yield
            return
        with sharing_prompts(self._model.peft), fused_lora(self._model):
            if self.gap is None:
                self._prove(said)
            self._model.shares_prompts = self._why_not is None
            try:
                yield
            finally:
                self._model.shares_prompts = False

    def _prove(self, said: Callable[[], Tensor]) -> None:
        found = []
        for self._model.shares_prompts in (False, True):
            with torch.no_grad(), evaluating(self._model), self._accelerator.autocast():
                found.append(said().double())
        padded, shared = found
        self._model.shares_prompts = False
        self.gap = float(((shared - padded).abs() / padded.abs().clamp(min=1.0)).max())
        plain = self._accelerator.mixed_precision == "no"
        exact = next(self._model.peft.parameters()).dtype is torch.float32 and plain
        if self.gap > (1e-4 if exact else 5e-2):
            self._must_pad(f"with and without padding it differs by {self.gap:.1e}")

    def _must_pad(self, reason: str) -> None:
        self._why_not = reason
        _LOGGER.warning("%s: %s", self._otherwise, reason)

"""A module that holds a PEFT model beside heads of its own, as `transformers.Trainer` expects it of models."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn


class HoldsPeft(nn.Module):
    """Passes on what the Trainer asks of a model.

    Args:
        peft: The base with its adapters.

    Attributes:
        shares_prompts: Whether a batch is computed as one row of tokens without padding, and where it is made of pairs
            each prompt once; set inside `prefopt.models.shared_prefix.sharing_prompts` alone. Otherwise every
            completion is a padded row.
    """

    shares_prompts = False

    def __init__(self, peft: PeftModel) -> None:
        super().__init__()
        self.peft = peft
        self.config = peft.config

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute the base's activations in the backward pass."""
        self.peft.get_base_model().activation_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """The same, by the name of transformers before 5.19."""
        self.peft.get_base_model().gradient_checkpointing_enable(*args, **kwargs)

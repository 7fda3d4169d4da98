"""Put a model into a mode for a while, and back whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from transformers import GenerationConfig


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Within the block the model is in evaluation mode (no dropout)."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def plain_sampling(model: torch.nn.Module) -> Iterator[None]:
    """Within the block nothing of the model's own generation config applies.

    `generate` fills every option that is None from there: a model that ships a repetition penalty would not be sampled
    from its own distribution, and no divergence measured on such samples would be one.
    """
    target = model.get_base_model() if isinstance(model, PeftModel) else model
    own = target.generation_config
    target.generation_config = GenerationConfig()
    try:
        yield
    finally:
        target.generation_config = own

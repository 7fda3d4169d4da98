"""Put a model into a mode for a while, and back whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
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


@contextmanager
def merged(model: torch.nn.Module) -> Iterator[None]:
    """Within the block the active adapter is part of the base's weights, which afterwards are exactly as before.

    A token costs a small model about half the time so: an adapter is three more operations in every layer. Only in
    float32, where merging changes logits by rounding alone; nothing is merged in half precision or a quantised base.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    exact = all(weight.dtype is torch.float32 for weight in weights)
    if not isinstance(model, PeftModel) or not exact or any(layer.disable_adapters or layer.merged for layer in layers):
        yield
        return
    kept = [weight.detach().clone() for weight in weights]
    model.merge_adapter()
    try:
        yield
    finally:
        model.unmerge_adapter()
        with torch.no_grad():
            for weight, original in zip(weights, kept, strict=True):
                weight.copy_(original)


def without_dropout(model: torch.nn.Module) -> None:
    """Switch dropout off for good, also in training mode: a policy that samples without and learns with it is two.

    Attention layers keep their rate as `attention_dropout`; others are modules.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]

"""A model's own way from states to logits, as `prefopt.losses.token_statistics` takes it."""

from __future__ import annotations

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefopt.errors import InputError
from prefopt.losses.token_statistics import Head


def head_is_adapted(model: PeftModel | PreTrainedModel) -> bool:
    """Whether adapters change the head, of which policy and reference then have one each."""
    return isinstance(model.get_output_embeddings(), (BaseTunerLayer, ModulesToSaveWrapper))


def require_plain_head(model: PeftModel | PreTrainedModel, why: str) -> None:
    """Refuse adapters on the head, and say why.

    Raises:
        InputError: Where there are some.
    """
    if head_is_adapted(model):
        raise InputError(
            why, "leave it (lm_head) out of lora_target_modules, here and in the stages before; all-linear does"
        )


def head_of(model: PeftModel | PreTrainedModel, temperature: float = 1.0) -> Head:
    """The head of a causal language model, with what the model does to its logits.

    Some models scale their logits (Cohere, Granite) or cap them (Gemma 2).

    Args:
        model: The model.
        temperature: Divides the logits.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    module, config = base.get_output_embeddings(), base.config.get_text_config()
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def head(states: Tensor) -> Tensor:
        # Not the module's call, whose hooks expect to be part of the pass that is differentiated as a whole.
        plain = type(module) is nn.Linear
        logits: Tensor = nn.functional.linear(states, module.weight, module.bias) if plain else module(states)
        if scale != 1.0:
            logits = logits * scale
        if cap is not None:
            logits = cap * (logits / cap).tanh()
        return logits if temperature == 1.0 else logits / temperature

    return Head(head, any(parameter.requires_grad for parameter in module.parameters()))

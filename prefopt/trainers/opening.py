"""What a user gives a trainer as `model`, to a model with an adapter and its tokenizer."""

from __future__ import annotations

import transformers
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.errors import InputError
from prefopt.models.loading import resolve_dtype


def open_adapted(
    model: str | PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | None,
    peft_config: PeftConfig | None,
    adapter: str,
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The model with the adapter that is to be trained, and its tokenizer.

    Args:
        model: A causal language model, its name or folder, or a `PeftModel` that has the adapter.
        tokenizer: Loaded with the model when that is a name.
        peft_config: Shape of the adapter, where the model has none yet.
        adapter: Its name.

    Raises:
        InputError: When there is no such adapter, or no tokenizer.
    """
    if isinstance(model, str):
        tokenizer = tokenizer or transformers.AutoTokenizer.from_pretrained(model)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=resolve_dtype("auto"), use_safetensors=True
        )
    if peft_config is not None:
        model = get_peft_model(model, peft_config, adapter_name=adapter)
    if not isinstance(model, PeftModel) or adapter not in model.peft_config:
        raise InputError(f"what is trained is an adapter named '{adapter}', and the model has none", "give peft_config")
    if tokenizer is None:
        raise InputError("a model that is given as an object needs its tokenizer as processing_class")
    return model, tokenizer


def pad_token_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills rows; padding is masked by length, so it may be any."""
    pad = tokenizer.pad_token_id
    return int(pad if pad is not None else tokenizer.eos_token_id)


def require_same_start(gap: float, *, exact: bool) -> None:
    """Refuse to train where the policy is not its reference before the first step.

    Args:
        gap: Largest distance between log-probabilities of a token, nats.
        exact: Whether passes compute in float32.

    Raises:
        InputError: Where it is more than rounding.
    """
    if gap > (1e-3 if exact else 0.2):
        raise InputError(
            f"before the first step a token's log-probability differs from the reference's by {gap:.1e}",
            "the reference must be the stage that the policy starts from; is a merged or other adapter active?",
        )

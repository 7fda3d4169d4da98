"""A tiny Llama and rows for tests of trainers: small enough that a training step takes milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefopt.trainers.pretrain import train_tokenizer

VOCABULARY = 300


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the lamp is red", "the chair costs nine euro"], VOCABULARY)


def tiny_llama(seed: int = 0, layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=True,
            initializer_range=0.2,
        )
    )
    model.requires_grad_(False)
    return model


def save_tiny_base(folder: Path, positions: int = 512) -> None:
    """Model and tokenizer as a recipe names them; with room for the toy world's rows."""
    model = tiny_llama()
    model.config.max_position_embeddings = positions
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def tiny_policy(seed: int = 0, adapter: str = "policy") -> PeftModel:
    base = tiny_llama(seed)
    torch.manual_seed(seed + 1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    return get_peft_model(base, config, adapter_name=adapter)


def random_rows(count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Pairs of different lengths, each completion ending with the end token."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(6, VOCABULARY, (length,), generator=generator).tolist()

    return [
        {"prompt_ids": [1, *ids(3, 12)], "chosen_ids": [*ids(2, 14), 2], "rejected_ids": [*ids(2, 14), 2]}
        for _ in range(count)
    ]

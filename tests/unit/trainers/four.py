"""The four trainers of adapters, made in one way, for what must hold of all of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM, TrainingArguments

from prefopt.models.heads import REWARD, RewardModel, new_head
from prefopt.models.roles import POLICY, REFERENCE
from prefopt.trainers.checkpoints import CheckpointedTrainer
from prefopt.trainers.dpo import DPOConfig, DPOTrainer
from prefopt.trainers.ppo import PPOTrainer
from prefopt.trainers.ppo_config import PPOConfig
from prefopt.trainers.reward import RewardConfig, RewardTrainer
from prefopt.trainers.trl import SFTConfig, SFTTrainer, language_modeling_rows
from tests.tiny import random_rows, tiny_llama, tiny_tokenizer

# transformers 5.19 renamed it.
_NAMES = {field.name for field in dataclasses.fields(TrainingArguments)}
RECOMPUTE = "activation_checkpointing" if "activation_checkpointing" in _NAMES else "gradient_checkpointing"
METHODS = ("sft", "dpo", "reward", "ppo")
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "max_steps": 2,
    "optim": "sgd",  # Adam would divide gradients that are 0 but for rounding
    "learning_rate": 0.1,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "disable_tqdm": True,
    "seed": 5,
    "dataloader_pin_memory": False,
}


def build(
    method: str,
    directory: Path,
    base: LlamaForCausalLM | None = None,
    rows: list[dict[str, list[int]]] | None = None,
    recompute: bool = False,
    **more: Any,
) -> CheckpointedTrainer:
    """A trainer of an adapter whose both matrices are random, so that gradients reach all of it.

    Policies have a frozen copy of it as their reference.
    """
    rows = rows or random_rows(24)
    model = adapted(base or tiny_llama(), REWARD if method == "reward" else POLICY)
    fields = {**COMMON, "output_dir": str(directory), RECOMPUTE: recompute, **more}
    if recompute:
        fields[f"{RECOMPUTE}_kwargs"] = {"use_reentrant": False}
    tokenizer = tiny_tokenizer()
    if method == "sft":
        fields |= {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
        demonstrations = [{"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"]} for row in rows]
        return SFTTrainer(
            model=model,
            args=SFTConfig(**fields),
            train_dataset=language_modeling_rows(demonstrations),
            processing_class=tokenizer,
        )
    if method == "dpo":
        return DPOTrainer(model, DPOConfig(**fields), train_dataset=rows, processing_class=tokenizer)
    if method == "reward":
        torch.manual_seed(2)
        reward = RewardModel(model, new_head(model))
        return RewardTrainer(reward, RewardConfig(**fields), train_dataset=rows, processing_class=tokenizer)
    del fields["max_steps"]
    fields |= {"rollout_batch_size": 16, "total_episodes": 32, "num_mini_batches": 2, "num_ppo_epochs": 1}
    fields |= {"max_new_tokens": 6, "max_length": 64, "missing_eos_penalty": 0.0, **more}
    prompts = [{"prompt": text} for text in ("the lamp", "the chair costs", "is", "nine euro", "red lamp is the")]
    return PPOTrainer(
        model,
        PPOConfig(**fields),
        reward=lambda _, completions: [float(text.count("e")) for text in completions],
        train_dataset=prompts,
        processing_class=tokenizer,
    )


def adapted(base: LlamaForCausalLM, adapter: str) -> PeftModel:
    torch.manual_seed(3)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    model = get_peft_model(base, lora, adapter_name=adapter)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    if adapter == POLICY:
        model.add_adapter(REFERENCE, lora)
        model.set_adapter(POLICY)
        weights = dict(model.named_parameters())
        for name, parameter in weights.items():
            if f".{REFERENCE}." in name:
                parameter.data.copy_(weights[name.replace(REFERENCE, POLICY)].data)
    return model


def trained(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by name."""
    return {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference over all tensors, each relative to its own length."""
    assert found.keys() == expected.keys()
    gaps = [
        float((found[name].double() - expected[name].double()).norm() / expected[name].double().norm().clamp(min=1e-12))
        for name in found
    ]
    return max(gaps)

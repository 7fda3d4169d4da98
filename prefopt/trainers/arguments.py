"""From a stage's options to `transformers.TrainingArguments`, the same way for every trainer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from transformers import TrainingArguments

from prefopt.models.loading import resolve_dtype
from prefopt.recipe.schema import OptimisationSpec

A = TypeVar("A", bound=TrainingArguments)

# Names that a stage and TrainingArguments share.
_SAME = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "train_sampling_strategy",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "logging_steps",
    "save_steps",
    "save_total_limit",
)


def training_arguments(
    cls: type[A], spec: OptimisationSpec, *, directory: Path, seed: int, dtype: str = "auto", **more: Any
) -> A:
    """Arguments for a stage's trainer.

    Args:
        cls: `TrainingArguments` or a subclass.
        spec: The stage's options.
        directory: The stage's folder; checkpoints go to `checkpoints/` in it.
        seed: Of initialisation, order and dropout.
        dtype: The model's, to choose mixed precision.
        more: Fields of `cls` itself.
    """
    eval_steps = getattr(spec, "eval_steps", None)
    accelerated = torch.cuda.is_available()
    precision = resolve_dtype(dtype)
    names = {field.name for field in dataclasses.fields(cls)}
    # transformers 5.23 renamed the argument and deprecates the old name.
    recompute = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    fields: dict[str, Any] = {
        **{name: getattr(spec, name) for name in _SAME if hasattr(spec, name)},
        "output_dir": str(directory / "checkpoints"),
        "seed": seed,
        "data_seed": seed,
        "use_cpu": not accelerated,
        "bf16": accelerated and precision is torch.bfloat16,
        "fp16": accelerated and precision is torch.float16,
        recompute: spec.activation_checkpointing,
        "eval_strategy": "steps" if eval_steps else "no",
        "eval_steps": eval_steps,
        "save_strategy": "steps",
        "logging_strategy": "steps",
        "logging_nan_inf_filter": False,  # a NaN must not be averaged away
        "report_to": [],
        "include_num_input_tokens_seen": "non_padding",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": accelerated,
        **more,
    }
    if spec.activation_checkpointing:
        fields[f"{recompute}_kwargs"] = {"use_reentrant": False}
    return cast(A, cls(**fields))

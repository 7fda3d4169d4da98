"""What training stages share: how weights move, how long, in which processes, and the shape of the adapter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from prefopt.recipe.base import Names, Seed, Spec, list_as_tuple, quiet
from prefopt.recipe.scorers import RequireSpec


def _not_zero(steps: int) -> int:
    if steps == 0:
        raise ValueError("must be 1 or more, or -1 for as many as the epochs give")
    return steps


Targets = (
    str
    | Annotated[tuple[str, ...], BeforeValidator(list_as_tuple, json_schema_input_type=list[str]), Field(min_length=1)]
)


class LoraSpec(Spec):
    """The LoRA adapter that training stages create (arXiv 2106.09685)."""

    lora_r: int = Field(16, ge=1, description="rank of the update")
    lora_alpha: float = Field(32.0, gt=0, description="the update is scaled by lora_alpha / lora_r")
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target_modules: Targets = Field("all-linear", description="'all-linear', or the module names to adapt")


class StageLoraSpec(Spec):
    """The shape of one stage's adapter; what is left out is the recipe's."""

    lora_r: int | None = Field(None, ge=1, description="rank of the update")
    lora_alpha: float | None = Field(None, gt=0, description="the update is scaled by lora_alpha / lora_r")
    lora_dropout: float | None = Field(None, ge=0, lt=1)
    lora_target_modules: Targets | None = Field(None, description="'all-linear', or the module names to adapt")

    def over(self, recipe: LoraSpec) -> LoraSpec:
        """The shape, with what is left out from the recipe's."""
        return recipe.model_copy(update=self.model_dump(exclude_none=True))


class StageSpec(Spec):
    """What every stage has."""

    kind: str
    seed: Seed | None = Field(None, description="the recipe's seed by default")
    require: dict[str, RequireSpec] = Field(
        default_factory=dict,
        json_schema_extra={"numeric": False},
        description="gates, metric: bounds; a failed one ends the run with exit code 6, and nothing is trained anew "
        "when only a bound changes",
    )
    after: Names = Field(
        (),
        json_schema_extra={"numeric": False},
        description="stages that must be done, and hold their gates, before this one starts; it reads nothing of them",
    )


class AccelerateSpec(Spec):
    """Several processes that train one model together, started by `accelerate launch`."""

    num_processes: int = Field(1, ge=1, le=64, description="processes, one for each device; the batch grows with them")
    config_file: str | None = quiet(
        None, description="of accelerate; by default plain data parallelism on the CUDA devices, or on the CPU"
    )


class OptimisationSpec(StageSpec):
    """Optimisation, in the names of `transformers.TrainingArguments`."""

    learning_rate: float = Field(1e-4, gt=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: float = Field(0.0, ge=0, description="optimiser steps; below 1 a share of all steps")
    per_device_train_batch_size: int = Field(8, ge=1, description="rows of one forward and backward pass")
    per_device_eval_batch_size: int = Field(16, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: int | None = Field(
        None, ge=8, description="tokens of prompt and completion together; by default what the model has, at most 1024"
    )
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    logging_steps: int = quiet(10, ge=1)
    save_steps: int = quiet(100, ge=1, description="optimiser steps between checkpoints")
    save_total_limit: int = quiet(2, ge=1, description="checkpoints kept")
    # Not in the key by itself: without it no key may change. See prefopt.pipeline.keys.
    accelerate: AccelerateSpec = quiet(AccelerateSpec())

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        return self.accelerate.num_processes


class TrainingSpec(OptimisationSpec):
    """Training on rows that exist before it starts; batch sizes count rows (pairs for dpo and reward)."""

    num_train_epochs: float = Field(1.0, gt=0)
    max_steps: Annotated[int, AfterValidator(_not_zero)] = Field(
        -1, ge=-1, description="optimiser steps; -1: as many as the epochs give"
    )
    gradient_accumulation_steps: int = Field(1, ge=1)
    train_sampling_strategy: Literal["random", "group_by_length"] = Field(
        "random", description="'group_by_length': rows of like length together, in a random order: less padding"
    )
    eval_steps: int | None = quiet(None, ge=1, description="optimiser steps between evaluations; None: at the end only")


class AdapterSpec(StageSpec):
    """A stage that trains a LoRA adapter."""

    lora: StageLoraSpec | None = Field(
        None, description="shape of this stage's adapter; by default that of the stage `init` names, or the recipe's"
    )

"""The recipe as frozen pydantic models: what may be written, with defaults, units and bounds.

Unknown keys are refused everywhere. Keys inside a stage are those of TRL and transformers where such a key exists.
Nothing here imports torch: `prefopt check` answers in under a second.

`json_schema_extra={"numeric": False}` marks a key that changes no numbers (logging, saving, workers): it never enters
a stage's key, so changing it does not make a finished stage run again.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from prefopt.recipe.options.dpo import DPOLossType

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"


def quiet(default: Any, **constraints: Any) -> Any:
    """A field that changes no numbers and so never enters a stage's key."""
    return Field(default, json_schema_extra={"numeric": False}, **constraints)


def _as_tuple(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _list_as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]!r} is listed twice")
    return names


def _not_zero(steps: int) -> int:
    if steps == 0:
        raise ValueError("must be 1 or more, or -1 for as many as the epochs give")
    return steps


Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Names = Annotated[
    tuple[Name, ...], BeforeValidator(_as_tuple, json_schema_input_type=str | list[str]), AfterValidator(_unique)
]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what numpy takes


class Spec(BaseModel):
    """Base of every part of a recipe: frozen, strict about types, and unknown keys are refused.

    Strict: text is no number and `true` is not 1. A float without a fraction (`1e3`) serves as a whole number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _whole_floats(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        whole = {
            key: int(value)
            for key, value in given.items()
            if isinstance(value, float) and value.is_integer() and key in cls.model_fields
            if cls.model_fields[key].annotation in (int, int | None)
        }
        return {**given, **whole}


class LoraSpec(Spec):
    """The LoRA adapter that training stages create (arXiv 2106.09685)."""

    lora_r: int = Field(16, ge=1, description="rank of the update")
    lora_alpha: float = Field(32.0, gt=0, description="the update is scaled by lora_alpha / lora_r")
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target_modules: (
        str
        | Annotated[
            tuple[str, ...], BeforeValidator(_list_as_tuple, json_schema_input_type=list[str]), Field(min_length=1)
        ]
    ) = Field("all-linear", description="'all-linear', or the module names to adapt")


class ModelSpec(Spec):
    """The base model, shared and frozen by every stage."""

    model_name_or_path: str = Field(min_length=1, description="Hub id, local folder, or the name of a `pretrain` stage")
    model_revision: str = "main"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    load_in_4bit: bool = Field(False, description="QLoRA: needs CUDA and the `bitsandbytes` extra")
    trust_remote_code: bool = Field(
        False, description="run code that comes with the model; only together with the flag --trust-remote-code"
    )
    chat_template: str = Field(
        "auto",
        description="'auto': the tokenizer's own, else 'transcript'; or the name of a built-in template, or a file",
    )
    lora: LoraSpec = LoraSpec()


class DataSpec(Spec):
    """One data set."""

    path: str = Field(min_length=1, description="'toy', a local file or folder, or a Hub id")
    name: str | None = Field(
        None, description="configuration of the data set (toy: corpus, demonstrations, preferences)"
    )
    data_dir: str | None = None
    revision: str | None = None
    split: str = "train"
    format: Literal["auto", "preference", "implicit", "hh", "messages", "prompt_completion", "text"] = "auto"
    columns: dict[str, str] = Field(default_factory=dict, description="canonical column: column of the source")
    max_samples: int | None = Field(None, ge=1, description="rows read from the source before any is dropped")
    eval_fraction: float = Field(0.1, ge=0, lt=1, description="share of prompts held out; the split is by prompt")
    overlong: Literal["trim_prompt", "drop"] = "trim_prompt"
    max_dropped: float = Field(
        0.05, ge=0, le=1, description="share of rows that may be dropped for length before the stage refuses"
    )
    weight: float = Field(1.0, gt=0, description="multiplies the loss of every row")
    noise: float | None = Field(None, ge=0, le=0.5, description="toy only: share of labels that are flipped")
    seed: Seed | None = Field(None, description="toy only: seed of the generator; the recipe's seed by default")


class WandbSpec(Spec):
    """Where Weights & Biases keeps the run."""

    project: str = "prefopt"
    entity: str | None = None
    mode: Literal["online", "offline", "disabled"] = "offline"
    tags: Names = ()


class TrackingSpec(Spec):
    """Trackers beside the JSON lines that are always written."""

    wandb: WandbSpec | None = None


class StageSpec(Spec):
    """What every stage has."""

    kind: str
    seed: Seed | None = Field(None, description="the recipe's seed by default")


class TrainingSpec(StageSpec):
    """Optimisation, in the names of `transformers.TrainingArguments`; batch sizes count rows (pairs for dpo)."""

    learning_rate: float = Field(1e-4, gt=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: float = Field(0.0, ge=0, description="optimiser steps; below 1 a share of all steps")
    num_train_epochs: float = Field(1.0, gt=0)
    max_steps: Annotated[int, AfterValidator(_not_zero)] = Field(
        -1, ge=-1, description="optimiser steps; -1: as many as the epochs give"
    )
    per_device_train_batch_size: int = Field(8, ge=1)
    per_device_eval_batch_size: int = Field(16, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
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
    eval_steps: int | None = quiet(None, ge=1, description="optimiser steps between evaluations; None: at the end only")
    save_steps: int = quiet(100, ge=1, description="optimiser steps between checkpoints")
    save_total_limit: int = quiet(2, ge=1, description="checkpoints kept")


class PretrainSpec(TrainingSpec):
    """A small Llama and its tokenizer from scratch: the base of worlds that have none."""

    kind: Literal["pretrain"]
    data: Names = Field(min_length=1, description="a data set of the recipe, or a list of them")
    vocab_size: int = Field(640, ge=300, description="byte-level BPE")
    hidden_size: int = Field(96, ge=8)
    intermediate_size: int = Field(256, ge=8)
    num_hidden_layers: int = Field(2, ge=1)
    num_attention_heads: int = Field(4, ge=1)
    max_position_embeddings: int = Field(256, ge=16)
    initializer_range: float | None = Field(
        None, gt=0, description="standard deviation of new weights; by default 1/sqrt(hidden_size)"
    )
    learning_rate: float = Field(5e-3, gt=0)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)


class SFTSpec(TrainingSpec):
    """Supervised fine-tuning on demonstrations, or on the chosen side of pairs; loss on completions only."""

    kind: Literal["sft"]
    data: Names = Field(min_length=1, description="a data set of the recipe, or a list of them")
    init: Name | None = Field(None, description="stage to start from; the base model by default")
    learning_rate: float = Field(2e-4, gt=0)


class DPOSpec(TrainingSpec):
    """Direct preference optimisation (arXiv 2305.18290); the reference is the stage that `init` names."""

    kind: Literal["dpo"]
    data: Names = Field(min_length=1, description="a data set of the recipe, or a list of them")
    init: Name | None = None
    beta: float = Field(0.1, gt=0, description="strength of the pull to the reference; see docs/algorithms/dpo.md")
    loss_type: DPOLossType = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a label is wrong")
    learning_rate: float = Field(5e-5, gt=0)


class EvaluateSpec(StageSpec):
    """Completions of several policies for the same held-out prompts, scored and compared."""

    kind: Literal["evaluate"]
    policies: Names = Field(min_length=1, description="the stages whose models answer")
    baseline: Name | None = Field(None, description="policy to compare with; the first of `policies` by default")
    data: Names = Field((), description="pairs whose held-out part measures preference accuracy")
    prompts: Names = Field((), description="data whose held-out prompts are answered; `data` by default")
    reward: str | None = Field(None, description="'gold' in the toy world")
    max_prompts: int = Field(256, ge=1)
    samples_per_prompt: int = Field(1, ge=1)
    max_new_tokens: int = Field(64, ge=1)
    max_length: int | None = Field(
        None, ge=8, description="tokens of prompt and completion together; by default what the model has, at most 1024"
    )
    temperature: float = Field(1.0, ge=0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    per_device_eval_batch_size: int = Field(64, ge=1)


AnyStage = Annotated[PretrainSpec | SFTSpec | DPOSpec | EvaluateSpec, Field(discriminator="kind")]

KINDS: tuple[str, ...] = ("pretrain", "sft", "dpo", "evaluate")
LATER_KINDS: tuple[str, ...] = ("audit", "collect", "reward", "ppo", "kto", "grpo", "rloo", "distill")


class Recipe(Spec):
    """The whole experiment."""

    name: Name = Field(description="name of the run: its artefacts go to runs/NAME")
    description: str = quiet("")
    seed: Seed = 17
    model: ModelSpec = Field(description="the base, as in `model: {model_name_or_path: …}`")
    data: dict[Name, DataSpec] = Field(default_factory=dict)
    tracking: TrackingSpec = quiet(TrackingSpec())
    stages: dict[Name, AnyStage] = Field(
        min_length=1, description="what to do, as in `stages: {sft: {kind: sft, data: NAME}}`"
    )

"""The recipe as frozen pydantic models: what may be written, with defaults, units and bounds.

Unknown keys are refused everywhere. Keys inside a stage are those of TRL and transformers where such a key exists.
Nothing here imports torch: `prefopt check` answers in under a second.

`json_schema_extra={"numeric": False}` marks a key that changes no numbers (logging, saving, workers): it never enters
a stage's key, so changing it does not make a finished stage run again.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from prefopt.recipe.base import Name, Names, Seed, Spec, Texts, list_as_tuple, quiet, when_set
from prefopt.recipe.options.costs import Costs
from prefopt.recipe.options.dpo import DPOLossOptions
from prefopt.recipe.options.reward import RewardOptions
from prefopt.recipe.options.suites import Suite
from prefopt.recipe.ppo import GuardsSpec, KLSpec
from prefopt.recipe.scorers import Judge, PPOReward, RequireSpec, Scorer


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
        None, description="configuration of the data set (toy: corpus, demonstrations, preferences, prompts)"
    )
    data_dir: str | None = None
    revision: str | None = None
    split: str = "train"
    format: Literal["auto", "preference", "implicit", "hh", "saferlhf", "messages", "prompt_completion", "text"] = (
        "auto"
    )
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


class PriceSpec(Spec):
    """What the machine costs, for the report."""

    per_hour: float = Field(ge=0, description="price of an hour of the whole machine")
    currency: str = Field("USD", min_length=1, max_length=8)


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


class AdapterSpec(StageSpec):
    """A stage that trains a LoRA adapter."""

    lora: StageLoraSpec | None = Field(
        None, description="shape of this stage's adapter; by default that of the stage `init` names, or the recipe's"
    )


class SFTSpec(TrainingSpec, AdapterSpec):
    """Supervised fine-tuning on demonstrations, or on the chosen side of pairs; loss on completions only."""

    kind: Literal["sft"]
    data: Names = Field(min_length=1, description="a data set of the recipe, or a list of them")
    init: Name | None = Field(None, description="stage to start from; the base model by default")
    learning_rate: float = Field(2e-4, gt=0)
    keep_adapters: bool = Field(False, description="keep the adapter of every checkpoint, for curves over training")


class DPOSpec(DPOLossOptions, TrainingSpec, AdapterSpec):
    """Direct preference optimisation (arXiv 2305.18290); the reference is the stage that `init` names."""

    kind: Literal["dpo"]
    data: Names = Field(min_length=1, description="a data set of the recipe, or a list of them")
    init: Name | None = None
    learning_rate: float = Field(5e-5, gt=0)
    keep_adapters: bool = Field(False, description="keep the adapter of every checkpoint, for curves over training")


class RewardSpec(RewardOptions, TrainingSpec, AdapterSpec):
    """A reward model: a LoRA adapter with a score head, trained on pairs (Bradley and Terry 1952; arXiv 2203.02155)."""

    kind: Literal["reward"]
    data: Names = Field(min_length=1, description="pairs: data sets of the recipe or collect stages")
    init: Name | None = Field(None, description="stage whose adapter to start from; a new adapter by default")
    learning_rate: float = Field(1e-4, gt=0)


Suites = Annotated[tuple[Suite, ...], BeforeValidator(list_as_tuple, json_schema_input_type=list[Suite])]


class SamplingSpec(StageSpec):
    """How completions are sampled."""

    max_new_tokens: int = Field(64, ge=1)
    max_length: int | None = Field(
        None, ge=8, description="tokens of prompt and completion together; by default what the model has, at most 1024"
    )
    temperature: float = Field(1.0, ge=0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    per_device_eval_batch_size: int = Field(64, ge=1, description="completions sampled or scored together")


class CollectSpec(SamplingSpec):
    """Preference pairs from policies' own completions; what was sampled and judged stays in the run's ledger."""

    kind: Literal["collect"]
    policies: Names = Field(min_length=1, description="the stages whose models answer, each every prompt")
    prompts: Names = Field(min_length=1, description="data whose prompts are answered; held-out prompts stay held out")
    judge: Judge = Field(description="'gold' in the toy world, a reward stage, or a mapping")
    samples_per_prompt: int = Field(4, ge=1, description="completions of every policy for a prompt")
    pairing: Literal["best_worst", "random"] = Field(
        "best_worst", description="'best_worst': the highest and the lowest reward; 'random': two at random"
    )
    pairs_per_prompt: int = Field(1, ge=1, description="at most this many disjoint pairs of a prompt")
    max_prompts: int | None = Field(None, ge=1, description="prompts answered; all by default")
    prompt_offset: int = Field(0, ge=0, description="prompts passed over first; `rounds` sets it")


class PPOSpec(OptimisationSpec, AdapterSpec):
    """Proximal policy optimisation (arXiv 1707.06347) with a KL penalty (arXiv 1909.08593), in the names of TRL's PPO.

    Every rollout of `rollout_batch_size` episodes gives `num_ppo_epochs` x `num_mini_batches` optimiser steps.
    """

    kind: Literal["ppo"]
    init: Name | None = Field(None, description="stage to start from, which is also the reference")
    prompts: Names = Field(min_length=1, description="data whose training prompts are answered")
    reward: PPOReward = Field(description="'gold' in the toy world, a reward stage, or a mapping")
    judge: Judge | None = Field(
        None, description="not trained on: compares the policy with its reference for the guards; as in collect"
    )
    kl: KLSpec = KLSpec()
    guards: GuardsSpec = GuardsSpec()
    total_episodes: int = Field(10_000, ge=1, description="completions sampled in all")
    rollout_batch_size: int = Field(128, ge=1, description="episodes sampled before the policy is updated")
    samples_per_prompt: int = Field(1, ge=1, description="episodes of a rollout that answer the same prompt")
    num_ppo_epochs: int = Field(4, ge=1)
    num_mini_batches: int = Field(1, ge=1)
    per_device_train_batch_size: int = Field(32, ge=1, description="episodes of one forward and backward pass")
    per_device_eval_batch_size: int = Field(128, ge=1, description="episodes sampled or scored together")
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(1.0, gt=0, description="divides the logits wherever they are used")
    stop: Texts = Field((), description="strings that end a completion, and are no part of its text")
    mask_truncated_completions: bool = Field(False, description="learn nothing from completions that were cut")
    gamma: float = Field(1.0, ge=0, le=1, description="discount per token")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of the advantage estimate (arXiv 1506.02438)")
    cliprange: float = Field(0.2, gt=0, description="epsilon: how far a ratio may be from 1")
    cliprange_high: float | None = Field(None, gt=0, description="epsilon above 1, where it differs (arXiv 2503.14476)")
    dual_clip: float | None = Field(None, gt=1, description="bounds the loss where A < 0 (arXiv 1912.09729)")
    cliprange_value: float | None = Field(0.2, gt=0, description="how far a value may move in a rollout; null: any")
    vf_coef: float = Field(0.1, ge=0, description="weight of the value loss")
    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    demonstrations: Names = Field((), description="data that is imitated on the way (PTX, arXiv 2203.02155)")
    ptx_coef: float = Field(1.0, ge=0, description="weight of the demonstrations' negative log-likelihood")
    value: Literal["shared", "adapter"] = Field(
        "adapter", description="'adapter': a LoRA adapter of its own; 'shared': a head on the policy"
    )
    value_warmup_rollouts: int = Field(0, ge=0, description="first rollouts that train the value alone")
    whiten_rewards: bool = Field(False, description="divide token rewards by their standard deviation in the rollout")
    whiten_advantages: bool = Field(True, description="to mean 0 and variance 1 over the rollout's tokens")
    adam_epsilon: float = Field(1e-5, gt=0)
    learning_rate: float = Field(1e-4, gt=0)
    keep_adapters: bool = Field(False, description="keep the adapter of every checkpoint, for curves over training")


class EvaluateSpec(SamplingSpec):
    """Policies that answer the same held-out prompts, compared; or a reward model, examined on held-out pairs."""

    kind: Literal["evaluate"]
    suites: Suites = Field(
        (), description="what to measure; by default all that the other keys allow: of policies, or else of `reward`"
    )
    policies: Names = Field((), description="the stages whose models answer; none to examine `reward` alone")
    baseline: Name | None = Field(None, description="policy to compare with; the first of `policies` by default")
    data: Names = Field((), description="pairs whose held-out part measures preference and reward accuracy")
    ood: Names = Field((), description="pairs of another source, to see how far the reward's accuracy falls there")
    prompts: Names = Field((), description="data whose held-out prompts are answered; `data` by default")
    reward: Scorer | None = Field(None, description="'gold' in the toy world, a reward stage, or a mapping")
    proxy: Scorer | None = Field(
        None, description="the reward that policies were trained on, to see where it leads away from `reward`"
    )
    judge: Judge | None = Field(
        None, description="who also compares every answer with the baseline's, in both orders; as in collect"
    )
    costs: Costs = when_set((), description="violation rates of every policy: costs as in the penalties of ppo")
    checkpoints: bool = Field(
        False,
        description="also measure what the policies' stages kept with `keep_adapters`, for the curve over training",
    )
    max_prompts: int = Field(256, ge=1)
    samples_per_prompt: int = Field(1, ge=1)
    best_of: int | None = Field(
        None, ge=2, description="also sample this many of the baseline: the best by `reward` are the headroom"
    )
    best_of_prompts: int = Field(64, ge=1, description="prompts that the headroom is measured on")


AnyStage = Annotated[
    PretrainSpec | SFTSpec | CollectSpec | RewardSpec | DPOSpec | PPOSpec | EvaluateSpec, Field(discriminator="kind")
]

KINDS: tuple[str, ...] = ("pretrain", "sft", "collect", "reward", "dpo", "ppo", "evaluate")
LATER_KINDS: tuple[str, ...] = ("audit", "kto", "grpo", "rloo", "distill")


class RoundsSpec(Spec):
    """Repeat some stages: an iterative recipe, unrolled to NAME@1, NAME@2 and so on."""

    count: int = Field(ge=1, le=100)
    stages: Names = Field(min_length=1, description="what a round consists of")
    carry: dict[Name, Name] = Field(
        default_factory=dict,
        description="stage: the stage of the previous round that replaces it, as in {sft: policy}",
    )
    accumulate: bool = Field(False, description="`data` of a round names the rounds before it as well")


class Recipe(Spec):
    """The whole experiment."""

    name: Name = Field(description="name of the run: its artefacts go to runs/NAME")
    description: str = quiet("")
    seed: Seed = 17
    model: ModelSpec = Field(description="the base, as in `model: {model_name_or_path: …}`")
    data: dict[Name, DataSpec] = Field(default_factory=dict)
    tracking: TrackingSpec = quiet(TrackingSpec())
    price: PriceSpec | None = quiet(None)
    stages: dict[Name, AnyStage] = Field(
        min_length=1, description="what to do, as in `stages: {sft: {kind: sft, data: NAME}}`"
    )
    rounds: RoundsSpec | None = None

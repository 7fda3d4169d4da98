"""The recipe as frozen pydantic models: what may be written, with defaults, units and bounds.

Unknown keys are refused everywhere. Keys inside a stage are those of TRL and transformers where such a key exists.
Nothing here imports torch: `prefopt check` answers in under a second.

`json_schema_extra={"numeric": False}` marks a key that changes no numbers (logging, saving, workers): it never enters
a stage's key, so changing it does not make a finished stage run again.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from prefopt.recipe.base import Name, Names, Seed, Spec, list_as_tuple, quiet, when_set
from prefopt.recipe.distill import DistillSpec as DistillSpec
from prefopt.recipe.distill import Edits
from prefopt.recipe.online import GroupSpec as GroupSpec
from prefopt.recipe.online import GRPOSpec as GRPOSpec
from prefopt.recipe.online import OnlineSpec as OnlineSpec
from prefopt.recipe.online import PPOSpec as PPOSpec
from prefopt.recipe.online import RLOOSpec as RLOOSpec
from prefopt.recipe.options.costs import Costs
from prefopt.recipe.options.dpo import DPOLossOptions
from prefopt.recipe.options.kto import KTOLossOptions
from prefopt.recipe.options.loss_costs import SampledCosts
from prefopt.recipe.options.reward import RewardOptions
from prefopt.recipe.options.sft import SFTLossOptions
from prefopt.recipe.options.suites import Suite
from prefopt.recipe.scorers import Judge, Scorer
from prefopt.recipe.training import AccelerateSpec as AccelerateSpec
from prefopt.recipe.training import AdapterSpec as AdapterSpec
from prefopt.recipe.training import LoraSpec as LoraSpec
from prefopt.recipe.training import OptimisationSpec as OptimisationSpec
from prefopt.recipe.training import StageLoraSpec as StageLoraSpec
from prefopt.recipe.training import StageSpec as StageSpec
from prefopt.recipe.training import TrainingSpec as TrainingSpec


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
    format: Literal[
        "auto", "preference", "implicit", "hh", "saferlhf", "unpaired", "messages", "prompt_completion", "text"
    ] = "auto"
    columns: dict[str, str] = Field(default_factory=dict, description="canonical column: column of the source")
    max_samples: int | None = Field(None, ge=1, description="rows read from the source before any is dropped")
    eval_fraction: float = Field(0.1, ge=0, lt=1, description="share of prompts held out; the split is by prompt")
    overlong: Literal["trim_prompt", "drop"] = "trim_prompt"
    max_dropped: float = Field(
        0.05, ge=0, le=1, description="share of rows that may be dropped for length before the stage refuses"
    )
    weight: float = Field(1.0, gt=0, description="multiplies the loss of every row")
    context: Edits = when_set((), description="edits of every prompt, as those of `teacher_context` in distill stages")
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


class SFTSpec(SFTLossOptions, TrainingSpec, AdapterSpec):
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


class KTOSpec(KTOLossOptions, TrainingSpec, AdapterSpec):
    """Kahneman-Tversky optimisation (arXiv 2402.01306), by TRL; the reference is the stage that `init` names."""

    kind: Literal["kto"]
    data: Names = Field(min_length=1, description="completions marked as good or bad, or pairs, which give one of each")
    init: Name | None = Field(None, description="stage to start from, which is also the reference")
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
    costs: SampledCosts = when_set(
        (), description="taken off the judge's rewards before answers are paired and labelled, each with a `weight`"
    )
    on_violation: Literal["keep", "drop"] = when_set(
        "keep", description="'drop': answers that violate one of `costs` are in no pair"
    )


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
    PretrainSpec
    | SFTSpec
    | CollectSpec
    | RewardSpec
    | DPOSpec
    | KTOSpec
    | PPOSpec
    | GRPOSpec
    | RLOOSpec
    | DistillSpec
    | EvaluateSpec,
    Field(discriminator="kind"),
]

KINDS: tuple[str, ...] = (
    "pretrain",
    "sft",
    "collect",
    "reward",
    "dpo",
    "kto",
    "ppo",
    "grpo",
    "rloo",
    "distill",
    "evaluate",
)
LATER_KINDS: tuple[str, ...] = ("audit",)
POLICY_KINDS: tuple[str, ...] = ("sft", "dpo", "kto", "ppo", "grpo", "rloo", "distill")
"""Kinds that train an adapter which answers."""


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

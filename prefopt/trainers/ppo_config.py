"""Options of PPO."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import TrainingArguments

from prefopt.errors import InputError
from prefopt.losses.ppo import KLEstimator, PPOOptions
from prefopt.recipe.ppo import RIGHT_ESTIMATORS
from prefopt.trainers.guards import GuardLimits, Selection
from prefopt.trainers.reward_scaling import RewardScaling
from prefopt.trainers.rollout_loop import cut_rollout


@dataclass
class PPOConfig(RewardScaling, TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments` and PPO's own, in the names of TRL's last PPO; batch sizes count episodes."""

    total_episodes: int = field(default=10_000, metadata={"help": "completions sampled in all, up to a whole rollout"})
    rollout_batch_size: int = field(default=128, metadata={"help": "episodes between updates, over all ranks"})
    samples_per_prompt: int = field(default=1, metadata={"help": "episodes of a rollout that answer the same prompt"})
    num_ppo_epochs: int = field(default=4, metadata={"help": "how often each episode is used"})
    num_mini_batches: int = field(default=1, metadata={"help": "optimiser steps of an epoch"})
    max_new_tokens: int = field(default=64, metadata={"help": "completions are cut there"})
    min_new_tokens: int = field(default=0, metadata={"help": "no completion ends before; to measure the longest"})
    max_length: int = field(default=1024, metadata={"help": "tokens of prompt and completion together"})
    temperature: float = field(default=1.0, metadata={"help": "divides the logits wherever they are used"})
    stop: tuple[str, ...] = field(default=(), metadata={"help": "strings that end a completion"})
    mask_truncated_completions: bool = field(default=False, metadata={"help": "learn nothing from cut completions"})
    kl_coefficient: float = field(default=0.05, metadata={"help": "price of a nat of KL, in units of the reward"})
    kl_estimator: KLEstimator = field(default="k1", metadata={"help": "k1 in the reward; k2 or k3 as a loss"})
    kl_apply: str = field(default="reward", metadata={"help": "'reward' or 'loss'"})
    kl_target: float | None = field(default=None, metadata={"help": "nats per completion that the price aims at"})
    kl_horizon: int = field(default=10_000, metadata={"help": "episodes over which the price follows"})
    kl_bounds: tuple[float, float] = field(default=(1e-4, 10.0), metadata={"help": "of the price"})
    kl_stop_above: float | None = field(default=None, metadata={"help": "nats per completion at which training ends"})
    score_prefixes: int = field(
        default=0,
        metadata={"help": "beginnings of a completion that are scored as well, so that rewards come on the way"},
    )
    whiten_rewards: bool = field(default=False, metadata={"help": "divide token rewards by their deviation"})
    whiten_advantages: bool = field(default=True, metadata={"help": "to mean 0 and variance 1 over the rollout"})
    gamma: float = field(default=1.0, metadata={"help": "discount per token"})
    lam: float = field(default=0.95, metadata={"help": "lambda of the advantage estimate"})
    cliprange: float = field(default=0.2, metadata={"help": "epsilon of the ratio"})
    cliprange_high: float | None = field(default=None, metadata={"help": "epsilon above 1, where it differs"})
    dual_clip: float | None = field(default=None, metadata={"help": "bounds the loss of tokens with A < 0"})
    cliprange_value: float | None = field(default=0.2, metadata={"help": "how far a value may move in a rollout"})
    vf_coef: float = field(default=0.1, metadata={"help": "weight of the value loss"})
    entropy_coef: float = field(default=0.0, metadata={"help": "weight of the entropy bonus"})
    ptx_coef: float = field(default=1.0, metadata={"help": "weight of the likelihood of demonstrations, if any"})
    value: str = field(default="adapter", metadata={"help": "'adapter': its own; 'shared': a head on the policy"})
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "of the value's adapter and head, None: `learning_rate`"}
    )
    value_warmup_rollouts: int = field(default=0, metadata={"help": "first rollouts that train the value alone"})
    reuse_sampling_logps: bool = field(default=True, metadata={"help": "while they match the training forward"})
    guards: GuardLimits = field(default=GuardLimits(), metadata={"help": "what ends training"})
    stop_on_guard: bool = field(default=True, metadata={"help": "False only says that a guard would have ended it"})
    select: Selection = field(
        default="last", metadata={"help": "policy to keep: 'last', or the best by 'bound' or 'judge'"}
    )
    uncertainty_weight: float = field(default=1.0, metadata={"help": "disagreements below the score that bound is"})
    judge_every: int = field(default=4, metadata={"help": "rollouts between two questions to the judge"})
    judge_prompts: int = field(default=128, metadata={"help": "prompts that the judge compares answers to"})
    adam_epsilon: float = field(default=1e-5)
    remove_unused_columns: bool = field(default=False)
    logging_nan_inf_filter: bool = field(default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_estimator not in RIGHT_ESTIMATORS[self.kl_apply]:
            raise InputError(
                f"{self.kl_estimator} has the wrong gradient in the {self.kl_apply} (arXiv 2506.09477)",
                f"use {' or '.join(RIGHT_ESTIMATORS[self.kl_apply])}",
            )
        if self.value_learning_rate is not None and not 0 < self.value_learning_rate < math.inf:
            raise InputError(f"value_learning_rate is {self.value_learning_rate}, and must be above 0 and finite")
        wanted: int = self.per_device_train_batch_size
        rows, self.gradient_accumulation_steps = cut_rollout(
            self.rollout_batch_size, self.samples_per_prompt, self.num_mini_batches, rows=wanted, ranks=self.world_size
        )
        self.per_device_train_batch_size: int = rows
        self.mini_batch_size = self.rollout_batch_size // self.num_mini_batches
        self.steps_per_rollout = self.num_ppo_epochs * self.num_mini_batches
        self.max_steps = -(-self.total_episodes // self.rollout_batch_size) * self.steps_per_rollout
        self.ignore_data_skip = True  # what the data loader gives is not used

    def to_dict(self) -> dict[str, Any]:
        """Plain values alone, as trackers write them."""
        return {**super().to_dict(), "guards": asdict(self.guards)}

    def loss_options(self, kl_coefficient: float) -> PPOOptions:
        """Scalars of the loss, with the KL's price of now where it is a loss."""
        return PPOOptions(
            cliprange=self.cliprange,
            cliprange_high=self.cliprange_high,
            dual_clip=self.dual_clip,
            cliprange_value=self.cliprange_value,
            vf_coef=self.vf_coef,
            entropy_coef=self.entropy_coef,
            kl_coef=kl_coefficient if self.kl_apply == "loss" else 0.0,
            kl_estimator=self.kl_estimator,
        )

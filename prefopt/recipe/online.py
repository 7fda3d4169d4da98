"""Stages that sample from their policy and learn from rewards: `ppo`, and `grpo` and `rloo`, which compare groups.

What they share is `OnlineSpec`. A stage changes its algorithm by its `kind`; `switched.py` sets the rest aside.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from prefopt.recipe.base import Name, Names, Texts, when_set
from prefopt.recipe.options.grpo import GRPOLossOptions
from prefopt.recipe.ppo import GroupKLSpec, GRPOKLSpec, GuardsSpec, KLSpec, RLOOKLSpec
from prefopt.recipe.scorers import Judge, PPOReward
from prefopt.recipe.training import AdapterSpec, OptimisationSpec


class OnlineSpec(OptimisationSpec, AdapterSpec):
    """Sampling from the policy, and learning from what a reward says of the samples; batch sizes count episodes."""

    init: Name | None = Field(None, description="stage to start from, which is also the reference")
    prompts: Names = Field(min_length=1, description="data whose training prompts are answered")
    reward: PPOReward = Field(description="'gold' in the toy world, a reward stage, or a mapping")
    total_episodes: int = Field(10_000, ge=1, description="completions sampled in all, up to a whole rollout")
    rollout_batch_size: int = Field(128, ge=1, description="episodes sampled before the policy is updated")
    samples_per_prompt: int = Field(1, ge=1, description="episodes of a rollout that answer the same prompt")
    num_mini_batches: int = Field(1, ge=1)
    per_device_train_batch_size: int = Field(32, ge=1, description="episodes of one forward and backward pass")
    per_device_eval_batch_size: int = Field(128, ge=1, description="episodes sampled or scored together")
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(1.0, gt=0, description="divides the logits wherever they are used")
    mask_truncated_completions: bool = Field(False, description="learn nothing from completions that were cut")
    cliprange: float = Field(0.2, gt=0, description="epsilon: how far a ratio may be from 1")
    cliprange_high: float | None = Field(None, gt=0, description="epsilon above 1, where it differs (arXiv 2503.14476)")
    adam_epsilon: float = Field(1e-5, gt=0)
    learning_rate: float = Field(1e-4, gt=0)
    keep_adapters: bool = Field(False, description="keep the adapter of every checkpoint, for curves over training")

    @property
    def rows_per_step(self) -> int:
        """Episodes of an optimiser step."""
        return self.rollout_batch_size // self.num_mini_batches


class PPOSpec(OnlineSpec):
    """Proximal policy optimisation (arXiv 1707.06347) with a KL penalty (arXiv 1909.08593), in the names of TRL's PPO.

    Every rollout of `rollout_batch_size` episodes gives `num_ppo_epochs` x `num_mini_batches` optimiser steps.
    """

    kind: Literal["ppo"]
    judge: Judge | None = Field(
        None, description="not trained on: compares the policy with its reference for the guards; as in collect"
    )
    kl: KLSpec = KLSpec()
    guards: GuardsSpec = GuardsSpec()
    num_ppo_epochs: int = Field(4, ge=1)
    stop: Texts = Field((), description="strings that end a completion, and are no part of its text")
    score_prefixes: int = when_set(
        0,
        ge=0,
        description="beginnings of a completion that are scored as well, evenly spaced: tokens are then paid for what "
        "they add to the score (Ng et al. 1999), and not all at the end",
    )
    gamma: float = Field(1.0, ge=0, le=1, description="discount per token")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of the advantage estimate (arXiv 1506.02438)")
    dual_clip: float | None = Field(None, gt=1, description="bounds the loss where A < 0 (arXiv 1912.09729)")
    cliprange_value: float | None = Field(0.2, gt=0, description="how far a value may move in a rollout; null: any")
    vf_coef: float = Field(0.1, ge=0, description="weight of the value loss")
    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    demonstrations: Names = Field((), description="data that is imitated on the way (PTX, arXiv 2203.02155)")
    ptx_coef: float = Field(1.0, ge=0, description="weight of the demonstrations' negative log-likelihood")
    value: Literal["shared", "adapter"] = Field(
        "adapter", description="'adapter': a LoRA adapter of its own; 'shared': a head on the policy"
    )
    value_learning_rate: float | None = when_set(
        None, gt=0, description="of the value's adapter and head, on the same schedule; null: `learning_rate`"
    )
    value_warmup_rollouts: int = Field(0, ge=0, description="first rollouts that train the value alone")
    whiten_rewards: bool = Field(False, description="divide token rewards by their standard deviation in the rollout")
    whiten_advantages: bool = Field(True, description="to mean 0 and variance 1 over the rollout's tokens")


class GroupSpec(OnlineSpec):
    """Every completion is compared with others of the same prompt, so there is no value function.

    Every rollout of `rollout_batch_size` episodes gives `num_iterations` x `num_mini_batches` optimiser steps.
    """

    kl: GroupKLSpec
    samples_per_prompt: int = Field(8, ge=1, description="episodes of a rollout that answer the same prompt: a group")
    num_iterations: int = Field(1, ge=1, description="how often each episode is used")

    @field_validator("samples_per_prompt")
    @classmethod
    def _a_group(cls, samples: int) -> int:
        if samples < 2:
            raise ValueError("a completion alone has no other to be compared with; write 2 or more, or `kind: ppo`")
        return samples


class GRPOSpec(GroupSpec, GRPOLossOptions):
    """Group relative policy optimisation (arXiv 2402.03300), by TRL."""

    kind: Literal["grpo"]
    kl: GRPOKLSpec = GRPOKLSpec()


class RLOOSpec(GroupSpec):
    """REINFORCE with the mean of the other samples as baseline (arXiv 2402.14740), by TRL."""

    kind: Literal["rloo"]
    kl: RLOOKLSpec = RLOOKLSpec()
    normalize_advantages: bool = Field(False, description="to mean 0 and variance 1 over the rollout")

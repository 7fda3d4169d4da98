"""Proximal policy optimisation (arXiv 1707.06347) for language models (arXiv 1909.08593, 2403.17031).

The algorithm, in the order of this file. Until the episodes are used up:

1. *Collect a rollout*: sample completions, score their text, and compute what policy, reference and value say of every
   token. Ranks share this work, and all of them get the whole rollout. The price of leaving the reference, a k1
   estimate of the KL, is part of each token's reward; the score is the reward of the last token.
2. *Judge it*: advantages and returns by generalised advantage estimation, advantages whitened.
3. *Update*: several epochs of minibatches over the rollout with the clipped losses of policy and value; ranks share
   each pass.

Rollouts are collected in `training_step`, when the one before is used up, and never in a data loader: that fetches a
batch ahead, from a policy that is one update behind. A rollout follows from the seed and its number, and checkpoints
fall between rollouts, so a killed run makes its last rollout again and continues as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.errors import DataError, InputError
from prefopt.losses import ppo
from prefopt.losses.logprobs import entropy, token_logps
from prefopt.models.actor_critic import ActorCritic, actor_critic, fold_normaliser
from prefopt.models.generate import Sampled, SamplingOptions, sample
from prefopt.models.roles import POLICY
from prefopt.records import Prompt
from prefopt.store.files import read_json, write_json
from prefopt.trainers.averages import Averages
from prefopt.trainers.checkpoints import CheckpointedTrainer
from prefopt.trainers.opening import open_adapted, pad_token_of
from prefopt.trainers.ppo_config import BetweenRollouts, PPOConfig, Slots
from prefopt.trainers.ranks import shared_out
from prefopt.trainers.rollouts import MicroBatch, Rollouts, episodes, micro_batches, prompt_indices, seed_of
from prefopt.trainers.rows import tokenised_prompts

RewardFunction = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]
HEAD_FILE = "value_head.safetensors"
STATE_FILE = "ppo_state.json"


class PPOTrainer(CheckpointedTrainer):
    """Trains a LoRA policy to get rewards; usable without recipes, as TRL's trainers are.

    Args:
        model: A causal language model, its name or folder, or a `PeftModel` with an adapter named `policy` (and, when
            the policy did not start from the base, a frozen one named `reference`).
        args: Options; see `PPOConfig`.
        reward: Takes N prompts (messages) and N completions (text) and gives N finite numbers.
        train_dataset: Rows with `prompt` as text or messages; rows with `prompt_ids` as well are tokenised already.
        processing_class: The tokenizer; loaded with the model when that is a name.
        peft_config: Shape of the policy's adapter, where `model` has none yet.
        reward_model: Artefact of a reward model that the value starts as; for `value: adapter`.
        kwargs: Passed to `transformers.Trainer` (`callbacks`, `optimizers` …).

    Attributes:
        latest: The samples of the last rollout: prompt, completion, finished, tokens, reward, kl.

    Raises:
        InputError: When the model has no adapter to train.
        DataError: When there are no prompts.
    """

    model: ActorCritic

    def __init__(  # noqa: PLR0913  (keyword-only)
        self,
        model: str | PreTrainedModel | PeftModel,
        args: PPOConfig,
        *,
        reward: RewardFunction,
        train_dataset: Sequence[Mapping[str, Any]],
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        reward_model: Path | None = None,
        **kwargs: Any,
    ) -> None:
        transformers.set_seed(args.seed)  # a new adapter starts from random weights
        model, tokenizer = open_adapted(model, processing_class, peft_config, POLICY)
        self.prompts = tokenised_prompts(train_dataset, tokenizer, args.max_length, args.max_new_tokens)
        if not self.prompts:
            raise DataError("there are no prompts to train on")
        self.reward = reward
        self.latest: list[dict[str, Any]] = []
        self._score_mean, self._score_std = 0.0, 1.0
        self._passes: Iterator[MicroBatch] = iter(())
        self._averages = Averages()
        shared = args.value == "shared"
        super().__init__(
            model=actor_critic(model, value=args.value, reward=None if shared else reward_model),
            args=args,
            data_collator=lambda rows: {"slots": torch.zeros(len(rows))},
            train_dataset=Slots(args.max_steps * args.rollout_batch_size // args.num_mini_batches),
            processing_class=tokenizer,
            **kwargs,
        )
        self._value_starts_as_reward = reward_model is not None and not shared
        self._between_rollouts = BetweenRollouts(args.steps_per_rollout, self._too_far)
        self.add_callback(self._between_rollouts)

    # -- 1. collect a rollout ------------------------------------------------------------------------------------------

    def row_lengths(self) -> Sequence[int]:
        """None: the slots hold nothing, a rollout is sampled where it is used."""
        return [0] * len(self.train_dataset)

    def collect_rollout(self, number: int) -> Rollouts:
        """Sample, score and judge the episodes of a rollout.

        Args:
            number: Of the rollout, from 0; decides prompts and random numbers.
        """
        start = time.perf_counter()
        everyone = prompt_indices(number, self.args.rollout_batch_size, len(self.prompts), self.args.seed)
        rows = [self.prompts[index] for index in everyone]
        samples, scores = self._answers(rows, seed_of(self.args.seed, "rollout", number))
        rollouts = episodes([row["prompt_ids"] for row in rows], samples, pad_token_of(self.processing_class))
        logps, reference, values, entropies = self._say_of_every_token(rollouts)
        kl = ppo.kl_tokens(logps, reference, rollouts.mask, for_reward=True)
        if number == 0:
            self._require_policy_equals_reference(kl)
        rewards = self.rewards(scores, samples, kl, rollouts.mask)
        advantages, returns = ppo.gae(rewards, values, rollouts.mask, self.args.gamma, self.args.lam)
        whitened = ppo.masked_whiten(advantages, rollouts.mask)
        self._note_rollout(rows, samples, scores, rewards, kl)
        self._averages.add("ppo/entropy", ppo.masked_mean(entropies, rollouts.mask))
        self._averages.add("ppo/explained_variance", ppo.explained_variance(values, returns, rollouts.mask))
        self._averages.add("ppo/rollout_seconds", time.perf_counter() - start)
        return Rollouts(rollouts.input_ids, rollouts.attention_mask, rollouts.mask, logps, values, whitened, returns)

    def _answers(self, rows: Sequence[Mapping[str, Any]], seed: int) -> tuple[list[Sampled], Tensor]:
        """Completions and raw rewards [N] of prompts: each rank makes its share, and every rank gets all.

        The random numbers belong to the prompt's place, so it makes no difference how many ranks share them.
        """
        generator = torch.Generator().manual_seed(seed)
        uniforms = torch.rand(len(rows), self.args.max_new_tokens, dtype=torch.float64, generator=generator)

        def answer(indices: Sequence[int]) -> list[tuple[Sampled, float]]:
            mine = [rows[index] for index in indices]
            samples = self._sample(mine, uniforms[list(indices)])
            return list(zip(samples, self._scores(mine, samples), strict=True))

        samples, scores = zip(*shared_out(len(rows), answer), strict=True)
        return list(samples), torch.tensor(scores)

    def _sample(self, rows: Sequence[Mapping[str, Any]], uniforms: Tensor) -> list[Sampled]:
        options = SamplingOptions(
            max_new_tokens=self.args.max_new_tokens,
            min_new_tokens=self.args.min_new_tokens,
            temperature=self.args.temperature,
            batch_size=self.args.per_device_eval_batch_size,
        )
        self.model.activate("policy")
        prompts = [row["prompt_ids"] for row in rows]
        with self.accelerator.autocast():
            return sample(self.model.peft, self.processing_class, prompts, options, uniforms=uniforms)

    def _scores(self, rows: Sequence[Mapping[str, Any]], samples: Sequence[Sampled]) -> list[float]:
        """Raw rewards of the decoded texts."""
        values = self.reward([row["prompt"] for row in rows], [sample.text for sample in samples])
        scores = [float(value) for value in values]
        if len(scores) != len(samples) or not all(map(math.isfinite, scores)):
            raise DataError(f"the reward must give {len(samples)} finite numbers, and gave {values!r:.200}")
        return scores

    @torch.no_grad()
    def _say_of_every_token(self, rollouts: Rollouts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-probabilities of policy and reference, values, and the policy's entropy, [N, L] each, on the CPU."""
        found = torch.zeros(4, *rollouts.mask.shape)
        by_length = rollouts.attention_mask.sum(1).argsort(stable=True)
        batches = torch.split(by_length, self.args.per_device_eval_batch_size)
        for indices in batches[self.args.process_index :: self.args.world_size]:
            batch = self._on_device(rollouts.select(indices))
            inputs = (batch.input_ids, batch.attention_mask, batch.prompt_length)
            with self.accelerator.autocast():
                policy = self.model(*inputs, "policy")
                reference = self.model(*inputs, "reference")
                values = policy.values if self.model.shared else self.model(*inputs, "value").values
            said = (
                token_logps(policy.logits, batch.completions, self.args.temperature),
                token_logps(reference.logits, batch.completions, self.args.temperature),
                values,
                entropy(policy.logits / self.args.temperature),
            )
            found[:, indices, : batch.mask.shape[1]] = torch.stack([tensor.float().cpu() for tensor in said])
        # Zero where another rank has looked.
        logps, reference_logps, all_values, entropies = self._sum_over_ranks(found).unbind()
        return logps, reference_logps, all_values, entropies

    def rewards(self, scores: Tensor, samples: Sequence[Sampled], kl: Tensor, mask: Tensor) -> Tensor:
        """Reward of every token, [N, L].

        Args:
            scores: Raw rewards, [N].
            samples: The completions.
            kl: k1 estimates, [N, L], nats.
            mask: [N, L].
        """
        shaped = (scores - self._score_mean) / self._score_std
        if self.args.reward_clip is not None:
            shaped = shaped.clamp(-self.args.reward_clip, self.args.reward_clip)
        cut = torch.tensor([not sample.finished for sample in samples])
        shaped = shaped - self.args.missing_eos_penalty * cut
        rewards = ppo.token_rewards(shaped, kl, self.args.kl_coefficient, mask)
        if self.args.whiten_rewards:
            rewards = ppo.masked_whiten(rewards, mask, shift_mean=False)
        return rewards

    def _normalise_by_reference(self) -> None:
        """Centre and scale scores by those of the reference's own completions; the policy still equals it."""
        count = max(256, self.args.rollout_batch_size)
        rows = [self.prompts[i] for i in prompt_indices(0, count, len(self.prompts), seed_of(self.args.seed, "scale"))]
        scores = self._answers(rows, seed_of(self.args.seed, "normaliser"))[1].double()
        self._score_mean, self._score_std = float(scores.mean()), max(float(scores.std()), 1e-4)
        if self._value_starts_as_reward:
            fold_normaliser(self.model.value_head, self._score_mean, self._score_std)

    # -- 3. update -----------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass over episodes of the rollout; collects the next one when it is used up.

        Each role's backward runs before the next role's forward: see `prefopt.models.actor_critic`.
        """
        part = next(self._passes, None)
        if part is None:
            self._begin_rollout()
            part = next(self._passes)
        model.train()
        # What this pass adds to the mean over the step's tokens; gradients are averaged over ranks.
        tokens = part.tokens.to(self.args.device) / self.args.world_size
        share = part.indices.chunk(self.args.world_size)[self.args.process_index]
        losses = self.in_micro_rows(
            len(share),
            lambda start, end: self._update(model, self._rollouts.select(share[start:end]), tokens),
        )
        total = torch.stack(losses).sum()
        self.note_loss(total)
        return total

    def _update(self, model: nn.Module, rollouts: Rollouts, tokens: Tensor) -> Tensor:
        """Forward and backward over some episodes; their part of the step's loss."""
        start = time.perf_counter()
        batch = self._on_device(rollouts)
        outputs, policy = self._policy_loss(model, batch)
        loss = policy.losses.sum() / tokens
        if not self.model.shared:
            self.accelerator.backward(loss)
            with self.compute_loss_context_manager():
                outputs = model(batch.input_ids, batch.attention_mask, batch.prompt_length, "value")
        value = ppo.value_loss(outputs.values, batch.values, batch.returns, batch.mask, self.args.cliprange_value)
        value_term = self.args.vf_coef * value.losses.sum() / tokens
        self.accelerator.backward(value_term if not self.model.shared else loss + value_term)
        self._note_update(batch.mask, policy, value, time.perf_counter() - start)
        total: Tensor = (loss + value_term).detach()
        return total

    def _policy_loss(self, model: nn.Module, batch: Rollouts) -> tuple[Any, ppo.PolicyLoss]:
        with self.compute_loss_context_manager():
            outputs = model(batch.input_ids, batch.attention_mask, batch.prompt_length, "policy")
        logps = token_logps(outputs.logits, batch.completions, self.args.temperature)
        return outputs, ppo.policy_loss(logps, batch.logps, batch.advantages, batch.mask, self.args.cliprange)

    def _begin_rollout(self) -> None:
        step = self.state.global_step
        number, rest = divmod(step, self.args.steps_per_rollout)
        if rest:
            raise InputError(f"step {step} is inside a rollout, and training goes on between rollouts only")
        self._rollouts = self.collect_rollout(number)
        self.state.num_input_tokens_seen += int(self._rollouts.attention_mask.sum())
        self._passes = micro_batches(
            self._rollouts,
            self.args.num_ppo_epochs,
            self.args.num_mini_batches,
            self.args.train_batch_size * self.args.world_size,
            seed_of(self.args.seed, "minibatches", number),
        )

    # -- the frame -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; `True` resumes from the newest checkpoint that verifies, if there is one."""
        if self.is_deepspeed_enabled:
            # Its engine takes a step with every backward pass, and here each role has one of its own.
            raise InputError("PPO does not train under DeepSpeed", "use recipes/accelerate/ddp.yaml")
        checkpoint = self.checkpoint_of(resume_from_checkpoint)
        if checkpoint is None and self.args.normalise == "reference":
            self._normalise_by_reference()
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _require_policy_equals_reference(self, kl: Tensor) -> None:
        exact = next(self.model.peft.parameters()).dtype is torch.float32 and not self.args.bf16 and not self.args.fp16
        gap = self.opening_gap = float(kl.abs().max())
        if gap > (1e-3 if exact else 0.2):
            raise InputError(
                f"before the first step a token's log-probability differs from the reference's by {gap:.1e}",
                "the reference must be the stage that the policy starts from; is a merged or other adapter active?",
            )

    def _too_far(self) -> bool:
        """Whether the policy of the last rollout had left the reference further than allowed."""
        limit = self.args.kl_stop_above
        return limit is not None and bool(self.latest) and self._kl > limit

    def save_weights(self, directory: Path) -> None:
        """Adapters, the value's head, the scale of the reward, and the last rollout's samples."""
        super().save_weights(directory)
        save_file(
            {k: v.cpu().contiguous() for k, v in self.model.value_head.state_dict().items()}, directory / HEAD_FILE
        )
        scale = {"score_mean": self._score_mean, "score_std": self._score_std}
        write_json(directory / STATE_FILE, {**scale, "latest": self.latest})

    def load_weights(self, directory: Path) -> None:
        """Everything that `save_weights` wrote."""
        super().load_weights(directory)
        self.model.value_head.load_state_dict(load_file(directory / HEAD_FILE))
        state = read_json(directory / STATE_FILE)
        self._score_mean, self._score_std = float(state["score_mean"]), float(state["score_std"])
        self.latest = state["latest"]

    def _on_device(self, rollouts: Rollouts) -> Rollouts:
        return Rollouts(**{name: tensor.to(self.args.device) for name, tensor in vars(rollouts).items()})

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(values.to(self.args.device), reduction="sum")
        return total.to(values.device)

    # -- metrics -------------------------------------------------------------------------------------------------------

    def _note_rollout(
        self,
        rows: Sequence[Mapping[str, Any]],
        samples: Sequence[Sampled],
        scores: Tensor,
        rewards: Tensor,
        kl: Tensor,
    ) -> None:
        lengths = torch.tensor([float(len(sample.ids)) for sample in samples])
        self._kl = float(kl.sum(1).mean())
        self._averages.add("ppo/score", scores.mean())
        self._averages.add("ppo/reward", rewards.sum(1).mean())
        self._averages.add("ppo/kl", self._kl)
        self._averages.add("ppo/length", lengths.mean())
        self._averages.add("ppo/eos_rate", sum(sample.finished for sample in samples) / len(samples))
        self.latest = [
            {
                "prompt": [{"role": m.role, "content": m.content} for m in row["prompt"]],
                "completion": sampled.text,
                "finished": sampled.finished,
                "tokens": len(sampled.ids),
                "reward": float(score),
                "kl": float(divergence),
            }
            for row, sampled, score, divergence in zip(rows, samples, scores, kl.sum(1), strict=True)
        ]

    def _note_update(self, mask: Tensor, policy: ppo.PolicyLoss, value: ppo.ValueLoss, seconds: float) -> None:
        tokens = float(mask.sum())
        for name, values in (
            ("ppo/policy_loss", policy.losses),
            ("ppo/value_loss", value.losses),
            ("ppo/ratio", policy.ratio),
            ("ppo/clip_fraction", policy.clipped),
            ("ppo/value_clip_fraction", value.clipped),
            ("ppo/approx_kl", policy.approx_kl),
        ):
            self._averages.add(name, ppo.masked_mean(values.detach(), mask), tokens)
        self._averages.add("ppo/update_seconds", seconds)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages over rollouts and tokens since the last log."""
        found = self._averages.take(self._sum_over_ranks)
        if found:
            done = self.state.global_step / self.args.steps_per_rollout
            logs.update(found, **{"ppo/episodes": done * self.args.rollout_batch_size})
        super().log(logs, start_time)

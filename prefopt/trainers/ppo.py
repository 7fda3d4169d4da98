"""Proximal policy optimisation (arXiv 1707.06347) for language models (arXiv 1909.08593, 2403.17031).

The algorithm, in the order of this file. Until the episodes are used up:

1. *Collect a rollout*: sample completions, score their text, and compute what policy, reference and value say of every
   token. Ranks share this work, and all of them get the whole rollout. The price of leaving the reference, a k1
   estimate of the KL, is part of each token's reward (or, as k2 or k3, a loss); the score is the reward of the last
   token, unless its beginnings are scored as well.
2. *Judge it*: advantages and returns by generalised advantage estimation, advantages whitened.
3. *Update*: several epochs of minibatches over the rollout with the clipped losses of policy and value; ranks share
   each pass.

Rollouts are collected in `training_step`, when the one before is used up, and never in a data loader: that fetches a
batch ahead, from a policy that is one update behind. A rollout follows from the seed and its number, and checkpoints
fall between rollouts, so a killed run makes its last rollout again and continues as if nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from prefopt.errors import InputError
from prefopt.losses import ppo
from prefopt.models.actor_critic import HEAD, ActorCritic, Ask, actor_critic, fold_normaliser, save_value_head
from prefopt.models.generate import Sampled
from prefopt.models.roles import POLICY, belongs_to
from prefopt.rewards.controllers import KLController
from prefopt.rewards.penalties import Penalty
from prefopt.rewards.scale import RewardScale
from prefopt.rewards.shaper import Shaper
from prefopt.store.files import read_json, write_json
from prefopt.trainers.answers import RewardFunction
from prefopt.trainers.averages import Averages
from prefopt.trainers.checkpoints import CheckpointedTrainer
from prefopt.trainers.demonstrations import Demonstrations, nll_tokens
from prefopt.trainers.explorer import Explorer
from prefopt.trainers.fast_passes import FastPasses
from prefopt.trainers.opening import open_adapted, pad_token_of, require_same_start
from prefopt.trainers.ppo_config import PPOConfig
from prefopt.trainers.ppo_metrics import Rollout, of_update
from prefopt.trainers.rates import set_rate
from prefopt.trainers.rollout_loop import BetweenRollouts, Slots
from prefopt.trainers.rollouts import MicroBatch, Rollouts, episodes, micro_batches, prompts_of_rollout, seed_of
from prefopt.trainers.rows import tokenised_prompts
from prefopt.trainers.watch import Judge, Watch

STATE_FILE = "ppo_state.json"
PROVED, PROVED_TOKENS = 2, 16  # rows, and tokens of their made-up answers, that passes without padding are proved on


class PPOTrainer(CheckpointedTrainer):
    """Trains a LoRA policy to get rewards; usable without recipes, as TRL's trainers are.

    Args:
        model: A causal language model, its name or folder, or a `PeftModel` with an adapter named `policy` (and, when
            the policy did not start from the base, a frozen one named `reference`).
        args: Options; see `PPOConfig`.
        reward: Takes N prompts (messages) and N completions (text) and gives N finite numbers, or `Score`s.
        train_dataset: Rows with `prompt` as text or messages; rows with `prompt_ids` as well are tokenised already.
        processing_class: The tokenizer; loaded with the model when that is a name.
        peft_config: Shape of the policy's adapter, where `model` has none yet.
        reward_model: Artefact of a reward model that the value starts as; for `value: adapter`.
        penalties: What is taken off rewards besides; see `prefopt.rewards.shaper`.
        judge: Takes N prompts, N completions and N others and gives the probabilities that the first are preferred. It
            is not trained on: the guards ask it now and then whether rewards mean anything.
        demonstrations: Rows with `prompt_ids` and `completion_ids` whose likelihood is kept up (PTX).
        kwargs: Passed to `transformers.Trainer` (`callbacks`, `optimizers` …).

    Attributes:
        watch: Why training ended early, if it did, whose policy was kept, and the samples of the last rollout.
        shaper: Makes rewards of scores.
        kl: The price of the KL.

    Raises:
        InputError: When the model has no adapter to train, or `value_learning_rate` stands beside a passed optimiser.
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
        penalties: Sequence[Penalty] = (),
        judge: Judge | None = None,
        demonstrations: Sequence[Mapping[str, Any]] = (),
        **kwargs: Any,
    ) -> None:
        transformers.set_seed(args.seed)  # a new adapter starts from random weights
        model, tokenizer = open_adapted(model, processing_class, peft_config, POLICY)
        self.prompts = tokenised_prompts(train_dataset, tokenizer, args.max_length, args.max_new_tokens)
        value_from = None if args.value == "shared" else reward_model
        super().__init__(
            model=actor_critic(model, value=args.value, reward=value_from),
            args=args,
            data_collator=lambda rows: {"slots": torch.zeros(len(rows))},
            train_dataset=Slots(args.max_steps * args.rollout_batch_size // args.num_mini_batches),
            processing_class=tokenizer,
            **kwargs,
        )
        if self.optimizer is not None and args.value_learning_rate is not None:
            raise InputError("an optimiser that is passed has rates already", "leave out value_learning_rate")
        self.shaper = Shaper(penalties, scale=args.scale(), total_clip=args.total_clip)
        self.explorer = Explorer(self.model, tokenizer, args, self.accelerator, reward, penalties=penalties)
        self.kl = KLController(args.kl_coefficient, args.kl_target, args.kl_horizon, args.kl_bounds)
        self.watch = Watch(args, self.explorer, judge, self.prompts, tokenizer)
        self._fast_passes = FastPasses(self.model, self.accelerator, "episodes are padded rows")
        self._demonstrations = Demonstrations(demonstrations, args.mini_batch_size, args.seed, pad_token_of(tokenizer))
        self._passes: Iterator[MicroBatch] = iter(())
        self._averages = Averages()
        self._value_starts_as_reward = value_from is not None
        self._between_rollouts = BetweenRollouts(args.steps_per_rollout, lambda: self.watch.ends)
        self.add_callback(self._between_rollouts)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The value learns at its own rate, where it has one."""
        is_new = self.optimizer is None  # a second `train` keeps the first one's
        optimizer: Optimizer = super().create_optimizer(model)
        if self.args.value_learning_rate is not None and is_new:
            of_value = [each for name, each in self.model.named_parameters() if not belongs_to(name, POLICY)]
            set_rate(optimizer, of_value, self.args.value_learning_rate)
        return optimizer

    # -- 1. collect a rollout, 2. judge it -----------------------------------------------------------------------------

    def collect_rollout(self, number: int) -> Rollout:
        """Sample, score and judge the episodes of a rollout.

        Args:
            number: Of the rollout, from 0; decides prompts and random numbers.
        """
        args = self.args
        rows = self._prompts_of(number, args.rollout_batch_size, args.seed)
        samples, scores = self.explorer.answers(rows, seed_of(args.seed, "rollout", number))
        potentials = self.explorer.potentials(rows, samples) if args.score_prefixes else None
        finished = torch.tensor([sample.finished for sample in samples])
        shaped = self.explorer.shaped(self.shaper, rows, samples, scores)

        batch = episodes([row["prompt_ids"] for row in rows], samples, pad_token_of(self.processing_class))
        said = self.explorer.look(batch, samples)
        kl = ppo.kl_tokens(said.logps, said.reference_logps, batch.mask, for_reward=True)
        coefficient = self.kl.coefficient
        price = coefficient if args.kl_apply == "reward" else 0.0
        known = None if potentials is None else self.scale.scaled(potentials.flatten()).view_as(potentials)
        if known is not None and self.shaper.penalties:
            known = known - self.explorer.owed(self.shaper, rows, samples)
        rewards = ppo.token_rewards(shaped.total, kl, price, batch.mask, known, args.gamma)
        whitened = ppo.masked_whiten(rewards, batch.mask, shift_mean=False) if args.whiten_rewards else rewards

        advantages, returns = ppo.gae(whitened, said.values, batch.mask, args.gamma, args.lam)
        learned = batch.mask * finished[:, None] if args.mask_truncated_completions else batch.mask
        if args.whiten_advantages:
            advantages = ppo.masked_whiten(advantages, learned)
        batch = batch.with_what(
            learned=learned,
            logps=said.logps,
            reference_logps=said.reference_logps,
            values=said.values,
            advantages=advantages,
            returns=returns,
        )
        return Rollout(rows, samples, scores, shaped, said, kl, rewards, coefficient, price * kl.sum(1), batch)

    def _prompts_of(self, number: int, size: int, seed: int) -> list[Mapping[str, Any]]:
        return prompts_of_rollout(self.prompts, number, size, self.args.samples_per_prompt, seed)

    def _normalise_by_reference(self) -> None:
        """Centre and scale scores by those of the reference's own completions; the policy still equals it."""
        count = self.args.samples_of_reference(self.args.rollout_batch_size)
        rows = self._prompts_of(0, count, seed_of(self.args.seed, "scale"))
        self.explorer.show_reference(self.shaper, rows, seed_of(self.args.seed, "normaliser"))
        if self._value_starts_as_reward:
            fold_normaliser(self.model.value_head, self.scale.mean, self.scale.std)

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
        if self._demonstrations:
            losses += self._imitate(model, part)
        if self._learning == 0:  # and not zero, which AdamW would take for a gradient: it decays weights, and counts
            for name, parameter in self.model.named_parameters():
                parameter.grad = None if belongs_to(name, POLICY) else parameter.grad
        total = torch.stack(losses).sum()
        self.note_loss(total)
        return total

    def _update(self, model: nn.Module, rollouts: Rollouts, tokens: Tensor) -> Tensor:
        """Forward and backward over some episodes; their part of the step's loss."""
        start = time.perf_counter()
        batch, options = rollouts.to(self.args.device), self.args.loss_options(self._kl_price)
        inputs = (batch.input_ids, batch.attention_mask, batch.prompt_length)
        with self.compute_loss_context_manager():
            said = model(*inputs, self._ask_policy)
        policy = ppo.policy_loss(said.logps, batch.logps, batch.advantages, batch.learned, options)
        kl = None
        if options.kl_coef:
            kl = ppo.kl_tokens(said.logps, batch.reference_logps, batch.learned, options.kl_estimator, for_loss=True)
        loss = ppo.ppo_loss(policy, None, batch.learned, options, tokens, entropy=said.entropy, kl=kl)
        loss = loss * self._learning
        if not self.model.shared:
            self.accelerator.backward(loss)
            with self.compute_loss_context_manager():
                said = model(*inputs, Ask("value"))
        value = ppo.value_loss(said.values, batch.values, batch.returns, batch.learned, options.cliprange_value)
        value_term = ppo.ppo_loss(None, value, batch.learned, options, tokens)
        self.accelerator.backward(loss + value_term if self.model.shared else value_term)
        self._averages.add_masked(of_update(policy, value), batch.learned)
        self._averages.add("ppo/update_seconds", time.perf_counter() - start)
        total: Tensor = (loss + value_term).detach()
        return total

    def _imitate(self, model: nn.Module, part: MicroBatch) -> list[Tensor]:
        """Forward and backward over the demonstrations of a pass (arXiv 2203.02155, equation 2)."""
        args = self.args
        passes = args.gradient_accumulation_steps * args.world_size
        number = part.place * args.world_size + args.process_index
        rows, tokens = self._demonstrations.of_pass(self.state.global_step, number, passes)

        def one_pass(start: int, end: int) -> Tensor:
            batch = rows.select(torch.arange(start, end)).to(args.device)
            with self.compute_loss_context_manager():
                said = model(batch.input_ids, batch.attention_mask, batch.prompt_length, Ask("policy"))
            losses = nll_tokens(said.logps, batch.mask)
            loss: Tensor = args.ptx_coef * self._learning * losses.sum() * (args.world_size / tokens)
            self.accelerator.backward(loss)
            self._averages.add_masked({"ppo/ptx_loss": losses}, batch.mask)
            return loss.detach()

        return self.in_micro_rows(len(rows), one_pass)

    @property
    def _ask_policy(self) -> Ask:
        bonus, alone = self.args.entropy_coef != 0, self._learning == 0
        return Ask("policy", self.args.temperature, entropy_gradient=bonus, value_alone=alone)

    @property
    def _learning(self) -> float:
        """0 while the value alone is trained, which keeps the policy's part of the graph for all ranks; then 1."""
        warming_up = self.state.global_step < self.args.value_warmup_rollouts * self.args.steps_per_rollout
        return 0.0 if warming_up else 1.0

    def _begin_rollout(self) -> None:
        start = time.perf_counter()
        number, rest = divmod(self.state.global_step, self.args.steps_per_rollout)
        if rest:
            raise InputError(f"step {self.state.global_step} is inside a rollout; training goes on between rollouts")
        rollout = self.collect_rollout(number)
        if number == 0:
            self.opening_gap = float(rollout.kl.abs().max())
            require_same_start(self.opening_gap, exact=self.exact)
        for name, value in self.watch.see(number, rollout, self.scale.unit, self.model).items():
            self._averages.add(name, value)
        self.shaper.update(rollout.shaped, learning=number >= self.args.value_warmup_rollouts)
        if number > self.args.value_warmup_rollouts:  # before, the policy is the reference, and its KL says nothing
            self.kl.update(float(rollout.kl.sum(1).mean()), len(rollout.rows))
        self._rollouts, self._kl_price = rollout.episodes, rollout.coefficient
        self.state.num_input_tokens_seen += int(self._rollouts.attention_mask.sum())
        taken = self.explorer.stopwatch.take() | {"rollout_seconds": time.perf_counter() - start}
        for name, seconds in taken.items():
            self._averages.add(f"ppo/{name}", seconds)
        self._passes = micro_batches(
            self._rollouts,
            self.args.num_ppo_epochs,
            self.args.num_mini_batches,
            self.args.train_batch_size * self.args.world_size,
            seed_of(self.args.seed, "minibatches", number),
        )

    # -- the frame -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; `True` resumes from the newest checkpoint that verifies, if there is one.

        Afterwards the model is the policy that `select` asks for, or where a guard ended training the last healthy one.
        """
        if self.is_deepspeed_enabled:
            # Its engine takes a step with every backward pass, and here each role has one of its own.
            raise InputError("PPO does not train under DeepSpeed", "use recipes/accelerate/ddp.yaml")
        checkpoint = self.checkpoint_of(resume_from_checkpoint)
        if checkpoint is None and self.args.samples_of_reference(self.args.rollout_batch_size):
            self._normalise_by_reference()
        with self._fast_passes.allowed(self._said_of_first):
            output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        if not self._between_rollouts.asked_to_stop:
            self.watch.put_back(self.model)
        return output

    def _said_of_first(self) -> Tensor:
        """Log-probabilities of made-up answers to the first prompts."""
        prompts = [row["prompt_ids"] for row in self.prompts[:PROVED]]
        samples = [Sampled(tuple(ids[::-1][:PROVED_TOKENS]), "", True) for ids in prompts]
        batch = episodes(prompts, samples, pad_token_of(self.processing_class)).to(self.args.device)
        logps: Tensor = self.model(batch.input_ids, batch.attention_mask, batch.prompt_length, Ask("policy")).logps
        return logps[batch.mask.bool()]

    @property
    def shared_gap(self) -> float | None:
        """See `FastPasses.gap`."""
        return self._fast_passes.gap

    def row_lengths(self) -> Sequence[int]:
        """None: the slots hold nothing, a rollout is sampled where it is used."""
        return [0] * len(self.train_dataset)

    def _ended(self, checkpoint: Path) -> TrainerState | None:
        """The state of a checkpoint that is the last one, also where a guard made it that."""
        if read_json(checkpoint / STATE_FILE)["watch"]["guards"]["reason"] is not None and self.args.stop_on_guard:
            return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        return super()._ended(checkpoint)

    def save_weights(self, directory: Path) -> None:
        """Adapters, the value's head, and all that the next rollouts depend on."""
        super().save_weights(directory)
        save_value_head(self.model, directory)
        self.watch.save(directory)
        write_json(directory / STATE_FILE, {name: part.state_dict() for name, part in self._stateful.items()})

    def load_weights(self, directory: Path) -> None:
        """Everything that `save_weights` wrote."""
        super().load_weights(directory)
        self.model.value_head.load_state_dict(load_file(directory / HEAD))
        self.watch.load(directory)
        state = read_json(directory / STATE_FILE)
        for name, part in self._stateful.items():
            part.load_state_dict(state[name])

    @property
    def scale(self) -> RewardScale:
        """Of the rewards."""
        return self.shaper.scale

    @property
    def _stateful(self) -> dict[str, Any]:
        found = {"scale": self.scale, "kl": self.kl, "watch": self.watch}
        return {**found, "penalties": self.shaper} if self.shaper.penalties else found

    # -- metrics -------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages over rollouts and tokens since the last log."""
        found = self._averages.take(self.sum_over_ranks)
        if found:
            done = self.state.global_step / self.args.steps_per_rollout
            logs.update(found, **{"ppo/episodes": done * self.args.rollout_batch_size})
        super().log(logs, start_time)

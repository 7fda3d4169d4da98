"""What `grpo` and `rloo` share: rollouts of groups, sampled, scored and remembered as those of PPO; TRL learns of them.

A group is some completions of one prompt; each is compared with the others of its group. Rollouts follow from the seed
and their number, are collected when the one before is used up, and checkpoints fall between them, as in
`prefopt.trainers.ppo`. Advantages and losses are TRL's.

Shape suffixes: N episodes of a rollout, n of them on this rank, P prompt positions (padded on the left), L completion
positions (padded on the right).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from prefopt.errors import InputError
from prefopt.models.generate import Sampled
from prefopt.models.roles import COPY, POLICY, activate_trained, set_active, stack_of
from prefopt.rewards.penalties import Penalty
from prefopt.rewards.scale import RewardScale
from prefopt.rewards.shaper import Shaper
from prefopt.store.files import read_json, write_json
from prefopt.trainers.adopted import AdoptedTrainer, adopting
from prefopt.trainers.answers import Answerer, RewardFunction, Scores
from prefopt.trainers.averages import Averages
from prefopt.trainers.opening import open_adapted
from prefopt.trainers.ppo_metrics import repetition, samples_of
from prefopt.trainers.rollout_loop import BetweenRollouts, Slots
from prefopt.trainers.rollouts import prompts_of_rollout, seed_of
from prefopt.trainers.rows import tokenised_prompts

STATE_FILE = "group_state.json"
# Of a part of a pass: rows, tokens, or nothing in common, by what TRL divides the loss by.
_BY_TOKENS, _BY_THE_STEP = frozenset({"bnpo"}), frozenset({"dapo"})


class GroupTrainer(AdoptedTrainer):
    """Trains a LoRA policy to get rewards, each completion compared with others of its prompt; usable without recipes.

    Args:
        model: A causal language model, its name or folder, or a `PeftModel` with an adapter named `policy`. The
            reference is the policy as it is given.
        args: Options; a configuration of TRL with `GroupConfig`.
        reward: Takes N prompts (messages) and N completions (text) and gives N finite numbers, or `Score`s.
        train_dataset: Rows with `prompt` as text or messages; rows with `prompt_ids` as well are tokenised already.
        processing_class: The tokenizer; loaded with the model when that is a name.
        peft_config: Shape of the policy's adapter, where `model` has none yet.
        penalties: What is taken off rewards besides; see `prefopt.rewards.shaper`.
        kwargs: Passed to TRL's trainer (`callbacks`, `optimizers`).

    Attributes:
        method: Group of its metrics' names.
        pays_in_reward: Whether the KL is taken off the reward; otherwise it is a loss.
        ratio_per_token: Whether each token has a ratio that is clipped; otherwise the whole completion has.
        shaper: Makes rewards of scores.
        latest: The samples of the last rollout.

    Raises:
        InputError: When the model has no adapter to train, or one on its language-model head.
        DataError: When there are no prompts.
    """

    method: str
    pays_in_reward: bool
    ratio_per_token: bool
    _step: int

    def __init__(  # noqa: PLR0913  (keyword-only)
        self,
        model: str | PreTrainedModel | PeftModel,
        args: Any,
        *,
        reward: RewardFunction,
        train_dataset: Sequence[Mapping[str, Any]],
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        penalties: Sequence[Penalty] = (),
        **kwargs: Any,
    ) -> None:
        transformers.set_seed(args.seed)  # a new adapter starts from random weights
        model, tokenizer = open_adapted(model, processing_class, peft_config, POLICY)
        self.prompts = tokenised_prompts(train_dataset, tokenizer, args.max_length, args.max_new_tokens)
        with adopting(model):
            super().__init__(
                model=model,
                reward_funcs=reward,  # called by the answerer, and known to TRL by name alone
                args=args,
                train_dataset=Dataset.from_dict({"prompt": [""]}),
                processing_class=tokenizer,
                **kwargs,
            )
        self.train_dataset = Slots(args.max_steps * args.rollout_batch_size // args.num_mini_batches)
        self.data_collator = lambda rows: {"slots": torch.zeros(len(rows))}
        self.answerer = Answerer(model, tokenizer, args, self.accelerator, reward, penalties=penalties)
        self.shaper = Shaper(penalties, scale=args.scale(), total_clip=args.total_clip)
        self.latest: list[dict[str, Any]] = []
        self._averages = {"train": Averages(), "eval": Averages()}
        self._asked: dict[str, Tensor] = {}
        self._between_rollouts = BetweenRollouts(args.steps_per_rollout, lambda: False)
        self.add_callback(self._between_rollouts)

    # -- a rollout -----------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Episodes for a pass; collects a rollout when the one before is used up. What has advantages is prepared."""
        if "advantages" in inputs:
            return inputs
        random = torch.get_rng_state()
        # TRL draws the minibatches of a new rollout from it, and a resumed run must draw the same.
        torch.default_generator.manual_seed(seed_of(self.args.seed, "minibatches", self.state.global_step))
        try:
            episodes: dict[str, Any] = super()._prepare_inputs(inputs)
        finally:
            torch.set_rng_state(random)
        return without_padding(episodes)

    def _generate_and_score_completions(self, inputs: object) -> dict[str, Any]:
        """The next rollout, of which this rank learns from its share: what TRL's loss needs of it."""
        start, args = time.perf_counter(), self.args
        number, rest = divmod(self.state.global_step, args.steps_per_rollout)
        if rest:
            raise InputError(f"step {self.state.global_step} is inside a rollout; training goes on between rollouts")
        rows = self._prompts_of(number, args.rollout_batch_size, args.seed)
        samples, scores = self.answerer.answers(rows, seed_of(args.seed, "rollout", number))
        self._shaped = self.answerer.shaped(self.shaper, rows, samples, scores)
        share = len(rows) // args.world_size
        first = args.process_index * share
        self._mine = list(zip(rows, samples, strict=True))[first : first + share]
        self._asked.clear()
        model = self.adapted_model()
        assert model is not None
        batch: dict[str, Any] = super()._generate_and_score_completions([{"prompt": ""}] * share)
        activate_trained(model, POLICY)  # TRL leaves it active alone, without what it may stand on
        self._metrics["train"].clear()
        kl = self._kl(batch)
        if number == 0:
            self.require_policy_equals_reference(kl)
        nats = self.accelerator.gather(kl.sum(1)).cpu()
        self.latest = samples_of(rows, samples, self._shaped, nats)
        for name, value in (self._seen(samples, scores, nats) | self._shaped.metrics()).items():
            self._averages["train"].add(name, value)
        self.shaper.update(self._shaped)
        taken = self.answerer.stopwatch.take() | {"rollout_seconds": time.perf_counter() - start}
        for name, seconds in taken.items():
            self._averages["train"].add(f"{self.method}/{name}", seconds)
        return batch

    def _prompts_of(self, number: int, size: int, seed: int) -> list[Mapping[str, Any]]:
        return prompts_of_rollout(self.prompts, number, size, self.args.num_generations, seed)

    def _normalise_by_reference(self) -> None:
        """Centre and scale scores by those of the reference's own completions; the policy still equals it."""
        count = self.args.samples_of_reference(self.args.rollout_batch_size)
        rows = self._prompts_of(0, count, seed_of(self.args.seed, "scale"))
        self.answerer.show_reference(self.shaper, rows, seed_of(self.args.seed, "normaliser"))

    # What TRL asks for on the way.

    def _tokenize_prompts(self, prompts: object) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(row["prompt_ids"]) for row, _ in self._mine], None, {}

    def sampled_ids(self) -> list[list[int]]:
        """Tokens of the completions that this rank learns from."""
        return [list(sample.ids) for _, sample in self._mine]

    def _calculate_rewards(self, *inputs: object) -> Tensor:
        """Rewards of the whole rollout, [N, 1]."""
        return self._shaped.total[:, None].to(self.args.device)

    def _get_per_token_logps_and_entropies(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Log-probabilities of completion tokens [n, L]; those of a new rollout are kept by whose they are."""
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        peft = self.adapted_model()
        assert peft is not None
        role = peft.active_adapters[-1]
        if len(stack := stack_of(peft, role)) > 1:
            set_active(peft, stack)
        found = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        self._asked[role] = found[0]
        return found

    def _kl(self, batch: Mapping[str, Tensor]) -> Tensor:
        """k1 estimates of the tokens that this rank learns from, [n, L], nats; 0 elsewhere."""
        mask = batch["completion_mask"]
        ids, seen = (torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], 1) for name in ("ids", "mask"))
        looked_at = (self.model, ids, seen, mask.shape[1], self.args.per_device_train_batch_size)
        if COPY not in self._asked:  # nothing is paid for leaving the reference, and it is worth knowing all the same
            with self.reference():
                self._get_per_token_logps_and_entropies(*looked_at)
        if self.looks_again and POLICY not in self._asked:
            with torch.no_grad():
                self._get_per_token_logps_and_entropies(*looked_at)
            activate_trained(self.adapted_model(), POLICY)
        sampled = nn.utils.rnn.pad_sequence([torch.tensor(each.logps) for _, each in self._mine], batch_first=True)
        policy = self._asked.get(POLICY, sampled.to(mask.device))
        kl: Tensor = (policy - self._asked[COPY]) * mask
        return kl.float()

    @property
    def looks_again(self) -> bool:
        """Whether the policy passes over a new rollout: where TRL asks it to, or sampling computes otherwise."""
        return self.pays_in_reward or self.args.steps_per_rollout > 1 or not self.exact

    def _seen(self, samples: Sequence[Sampled], scores: Scores, nats: Tensor) -> dict[str, float]:
        """Metrics of a rollout by name.

        Args:
            samples: Its completions.
            scores: What they were given.
            nats: KL of each, [N]; 0 of those that nothing is learned from.
        """
        finished = torch.tensor([sample.finished for sample in samples])
        learned = finished if self.args.mask_truncated_completions else torch.ones_like(finished)
        lengths = [len(sample.ids) for sample in samples]
        kl = float(nats.sum() / learned.sum().clamp(min=1))
        rewards = self._shaped.total
        groups = rewards.view(-1, self.args.num_generations)
        found = {
            "score": float(scores.values.mean()),
            "reward": float(rewards.mean()) - (self.beta * kl if self.pays_in_reward else 0.0),
            "kl": kl,
            "entropy": sum(sum(sample.entropies) for sample in samples) / sum(lengths),
            "length": sum(lengths) / len(samples),
            "eos_rate": float(finished.float().mean()),
            "repetition": sum(repetition(sample.ids) for sample in samples) / len(samples),
            "tie_rate": float((groups == groups[:, :1]).all(1).float().mean()),
        }
        if bool(scores.stds.any()):
            found["disagreement"] = float(scores.stds.mean())
        for name, which in (("finished", finished), ("truncated", ~finished)):
            if bool(which.any()):
                found[f"score_{name}"] = float(scores.values[which].mean())
        return {f"{self.method}/{name}": value for name, value in found.items()}

    # -- the update ----------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass over episodes of the rollout; collects the next one when it is used up."""
        step = self._step
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step = step + 1  # TRL counts every part of a pass that was cut
        return loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """TRL's loss of some episodes, times their share of the pass's."""
        loss: Tensor = super().compute_loss(model, inputs, *args, **kwargs)
        clipped = self.measured().get("clip_ratio/region_mean")
        if clipped is not None:
            weight = float(inputs["completion_mask"].sum()) if self.ratio_per_token else self.rows_in(inputs)
            self._averages["train"].add(f"{self.method}/clip_fraction", clipped, weight)
        return loss * self._share(inputs)

    def _share(self, inputs: Mapping[str, Tensor]) -> float:
        loss_type = getattr(self, "loss_type", "")
        if loss_type in _BY_THE_STEP or inputs is self._pass:
            return 1.0
        if loss_type in _BY_TOKENS:
            part, whole = (float(each["completion_mask"].sum()) for each in (inputs, self._pass))
            return part / max(whole, 1.0)
        return self.rows_in(dict(inputs)) / self.rows_in(self._pass)

    def rows_in(self, inputs: dict[str, Any]) -> int:
        """Episodes of a batch."""
        return len(inputs["prompt_ids"])

    def take_rows(self, inputs: dict[str, Any], start: int, end: int) -> dict[str, Any]:
        """Some episodes of a batch, without the padding that none of them needs."""
        rows = {
            name: value[start:end] if isinstance(value, Tensor) and value.ndim else value
            for name, value in inputs.items()
        }
        return without_padding(rows)

    # -- the frame -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; `True` resumes from the newest checkpoint that verifies, if there is one."""
        checkpoint = self.checkpoint_of(resume_from_checkpoint)
        if checkpoint is None and self.args.samples_of_reference(self.args.rollout_batch_size):
            self._normalise_by_reference()
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Nothing: a loop over held-out rows would collect rollouts, and move what only training moves.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"a trainer of {self.method} does not evaluate", "sample from the adapter, as the stage `evaluate` does"
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Slots of one pass each; TRL's gives the rows of a rollout, which here follow from its number."""
        loader: DataLoader[Any] = Trainer.get_train_dataloader(self)
        return loader

    def row_lengths(self) -> Sequence[int]:
        """None: the slots hold nothing, a rollout is sampled where it is used."""
        return [0] * len(self.train_dataset)

    @property
    def scale(self) -> RewardScale:
        """Of the rewards."""
        return self.shaper.scale

    def save_weights(self, directory: Path) -> None:
        """The adapter, and all that the next rollouts depend on."""
        super().save_weights(directory)
        state = {"scale": self.scale.state_dict(), "penalties": self.shaper.state_dict(), "latest": self.latest}
        write_json(directory / STATE_FILE, state)

    def load_weights(self, directory: Path) -> None:
        """Everything that `save_weights` wrote."""
        super().load_weights(directory)
        state = read_json(directory / STATE_FILE)
        self.scale.load_state_dict(state["scale"])
        self.shaper.load_state_dict(state["penalties"])
        self.latest = state["latest"]

    def averages(self, mode: str) -> dict[str, float]:
        """Those over rollouts and updates, and how many episodes there were."""
        found = super().averages(mode)
        if found:
            done = self.state.global_step / self.args.steps_per_rollout
            found[f"{self.method}/episodes"] = done * self.args.rollout_batch_size
        return found


def without_padding(episodes: dict[str, Any]) -> dict[str, Any]:
    """Episodes without the positions that are padding in all of them: before prompts, and after completions."""
    prompts, completions = episodes["prompt_mask"], episodes["completion_mask"]
    first = int(prompts.any(0).int().argmax())
    used = completions.any(0).nonzero()
    width, end = completions.shape[1], int(used.max()) + 1 if len(used) else 1
    found = dict(episodes)
    for name, value in episodes.items():
        if name.startswith("prompt_"):
            found[name] = value[:, first:]
        elif isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == width:
            found[name] = value[:, :end]
    return found

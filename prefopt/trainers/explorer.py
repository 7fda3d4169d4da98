"""Makes the episodes of PPO: samples completions, has them scored, and asks every role about every token.

Ranks share the work, and all of them get all of it.

Shape suffixes: N episodes, L completion positions (padded on the right).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prefopt.errors import DataError, InputError
from prefopt.models.actor_critic import ActorCritic, Ask
from prefopt.models.generate import Sampled, SamplingOptions, sample
from prefopt.models.modes import evaluating
from prefopt.models.token_watch import TokenWatch
from prefopt.records import Prompt, Score
from prefopt.trainers.ppo_config import PPOConfig
from prefopt.trainers.ranks import shared_out
from prefopt.trainers.rollouts import Rollouts

RewardFunction = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float | Score]]
SAME = 1e-4
"""How far a token's log-probability may be from that of the training forward, in nats, to be taken for it."""
APART = 0.5
"""Mean distance, in nats, at which sampling and training cannot be the same model."""
CHECKED = 8
"""Every so manieth episode is looked at twice."""


@dataclass(frozen=True)
class Scores:
    """What episodes were given, [N] each.

    Attributes:
        values: Raw, in the reward's own unit.
        stds: Disagreement between the members of an ensemble, in the same unit; 0 of one.
    """

    values: Tensor
    stds: Tensor


class Said(NamedTuple):
    """What the roles say of every token, [N, L] each, float32, on the CPU, 0 on padding.

    Attributes:
        logps: Of the policy, nats.
        reference_logps: Nats.
        values: Before each token.
        entropies: Of the policy's distribution, nats.
        divergence: KL(policy ‖ reference) over the whole vocabulary, nats; 0 where it was not computed.
        checked: [N], whether `divergence` was computed.
        mismatch: Largest distance between log-probabilities of sampling and of training, nats.
    """

    logps: Tensor
    reference_logps: Tensor
    values: Tensor
    entropies: Tensor
    divergence: Tensor
    checked: Tensor
    mismatch: float


class Explorer:
    """Samples and looks.

    Args:
        model: All roles.
        tokenizer: Of the policy.
        args: Options.
        accelerator: Of the trainer.
        reward: Takes N prompts and N completions and gives N numbers, or scores.
        watch: Words whose probability is added up while completions are sampled.
    """

    def __init__(
        self,
        model: ActorCritic,
        tokenizer: PreTrainedTokenizerBase,
        args: PPOConfig,
        accelerator: Accelerator,
        reward: RewardFunction,
        watch: tuple[TokenWatch, ...] = (),
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._args = args
        self._accelerator = accelerator
        self._reward = reward
        self._watch = watch

    # -- sampling ------------------------------------------------------------------------------------------------------

    def answers(self, rows: Sequence[Mapping[str, Any]], seed: int) -> tuple[list[Sampled], Scores]:
        """Completions of prompts and their raw scores.

        The random numbers belong to the prompt's place, so it makes no difference how many ranks share them.
        """
        uniforms = self._uniforms(len(rows), seed)

        def answer(indices: Sequence[int]) -> list[tuple[Sampled, Score]]:
            mine = [rows[index] for index in indices]
            samples = self._sample(mine, uniforms[list(indices)])
            return list(zip(samples, score_texts(self._reward, mine, samples), strict=True))

        samples, scores = zip(*shared_out(len(rows), answer), strict=True)
        numbers = torch.tensor([(score.value, score.std) for score in scores], dtype=torch.float64).float()
        return list(samples), Scores(numbers[:, 0], numbers[:, 1])

    def samples(self, rows: Sequence[Mapping[str, Any]], seed: int) -> list[Sampled]:
        """Completions alone."""
        uniforms = self._uniforms(len(rows), seed)
        return shared_out(
            len(rows), lambda indices: self._sample([rows[index] for index in indices], uniforms[list(indices)])
        )

    def _uniforms(self, rows: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(rows, self._args.max_new_tokens, dtype=torch.float64, generator=generator)

    def _sample(self, rows: Sequence[Mapping[str, Any]], uniforms: Tensor) -> list[Sampled]:
        options = SamplingOptions(
            max_new_tokens=self._args.max_new_tokens,
            min_new_tokens=self._args.min_new_tokens,
            temperature=self._args.temperature,
            batch_size=self._args.per_device_eval_batch_size,
            stop=self._args.stop,
            say=True,
            watch=self._watch,
        )
        self._model.activate("policy")
        prompts = [row["prompt_ids"] for row in rows]
        with self._accelerator.autocast():
            return sample(self._model.peft, self._tokenizer, prompts, options, uniforms=uniforms)

    # -- looking -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def look(self, rollouts: Rollouts, samples: Sequence[Sampled]) -> Said:
        """What policy, reference and value say of every token.

        Log-probabilities of sampling are taken for the policy's own where they are those of the training forward, which
        some of the episodes show; otherwise all of the policy's are computed again.
        """
        sampled, entropies = (_padded([getattr(s, name) for s in samples]) for name in ("logps", "entropies"))
        checked = torch.arange(len(rollouts)) % CHECKED == 0
        found = torch.zeros(5, *rollouts.mask.shape)
        found += self._batches(rollouts, checked.nonzero().flatten(), policy=True, divergence=True)
        mismatch = self._mismatch(found[0], sampled, rollouts.mask * checked[:, None])
        reuse = self._args.reuse_sampling_logps and mismatch < SAME and not self._model.shared
        found += self._batches(rollouts, (~checked).nonzero().flatten(), policy=not reuse, divergence=False)
        if reuse:
            ours = (~checked)[:, None]
            found[0], found[3] = torch.where(ours, sampled, found[0]), torch.where(ours, entropies, found[3])
        logps, reference_logps, values, entropy, divergence = found.unbind()
        return Said(logps, reference_logps, values, entropy, divergence, checked, mismatch)

    def _mismatch(self, logps: Tensor, sampled: Tensor, mask: Tensor) -> float:
        apart = (logps - sampled).abs() * mask
        if float(apart.sum() / mask.sum().clamp(min=1)) > APART:
            raise InputError(
                f"sampling and training differ by {float(apart.sum() / mask.sum()):.2g} nats per token on average",
                "the model's own head does something to its logits that prefopt does not know",
            )
        return float(apart.max())

    def _batches(self, rollouts: Rollouts, indices: Tensor, *, policy: bool, divergence: bool) -> Tensor:
        """Log-probabilities of policy and reference, values, entropy, divergence: [5, N, L]; other episodes are 0."""
        found = torch.zeros(5, *rollouts.mask.shape)
        by_length = indices[rollouts.attention_mask[indices].sum(1).argsort(stable=True)]
        batches = torch.split(by_length, self._args.per_device_eval_batch_size) if len(indices) else ()
        for mine in batches[self._args.process_index :: self._args.world_size]:
            batch = rollouts.select(mine).to(self._args.device)
            found[:, mine, : batch.mask.shape[1]] = self._ask(batch, policy=policy, divergence=divergence)
        # Zero where another rank has looked.
        total: Tensor = self._accelerator.reduce(found.to(self._args.device), reduction="sum")
        return total.cpu()

    def _ask(self, batch: Rollouts, *, policy: bool, divergence: bool) -> Tensor:
        inputs = (batch.input_ids, batch.attention_mask, batch.prompt_length)
        nothing = torch.zeros_like(batch.logps)
        logps = entropy = values = states = None
        with self._accelerator.autocast(), evaluating(self._model):
            if policy:
                logps, entropy, values, _, states = self._model(*inputs, Ask("policy", self._args.temperature))
            of_reference = Ask("reference", self._args.temperature, policy_states=states if divergence else None)
            reference = self._model(*inputs, of_reference)
            if not self._model.shared:
                values = self._model(*inputs, Ask("value")).values
        said = (logps, reference.logps, values, entropy, reference.divergence)
        mask = batch.mask
        return torch.stack([nothing if each is None else each.float() * mask for each in said]).cpu()


def score_texts(reward: RewardFunction, rows: Sequence[Mapping[str, Any]], samples: Sequence[Sampled]) -> list[Score]:
    """Raw rewards of the decoded texts.

    Raises:
        DataError: When they are not as many finite numbers, or scores.
    """
    values = reward([row["prompt"] for row in rows], [sample.text for sample in samples])
    try:
        scores = [each if isinstance(each, Score) else Score(float(each)) for each in values]
    except (TypeError, ValueError) as error:
        raise DataError(f"the reward must give {len(samples)} finite numbers, and gave {values!r:.200}") from error
    if len(scores) != len(samples):
        raise DataError(f"the reward must give {len(samples)} finite numbers, and gave {values!r:.200}")
    return scores


def _padded(rows: Sequence[Sequence[float]]) -> Tensor:
    """[N, L], 0 after each row's end."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)

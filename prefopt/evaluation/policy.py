"""Measure policies on the same held-out prompts: what they say, how far they moved, and which answers they prefer.

All policies are adapters on one base, so measuring ten costs the memory of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.losses.logprobs import completion_logps, exact_kl
from prefopt.models.batches import batches_by_length, prompt_completion_batch
from prefopt.models.generate import Sampled, SamplingOptions, sample
from prefopt.models.roles import adapter_active


@dataclass(frozen=True)
class PairIds:
    """A tokenised held-out pair."""

    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]


@dataclass(frozen=True)
class PolicyBench:
    """A model with frozen adapters, measured one adapter at a time.

    Attributes:
        model: The base with every policy's adapter on it.
        tokenizer: Its tokenizer.
        batch_size: Rows of one forward pass.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 64

    def sample(
        self,
        adapter: str | None,
        prompts: Sequence[Sequence[int]],
        options: SamplingOptions,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Sampled]:
        """One completion for each prompt from the policy `adapter`; None is the base."""
        with adapter_active(self.model, adapter):
            return sample(self.model, self.tokenizer, prompts, options, progress)

    @torch.no_grad()
    def kl(
        self, adapter: str | None, baseline: str | None, prompts: Sequence[Sequence[int]], samples: Sequence[Sampled]
    ) -> list[float]:
        """KL(policy ‖ baseline) of each completion in nats: exact next-token divergences summed along it.

        Averaged over completions sampled from the policy at temperature 1 this is an unbiased estimate of the KL of
        whole completions.
        """
        values = [0.0] * len(samples)
        if adapter == baseline:
            return values
        lengths = [len(prompt) + len(sample.ids) for prompt, sample in zip(prompts, samples, strict=True)]
        for indices in batches_by_length(lengths, self.batch_size, self._vocabulary):
            batch = self._batch([prompts[i] for i in indices], [samples[i].ids for i in indices])
            with adapter_active(self.model, adapter):
                policy = self._logits(batch)
            with adapter_active(self.model, baseline):
                reference = self._logits(batch)
            mask = batch["completion_mask"][:, 1:].bool()
            divergence = torch.where(mask, exact_kl(policy[:, :-1], reference[:, :-1]), 0.0).sum(-1)
            for index, value in zip(indices, divergence.tolist(), strict=True):
                values[index] = value
        return values

    @torch.no_grad()
    def completion_logps(
        self, adapter: str | None, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[float]:
        """Sum of each completion's log-probabilities under the policy `adapter`, in nats."""
        values = [0.0] * len(completions)
        lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
        with adapter_active(self.model, adapter):
            for indices in batches_by_length(lengths, self.batch_size, self._vocabulary):
                batch = self._batch([prompts[i] for i in indices], [completions[i] for i in indices])
                logps = completion_logps(self._logits(batch), batch["input_ids"], batch["completion_mask"])
                for index, value in zip(indices, logps.tolist(), strict=True):
                    values[index] = value
        return values

    def preference_margins(self, adapter: str | None, baseline: str | None, pairs: Sequence[PairIds]) -> list[float]:
        """ρ(chosen) - ρ(rejected) of each pair, with ρ the log-ratio of the policy to the baseline, in nats.

        Above 0 the policy raised the chosen answer more than the rejected one (arXiv 2305.18290, equation 5, β = 1).
        """
        prompts = [pair.prompt_ids for pair in pairs] * 2
        completions = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
        policy = self.completion_logps(adapter, prompts, completions)
        reference = self.completion_logps(baseline, prompts, completions)
        ratios = [p - r for p, r in zip(policy, reference, strict=True)]
        return [ratios[i] - ratios[i + len(pairs)] for i in range(len(pairs))]

    @property
    def _vocabulary(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    def _batch(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        batch = prompt_completion_batch(prompts, completions, self.tokenizer.pad_token_id)
        device = next(self.model.parameters()).device
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        output = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        logits: Tensor = output.logits
        return logits

"""Measure policies on the same held-out prompts: what they say, how far they moved, and which answers they prefer.

All policies are adapters on one base, so measuring ten costs the memory of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.losses.logprobs import completion_logps, entropy, exact_kl
from prefopt.models.batches import batches_by_length, prompt_completion_batch
from prefopt.models.generate import Sampled, SamplingOptions, sample
from prefopt.models.roles import adapter_active
from prefopt.models.soft_prompt import SoftPrompt, WithSoftPrompt


@dataclass(frozen=True)
class PairIds:
    """A tokenised held-out pair."""

    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]


class Along(NamedTuple):
    """Measurements along completions, one value for each.

    Attributes:
        kl: KL(policy ‖ baseline) in nats, summed over the completion; 0 for the baseline itself.
        entropy: Of the next token in nats, averaged over the completion.
    """

    kl: list[float]
    entropy: list[float]


@dataclass(frozen=True)
class PolicyBench:
    """A model with frozen adapters, measured one adapter at a time.

    Attributes:
        model: The base with every policy's adapter on it.
        tokenizer: Its tokenizer.
        batch_size: Rows of one forward pass.
        soft_prompts: Names of further policies, which read vectors before every prompt.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 64
    soft_prompts: Mapping[str, SoftPrompt] = field(default_factory=dict)

    def sample(
        self,
        adapter: str | None,
        prompts: Sequence[Sequence[int]],
        options: SamplingOptions,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Sampled]:
        """One completion for each prompt from the policy `adapter`; None is the base."""
        with self._computing(adapter) as model:
            return sample(model, self.tokenizer, prompts, options, progress)

    @contextmanager
    def _computing(self, policy: str | None) -> Iterator[nn.Module]:
        """Within the block what is given computes the policy."""
        prompt = self.soft_prompts.get(policy or "")
        with adapter_active(self.model, policy if prompt is None else prompt.adapter):
            yield self.model if prompt is None else WithSoftPrompt(self.model, prompt.vectors)

    @torch.no_grad()
    def along(
        self, adapter: str | None, baseline: str | None, prompts: Sequence[Sequence[int]], samples: Sequence[Sampled]
    ) -> Along:
        """How far a policy is from a baseline, and how undecided, along completions.

        The KL is that of exact next-token distributions, summed: averaged over completions sampled from the policy at
        temperature 1 it is an unbiased estimate of the KL of whole completions.
        """
        kl, undecided = [0.0] * len(samples), [0.0] * len(samples)
        lengths = [len(prompt) + len(sample.ids) for prompt, sample in zip(prompts, samples, strict=True)]
        for indices in batches_by_length(lengths, self.batch_size, self._vocabulary):
            batch = self._batch([prompts[i] for i in indices], [samples[i].ids for i in indices])
            mask = batch["completion_mask"][:, 1:].bool()
            with self._computing(adapter) as model:
                policy = _logits(model, batch)[:, :-1]
            means = torch.where(mask, entropy(policy), 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
            for index, value in zip(indices, means.tolist(), strict=True):
                undecided[index] = value
            if adapter == baseline:
                continue
            with self._computing(baseline) as model:
                reference = _logits(model, batch)[:, :-1]
            divergence = torch.where(mask, exact_kl(policy, reference), 0.0).sum(-1)
            for index, value in zip(indices, divergence.tolist(), strict=True):
                kl[index] = value
        return Along(kl, undecided)

    @torch.no_grad()
    def completion_logps(
        self, adapter: str | None, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[float]:
        """Sum of each completion's log-probabilities under the policy `adapter`, in nats."""
        values = [0.0] * len(completions)
        lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
        with self._computing(adapter) as model:
            for indices in batches_by_length(lengths, self.batch_size, self._vocabulary):
                batch = self._batch([prompts[i] for i in indices], [completions[i] for i in indices])
                logps = completion_logps(_logits(model, batch), batch["input_ids"], batch["completion_mask"])
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


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return logits

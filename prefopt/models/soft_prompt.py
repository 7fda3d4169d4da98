"""Sampling from a student, its teacher, or the policy that it started from; soft prompts included.

A soft prompt is some vectors before the embeddings of every prompt, on a frozen model (PEFT prompt tuning, arXiv
2104.08691). PEFT puts them there in `generate` alone, and `prefopt.models.generate` samples by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from prefopt.models.distill_policy import Against, DistillPolicy
from prefopt.models.generate import Sampled, SamplingOptions, sample


class WithSoftPrompt(nn.Module):
    """A frozen model that reads its soft prompt before every row, as a causal language model.

    Args:
        peft: With a soft prompt.
    """

    _is_stateful = False

    def __init__(self, peft: PeftModel) -> None:
        super().__init__()
        self._peft = peft
        self.config = peft.config
        self.generation_config = peft.get_base_model().generation_config
        self.train(peft.training)

    def _supports_default_dynamic_cache(self) -> bool:
        return bool(self._peft.get_base_model()._supports_default_dynamic_cache())

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Any,
        **kwargs: Any,
    ) -> Any:
        """As that of the model; the vectors are in the cache after the first call.

        Args:
            input_ids: [B, t], padded on the left.
            attention_mask: [B, T], of all tokens so far; the vectors are not among them.
            position_ids: [B, t]; the vectors are not counted.
            past_key_values: The cache, empty in the first call.
            kwargs: Passed on.
        """
        base = self._peft.get_base_model()
        vectors = self._peft.get_prompt(len(input_ids))
        count = vectors.shape[1]
        mask = torch.cat([attention_mask.new_ones(len(input_ids), count), attention_mask], 1)
        embedded, positions = base.get_input_embeddings()(input_ids), position_ids + count
        if past_key_values.get_seq_length() == 0:
            first = torch.arange(count, device=positions.device).expand(len(input_ids), count)
            embedded = torch.cat([vectors.to(embedded.dtype), embedded], 1)
            positions = torch.cat([first, positions], 1)
        return base(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past_key_values,
            **kwargs,
        )


def sample_from(
    policy: DistillPolicy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions,
    uniforms: Tensor | None,
    whose: Against | None,
) -> list[Sampled]:
    """One completion of each prompt, by the student or by whom it is compared with.

    Args:
        policy: The student and its teacher.
        tokenizer: Decodes the completions.
        prompts: Token ids, of the student's or of the teacher's prompts.
        options: How to sample.
        uniforms: [N, max_new_tokens], the random number of each token; torch's random state when None.
        whose: The student's when None.
    """
    if whose is None:
        model: nn.Module = WithSoftPrompt(policy.peft) if policy.soft_prompt else policy.peft
        return sample(model, tokenizer, prompts, options, uniforms=uniforms)
    with policy.active(whose):
        other = policy.decoder(whose)
        if isinstance(other, PeftModel) and policy.soft_prompt:
            other = other.get_base_model()
        return sample(other, tokenizer, prompts, options, uniforms=uniforms)

"""Soft prompts: vectors before the embeddings of every prompt, on a frozen model (prompt tuning, arXiv 2104.08691).

PEFT puts them there in `generate` alone, and `prefopt.models.generate` samples by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from peft.utils import load_peft_weights
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.errors import InputError, IntegrityError
from prefopt.models.distill_policy import Against, DistillPolicy
from prefopt.models.generate import Sampled, SamplingOptions, sample
from prefopt.models.roles import POLICY, VECTORS


class SoftPrompt(NamedTuple):
    """A trained soft prompt, on the model that it was trained on.

    Attributes:
        adapter: Name of the adapter that is active below it; None for the base.
        vectors: [k, H].
    """

    adapter: str | None
    vectors: Tensor


class WithSoftPrompt(nn.Module):
    """A model that reads a soft prompt before every row, as a causal language model.

    Args:
        model: With a cache of keys and values; what is active on it computes.
        vectors: [k, H].
    """

    _is_stateful = False

    def __init__(self, model: PreTrainedModel | PeftModel, vectors: Tensor) -> None:
        super().__init__()
        self._model = model
        self._base: list[Any] = [model.get_base_model() if isinstance(model, PeftModel) else model]
        self._vectors = vectors
        self.config = model.config
        self.generation_config = self._base[0].generation_config
        self.train(model.training)

    def _supports_default_dynamic_cache(self) -> bool:
        return bool(self._base[0]._supports_default_dynamic_cache())

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As that of the model, with logits of the tokens alone; the vectors are in the cache after the first call.

        Args:
            input_ids: [B, t], padded on the left where there is a cache, on the right without.
            attention_mask: [B, T], of all tokens so far; the vectors are not among them.
            position_ids: [B, t]; the vectors are not counted. Needed where there is a cache.
            past_key_values: The cache, empty in the first call; None for none.
            kwargs: Passed on.
        """
        base, rows, count = self._base[0], len(input_ids), len(self._vectors)
        mask = torch.cat([attention_mask.new_ones(rows, count), attention_mask], 1)
        embedded = base.get_input_embeddings()(input_ids)
        positions = None if position_ids is None else position_ids + count
        first = past_key_values is None or past_key_values.get_seq_length() == 0
        if first:
            vectors = self._vectors.to(embedded).expand(rows, *self._vectors.shape)
            embedded = torch.cat([vectors, embedded], 1)
        if first and positions is not None:
            positions = torch.cat([torch.arange(count, device=positions.device).expand(rows, count), positions], 1)
        output = base(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past_key_values,
            **kwargs,
        )
        output.logits = output.logits[:, -input_ids.shape[1] :]
        return output


def soft_prompt_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, text: str | None = None
) -> PeftModel:
    """Put a new soft prompt, named `policy`, before a frozen model.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        count: Vectors.
        text: Whose tokens' embeddings they start as, again and again or as many as fit; those of tokens drawn from the
            vocabulary when None (section 3.2 of the paper: better than random vectors).

    Raises:
        InputError: When the text has no tokens, or the model keeps a state instead of keys and values.
    """
    if model._is_stateful:
        raise InputError(
            f"{type(model).__name__} keeps a state instead of keys and values, and takes no soft prompt",
            "train an adapter: leave `soft_prompt` out",
        )
    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=count, prompt_tuning_init="RANDOM" if text else "SAMPLE_VOCAB"
    )
    peft = get_peft_model(model, config, adapter_name=POLICY)
    if text:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise InputError(f"'{text}' has no tokens, so no vector can start from it")
        table = model.get_input_embeddings().weight
        with torch.no_grad():
            started = table[torch.tensor((ids * -(-count // len(ids)))[:count], device=table.device)]
            peft.prompt_encoder[POLICY].embedding.weight.copy_(started)
    return peft


def read_soft_prompt(folder: Path) -> Tensor:
    """The vectors [k, H] of a folder that PEFT wrote.

    Raises:
        IntegrityError: When it holds none.
    """
    found = load_peft_weights(str(folder), device="cpu")
    if set(found) != {VECTORS}:
        raise IntegrityError(f"{folder} holds no soft prompt: {', '.join(sorted(found))}")
    vectors: Tensor = found[VECTORS]
    return vectors


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
        model: nn.Module = policy.peft
        if policy.soft_prompt:
            model = WithSoftPrompt(policy.peft.get_base_model(), policy.peft.get_prompt(1)[0].detach())
        return sample(model, tokenizer, prompts, options, uniforms=uniforms)
    with policy.active(whose):
        other = policy.decoder(whose)
        if isinstance(other, PeftModel) and policy.soft_prompt:
            other = other.get_base_model()
        return sample(other, tokenizer, prompts, options, uniforms=uniforms)

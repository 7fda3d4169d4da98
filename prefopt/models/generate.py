"""Sample completions: prompts sorted by length, left-padded, batched, and reproducible from a seed.

Shape suffixes: B prompts of a batch, T positions, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from prefopt.models.batches import pad_rows
from prefopt.models.modes import evaluating, plain_sampling


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample.

    Attributes:
        max_new_tokens: Completions are cut there and count as unfinished.
        temperature: Divides the logits; 0 is greedy.
        top_p: Share of probability kept, in (0, 1].
        batch_size: Prompts in one call.
        seed: Completions depend on it, the weights, the prompts and the batch size alone.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Sampled:
    """One sampled completion.

    Attributes:
        ids: Tokens, the end token included where the policy ended by itself.
        text: Decoded, without control tokens.
        finished: Whether the policy ended by itself.
    """

    ids: tuple[int, ...]
    text: str
    finished: bool


def end_token_ids(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a completion: the tokenizer's end token and those of the model's generation config."""
    ends = [tokenizer.eos_token_id]
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    for token in configured if isinstance(configured, list) else [configured]:
        if token is not None and token not in ends:
            ends.append(token)
    return ends


@torch.no_grad()
def sample(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Sampled]:
    """Sample one completion for each prompt.

    Args:
        model: A causal language model with `generate`; the adapters that are active are used.
        tokenizer: Decodes the completions.
        prompts: Token ids; to get several completions of a prompt, repeat it.
        options: How to sample.
        progress: Called with the number of completions done.

    Returns:
        Completions in the order of `prompts`.
    """
    ends = end_token_ids(model, tokenizer)
    config = GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=options.temperature > 0,
        temperature=options.temperature or None,
        top_p=options.top_p if options.temperature > 0 else None,
        top_k=0 if options.temperature > 0 else None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends,
        bos_token_id=tokenizer.bos_token_id,
    )
    device = next(model.parameters()).device
    results: dict[int, Sampled] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    rng_devices = [device] if device.type == "cuda" else []
    with evaluating(model), plain_sampling(model), torch.random.fork_rng(devices=rng_devices):
        torch.manual_seed(options.seed)
        for start in range(0, len(order), options.batch_size):
            indices = order[start : start + options.batch_size]
            rows = [prompts[i] for i in indices]
            input_ids = pad_rows(rows, tokenizer.pad_token_id, left=True).to(device)
            mask = pad_rows([[1] * len(row) for row in rows], 0, left=True).to(device)
            output = model.generate(  # type: ignore[operator]
                input_ids=input_ids, attention_mask=mask, generation_config=config
            )
            for index, row in zip(indices, output[:, input_ids.shape[1] :].tolist(), strict=True):
                results[index] = _cut(row, ends, tokenizer)
            progress(len(results))
    return [results[i] for i in range(len(prompts))]


def _cut(row: list[int], ends: list[int], tokenizer: PreTrainedTokenizerBase) -> Sampled:
    """Everything up to the first end token, by position: the padding token may be an end token as well."""
    end = next((i for i, token in enumerate(row) if token in ends), None)
    ids = row if end is None else row[: end + 1]
    text = tokenizer.decode(ids if end is None else ids[:-1], skip_special_tokens=True)
    return Sampled(tuple(ids), text, end is not None)

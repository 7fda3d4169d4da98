"""Sample completions: prompts sorted by length, left-padded, batched, and reproducible from a seed.

Shape suffixes: B prompts of a batch, T positions, V vocabulary entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StopStringCriteria,
)

from prefopt.models.batches import pad_rows
from prefopt.models.draw import Draw
from prefopt.models.draw import SamplingOptions as SamplingOptions
from prefopt.models.modes import evaluating, merged, plain_sampling
from prefopt.models.roomy_cache import roomy_cache


@dataclass(frozen=True)
class Sampled:
    """One sampled completion.

    Attributes:
        ids: Tokens, the end token included where the policy ended by itself.
        text: Decoded, without control tokens.
        finished: Whether the policy ended by itself, with an end token or a stop string.
        logps: The policy's log-probability of each token at the temperature of sampling, nats; empty unless asked for.
        entropies: Of the policy's distribution of each token at that temperature, nats; empty unless asked for.
        probed: What a probe says of the state that each token was drawn from; empty without one.
        expected: How often the words of each watch were to be expected in it; see `prefopt.models.token_watch`.
    """

    ids: tuple[int, ...]
    text: str
    finished: bool
    logps: tuple[float, ...] = ()
    entropies: tuple[float, ...] = ()
    probed: tuple[float, ...] = ()
    expected: tuple[float, ...] = ()


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
    uniforms: Tensor | None = None,
) -> list[Sampled]:
    """Sample one completion for each prompt.

    Args:
        model: A causal language model with `generate`; the adapters that are active are used.
        tokenizer: Decodes the completions.
        prompts: Token ids; to get several completions of a prompt, repeat it.
        options: How to sample.
        progress: Called with the number of completions done.
        uniforms: [N, max_new_tokens], float64 in [0, 1): the random number of each token. A completion then depends on
            its own row alone, and not on what is sampled beside it (beyond the rounding of logits).

    Returns:
        Completions in the order of `prompts`.
    """
    ends = end_token_ids(model, tokenizer)
    device = next(model.parameters()).device
    complete = _complete if _keeps_a_plain_cache(model) else _complete_by_generate
    stops = StopStringCriteria(tokenizer, list(options.stop)) if options.stop else None
    results: dict[int, Sampled] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    rng_devices = [device] if device.type == "cuda" else []
    listening = nullcontext() if options.probe is None else options.probe.listening(model)
    with evaluating(model), plain_sampling(model), merged(model), torch.random.fork_rng(devices=rng_devices), listening:
        torch.manual_seed(options.seed)
        for start in range(0, len(order), options.batch_size):
            indices = order[start : start + options.batch_size]
            rows = [prompts[i] for i in indices]
            input_ids = pad_rows(rows, tokenizer.pad_token_id, left=True).to(device)
            mask = pad_rows([[1] * len(row) for row in rows], 0, left=True).to(device)
            numbers = None if uniforms is None else uniforms[indices].to(device)
            draw = Draw(options, torch.tensor(ends, device=device), len(rows), numbers)
            written = complete(model, input_ids, mask, _Ends(ends, stops), draw, options)
            for index, row, said, masses in zip(indices, written, draw.said, draw.masses, strict=True):
                cut = _cut(row, said, ends, tokenizer, options.stop)
                expected = tuple(map(math.fsum, zip(*masses[: len(cut.ids)], strict=True)))
                results[index] = replace(cut, expected=expected) if options.watch else cut
            progress(len(results))
    return [results[i] for i in range(len(prompts))]


@torch.no_grad()
def beam_search(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions,
    beams: int,
) -> list[Sampled]:
    """The likeliest completion of each prompt that a search with so many beams finds; by `generate` of transformers.

    Args:
        model: A causal language model with `generate`; the adapters that are active are used.
        tokenizer: Decodes the completions.
        prompts: Token ids.
        options: `max_new_tokens`, `min_new_tokens` and `batch_size` count.
        beams: At least 1; 1 is greedy.
    """
    ends = end_token_ids(model, tokenizer)
    device = next(model.parameters()).device
    config = GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=options.min_new_tokens or None,
        do_sample=False,
        num_beams=beams,
        pad_token_id=ends[0],  # rows are cut at their first end
        eos_token_id=list(ends),
    )
    found: list[Sampled] = []
    with evaluating(model), plain_sampling(model):
        for start in range(0, len(prompts), options.batch_size):
            rows = prompts[start : start + options.batch_size]
            input_ids = pad_rows(rows, tokenizer.pad_token_id, left=True).to(device)
            mask = pad_rows([[1] * len(row) for row in rows], 0, left=True).to(device)
            output = model.generate(input_ids=input_ids, attention_mask=mask, generation_config=config)  # type: ignore[operator]
            found += [_cut(row, [], ends, tokenizer, ()) for row in output[:, input_ids.shape[1] :].tolist()]
    return found


def _keeps_a_plain_cache(model: torch.nn.Module) -> bool:
    """Whether the model keeps keys and values per row, so that rows can leave; a state space model does not."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return not base._is_stateful and bool(base._supports_default_dynamic_cache())


class _Ends:
    """Which rows have ended.

    Args:
        tokens: That end a row.
        strings: That do; None for none.
    """

    def __init__(self, tokens: Sequence[int], strings: StopStringCriteria | None) -> None:
        self.tokens = tokens
        self.strings = strings

    def among(self, completions: Tensor) -> Tensor:
        """Whether each row of new tokens [b, t] has ended with its last, [b]."""
        ended = torch.isin(completions[:, -1], torch.tensor(self.tokens, device=completions.device))
        return ended if self.strings is None else ended | self.strings(completions, None)


def _complete(
    model: torch.nn.Module, input_ids: Tensor, mask: Tensor, ends: _Ends, draw: Draw, options: SamplingOptions
) -> list[list[int]]:
    """New tokens of every row [B, P]; a row that has ended leaves the batch, which is most of the work in the end."""
    cache = roomy_cache(model.config, input_ids.shape[1] + options.max_new_tokens)
    rows = torch.arange(len(input_ids), device=input_ids.device)
    written: list[list[int]] = [[] for _ in range(len(input_ids))]
    completions = input_ids[:, :0]
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    for step in range(options.max_new_tokens):
        logits = model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        tokens = draw(logits.float(), step, rows)
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            written[row].append(token)
        completions = torch.cat([completions, tokens[:, None]], 1)
        going = ~ends.among(completions)
        if not going.any():
            break
        if not going.all():
            stay = _moved_up(going)
            cache.batch_select_indices(stay)
            rows, tokens, mask, position_ids = rows[stay], tokens[stay], mask[stay], position_ids[stay]
            completions = completions[stay]
        input_ids, position_ids = tokens[:, None], position_ids[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    return written


def _moved_up(going: Tensor) -> Tensor:
    """Rows that go on, of [b] flags; the last take the places of those that ended, so that few rows move."""
    stay = going.nonzero().flatten()
    places = torch.arange(len(stay), device=going.device)
    free = ~going[: len(stay)]
    places[free] = stay[stay >= len(stay)]
    return places


class _Drawn(LogitsProcessor):  # type: ignore[misc]
    """Leaves `generate` the token that was drawn and no other."""

    def __init__(self, draw: Draw, prompt_length: int) -> None:
        self._draw = draw
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = torch.arange(len(scores), device=scores.device)
        tokens = self._draw(scores.float(), input_ids.shape[1] - self._prompt_length, rows)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


def _complete_by_generate(
    model: torch.nn.Module, input_ids: Tensor, mask: Tensor, ends: _Ends, draw: Draw, options: SamplingOptions
) -> list[list[int]]:
    """As `_complete`, for models that know best how their state is kept."""
    config = GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=False,
        pad_token_id=ends.tokens[0],  # rows are cut at their first end
        eos_token_id=list(ends.tokens),
    )
    stopped = _Stopped(ends, *input_ids.shape)
    output = model.generate(  # type: ignore[operator]
        input_ids=input_ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=[_Drawn(draw, input_ids.shape[1])],
        stopping_criteria=None if ends.strings is None else [stopped],
    )
    found: list[list[int]] = output[:, input_ids.shape[1] :].tolist()
    return [row[: stopped.lengths.get(number)] for number, row in enumerate(found)]


class _Stopped(StoppingCriteria):  # type: ignore[misc]
    """Tells `generate` which rows have ended, with a string or a token.

    Attributes:
        lengths: Of the rows that have, the number of tokens up to their end; `generate` fills them up afterwards.
    """

    def __init__(self, ends: _Ends, rows: int, prompt_length: int) -> None:
        self._ends = ends
        self._going = set(range(rows))
        self._prompt_length = prompt_length
        self.lengths: dict[int, int] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        completions = input_ids[:, self._prompt_length :]
        ended = self._ends.among(completions)
        for row in self._going.intersection(ended.nonzero().flatten().tolist()):
            self.lengths[row] = completions.shape[1]
            self._going.remove(row)
        return ended


def beginning(tokenizer: PreTrainedTokenizerBase, sampled: Sampled, count: int) -> str:
    """The text of a completion's first tokens, without what a stop string has cut from its end."""
    ids = np.asarray(sampled.ids[:count], dtype=np.int64)  # of a list, `decode` would look at the type of every token
    return str(tokenizer.decode(ids, skip_special_tokens=True))[: len(sampled.text)]


def _cut(
    row: list[int],
    said: list[tuple[float, ...]],
    ends: list[int],
    tokenizer: PreTrainedTokenizerBase,
    stop: Sequence[str],
) -> Sampled:
    """Everything up to the first end token, by position: the padding token may be an end token as well."""
    end = next((i for i, token in enumerate(row) if token in ends), None)
    ids = row if end is None else row[: end + 1]
    text = tokenizer.decode(ids if end is None else ids[:-1], skip_special_tokens=True)
    found = [text.index(string) for string in stop if string in text]
    if found:
        text = text[: min(found)]
    columns = zip(*said[: len(ids)], strict=True)
    return Sampled(tuple(ids), text, end is not None or bool(found), *columns)

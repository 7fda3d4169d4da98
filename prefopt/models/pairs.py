"""Preference pairs that share their prompt: one row of tokens, `prompt | chosen | rejected` pair after pair.

A completion sees its own prompt and itself, and nothing else: positions start again after the prompt, and attention is
computed block by block. So a prompt is computed once instead of twice, and nothing is padded. Rows with one completion
are pairs whose rejected one has no tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

# A pair of up to so many tokens goes through one call of the attention kernel, with a mask: calls cost more than what
# is masked. A longer one has a call for each part, which skips what lies above the diagonal. Pairs are not masked from
# each other in one call: that took up to a third longer, and what a pair gives would depend on those beside it.
BLOCK_TOKENS = 96
_FLEX_BLOCK = 128


@dataclass(frozen=True)
class Block:
    """A pair, as it goes through attention.

    Attributes:
        start: Its first token.
        end: One after its last.
        lengths: Tokens of prompt, chosen and rejected completion.
    """

    start: int
    end: int
    lengths: tuple[int, int, int]

    @property
    def parts(self) -> tuple[int, ...]:
        """Tokens of the parts that are computed apart."""
        return self.lengths if self.is_split else (self.end - self.start,)

    @property
    def is_split(self) -> bool:
        """Whether it is a long pair, whose parts are computed apart."""
        return self.end - self.start > BLOCK_TOKENS


class PairLayout:
    """Where everything is in a batch of `prefopt.models.batches.PairCollator`.

    Args:
        lengths: [B, 3], tokens of prompt, chosen and rejected completion of each pair.
        device: Of the tokens.

    Attributes:
        position_ids: [1, N].
        states: [n], where the states are that predict the completions' tokens, all pairs' chosen ones first. A first
            token without a prompt before it is predicted by nothing, and left out.
        targets: [n], where those tokens are.
        completion: [n], the completion each belongs to: pair i has i and B + i.
        offset: [n], the number of the token in its completion, from 0.
        last: [2B], the last token of each completion, or the one before it where it has no tokens.
        wanted: Positions whose last states are asked for, each once; None for all.
    """

    def __init__(self, lengths: Tensor, device: torch.device) -> None:
        self.lengths = [(int(p), int(c), int(r)) for p, c, r in lengths.tolist()]
        self.device = device
        starts = [0]
        for pair in self.lengths:
            starts.append(starts[-1] + sum(pair))
        self.starts, self.tokens = starts[:-1], starts[-1]
        positions, states, targets, owners, offsets, last = [], [], [], [], [], []
        for prompt, chosen, rejected in self.lengths:
            positions += [torch.arange(prompt + chosen), torch.arange(prompt, prompt + rejected)]
        for side in (0, 1):
            for number, (start, (prompt, chosen, rejected)) in enumerate(zip(self.starts, self.lengths, strict=True)):
                size, first = (rejected, start + prompt + chosen) if side else (chosen, start + prompt)
                skipped = 0 if prompt else 1
                target = torch.arange(first + skipped, first + size)
                state = target - 1
                if prompt and size:
                    state[0] = start + prompt - 1
                states.append(state)
                targets.append(target)
                owners.append(torch.full_like(target, number + side * len(self.lengths)))
                offsets.append(torch.arange(skipped, size))
                last.append(first + size - 1)
        self.position_ids = torch.cat(positions).unsqueeze(0).to(device)
        self.states, self.targets, self.completion, self.offset = (
            torch.cat(parts).to(device) for parts in (states, targets, owners, offsets)
        )
        self.last = torch.tensor(last, device=device)
        self.wanted: Tensor | None = None
        self._seen: dict[int | None, Callable[[Tensor, Tensor], Tensor]] = {}
        self._masks: dict[tuple[object, ...], Tensor] = {}
        self._flex: dict[int | None, BlockMask] = {}

    @cached_property
    def blocks(self) -> list[Block]:
        """All pairs in order."""
        return [
            Block(start, start + sum(pair), pair)
            for start, pair in zip(self.starts, self.lengths, strict=True)
            if sum(pair)
        ]

    def block_mask(self, block: Block, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of a block, [1, 1, L, L]: 0 where a token is seen, -inf elsewhere.

        Args:
            block: One of `blocks`.
            window: A token sees those less than so many positions before it; None for all.
            dtype: Of the scores.
        """
        key = (block.lengths, window, dtype)
        if key not in self._masks:
            index = torch.arange(block.start, block.end, device=self.device)
            visible = self._sees(window)(index.unsqueeze(1), index.unsqueeze(0))
            self._masks[key] = _additive(visible, dtype)
        return self._masks[key]

    def part_mask(self, queries: int, before: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """The same of a run of positions that sees itself and what is before it, [1, 1, queries, before + queries]."""
        key = (queries, before, window, dtype)
        if key not in self._masks:
            distance = torch.arange(before, before + queries, device=self.device).unsqueeze(1) - torch.arange(
                before + queries, device=self.device
            )
            self._masks[key] = _additive((distance >= 0) & (distance < (window or before + queries)), dtype)
        return self._masks[key]

    def flex_mask(self, window: int | None) -> BlockMask:
        """For flex attention on the whole row; tokens that fill it up to whole blocks see themselves."""
        if window not in self._flex:
            seen = self._sees(window)
            size = self.padded_tokens
            self._flex[window] = create_block_mask(
                lambda batch, head, query, key: seen(query, key), None, None, size, size, str(self.device)
            )
        return self._flex[window]

    @property
    def padded_tokens(self) -> int:
        """Tokens up to a whole number of flex attention's blocks."""
        return -(-self.tokens // _FLEX_BLOCK) * _FLEX_BLOCK

    def _sees(self, window: int | None) -> Callable[[Tensor, Tensor], Tensor]:
        """Whether the token at an index of the row sees the one at another; asked for by every pair."""
        if window in self._seen:
            return self._seen[window]
        fill = self.padded_tokens - self.tokens
        sizes = torch.tensor(self.lengths + ([(fill, 0, 0)] if fill else []), device=self.device)
        pair = torch.repeat_interleave(torch.arange(len(sizes), device=self.device), sizes.sum(1))
        part = torch.repeat_interleave(torch.arange(3, device=self.device).repeat(len(sizes)), sizes.flatten())
        position = torch.cat([self.position_ids[0], torch.arange(fill, device=self.device)])

        def sees(query: Tensor, key: Tensor) -> Tensor:
            same = (pair[query] == pair[key]) & ((part[key] == 0) | (part[key] == part[query]))
            visible = same & (query >= key)
            if window is not None:
                visible = visible & (position[query] - position[key] < window)
            return visible

        self._seen[window] = sees
        return sees


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, -torch.inf)[None, None]


def without_padding(input_ids: Tensor, attention_mask: Tensor, prompt_length: int) -> tuple[Tensor, PairLayout]:
    """Padded rows as one row of tokens, each with one completion.

    Args:
        input_ids: [B, P + L].
        attention_mask: [B, P + L], 0 on padding.
        prompt_length: P.

    Returns:
        [1, N], and where everything is: `states` and `targets` are in the order of the rows.
    """
    parts = [attention_mask[:, :prompt_length].sum(1), attention_mask[:, prompt_length:].sum(1)]
    lengths = torch.stack([*parts, torch.zeros_like(parts[0])], 1)
    return input_ids[attention_mask.bool()].unsqueeze(0), PairLayout(lengths, input_ids.device)

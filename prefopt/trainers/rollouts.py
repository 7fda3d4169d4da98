"""What a policy did: the episodes of one rollout as tensors, the prompts they answer, and minibatches of them.

Everything here follows from the seed and the number of the rollout, so a rollout can be made again after a kill.

Shape suffixes: N episodes, P prompt positions (padded on the left), L completion positions (padded on the right).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from prefopt.models.batches import pad_rows
from prefopt.models.generate import Sampled


@dataclass(frozen=True)
class Rollouts:
    """Episodes, aligned by row.

    Attributes:
        input_ids: [N, P + L].
        attention_mask: [N, P + L], 0 on padding on either side.
        mask: [N, L], 1 on completion tokens, the end token included.
        learned: [N, L], 1 on those that the losses count: all of them, or those of finished completions.
        logps: [N, L], of the policy that sampled, nats.
        reference_logps: [N, L], nats.
        values: [N, L], before each token.
        advantages: [N, L], whitened.
        returns: [N, L], what the values should have been.
    """

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor
    learned: Tensor
    logps: Tensor
    reference_logps: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    @property
    def prompt_length(self) -> int:
        """P."""
        return self.input_ids.shape[1] - self.mask.shape[1]

    @property
    def completions(self) -> Tensor:
        """Tokens of the completions, [N, L]."""
        return self.input_ids[:, self.prompt_length :]

    def __len__(self) -> int:
        return len(self.input_ids)

    def select(self, indices: Tensor) -> Rollouts:
        """Some of the episodes, without the padding that none of them needs."""
        rows = {field.name: getattr(self, field.name)[indices] for field in fields(self)}
        prompt = self.prompt_length
        left = int(prompt - rows["attention_mask"][:, :prompt].sum(1).max())
        length = int(rows["mask"].sum(1).max())
        whole, part = slice(left, prompt + length), slice(0, length)
        return Rollouts(
            **{name: rows[name][:, whole if name in ("input_ids", "attention_mask") else part] for name in rows}
        )

    def with_what(self, **found: Tensor) -> Rollouts:
        """The same episodes, and what has been found out about them."""
        return replace(self, **found)

    def to(self, device: torch.device) -> Rollouts:
        """The same on a device."""
        return Rollouts(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def episodes(prompts: Sequence[Sequence[int]], samples: Sequence[Sampled], pad_token_id: int) -> Rollouts:
    """Prompts and the completions sampled for them, with everything that is not known yet at 0."""
    left = pad_rows(prompts, pad_token_id, left=True)
    right = pad_rows([sample.ids for sample in samples], pad_token_id)
    mask = pad_rows([[1] * len(sample.ids) for sample in samples], 0)
    prompt_mask = pad_rows([[1] * len(prompt) for prompt in prompts], 0, left=True)
    nothing = torch.zeros(mask.shape)
    return Rollouts(torch.cat([left, right], 1), torch.cat([prompt_mask, mask], 1), mask, mask, *[nothing] * 5)


def seed_of(seed: int, *what: object) -> int:
    """A seed of its own for every use, below 2^63."""
    digest = hashlib.sha256(repr((seed, *what)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def prompt_indices(number: int, size: int, prompts: int, seed: int) -> list[int]:
    """Which prompts a rollout answers: all of them in a random order, then all again in another.

    Args:
        number: Of the rollout, from 0.
        size: Prompts of a rollout.
        prompts: How many prompts there are.
        seed: Of the orders.
    """
    chosen: list[int] = []
    orders: dict[int, list[int]] = {}
    for place in range(number * size, (number + 1) * size):
        turn, index = divmod(place, prompts)
        if turn not in orders:
            generator = torch.Generator().manual_seed(seed_of(seed, "prompts", turn))
            orders[turn] = torch.randperm(prompts, generator=generator).tolist()
        chosen.append(orders[turn][index])
    return chosen


def prompts_of_rollout(
    prompts: Sequence[Mapping[str, Any]], number: int, size: int, each: int, seed: int
) -> list[Mapping[str, Any]]:
    """Prompts of a rollout's episodes; those that answer the same one stand beside each other.

    Args:
        prompts: All there are.
        number: Of the rollout, from 0.
        size: Its episodes.
        each: Episodes that answer the same prompt.
        seed: Of the orders.
    """
    chosen = prompt_indices(number, -(-size // each), len(prompts), seed)
    return [prompts[index] for index in chosen for _ in range(each)][:size]


@dataclass(frozen=True)
class MicroBatch:
    """Episodes of one forward and backward pass.

    Attributes:
        indices: [B], rows of the rollout, over all ranks.
        tokens: Completion tokens that count, of the whole optimiser step that they belong to.
        place: Number of the pass within the step, from 0.
    """

    indices: Tensor
    tokens: Tensor
    place: int


def micro_batches(rollouts: Rollouts, epochs: int, mini_batches: int, size: int, seed: int) -> Iterator[MicroBatch]:
    """Every episode once per epoch, in a new order, cut into minibatches and these into passes.

    Within a minibatch the order makes no difference, so a pass has episodes of like length, which need less padding.

    Args:
        rollouts: N episodes.
        epochs: How often each episode is used.
        mini_batches: Optimiser steps of an epoch.
        size: Most episodes of a pass, over all ranks.
        seed: Of the orders.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths, tokens = rollouts.attention_mask.sum(1), rollouts.learned.sum(1)
    for _ in range(epochs):
        for mini_batch in torch.randperm(len(rollouts), generator=generator).chunk(mini_batches):
            by_length = mini_batch[lengths[mini_batch].argsort(stable=True)]
            total = tokens[mini_batch].sum().clamp(min=1)
            for place, indices in enumerate(torch.split(by_length, size)):
                yield MicroBatch(indices, total, place)

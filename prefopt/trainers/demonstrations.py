"""Text that PPO goes on imitating, so that it forgets less (the PTX term of arXiv 2203.02155, equation 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prefopt.models.generate import Sampled
from prefopt.trainers.rollouts import Rollouts, episodes, prompt_indices, seed_of


class Demonstrations:
    """Some demonstrations for every pass; which ones follows from the seed and the number of the optimiser step.

    Args:
        rows: With `prompt_ids` and `completion_ids`.
        per_step: Demonstrations of an optimiser step, over all ranks and passes.
        seed: Of their order.
        pad_token_id: Fills rows; masked.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], per_step: int, seed: int, pad_token_id: int) -> None:
        self._rows = rows
        self._per_step = per_step
        self._seed = seed_of(seed, "demonstrations")
        self._pad = pad_token_id
        self._of_step: tuple[int, list[Mapping[str, Any]]] = (-1, [])

    def __len__(self) -> int:
        """How many there are."""
        return len(self._rows)

    def of_pass(self, step: int, number: int, passes: int) -> tuple[Rollouts, int]:
        """The demonstrations of one pass, as episodes that were not judged.

        Args:
            step: Number of the optimiser step, from 0.
            number: Of the pass within the step and over all ranks, from 0.
            passes: How many there are.

        Returns:
            Demonstrations, and the completion tokens of the whole step.
        """
        if self._of_step[0] != step:
            indices = prompt_indices(step, self._per_step, len(self._rows), self._seed)
            self._of_step = (step, [self._rows[index] for index in indices])
        chosen = self._of_step[1]
        tokens = sum(len(row["completion_ids"]) for row in chosen)
        rows = chosen[number::passes]
        samples = [Sampled(tuple(row["completion_ids"]), "", True) for row in rows]
        return episodes([row["prompt_ids"] for row in rows], samples, self._pad), tokens


def nll_tokens(logps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each token, nats, 0 outside the mask: [B, L]."""
    return torch.where(mask.bool(), -logps, 0.0)

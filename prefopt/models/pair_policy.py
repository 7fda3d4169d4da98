"""The policy that trains on pairs: log-probabilities of both completions from one forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prefopt.losses.logprobs import CompletionSums, completion_sums, sums_of_tokens
from prefopt.losses.token_statistics import token_statistics
from prefopt.models.batches import padded_pairs
from prefopt.models.lm_head import head_of
from prefopt.models.modes import evaluating
from prefopt.models.pairs import PairLayout
from prefopt.models.roles import reference_active
from prefopt.models.shared_prefix import shared_states
from prefopt.models.wrapped import HoldsPeft


class PairPolicy(HoldsPeft):
    """A policy, and the reference it started from, over batches of `prefopt.models.batches.PairCollator`.

    Args:
        peft: The base with the policy's adapter.

    Where prompts are not shared, the logits are the model's own, all of them.
    """

    def forward(
        self,
        input_ids: Tensor,
        lengths: Tensor,
        *,
        tails: bool = False,
        alignment: bool = False,
        sequential_kl: bool = False,
        flags: Tensor | None = None,
    ) -> CompletionSums:
        """Sums over the completions of B pairs, [2B] each: all chosen, then all rejected.

        Args:
            input_ids: [1, N].
            lengths: [B, 3].
            tails: Whether to compute `tail_logps`, after as many tokens as the shorter completion of the pair has.
            alignment: Whether to compute it.
            sequential_kl: Whether to compute it, against the reference.
            flags: [B, L], what it weighs to unlearn each token of the chosen completions.
        """
        flags = None if flags is None else _of_both(flags, lengths)
        head_length = torch.minimum(lengths[:, 1], lengths[:, 2]).repeat(2) if tails else None
        if not self.shares_prompts:
            return self._padded(
                input_ids, lengths, head_length, alignment=alignment, sequential_kl=sequential_kl, flags=flags
            )
        layout = PairLayout(lengths, input_ids.device)
        reference_states = None
        if sequential_kl:
            with reference_active(self.peft), evaluating(self.peft):
                reference_states = shared_states(self.peft, input_ids, layout, layout.states)
        tokens = token_statistics(
            shared_states(self.peft, input_ids, layout, layout.states),
            input_ids[0, layout.targets],
            head_of(self.peft),
            collision=alignment,
            reference_states=reference_states,
        )
        return sums_of_tokens(tokens, layout.completion, layout.offset, 2 * len(lengths), head_length, flags=flags)

    def _padded(
        self,
        input_ids: Tensor,
        lengths: Tensor,
        head_length: Tensor | None,
        *,
        alignment: bool,
        sequential_kl: bool,
        flags: Tensor | None,
    ) -> CompletionSums:
        batch = padded_pairs({"input_ids": input_ids, "lengths": lengths})

        def logits() -> Tensor:
            output: Any = self.peft(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            )
            return output.logits  # type: ignore[no-any-return]

        reference_logits = None
        if sequential_kl:
            with reference_active(self.peft), evaluating(self.peft):
                reference_logits = logits()
        return completion_sums(
            logits(), batch["input_ids"], batch["completion_mask"],
            head_length=head_length, alignment=alignment, reference_logits=reference_logits, flags=flags,
        )  # fmt: skip


def _of_both(flags: Tensor, lengths: Tensor) -> Tensor:
    """Flags of chosen completions [B, L] as [2B, longest completion], 0 for the rejected ones."""
    width = int(lengths[:, 1:].max())
    found = flags.new_zeros(2 * len(flags), width)
    found[: len(flags), : flags.shape[1]] = flags[:, :width]
    return found

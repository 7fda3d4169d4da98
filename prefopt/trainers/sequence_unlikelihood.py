"""Sequence-level unlikelihood (arXiv 1908.04319, section 5): a policy unlearns what it says itself and should not.

In every n-th optimiser step, the first one among them:

1. Before its passes the policy continues the prompts of the whole step: greedily, in evaluation mode, without a
   gradient and without a random number, all with the same weights.
2. Costs flag tokens of what it said (`prefopt.rewards.flags`).
3. Every pass adds Σ λ_t (-log(1 - p_t)) over what was said to its own rows, divided by the tokens that were sampled in
   the step, over all passes and ranks. So 1x8 equals 8x1.

All that follows from the number of the step and the weights, so a run that was killed goes on as if it had not been.
Evaluations have nothing of it. A step in which nothing is flagged is what it would be without.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from prefopt.losses.unlikelihood import unlikelihood
from prefopt.models.generate import Sampled, SamplingOptions, sample
from prefopt.rewards.flags import FlagCounts, Flags, WeightedCost, flag, samples_of
from prefopt.trainers.averages import Averages
from prefopt.trainers.checkpoints import CheckpointedTrainer

_LOGGER = logging.getLogger(__name__)
_GROUP = "sequence_unlikelihood"
_SAID = "continuations"  # of a batch: a `Continuation` for every row


@dataclass(frozen=True)
class SequenceUnlikelihood:
    """What is unlearned of a policy's own answers, and when.

    Attributes:
        costs: They flag tokens; the weight of each is λ.
        every: Optimiser steps from one that has the term to the next; the first one has it.
        max_new_tokens: Continuations are cut there.
    """

    costs: Sequence[WeightedCost]
    every: int = 2
    max_new_tokens: int = 100


@dataclass(frozen=True)
class Continuation:
    """What the policy said to a prompt, as far as the last token that is to be unlearned.

    Attributes:
        prompt_ids: Tokens of the prompt.
        ids: T tokens.
        weights: Of each of them in the loss of a pass: λ_t by the number of tokens of the step; 0 for most.
    """

    prompt_ids: Sequence[int]
    ids: Sequence[int]
    weights: Sequence[float]


@dataclass
class OwnAnswers:
    """What was said on this rank since training began or went on.

    Attributes:
        steps: Optimiser steps that had the term.
        answers: Continuations.
        prompt_tokens: Of their prompts, added up.
        new_tokens: Of theirs.
        unlearned_tokens: Prompts and continuations that went through the model again.
    """

    steps: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    unlearned_tokens: int = 0


# Ranks go through the model equally often, so a pass of nothing flagged has one row that adds 0.
_NOTHING = Continuation((0,), (0,), (0.0,))


class SequenceUnlikelihoodTrainer(CheckpointedTrainer):
    """Mixes in before another trainer, whose loss gets the term; a subclass gives `prompts_of` and `unlikelihood_of`.

    Args:
        args: Of the other trainer.
        sequence_unlikelihood: None for the other trainer as it is.
        kwargs: Of the other trainer.

    Attributes:
        sequence_unlikelihood: As given.
        own_answers: What was said so far.
    """

    def __init__(self, *args: Any, sequence_unlikelihood: SequenceUnlikelihood | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sequence_unlikelihood = sequence_unlikelihood
        self.own_answers = OwnAnswers()
        self._seen = Averages()
        self._said_too_long = False

    def prompts_of(self, batch: Mapping[str, Any]) -> list[list[int]]:
        """The prompt of every row of a batch; empty for a row that weighs nothing."""
        raise TypeError(f"{type(self).__name__} has no prompts_of")

    def unlikelihood_of(self, model: nn.Module, rows: Sequence[Continuation]) -> Tensor:
        """Σ w_t (-log(1 - p_t)) over the tokens of rows, nats: a scalar with a gradient.

        Args:
            model: The wrapped module: calling anything else would leave gradients unsynchronised between ranks.
            rows: At least one; every row has a token.
        """
        raise TypeError(f"{type(self).__name__} has no unlikelihood_of")

    # -- before the passes of a step -----------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The batches of an optimiser step; where it has the term, with what the policy says to their prompts."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        plan = self.sequence_unlikelihood
        if plan is not None and self.state.global_step % plan.every == 0:
            self._continue(batches, plan)
        return batches, items

    def _continue(self, batches: Sequence[dict[str, Any]], plan: SequenceUnlikelihood) -> None:
        """Put what is to be unlearned into batches; nothing where no rank has any."""
        tokenizer = cast(PreTrainedTokenizerBase, self.processing_class)
        prompts = [self.prompts_of(batch) for batch in batches]
        asked = self._with_room([prompt for each in prompts for prompt in each if prompt], plan.max_new_tokens)
        said = self._greedy(asked, plan.max_new_tokens)
        flags, counts = flag(samples_of(asked, [each.ids for each in said], tokenizer), plan.costs)
        self._note(said, flags, counts, plan)
        self._tally(asked, counts)
        found = torch.tensor([counts.tokens, sum(sum(each.unlikelihood) for each in flags)], device=self.args.device)
        tokens, weight = self.accelerator.gather(found.unsqueeze(0)).double().sum(0).tolist()
        if not weight:
            return
        factor = self.accelerator.num_processes / tokens  # gradients are averaged over ranks
        rows = {  # greedy: a prompt has one answer
            tuple(prompt): _to_unlearn(prompt, sampled, each, factor)
            for prompt, sampled, each in zip(asked, said, flags, strict=True)
        }
        for batch, each in zip(batches, prompts, strict=True):
            batch[_SAID] = [rows.get(tuple(prompt), _NOTHING) for prompt in each]
            self.own_answers.unlearned_tokens += sum(len(row.prompt_ids) + len(row.ids) for row in batch[_SAID])

    def _tally(self, asked: Sequence[Sequence[int]], counts: FlagCounts) -> None:
        self.own_answers.steps += 1
        self.own_answers.answers += counts.completions
        self.own_answers.prompt_tokens += sum(map(len, asked))
        self.own_answers.new_tokens += counts.tokens

    def _with_room(self, prompts: list[list[int]], longest: int) -> list[list[int]]:
        """Prompts after which the model has positions for so many tokens; the others are not continued."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if positions is None:
            return prompts
        kept = [prompt for prompt in prompts if len(prompt) + longest <= positions]
        if len(kept) < len(prompts) and not self._said_too_long:
            self._said_too_long = True
            _LOGGER.warning(
                "sequence_unlikelihood: prompts of more than %d tokens leave no room for %d new ones, and are not "
                "continued",
                *(positions - longest, longest),
            )
        return kept

    def _greedy(self, prompts: Sequence[Sequence[int]], longest: int) -> list[Sampled]:
        """The policy's own likeliest answers, token by token. Not the reference's: the policy is what is active."""
        options = SamplingOptions(longest, temperature=0, batch_size=self.args.per_device_eval_batch_size, say=True)
        policy = self.adapted_model() or self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():
            return sample(policy, cast(PreTrainedTokenizerBase, self.processing_class), prompts, options)

    def _note(
        self, said: Sequence[Sampled], flags: Sequence[Flags], counts: FlagCounts, plan: SequenceUnlikelihood
    ) -> None:
        """Take a step into the averages. Every rank has the same names, also one that continued nothing."""
        loss = 0.0
        for sampled, each in zip(said, flags, strict=True):
            loss += float((torch.tensor(each.unlikelihood) * unlikelihood(torch.tensor(sampled.logps))).sum())
        tokens, completions = max(1, counts.tokens), max(1, counts.completions)
        self._seen.add(f"{_GROUP}/loss", loss / tokens, counts.tokens)
        self._seen.add(f"{_GROUP}/flagged_share", counts.flagged_tokens / tokens, counts.tokens)
        for weighted in plan.costs:
            rate = counts.violating[weighted.cost.label] / completions
            self._seen.add(f"{_GROUP}/{weighted.cost.label}/rate", rate, counts.completions)

    # -- the passes ----------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The other trainer's loss, and what the policy said that is to be unlearned.

        Args:
            model: The wrapped module.
            inputs: A batch, or some rows of it.
            return_outputs: As the other trainer; never in training.
            num_items_in_batch: As the other trainer.
        """
        if _SAID not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rest = {name: value for name, value in inputs.items() if name != _SAID}
        loss = super().compute_loss(model, rest, False, num_items_in_batch)
        flagged = [row for row in inputs[_SAID] if any(row.weights)]
        return loss + self.unlikelihood_of(model, flagged or [_NOTHING])

    def take_rows(self, inputs: dict[str, Any], start: int, end: int) -> dict[str, Any]:
        """Some rows of a batch, with what was said to their prompts."""
        taken = super().take_rows(inputs, start, end)
        return {**taken, _SAID: inputs[_SAID][start:end]} if _SAID in inputs else taken

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages over tokens, and over continuations, since the last log."""
        if "loss" in logs:
            logs |= self._seen.take(self.sum_over_ranks)
        super().log(logs, start_time)


def _to_unlearn(prompt: Sequence[int], said: Sampled, flags: Flags, factor: float) -> Continuation:
    """A continuation as far as its last token that weighs something: what comes after it makes no difference."""
    last = max((place for place, weight in enumerate(flags.unlikelihood) if weight), default=None)
    if last is None:
        return _NOTHING
    weights = [weight * factor for weight in flags.unlikelihood[: last + 1]]
    return Continuation(prompt, said.ids[: last + 1], weights)

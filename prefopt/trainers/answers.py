"""The policy's answers to prompts, and what a reward says of them; ranks share the work, and all of them get all of it.

Shape suffix: N completions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prefopt.errors import DataError
from prefopt.models.generate import Sampled, SamplingOptions, sample
from prefopt.models.state_probe import StateProbe
from prefopt.models.token_offsets import token_offsets
from prefopt.models.token_watch import TokenWatch
from prefopt.records import Prompt, Score
from prefopt.rewards.costs.sample import Sample
from prefopt.rewards.penalties import Penalty
from prefopt.rewards.shaped import ShapedReward
from prefopt.rewards.shaper import Shaper, lazy_offsets
from prefopt.trainers.ranks import shared_out
from prefopt.trainers.stopwatch import Stopwatch

TIMED = SAMPLING, SCORING = "sampling_seconds", "scoring_seconds"
"""What the stopwatch knows, as metrics name it after the method."""

RewardFunction = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float | Score]]


class Sampling(Protocol):
    """The options of a trainer that say how its policy is sampled."""

    @property
    def max_new_tokens(self) -> int:
        """Completions are cut there."""

    @property
    def min_new_tokens(self) -> int:
        """No completion ends before."""

    @property
    def temperature(self) -> float:
        """Divides the logits."""

    @property
    def per_device_eval_batch_size(self) -> int:
        """Completions sampled together."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a completion."""


@dataclass(frozen=True)
class Scores:
    """What episodes were given, [N] each.

    Attributes:
        values: Raw, in the reward's own unit.
        stds: Disagreement between the members of an ensemble, in the same unit; 0 of one.
    """

    values: Tensor
    stds: Tensor


class Answerer:
    """Samples from a policy, and has the samples scored; `stopwatch` knows how long that took.

    Args:
        peft: The policy.
        tokenizer: Of the policy.
        args: Options.
        accelerator: Of the trainer.
        reward: Takes N prompts and N completions and gives N numbers, or scores.
        penalties: The words that they watch for are added up by their probability while completions are sampled.
    """

    def __init__(
        self,
        peft: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        args: Sampling,
        accelerator: Accelerator,
        reward: RewardFunction,
        *,
        penalties: Sequence[Penalty] = (),
    ) -> None:
        self._peft = peft
        self._tokenizer = tokenizer
        self._args = args
        self._accelerator = accelerator
        self._reward = reward
        self.stopwatch = Stopwatch(*TIMED)
        self._probe: StateProbe | None = None
        self._watched = {each.label: TokenWatch(each.watched, tokenizer) for each in penalties if each.watched}

    def activate(self) -> None:
        """Compute with the policy from now on, where the model has other roles that may be active."""

    def answers(self, rows: Sequence[Mapping[str, Any]], seed: int) -> tuple[list[Sampled], Scores]:
        """Completions of prompts and their raw scores.

        The random numbers belong to the prompt's place, so it makes no difference how many ranks share them.
        """
        uniforms = self._uniforms(len(rows), seed)

        def answer(indices: Sequence[int]) -> list[tuple[Sampled, Score]]:
            mine = [rows[index] for index in indices]
            samples = self._sample(mine, uniforms[list(indices)])
            with self.stopwatch.timing(SCORING):
                return list(zip(samples, score_texts(self._reward, mine, samples), strict=True))

        samples, scores = zip(*shared_out(len(rows), answer), strict=True)
        numbers = torch.tensor([(score.value, score.std) for score in scores], dtype=torch.float64).float()
        return list(samples), Scores(numbers[:, 0], numbers[:, 1])

    def samples(self, rows: Sequence[Mapping[str, Any]], seed: int) -> list[Sampled]:
        """Completions alone."""
        uniforms = self._uniforms(len(rows), seed)
        return shared_out(
            len(rows), lambda indices: self._sample([rows[index] for index in indices], uniforms[list(indices)])
        )

    def shaped(
        self, shaper: Shaper, rows: Sequence[Mapping[str, Any]], samples: Sequence[Sampled], scores: Scores
    ) -> ShapedReward:
        """Rewards of completions at the prices of now."""
        finished = torch.tensor([sample.finished for sample in samples])
        return shaper.shape(scores.values, scores.stds, finished, self._measurable(rows, samples), shared_out)

    def show_reference(self, shaper: Shaper, rows: Sequence[Mapping[str, Any]], seed: int) -> None:
        """Let the shaper see completions of the reference, which the policy still equals: they say what is usual."""
        samples, scores = self.answers(rows, seed)
        shaper.see(scores.values, scores.stds, self._measurable(rows, samples), shared_out)
        self.stopwatch.take()  # no part of a rollout

    def _measurable(self, rows: Sequence[Mapping[str, Any]], samples: Sequence[Sampled]) -> list[Sample]:
        """Completions as costs see them."""
        where = partial(token_offsets, self._tokenizer)
        return [
            Sample(
                row["prompt"],
                said.text,
                said.ids,
                said.finished,
                offsets=lazy_offsets(where, said.ids, said.text),
                expected=dict(zip(self._watched, said.expected, strict=True)),
                drawn=frozenset(label for label, watch in self._watched.items() if watch.drew(said.ids)),
            )
            for row, said in zip(rows, samples, strict=True)
        ]

    def _uniforms(self, rows: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(rows, self._args.max_new_tokens, dtype=torch.float64, generator=generator)

    def _sample(self, rows: Sequence[Mapping[str, Any]], uniforms: Tensor) -> list[Sampled]:
        options = SamplingOptions(
            max_new_tokens=self._args.max_new_tokens,
            min_new_tokens=self._args.min_new_tokens,
            temperature=self._args.temperature,
            batch_size=self._args.per_device_eval_batch_size,
            stop=self._args.stop,
            say=True,
            watch=tuple(self._watched.values()),
            probe=self._probe,
        )
        self.activate()
        prompts = [row["prompt_ids"] for row in rows]
        with self._accelerator.autocast(), self.stopwatch.timing(SAMPLING):
            return sample(self._peft, self._tokenizer, prompts, options, uniforms=uniforms)


def score_texts(reward: RewardFunction, rows: Sequence[Mapping[str, Any]], samples: Sequence[Sampled]) -> list[Score]:
    """Raw rewards of the decoded texts; see `scores_of`."""
    return scores_of(reward, [row["prompt"] for row in rows], [sample.text for sample in samples])


def scores_of(reward: RewardFunction, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Score]:
    """Raw rewards of texts.

    Raises:
        DataError: When they are not as many finite numbers, or scores.
    """
    values = reward(prompts, texts)
    try:
        scores = [each if isinstance(each, Score) else Score(float(each)) for each in values]
    except (TypeError, ValueError) as error:
        raise DataError(f"the reward must give {len(texts)} finite numbers, and gave {values!r:.200}") from error
    if len(scores) != len(texts):
        raise DataError(f"the reward must give {len(texts)} finite numbers, and gave {values!r:.200}")
    return scores

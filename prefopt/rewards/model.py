"""A reward model as a scorer: text in, scores out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from prefopt.data.templates import Encoder
from prefopt.errors import DataError
from prefopt.models.batches import batches_by_length, pad_rows
from prefopt.models.heads import RewardEnsemble, RewardModel
from prefopt.models.modes import evaluating
from prefopt.models.reward_artefact import RewardArtefact
from prefopt.models.roles import left_as_found
from prefopt.records import Prompt, Score

_SINGLE = RewardArtefact()


class RewardModelScorer:
    """Scores decoded text with a reward model, as the model saw it in training: prompt, completion, end token.

    Args:
        model: Frozen; of one member its adapter is active. Its base may be the one that a policy trains on.
        encoder: Of the reward model's own tokenizer and template.
        pad_token_id: Fills rows; masked by length.
        name: Of the stage that trained it.
        batch_size: Most rows of a forward pass.
        artefact: What the outputs of the model are; by default those of one member with one axis.
    """

    def __init__(
        self,
        model: RewardModel | RewardEnsemble,
        encoder: Encoder,
        pad_token_id: int,
        *,
        name: str,
        batch_size: int = 128,
        artefact: RewardArtefact = _SINGLE,
    ) -> None:
        self.name = name
        self._model = model
        self._encoder = encoder
        self._pad = pad_token_id
        self._batch_size = batch_size
        self._artefact = artefact

    @property
    def temperature(self) -> float | None:
        """What scores were divided by to calibrate them; None for a model that was not calibrated."""
        return self._artefact.temperature

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Score of each completion, in the model's own unit; only differences of one prompt mean something.

        Of an ensemble the mean of the members, and as `std` their standard deviation (n, not n - 1, in the divisor)
        after each member's own zero is taken out. A model of several axes gives the others by name, also as means.

        Raises:
            DataError: When a completion does not fit into the model.
        """
        rows = [self._row(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        scores: list[Score | None] = [None] * len(rows)
        device = next(self._model.parameters()).device
        with left_as_found(self._model.peft), evaluating(self._model.peft):
            for indices in batches_by_length([len(row) for row in rows], self._batch_size, vocabulary=1):
                chosen = [rows[i] for i in indices]
                ids = pad_rows(chosen, self._pad).to(device)
                mask = pad_rows([[1] * len(row) for row in chosen], 0).to(device)
                found = self._model(ids, mask).cpu().double().view(len(chosen), -1, len(self._artefact.axes))
                for index, members in zip(indices, found, strict=True):
                    scores[index] = self._combined(members)
        return [score for score in scores if score is not None]

    def preference(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """Probability that the first answer of each prompt is preferred to the second: σ(r(first) - r(second)).

        Calibrated on held-out pairs where the stage had `calibrate`; otherwise what the margins say.

        Raises:
            DataError: When a completion does not fit into the model.
        """
        scores = self.score([*prompts, *prompts], [*first, *second])
        pairs = zip(scores[: len(first)], scores[len(first) :], strict=True)
        return [0.5 * (1 + math.tanh((a.value - b.value) / 2)) for a, b in pairs]

    def _combined(self, members: torch.Tensor) -> Score:
        """One score of [members, axes]."""
        artefact = self._artefact
        means: list[float] = members.mean(0).tolist()
        main = members[:, 0]
        centred = main - torch.tensor(artefact.offsets, dtype=main.dtype) if artefact.offsets else main
        std = float(centred.std(correction=0)) if len(main) > 1 else 0.0
        return Score(means[0] + artefact.origin, std, dict(zip(artefact.axes[1:], means[1:], strict=True)))

    def _row(self, prompt: Prompt, completion: str) -> list[int]:
        ids = self._encoder.encode_answer(prompt, completion)
        if ids is None:
            raise DataError(f"a completion of {len(completion)} characters does not fit into the reward model")
        return [*ids.prompt_ids, *ids.completion_ids]

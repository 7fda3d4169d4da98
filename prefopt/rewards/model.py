"""A reward model as a scorer: text in, scores out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prefopt.data.templates import Encoder
from prefopt.errors import DataError
from prefopt.models.batches import batches_by_length, pad_rows
from prefopt.models.heads import RewardModel
from prefopt.models.modes import evaluating
from prefopt.records import Prompt, Score


class RewardModelScorer:
    """Scores decoded text with a reward model, as the model saw it in training: prompt, completion, end token.

    Args:
        model: Frozen; its adapter is active.
        encoder: Of the reward model's own tokenizer and template.
        pad_token_id: Fills rows; masked by length.
        name: Of the stage that trained it.
        batch_size: Most rows of a forward pass.
    """

    def __init__(
        self, model: RewardModel, encoder: Encoder, pad_token_id: int, *, name: str, batch_size: int = 128
    ) -> None:
        self.name = name
        self._model = model
        self._encoder = encoder
        self._pad = pad_token_id
        self._batch_size = batch_size

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Score of each completion, in the model's own unit; only differences of one prompt mean something.

        Raises:
            DataError: When a completion does not fit into the model.
        """
        rows = [self._row(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        values = [0.0] * len(rows)
        device = next(self._model.parameters()).device
        for indices in batches_by_length([len(row) for row in rows], self._batch_size, vocabulary=1):
            chosen = [rows[i] for i in indices]
            ids = pad_rows(chosen, self._pad).to(device)
            mask = pad_rows([[1] * len(row) for row in chosen], 0).to(device)
            with evaluating(self._model):
                scores = self._model(ids, mask)
            for index, value in zip(indices, scores.tolist(), strict=True):
                values[index] = value
        return [Score(value) for value in values]

    def _row(self, prompt: Prompt, completion: str) -> list[int]:
        ids = self._encoder.encode_answer(prompt, completion)
        if ids is None:
            raise DataError(f"a completion of {len(completion)} characters does not fit into the reward model")
        return [*ids.prompt_ids, *ids.completion_ids]

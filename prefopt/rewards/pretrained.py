"""A sequence classification model of its own, with its own tokenizer and chat template, as a scorer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, cast

import jinja2
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.data.control import control_pattern, control_tokens, taken_apart
from prefopt.errors import DataError
from prefopt.models.batches import batches_by_length, pad_rows
from prefopt.models.modes import evaluating
from prefopt.records import Message, Prompt, Score, conversation

_ENDLESS = 1 << 30
Row = dict[str, list[int]]


class PretrainedScorer:
    """Scores text with one output of a Hugging Face sequence classification model.

    The score is the log-odds of that output: its logit where it is the only one, or where the model was trained with
    several independent ones (`multi_label_classification`); of classes that exclude each other it is
    z_k - log Σ_{j≠k} exp z_j, so that σ(score) is the class's softmax.

    With a chat template the text is the conversation, the completion as the assistant's turn; without one it is the
    pair that the tokenizer makes of prompt (its turns, a line each) and completion. What people and policies wrote
    holds no control tokens: those are taken apart by a space. A text that is too long loses the prompt's oldest turns,
    then the beginning of what is left of the prompt, and nothing of the completion.

    Rows are padded on the right and masked by length. A decoder is read at its last token: the last that is not the
    padding token of its own configuration, as in transformers; where that names none, the last there is.

    Args:
        model: Frozen.
        tokenizer: The model's own.
        name: What messages call it.
        batch_size: Most rows of a forward pass.
        output: Number of the output that counts.

    Attributes:
        templated: Whether the tokenizer has a chat template.
        max_length: Most tokens of a text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        batch_size: int = 64,
        output: int = 0,
    ) -> None:
        self.name = name
        self._output = output
        self.templated = bool(tokenizer.chat_template)
        self.max_length = min(_positions(model), int(tokenizer.model_max_length or _ENDLESS))
        self._model = model
        self._tokenizer: Any = tokenizer
        self._batch_size = batch_size
        self._control = control_pattern(control_tokens(self._tokenizer))

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """The log-odds of each text; they do not depend on which others are scored with it.

        Raises:
            DataError: When a completion alone is too long, or the chat template refuses a conversation.
        """
        rows = [self._row(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        values = [0.0] * len(rows)
        with evaluating(self._model):
            for indices in batches_by_length([len(row["input_ids"]) for row in rows], self._batch_size, vocabulary=1):
                found = self._logits([rows[index] for index in indices])
                for index, value in zip(indices, found, strict=True):
                    values[index] = value
        return [Score(value) for value in values]

    # ---- from text to rows -------------------------------------------------------------------------------------------

    def _row(self, prompt: Prompt, completion: str) -> Row:
        prompt = tuple(Message(message.role, self._plain(message.content)) for message in prompt)
        return (self._conversation if self.templated else self._pair)(prompt, self._plain(completion))

    def _plain(self, text: str) -> str:
        return taken_apart(text, self._control)[0]

    def _conversation(self, prompt: Prompt, completion: str) -> Row:
        answer = Message("assistant", completion)
        tails = _tails(prompt)
        rows = [self._rendered((*tails[0], answer))]
        if len(rows[0]) > self.max_length and len(tails) > 1:
            fits = bisect_left(
                tails, True, lo=1, key=lambda tail: len(self._rendered((*tail, answer))) <= self.max_length
            )
            rows.append(self._rendered((*tails[min(fits, len(tails) - 1)], answer)))
        ids = rows[-1]
        surplus = len(ids) - self.max_length
        if surplus <= 0:
            return {"input_ids": ids}
        # What comes before the completion, less a token that a template may begin every text with.
        before = self._rendered(tails[-1], generate=True)
        shared = next((at for at, pair in enumerate(zip(ids, before, strict=False)) if pair[0] != pair[1]), len(before))
        kept = 1 if ids[:1] == [self._tokenizer.bos_token_id] else 0
        if shared - kept < surplus:
            raise self._too_long(completion)
        return {"input_ids": ids[:kept] + ids[kept + surplus :]}

    def _rendered(self, messages: Sequence[Message], *, generate: bool = False) -> list[int]:
        try:
            text = self._tokenizer.apply_chat_template(
                conversation(messages), tokenize=False, add_generation_prompt=generate
            )
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template of {self.name} refuses a conversation ({error})") from error
        # The template writes the control tokens, the first one included.
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _pair(self, prompt: Prompt, completion: str) -> Row:
        tails = _tails(prompt)
        rows = (self._joined(tail, completion) for tail in tails)
        row = next((row for row in rows if len(row["input_ids"]) <= self.max_length), None)
        if row is not None:
            return row
        alone = self._tokenizer(completion, add_special_tokens=False, verbose=False)["input_ids"]
        if len(alone) + self._tokenizer.num_special_tokens_to_add(pair=True) >= self.max_length:
            raise self._too_long(completion)
        side, self._tokenizer.truncation_side = self._tokenizer.truncation_side, "left"
        try:
            return self._joined(tails[-1], completion, truncation="only_first", max_length=self.max_length)
        finally:
            self._tokenizer.truncation_side = side

    def _joined(self, prompt: Prompt, completion: str, **cut: Any) -> Row:
        text = "\n".join(message.content for message in prompt)
        encoded = self._tokenizer(text, completion, verbose=False, **cut)
        return {name: list(encoded[name]) for name in ("input_ids", "token_type_ids") if name in encoded}

    def _too_long(self, completion: str) -> DataError:
        return DataError(
            f"a completion of {len(completion)} characters does not fit into the {self.max_length} tokens of "
            f"{self.name}",
            "lower 'max_new_tokens', or name a model that takes longer texts",
        )

    # ---- from rows to logits -----------------------------------------------------------------------------------------

    def _logits(self, rows: Sequence[Row]) -> list[float]:
        config = self._model.config.get_text_config()
        own: int | None = config.pad_token_id
        if own is not None and 0 <= own < config.vocab_size:
            return self._forward(rows, own)
        # The model finds the end of a row by its padding token, so that must be none of those that are in the rows.
        used = {token for row in rows for token in row["input_ids"]}
        free = next((token for token in range(config.vocab_size) if token not in used), None)
        if free is None and len(rows) > 1:
            return [value for row in rows for value in self._logits([row])]
        config.pad_token_id = free
        try:
            return self._forward(rows, free or 0)
        finally:
            config.pad_token_id = own

    def _forward(self, rows: Sequence[Row], pad_token_id: int) -> list[float]:
        device = next(self._model.parameters()).device
        inputs: dict[str, Tensor] = {
            "input_ids": pad_rows([row["input_ids"] for row in rows], pad_token_id),
            "attention_mask": pad_rows([[1] * len(row["input_ids"]) for row in rows], 0),
        }
        if "token_type_ids" in rows[0]:
            inputs["token_type_ids"] = pad_rows([row["token_type_ids"] for row in rows], 0)
        logits: Tensor = self._model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits
        return cast(list[float], self._log_odds(logits.double()).cpu().tolist())

    def _log_odds(self, logits: Tensor) -> Tensor:
        """Of the output that counts, [N], from all logits [N, K]."""
        chosen = logits[:, self._output]
        if logits.shape[1] == 1 or self._model.config.problem_type == "multi_label_classification":
            return chosen
        others = [number for number in range(logits.shape[1]) if number != self._output]
        return chosen - logits[:, others].logsumexp(1)


def _tails(prompt: Prompt) -> list[Prompt]:
    """The prompt, and what is left of it without its oldest turns: from each user's turn on, after the system's."""
    system = prompt[:1] if prompt[0].role == "system" else ()
    body = prompt[len(system) :]
    # Only a user's turn can come first: many templates refuse a conversation that begins with an answer.
    starts = [index for index, message in enumerate(body) if index and message.role == "user"]
    return [prompt, *((*system, *body[start:]) for start in starts)]


def _positions(model: PreTrainedModel) -> int:
    """Longest row that a model takes; those that number positions from after the padding token take fewer."""
    positions = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or _ENDLESS)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return positions - module.padding_idx - 1
    return positions

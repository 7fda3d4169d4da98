"""What TRL's SFTTrainer does not know: tokens that are unlearned, rows that weigh more, and the focal loss.

TRL's fused head gives the log-probability of every token without holding all logits, and its loss is the sum of their
negatives over a divisor. Here the sum is over `prefopt.losses.sft.sft_losses` instead; metrics, passes and ranks stay
TRL's. Where no option is used and no row has a further column, nothing of this runs.

Shape suffixes: B rows, S positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.losses.sft import sft_losses
from prefopt.losses.unlikelihood import unlikelihood
from prefopt.models.batches import prompt_completion_batch
from prefopt.trainers.checkpoints import CheckpointedTrainer
from prefopt.trainers.ranks import step_total
from prefopt.trainers.sequence_unlikelihood import Continuation

TOKEN_COLUMNS = {"imitation": 1.0, "unlikelihood": 0.0}
"""Columns with a number for every position, and what stands where a row has none."""
WEIGHT = "weight"
COLUMNS = (*TOKEN_COLUMNS, WEIGHT)


class ImitationCollator:
    """Another collator's batch, with the columns that weigh tokens and rows: [B, S] and [B], float32.

    Args:
        collate: Gives `input_ids` [B, S], padded on the right.
    """

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate B rows."""
        batch = self._collate([{k: v for k, v in row.items() if k not in COLUMNS} for row in rows])
        for name, default in TOKEN_COLUMNS.items():
            if any(row.get(name) is not None for row in rows):
                values = torch.full(batch["input_ids"].shape, default)
                for place, row in enumerate(rows):
                    given = row.get(name) or []
                    values[place, : len(given)] = torch.tensor(given)
                batch[name] = values
        if any(row.get(WEIGHT) is not None for row in rows):
            batch[WEIGHT] = torch.tensor([1.0 if row.get(WEIGHT) is None else float(row[WEIGHT]) for row in rows])
        return batch


class ImitationTrainer(CheckpointedTrainer):
    """Mixes in before TRL's SFTTrainer; rows may have `imitation` and `unlikelihood` of every position, and `weight`.

    With weights the loss of a step is the weighted mean over its tokens: Σ w m L / Σ w m.
    """

    _metrics: dict[str, dict[str, list[float]]]
    _signature_columns: list[str] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = ImitationCollator(self.data_collator)

    def weightless_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A short row that adds nothing to loss or metrics, with the columns that others have."""
        short = super().weightless_row(row)
        more = {name: [default] * len(short["input_ids"]) for name, default in TOKEN_COLUMNS.items() if name in row}
        return {**short, **more, **({WEIGHT: 0.0} if WEIGHT in row else {})}

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns = [*(self._signature_columns or []), *COLUMNS]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Tokens of the step, or what they weigh, over all ranks."""
        if not any(WEIGHT in batch for batch in batch_samples):
            return super()._get_num_items_in_batch(batch_samples, device)
        return step_total(self.accelerator, [_weight_of(batch) for batch in batch_samples])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """TRL's sum, of other losses.

        Args:
            model: The wrapped module.
            inputs: A batch of `ImitationCollator`, or some rows of it.
            return_outputs: As TRL.
            num_items_in_batch: What the step's tokens weigh, over all ranks; the batch's own when None.
        """
        extra = {name: inputs[name] for name in COLUMNS if name in inputs}
        gamma = float(getattr(self.args, "focal_gamma", 0.0))
        if not extra and not gamma:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        batch = {name: value for name, value in inputs.items() if name not in extra}
        total: Tensor | None = None
        if WEIGHT in extra:
            # TRL divides by 1 at least, and weights may add up to less: they are divided here.
            given = _weight_of(inputs) if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
            total = given.clamp(min=torch.finfo(torch.float32).tiny)
            whole = num_items_in_batch is not None
            num_items_in_batch = torch.ones((), device=total.device) if whole else self._one_of_all_ranks(total.device)

        def other_losses(**asked: Any) -> Any:
            outputs = model(**asked)
            if asked.get("fused_lm_head"):
                self._note_flagged(outputs.log_probs, extra)
                outputs.log_probs = -_losses(outputs.log_probs, extra, gamma, total)
            return outputs

        return super().compute_loss(other_losses, batch, return_outputs, num_items_in_batch)

    def _one_of_all_ranks(self, device: torch.device) -> Tensor:
        """The divisor that undoes TRL's factor for the number of ranks, of a loss that is no step's."""
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return torch.tensor(float(ranks), device=device)

    @torch.no_grad()
    def _note_flagged(self, logps: Tensor, extra: Mapping[str, Tensor]) -> None:
        """How likely the flagged tokens are, and how many there are."""
        if "imitation" not in extra:
            return
        flagged = extra["imitation"][:, 1:] < 1
        found = torch.stack([(logps.exp() * flagged).sum().float(), flagged.sum().float()])
        probability, count = self.accelerator.gather(found.unsqueeze(0)).sum(0).tolist()
        if count:
            mode = "train" if self.model.training else "eval"
            self._metrics[mode]["sft/flagged_probability"].append(probability / count)


def prompts_before(batch: Mapping[str, Tensor]) -> list[list[int]]:
    """Tokens before each completion of a batch of `ImitationCollator`; none of rows without one, or without weight."""
    has_label = batch["labels"].ne(-100)
    firsts = torch.where(has_label.any(1), has_label.int().argmax(1), 0)
    if WEIGHT in batch:
        firsts = firsts * batch[WEIGHT].ne(0)
    return [row[:first] for row, first in zip(batch["input_ids"].tolist(), firsts.tolist(), strict=True)]


def unlearned(model: nn.Module, rows: Sequence[Continuation], device: torch.device) -> Tensor:
    """Σ w_t (-log(1 - p_t)) over the tokens of continuations, nats: a scalar.

    Args:
        model: The wrapped module, with TRL's fused head.
        rows: Continuations, padded here to the longest.
        device: Of the model.
    """
    batch = prompt_completion_batch([row.prompt_ids for row in rows], [row.ids for row in rows], 0)
    weights = torch.zeros(batch["input_ids"].shape)
    weights[batch["completion_mask"].bool()] = torch.tensor([weight for row in rows for weight in row.weights])
    said = model(
        input_ids=batch["input_ids"].to(device),
        attention_mask=batch["attention_mask"].to(device),
        labels=torch.where(weights > 0, batch["input_ids"], -100).to(device),  # elsewhere no logit is computed
        use_cache=False,
        fused_lm_head=True,
    )
    return (weights[:, 1:].to(device) * unlikelihood(said.log_probs)).sum()


def _weight_of(batch: Mapping[str, Tensor]) -> Tensor:
    """Σ w m over the batch's tokens, a scalar."""
    tokens = batch["labels"][:, 1:].ne(-100).sum(1).float()
    return (tokens * batch[WEIGHT]).sum() if WEIGHT in batch else tokens.sum()


def _losses(logps: Tensor, extra: Mapping[str, Tensor], gamma: float, total: Tensor | None) -> Tensor:
    """Loss of each token [B, S - 1], 0 on ignored positions."""
    imitation, unlearned = (extra[name][:, 1:] if name in extra else None for name in TOKEN_COLUMNS)
    losses = sft_losses(logps, imitation=imitation, unlikelihood_weights=unlearned, focal_gamma=gamma)
    return losses if total is None else losses * (extra[WEIGHT].unsqueeze(1) / total)

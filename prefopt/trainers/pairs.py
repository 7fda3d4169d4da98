"""What trainers on preference pairs share: how a step's loss is divided, and metrics that are averages over rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler

from prefopt.models.batches import FILLER
from prefopt.trainers.checkpoints import CheckpointedTrainer

Row = Mapping[str, Any]


class PairTrainer(CheckpointedTrainer):
    """A trainer whose rows are pairs with weights and soft labels; a subclass gives `pair_losses`."""

    train_dataset: Sequence[Row]
    eval_dataset: Sequence[Row] | None
    loss_is_scaled_for_ga = True  # the loss is divided by the weight of all the step's pairs, see compute_loss

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if Version(transformers.__version__) < Version("5.19"):
            # Older versions read these instead of `loss_is_scaled_for_ga`.
            self.model_accepts_loss_kwargs = False
            self.compute_loss_func = self.pair_losses
        self._sums: dict[str, dict[str, Tensor]] = {"train": defaultdict(_zeros), "eval": defaultdict(_zeros)}

    def pair_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of every pair, [B] each.

        Args:
            model: The wrapped module: calling anything else would leave gradients unsynchronised between ranks.
            inputs: A batch of `prefopt.models.batches.PairCollator`.
        """
        raise TypeError(f"{type(self).__name__} has no pair_losses")

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Total weight of the optimiser step's pairs over all ranks: the divisor that makes 1x8 equal 8x1."""
        total = torch.stack([weights(batch).sum() for batch in batch_samples]).sum().to(device)
        return cast(Tensor, self.accelerator.gather(total).sum())

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Weighted mean of the pairs' losses.

        Args:
            model: The wrapped module.
            inputs: A batch of pairs.
            return_outputs: Also return an empty mapping, as `Trainer` expects.
            num_items_in_batch: Total weight of the step's pairs; the batch's own when None.
        """
        losses, metrics = self.pair_losses(model, inputs)
        each = weights(inputs).to(losses)
        total = each.sum() if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
        # A step whose pairs all weigh nothing changes nothing.
        loss = self.summed(losses, each) / total.clamp(min=torch.finfo(each.dtype).tiny)
        self._record(metrics, counted=FILLER not in inputs)
        return (loss, {}) if return_outputs else loss

    def summed(self, losses: Tensor, each: Tensor) -> Tensor:
        """Sum of the pairs' losses [B], weighted with `each` [B]: a scalar."""
        return (each * losses).sum()

    def rows_in(self, inputs: dict[str, Any]) -> int:
        """Pairs of a batch."""
        return len(inputs["input_ids"]) // 2

    def take_rows(self, inputs: dict[str, Any], start: int, end: int) -> dict[str, Any]:
        """Some pairs of a batch, both sides of each."""
        pairs = self.rows_in(inputs)

        def part(values: Tensor) -> Tensor:
            sides = torch.split(values, pairs)  # one of what the pair has, two of what each side has
            return torch.cat([side[start:end] for side in sides])

        return {name: part(values) for name, values in inputs.items()}

    def counted(self) -> dict[str, Tensor]:
        """Sums of the metrics since the last log."""
        return dict(self._sums["train"])

    def recount(self, counted: Any) -> None:
        """Forget the metrics of a pass that failed."""
        self._sums["train"] = defaultdict(_zeros, counted)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Loss of an evaluation batch; the metrics are summed up on the way."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

    def row_lengths(self) -> Sequence[int]:
        """Tokens of each pair's longer row."""
        return [
            len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in self.train_dataset
        ]

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        """In order: the usual sampler groups by the length of `input_ids`, which pairs do not have."""
        return SequentialSampler(eval_dataset)

    def weightless_row(self, row: Row) -> dict[str, Any]:
        """A pair that adds nothing to loss or metrics; see `prefopt.trainers.ranks.FilledCollator`."""
        short = {name: row[name][:1] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
        return {**row, **short, "weight": 0.0, FILLER: 1.0}

    def _record(self, metrics: dict[str, Tensor], *, counted: bool) -> None:
        sums = self._sums["train" if self.model.training else "eval"]
        for name, values in metrics.items():
            pair = torch.stack([values.double().sum().cpu(), torch.tensor(float(values.numel()), dtype=torch.double)])
            # Every rank has the same names, also one that saw no pair: their sums are added up over ranks.
            sums[name] = sums[name] + pair * counted

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages over rows, not over batches, since the last log."""
        mode, prefix = ("eval", "eval_") if any(name.startswith("eval_") for name in logs) else ("train", "")
        for name, pair in self._sums[mode].items():
            total, count = self.accelerator.reduce(pair.to(self.args.device), reduction="sum").tolist()
            if count:  # of labels that only some rows have
                logs[prefix + name] = total / count
        self._sums[mode].clear()
        super().log(logs, start_time)


def agreement(margin: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """1 where a margin [B] prefers what the label prefers, 0 where it does not, one half for a tie of either."""
    preferred = margin if "probability" not in inputs else margin * (inputs["probability"] - 0.5).sign()
    return (preferred > 0).float() + 0.5 * (preferred == 0).float()


def weights(batch: Mapping[str, Any]) -> Tensor:
    """Weights of the pairs [B], 1 where the rows have none."""
    if "weight" in batch:
        return cast(Tensor, batch["weight"])
    return torch.ones(batch["input_ids"].shape[0] // 2, device=batch["input_ids"].device)


def _zeros() -> Tensor:
    return torch.zeros(2, dtype=torch.double)

"""What trainers on preference pairs share: how a step's loss is divided, and metrics that are averages over rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler

from prefopt.data.token_rows import lengths_of
from prefopt.errors import DataError
from prefopt.models.batches import FILLER, some_pairs
from prefopt.models.wrapped import HoldsPeft
from prefopt.trainers.checkpoints import CheckpointedTrainer
from prefopt.trainers.fast_passes import FastPasses
from prefopt.trainers.ranks import step_total
from prefopt.trainers.rows import TOKENISED

Row = Mapping[str, Any]
TOKENS_PER_PASS = 2**12
"""Most tokens of a pass over several pairs on a CPU; a batch with more is cut, and the step stays the same."""
_MORE_ON_A_DEVICE = 4  # a CPU computes 4,000 tokens as fast as more, which would only take memory
PROVED_PAIRS = 2  # that what must hold of all pairs is proved on, before the first step


class PairTrainer(CheckpointedTrainer):
    """A trainer whose rows are pairs with weights and soft labels; a subclass gives `pair_losses` and `said_of`."""

    model: HoldsPeft
    train_dataset: Sequence[Row]
    eval_dataset: Sequence[Row] | None
    loss_is_scaled_for_ga = True  # the loss is divided by the weight of all the step's pairs, see compute_loss

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if Version(transformers.__version__) < Version("5.19"):
            # Older versions read these instead of `loss_is_scaled_for_ga`.
            self.model_accepts_loss_kwargs = False
            self.compute_loss_func = self.pair_losses
        self._passes = FastPasses(self.model, self.accelerator, "pairs are padded rows, each prompt computed twice")
        self._sums: dict[str, dict[str, Tensor]] = {"train": defaultdict(_zeros), "eval": defaultdict(_zeros)}

    @property
    def shared_gap(self) -> float | None:
        """See `FastPasses.gap`."""
        return self._passes.gap

    # -- the passes ----------------------------------------------------------------------------------------------------

    @contextmanager
    def fast_passes(self, rows: Sequence[Row]) -> Iterator[None]:
        """Within the block pairs share their prompts where the model can, and it is proved on the first rows.

        Args:
            rows: To be trained or evaluated on.
        """
        with self._passes.allowed(lambda: self._said_of_first(rows)):
            yield

    def _said_of_first(self, rows: Sequence[Row]) -> Tensor:
        return self.said_of(self._prepare_inputs(self.data_collator(rows[:PROVED_PAIRS])))

    def said_of(self, batch: dict[str, Tensor]) -> Tensor:
        """What the model says of the completions of a batch: [2B], or one row for each of them."""
        raise TypeError(f"{type(self).__name__} has no said_of")

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; `True` resumes from the newest checkpoint that verifies, if there is one."""
        if not self.train_dataset:
            raise DataError("there are no pairs to train on")
        with self.fast_passes(self.train_dataset):
            return super().train(resume_from_checkpoint=self.prepare_training(resume_from_checkpoint), **kwargs)

    def prepare_training(self, resume_from_checkpoint: str | bool | None) -> str | bool | None:
        """What is to be done before the first step; the checkpoint that training goes on from."""
        return resume_from_checkpoint

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss and metrics of held-out pairs."""
        rows = eval_dataset if eval_dataset is not None else self.eval_dataset
        if not rows:
            raise DataError("there are no pairs to evaluate on")
        with self.fast_passes(rows):
            metrics: dict[str, float] = super().evaluate(self.prepare_evaluation(eval_dataset), *args, **kwargs)
        return metrics

    def prepare_evaluation(self, eval_dataset: Any) -> Any:
        """The rows to evaluate on, with all that the loss needs."""
        return eval_dataset

    # -- the step ------------------------------------------------------------------------------------------------------

    def pair_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of every pair, [B] each.

        Args:
            model: The wrapped module: calling anything else would leave gradients unsynchronised between ranks.
            inputs: A batch of `prefopt.models.batches.PairCollator`.
        """
        raise TypeError(f"{type(self).__name__} has no pair_losses")

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Total weight of the optimiser step's pairs."""
        return step_total(self.accelerator, [weights(batch) for batch in batch_samples])

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

    def spans(self, inputs: dict[str, Any]) -> list[tuple[int, int]]:
        """Passes of `tokens_per_pass` at most, or of one pair."""
        return runs_of_tokens(inputs["lengths"].sum(1).tolist(), tokens_per_pass(self.args.device))

    def rows_in(self, inputs: dict[str, Any]) -> int:
        """Pairs of a batch."""
        return len(inputs["lengths"])

    def take_rows(self, inputs: dict[str, Any], start: int, end: int) -> dict[str, Any]:
        """Some pairs of a batch."""
        return some_pairs(inputs, start, end)

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
        """Tokens of each pair, the prompt once."""
        return pair_lengths(self.train_dataset)

    def seen_positions(self) -> int:
        """Positions that the tokens of an epoch attend to: each completion its prompt and itself."""
        total = 0
        parts = (lengths_of(self.train_dataset, part) for part in TOKENISED)
        for prompt, chosen, rejected in zip(*parts, strict=True):
            total += prompt * prompt + chosen * (prompt + chosen) + rejected * (prompt + rejected)
        return total

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
    return torch.ones(len(batch["lengths"]), device=batch["input_ids"].device)


def pair_lengths(rows: Sequence[Row]) -> list[int]:
    """Tokens of each pair, the prompt once."""
    return [sum(parts) for parts in zip(*(lengths_of(rows, part) for part in TOKENISED), strict=True)]


def tokens_per_pass(device: torch.device) -> int:
    """Most tokens of a pass over several pairs."""
    return TOKENS_PER_PASS * (1 if device.type == "cpu" else _MORE_ON_A_DEVICE)


def runs_of_tokens(lengths: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Cut rows, in order, into runs of at most so many tokens, or of one row: (first, one after the last) of each."""
    runs: list[tuple[int, int]] = []
    total = 0
    for index, length in enumerate(lengths):
        total += length
        if not runs or total > most:
            runs.append((index, index))
            total = length
        runs[-1] = (runs[-1][0], index + 1)
    return runs


def _zeros() -> Tensor:
    return torch.zeros(2, dtype=torch.double)

"""One mixin that makes the checkpoints of every trainer, TRL's included, safe to be killed in.

`transformers.Trainer` writes a checkpoint in place, without fsync or a sign of completeness, and deletes the old one
before the new one is whole. Here it writes into a staging folder; the folder is committed (hashed, fsynced, manifest
last, renamed), and only then are older checkpoints removed. Resuming takes the newest checkpoint that verifies.

The mixin also stops a run whose loss, gradient or weights are no longer finite. Such a run must not look like
convergence, and since weights are checked before every save, whatever checkpoint exists is finite.
"""

from __future__ import annotations

import inspect
import math
import shutil
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Sampler, SequentialSampler
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from prefopt.errors import InputError, TrainingDiverged
from prefopt.models.roles import belongs_to, load_adapter_weights, save_adapter
from prefopt.store.checkpoints import commit_checkpoint, newest_verified, rotate
from prefopt.trainers.microrows import MicroRowsTrainer
from prefopt.trainers.order import TrainingOrder
from prefopt.trainers.ranks import FilledCollator, FilledOrder, FilledRows, any_rank, from_first

RANK_SEED = 100003  # between the random states of two ranks (arXiv 2403.17031)


class CheckpointedTrainer(MicroRowsTrainer):
    """A `transformers.Trainer` that can be killed at any moment, and cuts passes that do not fit into memory.

    Its methods call `super()`, so it also mixes in before another trainer:
    `class SFTTrainer(CheckpointedTrainer, trl.SFTTrainer)`.

    Attributes:
        base_name: What `adapter_config.json` records as the base; what PEFT would record where it is empty.
        opening_gap: How far policy and reference were apart before the first step, where a method compares them.
    """

    base_name: str = ""
    opening_gap: float | None = None
    data_collator: Any

    _staging: Path | None = None
    _all_finite: Tensor | None = None

    # -- saving --------------------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._require_finite()
        step = self.state.global_step
        output_dir = Path(self.args.output_dir or ".")
        self._staging = output_dir / f"tmp-{step}"
        if self.args.should_save:
            shutil.rmtree(self._staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                name = f"checkpoint-{step}"
                commit_checkpoint(self._staging / name, output_dir / name, step=step, extra={})
                shutil.rmtree(self._staging, ignore_errors=True)
                if self.args.save_total_limit:
                    rotate(output_dir, keep=self.args.save_total_limit, protect=set())
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights, and the tokenizer outside of checkpoints; never the arguments, which would be a pickle."""
        if not self.args.should_save:
            return
        directory = Path(output_dir or self.args.output_dir or ".")
        directory.mkdir(parents=True, exist_ok=True)
        self.save_weights(directory)
        if self._staging is None and self.processing_class is not None:
            self.processing_class.save_pretrained(directory)

    @property
    def saves_complete(self) -> bool:
        """Whether adapters are saved complete against the base; in checkpoints they are as they are trained."""
        return self._staging is None

    def save_weights(self, directory: Path) -> None:
        """Write what is trained; a trainer whose model has heads beside its adapters adds them."""
        model = self.adapted_model()
        if model is None:
            self.accelerator.unwrap_model(self.model).save_pretrained(directory)
            return
        adapters = trained_adapters(model)
        for adapter in adapters:
            folder = _folder(directory, adapter, adapters)
            save_adapter(model, adapter, folder, self.base_name, complete=self.saves_complete)

    def load_weights(self, directory: Path) -> None:
        """Put back what `save_weights` wrote; only for models with adapters."""
        model = self.adapted_model()
        assert model is not None
        adapters = trained_adapters(model)
        for adapter in adapters:
            load_adapter_weights(model, adapter, _folder(directory, adapter, adapters))

    def adapted_model(self) -> PeftModel | None:
        """The PEFT model that is trained, or that the trained module holds as `peft`; None where all weights are."""
        model = self.accelerator.unwrap_model(self.model)
        model = getattr(model, "peft", model)
        return model if isinstance(model, PeftModel) else None

    @property
    def exact(self) -> bool:
        """Whether passes compute in float32: two ways to the same number then differ by rounding alone."""
        whole = next(self.model.parameters()).dtype is torch.float32
        return whole and not self.args.bf16 and not self.args.fp16

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card: TRL writes one beside every checkpoint, outside the manifest."""

    # -- resuming ------------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; `True` resumes from the newest checkpoint that verifies, if there is one."""
        self._require_whole_weights()
        checkpoint = self.checkpoint_of(resume_from_checkpoint)
        if self.args.process_index > 0:
            # Ranks have other rows, and so must have other dropout; weights come from the first.
            transformers.set_seed(self.args.seed + self.args.process_index * RANK_SEED)
        if checkpoint is not None and (state := self._ended(Path(checkpoint))) is not None:
            return self._reopen(checkpoint, state)
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _ended(self, checkpoint: Path) -> TrainerState | None:
        """The state of a checkpoint that is the last one, where `Trainer` would take one step too many.

        It looks for the end after a step, and so misses it where the last step was in the middle of an epoch.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        within_epoch = self.args.max_steps > 0 or not float(self.args.num_train_epochs).is_integer()
        last = self.args.max_steps if self.args.max_steps > 0 else state.max_steps
        return state if within_epoch and state.global_step >= last else None

    def _reopen(self, checkpoint: str, state: TrainerState) -> TrainOutput:
        self.state = state
        self._load_from_checkpoint(checkpoint, self.model)
        self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self.callback_handler.on_train_end(self.args, self.state, self.control)
        return TrainOutput(state.global_step, math.nan, {})

    def _require_whole_weights(self) -> None:
        """Refuse weights that are cut up between ranks: the first rank saves adapters whole, and has only its part."""
        deepspeed = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if self.is_fsdp_enabled or (deepspeed is not None and deepspeed.zero_stage == 3):
            raise InputError(
                "the weights would be cut up between ranks (FSDP, ZeRO-3), and this version saves whole adapters only",
                "use recipes/accelerate/ddp.yaml or deepspeed_zero2.yaml; QLoRA (load_in_4bit) makes the base smaller",
            )

    def checkpoint_of(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """The checkpoint that `train`'s argument means."""
        if resume_from_checkpoint is True:
            newest = self.resumable()
            return str(newest) if newest else None
        return resume_from_checkpoint or None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without touching the random state: evaluating more often must not change what is trained."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """What all ranks have, added up, where the values were; every rank must call it."""
        total: Tensor = self.accelerator.reduce(values.to(self.args.device), reduction="sum")
        return total.to(values.device)

    def resumable(self) -> Path | None:
        """The newest checkpoint that verifies, or None; torn ones are set aside and named in the log."""
        return from_first(lambda: newest_verified(Path(self.args.output_dir or "."), print))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.adapted_model() is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.load_weights(Path(resume_from_checkpoint))

    # -- order ---------------------------------------------------------------------------------------------------------

    def row_lengths(self) -> Sequence[int]:
        """Tokens of each training row; a trainer whose rows are not `input_ids` says how many they have."""
        rows = self.train_dataset
        columns = getattr(rows, "column_names", None)
        return [len(ids) for ids in (rows["input_ids"] if columns else (row["input_ids"] for row in rows))]

    def seen_positions(self) -> int:
        """Positions that the tokens of an epoch attend to, added up, as dense kernels compute them."""
        return sum(length * length for length in self.row_lengths())

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        args = self.args
        if not isinstance(self.train_dataset, Sized):  # a stream has no order but its own
            return None
        if args.train_sampling_strategy == "sequential":
            return SequentialSampler(self.train_dataset)
        return TrainingOrder(
            self.row_lengths(),
            args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            args.seed if args.data_seed is None else args.data_seed,
            by_length=args.train_sampling_strategy == "group_by_length",
        )

    def weightless_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A short row that adds nothing to loss or metrics; see `prefopt.trainers.ranks.FilledCollator`."""
        return {"input_ids": list(row["input_ids"][:2]), "labels": [-100, -100]}

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """On several ranks every row comes once an epoch, also where the last step has too few for all ranks."""
        if self.args.world_size == 1 or isinstance(dataset, IterableDataset):
            return super()._get_dataloader(dataset, *args, **kwargs)
        bound = inspect.signature(super()._get_dataloader).bind(dataset, *args, **kwargs)
        order_of = bound.arguments.get("sampler_fn")
        multiple = bound.arguments["batch_size"] * self.args.world_size
        order = (order_of(dataset) if order_of is not None else None) or SequentialSampler(dataset)
        filled = FilledOrder(order, multiple)
        # Evaluation gathers the loss of every row, training counts per rank.
        total = len(filled) if bound.arguments.get("is_training") else len(dataset)
        bound.arguments["dataset"] = FilledRows(dataset, filled, total)
        bound.arguments["sampler_fn"] = lambda rows: filled
        collate = self.data_collator
        self.data_collator = FilledCollator(collate, self.weightless_row, dataset)
        try:
            return super()._get_dataloader(*bound.args, **bound.kwargs)
        finally:
            self.data_collator = collate

    # -- divergence ----------------------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass; remembers whether the loss was finite without waiting for the device."""
        loss: Tensor = super().training_step(*args, **kwargs)
        self.note_loss(loss)
        return loss

    def note_loss(self, loss: Tensor) -> None:
        """Remember whether a loss was finite; a trainer with a `training_step` of its own calls it."""
        finite = torch.isfinite(loss.detach())
        self._all_finite = finite if self._all_finite is None else self._all_finite & finite

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, then stop the run if anything logged is not finite: the log still shows the NaN.

        Raises:
            TrainingDiverged: When the loss or the gradient's norm is NaN or infinite.
        """
        super().log(logs, start_time)
        for name in ("loss", "grad_norm", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                raise self._diverged(f"{name} is {logs[name]}")
        self._require_finite_loss()

    def _require_finite_loss(self) -> None:
        if any_rank(self._all_finite is not None and not bool(self._all_finite)):
            raise self._diverged("the loss is not finite")

    def _require_finite(self) -> None:
        self._require_finite_loss()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
                raise self._diverged(f"the weight {name} is not finite")

    def _diverged(self, what: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"training diverged at step {self.state.global_step}: {what}",
            "lower learning_rate or max_grad_norm, or look at the rows of this step; saved checkpoints are finite",
        )


def trained_adapters(model: PeftModel) -> list[str]:
    """Names of the adapters that are trained; frozen ones never change, so checkpoints leave them out."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return sorted(adapter for adapter in model.peft_config if any(belongs_to(name, adapter) for name in trained))


def _folder(directory: Path, adapter: str, adapters: list[str]) -> Path:
    return directory if len(adapters) == 1 else directory / adapter

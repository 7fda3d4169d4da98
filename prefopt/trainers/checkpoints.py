"""One mixin that makes the checkpoints of every trainer, TRL's included, safe to be killed in.

`transformers.Trainer` writes a checkpoint in place, without fsync or a sign of completeness, and deletes the old one
before the new one is whole. Here it writes into a staging folder; the folder is committed (hashed, fsynced, manifest
last, renamed), and only then are older checkpoints removed. Resuming takes the newest checkpoint that verifies.

The mixin also stops a run whose loss, gradient or weights are no longer finite. Such a run must not look like
convergence, and since weights are checked before every save, whatever checkpoint exists is finite.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Sampler

from prefopt.errors import TrainingDiverged
from prefopt.models.roles import load_adapter_weights, save_adapter
from prefopt.store.checkpoints import commit_checkpoint, newest_verified, rotate
from prefopt.trainers.microrows import MicroRowsTrainer
from prefopt.trainers.order import TrainingOrder


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

    def save_weights(self, directory: Path) -> None:
        """Write what is trained; a trainer whose model has heads beside its adapters adds them."""
        model = self.adapted_model()
        if model is None:
            self.accelerator.unwrap_model(self.model).save_pretrained(directory)
            return
        adapters = trained_adapters(model)
        for adapter in adapters:
            save_adapter(model, adapter, _folder(directory, adapter, adapters), self.base_name)

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

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card: TRL writes one beside every checkpoint, outside the manifest."""

    # -- resuming ------------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; `True` resumes from the newest checkpoint that verifies, if there is one."""
        return super().train(resume_from_checkpoint=self.checkpoint_of(resume_from_checkpoint), **kwargs)

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

    def resumable(self) -> Path | None:
        """The newest checkpoint that verifies, or None; torn ones are set aside and named in the log."""
        return newest_verified(Path(self.args.output_dir or "."), print)

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

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        args = self.args
        if not isinstance(self.train_dataset, Sized):  # a stream has no order but its own
            return None
        return TrainingOrder(
            self.row_lengths(),
            args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            args.seed if args.data_seed is None else args.data_seed,
            by_length=args.train_sampling_strategy == "group_by_length",
        )

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
        if self._all_finite is not None and not bool(self._all_finite):
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
    return sorted(adapter for adapter in model.peft_config if any(f".{adapter}." in name for name in trained))


def _folder(directory: Path, adapter: str, adapters: list[str]) -> Path:
    return directory if len(adapters) == 1 else directory / adapter

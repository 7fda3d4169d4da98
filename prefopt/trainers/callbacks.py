"""What a stage hears from its trainer: metrics under their canonical names, progress, and the request to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefopt.errors import Interrupted
from prefopt.models.roles import copy_complete
from prefopt.store.files import remove
from prefopt.trainers.ranks import any_rank

CANONICAL = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "epoch": "train/epoch",
    "entropy": "train/entropy",
    "mean_token_accuracy": "train/token_accuracy",
    "num_input_tokens_seen": "train/tokens",
    "train_tokens_per_second": "train/tokens_per_second",
    "eval_loss": "eval/loss",
    "eval_entropy": "eval/entropy",
    "eval_mean_token_accuracy": "eval/token_accuracy",
}


def canonical_metrics(logs: Mapping[str, Any]) -> dict[str, float]:
    """Rename what Hugging Face's trainers log to the names of `prefopt.tracking.metrics`; the rest is left out.

    Names that already have a group, such as `dpo/margin`, are kept; `eval_dpo/margin` becomes `eval/dpo/margin`.
    """
    metrics: dict[str, float] = {}
    for name, value in logs.items():
        if name in CANONICAL:
            metrics[CANONICAL[name]] = float(value)
        elif "/" in name:
            metrics[name.replace("eval_", "eval/", 1) if name.startswith("eval_") else name] = float(value)
    return metrics


KEPT_ADAPTERS = "adapters"


class KeepAdapters(TrainerCallback):  # type: ignore[misc]
    """Keeps the adapter of every checkpoint, complete, beside the checkpoints, which do not outlive the stage.

    Args:
        directory: The stage's folder; `adapters/step-N` is written in it.
        adapter: Which one, where a checkpoint has several.
    """

    def __init__(self, directory: Path, adapter: str) -> None:
        self._directory = directory
        self._adapter = adapter

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Copy that of the checkpoint a run resumes from: it may have been killed right after writing it."""
        if state.global_step > 0:
            self.on_save(args, state, control, **kwargs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Copy it from the checkpoint that was just committed."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not state.is_world_process_zero or not checkpoint.is_dir():
            return
        source = checkpoint / self._adapter if (checkpoint / self._adapter).is_dir() else checkpoint
        target = self._directory / KEPT_ADAPTERS / f"step-{state.global_step}"
        remove(target)
        model = getattr(kwargs["model"], "peft", kwargs["model"])
        assert isinstance(model, PeftModel)
        copy_complete(model, source, target)


DISPLACED = -1.0
"""Nats: chosen answers that lost more than a factor e in probability are worth a look."""


class WarnOfDisplacement(TrainerCallback):  # type: ignore[misc]
    """Says once that chosen answers become less likely while the margin grows (arXiv 2410.08847).

    Args:
        say: Takes the sentence.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the mean log-ratio of the chosen answers since the last log."""
        shift = (logs or {}).get("dpo/chosen_shift")
        if shift is not None and shift < DISPLACED and not self._said and state.is_world_process_zero:
            self._said = True
            self._say(
                f"step {state.global_step}: chosen answers are {-shift:.1f} nats less likely than at the start "
                "(displacement); see Pitfalls in docs/algorithms/dpo.md"
            )


class MetricSink(Protocol):
    """The part of a tracker that training needs."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at an optimiser step."""


class StageCallback(TrainerCallback):  # type: ignore[misc]
    """Connects a trainer to its stage.

    Args:
        sink: Receives metrics under canonical names; None on ranks that only repeat the first.
        progress: Called with (step, total steps, latest metrics) after each optimiser step.
        stop: Answers True once the process was asked to stop; the trainer then saves a checkpoint and ends.

    Attributes:
        stopped: True when the trainer ended because it was asked to.
        latest: The last value of every metric logged.
    """

    def __init__(
        self,
        sink: MetricSink | None,
        progress: Callable[[int, int, Mapping[str, float]], None],
        stop: Callable[[], bool],
    ) -> None:
        self._sink = sink
        self._progress = progress
        self._stop = stop
        self.stopped = False
        self.latest: dict[str, float] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Pass metrics on."""
        metrics = canonical_metrics(logs or {})
        if metrics.keys() - {"train/epoch"}:
            self.latest.update(metrics)
            if self._sink is not None:
                self._sink.log(metrics, state.global_step)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop inside an evaluation or a pass of the reference at once: nothing but the last save interval is lost."""
        if any_rank(self._stop()):
            raise Interrupted(f"stopped at step {state.global_step} while held-out rows or the reference were computed")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report progress; ask for a checkpoint and an end when the process should stop."""
        self._progress(state.global_step, state.max_steps, self.latest)
        if any_rank(self._stop()) and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True

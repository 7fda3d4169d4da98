"""One tracker for a stage: JSON lines always, Weights & Biases where the recipe asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from prefopt.recipe.schema import TrackingSpec
from prefopt.tracking.jsonl import JsonlSink
from prefopt.tracking.wandb import RunIdentity, WandbSink

METRICS_FILE = "metrics.jsonl"


class Tracker(Protocol):
    """Where a stage's numbers go."""

    @property
    def errors(self) -> int:
        """How often a tracker failed; training went on each time."""
        ...

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Records numbers of one optimiser step."""
        ...

    def table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Shows rows, such as samples, beside the numbers."""
        ...

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Records the stage's final numbers."""
        ...

    def finish(self, exit_code: int) -> None:
        """Closes everything; a second call does nothing."""
        ...


class StageTracker:
    """Sends everything to the JSON lines first, whose failure is the stage's, and then to wandb, whose failure is not.

    Attributes:
        jsonl: The file sink.
        wandb: The wandb sink, or None.
    """

    def __init__(self, jsonl: JsonlSink, wandb: WandbSink | None) -> None:
        self.jsonl = jsonl
        self.wandb = wandb

    @property
    def errors(self) -> int:
        """How often wandb failed."""
        return self.wandb.errors if self.wandb is not None else 0

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Records numbers of one optimiser step."""
        self.jsonl.log(metrics, step)
        if self.wandb is not None:
            self.wandb.log(metrics, step)

    def table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Shows rows in wandb; in the run's folder they are artefacts of their own."""
        if self.wandb is not None:
            self.wandb.table(name, rows)

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Records the stage's final numbers."""
        self.jsonl.summary(metrics)
        if self.wandb is not None:
            self.wandb.summary(metrics)

    def finish(self, exit_code: int) -> None:
        """Closes the file, then wandb, which may take its time within its limit."""
        self.jsonl.finish(exit_code)
        if self.wandb is not None:
            self.wandb.finish(exit_code)


def open_tracker(  # noqa: PLR0913  (keyword-only)
    stage_dir: Path,
    *,
    spec: TrackingSpec,
    run_name: str,
    stage: str,
    kind: str,
    key: str,
    config: Mapping[str, Any],
    resume_step: int | None,
    log: Callable[[str], None],
) -> StageTracker:
    """Opens the trackers of a stage.

    Args:
        stage_dir: Folder of the stage's key; exists. Metrics go to its `metrics.jsonl`.
        spec: The recipe's `tracking` block.
        run_name: Name of the run; the group in wandb.
        stage: Name of the stage; the run's name in wandb.
        kind: Kind of the stage; the job type in wandb.
        key: Key of the stage.
        config: The stage's settings: its dumped spec, flat or under `stage`, and beside it `model` (a name or a dumped
            spec) and `data` (names). Anything the recipe's schema does not declare for the kind is left out.
        resume_step: Step that training goes on from; None for a fresh start, which begins a new metrics file.
        log: Is told what was repaired and what went wrong.

    Raises:
        DataError: When a line in the middle of an existing metrics file is torn.
    """
    jsonl = JsonlSink(stage_dir / METRICS_FILE, resume_step, log)
    wandb = None
    if spec.wandb is not None and spec.wandb.mode != "disabled":
        wandb = WandbSink(stage_dir, spec.wandb, RunIdentity(run_name, stage, kind, key), config, log=log)
    return StageTracker(jsonl, wandb)

"""Train inside a stage: resume from what verifies, track, stop when asked, evaluate on held-out rows at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar, cast

from prefopt.errors import Interrupted
from prefopt.models.roles import POLICY
from prefopt.pipeline.context import StageContext
from prefopt.recipe.schema import DPOSpec, KTOSpec, OnlineSpec, SFTSpec, StageSpec
from prefopt.store.checkpoints import newest_verified
from prefopt.tracking.jsonl import RESERVED, read_jsonl
from prefopt.tracking.tracker import METRICS_FILE, Tracker, open_tracker
from prefopt.trainers.callbacks import KEPT_ADAPTERS, KeepAdapters, StageCallback
from prefopt.trainers.checkpoints import CheckpointedTrainer
from prefopt.trainers.memory import KeepFreedBlocks
from prefopt.trainers.ranks import from_first

Trained = TypeVar("Trained", bound=CheckpointedTrainer)


def checkpoint_step(context: StageContext) -> int | None:
    """Step of the checkpoint that training would resume from."""
    checkpoint = newest_verified(context.directory / "checkpoints", context.log)
    return int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else None


@contextmanager
def tracked(spec: StageSpec, context: StageContext, resume_step: int | None) -> Iterator[Tracker]:
    """A tracker that is closed with the right exit code however the stage ends."""
    tracker = open_tracker(
        context.directory,
        spec=context.recipe.tracking,
        run_name=context.run_name,
        stage=context.stage,
        kind=context.kind,
        key=context.key,
        config={"stage": spec.model_dump(mode="json"), "model": context.recipe.model.model_dump(mode="json")},
        resume_step=resume_step,
        log=context.log,
    )
    exit_code = 1
    try:
        yield tracker
        exit_code = 0
    finally:
        tracker.finish(exit_code)


def train(
    build: Callable[[list[Any]], Trained],
    spec: StageSpec,
    context: StageContext,
    samples: Callable[[Trained], Sequence[Mapping[str, object]]] = lambda trainer: (),
) -> Trained:
    """Build a trainer, train it to the end and evaluate it.

    Args:
        build: Makes the trainer from its callbacks.
        spec: The stage's options, for the tracker's configuration.
        context: The stage's context.
        samples: Rows of a table of samples that the tracker shows beside the numbers.

    Returns:
        The trained trainer.

    Raises:
        Interrupted: When the process was asked to stop; a checkpoint was saved.
        TrainingDiverged: When something stopped being finite.
    """
    step = from_first(lambda: checkpoint_step(context))
    # Other ranks have nothing to tell: what they log is what the first logs.
    with tracked(spec, context, step) if context.rank == 0 else nullcontext() as tracker:
        callback = StageCallback(tracker, context.progress, context.stop)
        keep = [KeepAdapters(context.directory, POLICY)] if getattr(spec, "keep_adapters", False) else []
        trainer = build([callback, *keep, KeepFreedBlocks(context.log)])
        checkpoint = str(context.directory / "checkpoints" / f"checkpoint-{step}") if step is not None else None
        if checkpoint:
            context.log(f"resuming from step {step}")
        trainer.train(resume_from_checkpoint=checkpoint)
        if trainer.micro_rows is not None:
            context.log(
                f"memory ran out, and passes were cut to {trainer.micro_rows} rows; the steps stay what they were"
            )
        if callback.stopped:
            raise Interrupted(
                f"stage {context.stage} stopped at step {trainer.state.global_step}; a checkpoint was saved"
            )
        if trainer.eval_dataset is not None:
            trainer.evaluate()
        if tracker is None:
            return trainer
        tracker.summary(final_metrics(context))
        if rows := samples(trainer):
            tracker.table("samples", rows)
    return trainer


def final_metrics(context: StageContext) -> dict[str, float]:
    """The last value of every metric that the stage logged, before and after any resume."""
    latest: dict[str, float] = {}
    for row in read_jsonl(context.directory / METRICS_FILE):
        for name, value in cast(Mapping[str, Any], row).items():
            if name not in RESERVED and isinstance(value, int | float):
                latest[name] = float(value)
    return latest


def kept_outputs(spec: SFTSpec | DPOSpec | KTOSpec | OnlineSpec) -> list[str]:
    """What `keep_adapters` adds to the outputs of a stage."""
    return [KEPT_ADAPTERS] if spec.keep_adapters else []

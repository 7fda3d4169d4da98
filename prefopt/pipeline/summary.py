"""What a run was asked for, and what it came to."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from prefopt.errors import PrefoptError
from prefopt.pipeline.stages import Registry
from prefopt.recipe.load import LoadedRecipe

State = Literal[
    "done", "skipped", "failed", "interrupted", "waiting", "blocked", "refused", "not selected", "would run"
]


class Watcher(Protocol):
    """Who is told what happens; `prefopt.tracking.progress.Display` is one."""

    def stage_started(self, stage: str, kind: str, index: int, total: int) -> None:
        """A stage begins; `index` counts from 1."""
        ...

    def progress(self, stage: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """A stage has come this far; total is 0 where nobody knows."""
        ...

    def stage_finished(self, stage: str, state: str, seconds: float, headline: str = "") -> None:
        """A stage is over."""
        ...

    def message(self, text: str) -> None:
        """Something to read."""
        ...


@dataclass(frozen=True)
class RunOptions:
    """How to run a recipe.

    Attributes:
        out: The run folder; `runs/NAME` by default.
        only: Run no other stages than these; what they read must be done.
        start_from: Run this stage and all that depend on it even when they are done.
        dry_run: Judge, write nothing.
        allow_inexact_resume: Resume also where the result may differ from an uninterrupted run.
        trust_remote_code: The command line's half of the double opt-in.
        report: Render the report afterwards.
        registry: Which module runs which kind.
        borrow_from: Run folders whose finished artefacts serve where the key is the same.
        resume: The command that goes on with the run, where it is not the obvious one.
    """

    out: Path | None = None
    only: tuple[str, ...] = ()
    start_from: str | None = None
    dry_run: bool = False
    allow_inexact_resume: bool = False
    trust_remote_code: bool = False
    report: bool = True
    registry: Registry = field(default_factory=Registry)
    borrow_from: tuple[Path, ...] = ()
    resume: str = ""


def resume_command(loaded: LoadedRecipe, options: RunOptions) -> str:
    """The command that goes on with a run; it does not ask again for finished stages to be made anew."""
    if options.resume:
        return options.resume
    words = ["prefopt", "run", str(loaded.path)]
    for override in loaded.overrides:
        words += ["--set", override]
    for stage in options.only:
        words += ["--only", stage]
    if options.out is not None:
        words += ["--out", str(options.out)]
    if options.allow_inexact_resume:
        words.append("--allow-inexact-resume")
    if options.trust_remote_code:
        words.append("--trust-remote-code")
    return shlex.join(words)


@dataclass(frozen=True)
class StageOutcome:
    """What became of a stage.

    Attributes:
        state: `skipped` was done before; `blocked` waits for a stage that failed; `refused` is done, and its gate says
            no.
        seconds: Wall time of this attempt.
        headline: The few numbers, or the reason, worth a line.
        directory: The artefact's folder, where its key is known.
    """

    stage: str
    kind: str
    state: State
    seconds: float = 0.0
    headline: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    directory: Path | None = None
    error: PrefoptError | None = None


@dataclass(frozen=True)
class RunSummary:
    """What a run came to.

    Attributes:
        name: The recipe's name.
        directory: The run folder.
        stages: In the order in which they were judged.
        report: The rendered page; None when there is none.
    """

    name: str
    directory: Path
    stages: tuple[StageOutcome, ...]
    report: Path | None = None

    @property
    def errors(self) -> tuple[PrefoptError, ...]:
        """What went wrong, in the order it did."""
        return tuple(outcome.error for outcome in self.stages if outcome.error is not None)

    @property
    def exit_code(self) -> int:
        """0, or the code of the first error."""
        return self.errors[0].exit_code if self.errors else 0

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "directory": str(self.directory),
            "exit_code": self.exit_code,
            "report": str(self.report) if self.report else None,
            "stages": [
                {
                    "stage": outcome.stage,
                    "kind": outcome.kind,
                    "state": outcome.state,
                    "seconds": round(outcome.seconds, 3),
                    "headline": outcome.headline,
                    "metrics": dict(outcome.metrics),
                    "directory": str(outcome.directory) if outcome.directory else None,
                    "error": str(outcome.error) if outcome.error else None,
                }
                for outcome in self.stages
            ],
        }

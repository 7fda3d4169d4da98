"""What a stage is given and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from prefopt.recipe.schema import Recipe
from prefopt.store.manifest import Manifest


class StopFlag:
    """Answers True once the process was asked to stop. Setting it is safe inside a signal handler."""

    def __init__(self) -> None:
        self._stopped = False

    def set(self) -> None:
        """Ask to stop."""
        self._stopped = True

    def __call__(self) -> bool:
        """Whether to stop."""
        return self._stopped


@dataclass(frozen=True)
class StageInput:
    """The artefact of an earlier stage, verified in full."""

    stage: str
    kind: str
    directory: Path
    manifest: Manifest


Inputs = Mapping[str, StageInput]


@dataclass(frozen=True)
class StageContext:
    """Everything around a stage that is not its options or inputs.

    Attributes:
        recipe: The whole recipe; local paths in it are absolute.
        stage: Name of the stage.
        kind: Its kind.
        key: Its key, 64 hexadecimal digits.
        directory: Where it writes: `stages/STAGE/KEY12`.
        seed: The seed to use.
        run_name: Name of the run's folder.
        cache: Folder for what may be made again, such as reference log-probabilities.
        ledger: Folder of what was sampled and judged in this run; outlives every artefact.
        allow_inexact_resume: Resume also where the result may differ from an uninterrupted run.
        trust_remote_code: The command line's half of the double opt-in.
        progress: Takes (step, total, latest metrics); total is 0 where it is not known.
        log: Takes one line for the person who watches.
        stop: Answers True once the stage should save and raise `Interrupted`.
        rank: Number of this process among those that train together; the first alone writes, logs and measures.
    """

    recipe: Recipe
    stage: str
    kind: str
    key: str
    directory: Path
    seed: int
    run_name: str
    cache: Path
    ledger: Path
    allow_inexact_resume: bool
    trust_remote_code: bool
    progress: Callable[[int, int, Mapping[str, float]], None]
    log: Callable[[str], None]
    stop: StopFlag
    rank: int = 0


@dataclass(frozen=True)
class StageResult:
    """What a stage answers.

    Attributes:
        metrics: Final numbers; every one finite.
        outputs: Files and folders it wrote, relative to its directory. `metrics.json` and `metrics.jsonl` are added.
        details: Anything JSON can hold that belongs into the manifest: data report, notes, warnings.
        cost: Tokens, floating-point operations and the like; time and memory are added.
    """

    metrics: dict[str, float]
    outputs: list[str]
    details: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)


class StageFunction(Protocol):
    """`run` of a stage module."""

    def __call__(self, spec: Any, inputs: Inputs, context: StageContext) -> StageResult:
        """Do the work of one stage."""
        ...

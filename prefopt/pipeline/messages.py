"""What passes between the runner and the process of a stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from prefopt.errors import PrefoptError
from prefopt.pipeline.keys import StageKey
from prefopt.recipe.schema import AnyStage, Recipe


@dataclass(frozen=True)
class InputRef:
    """Where an input lies and the hash that the stage's key was computed from."""

    directory: Path
    sha256: str


@dataclass(frozen=True)
class Job:
    """One stage to run.

    Attributes:
        module: The module whose `run` does the work.
        inputs: By stage name.
        log_file: Where the process's output goes.
        lock_file: Held by the process while it writes in the stage's folder.
        cache: Folder for what may be made again.
        ledger: Folder of what was sampled and judged.
        environment: The runner's environment variables.
    """

    recipe: Recipe
    stage: str
    spec: AnyStage
    module: str
    key: StageKey
    seed: int
    directory: Path
    inputs: dict[str, InputRef]
    run_name: str
    log_file: Path
    lock_file: Path
    cache: Path
    ledger: Path
    uses_torch: bool
    allow_inexact_resume: bool = False
    trust_remote_code: bool = False
    environment: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Progress:
    """A stage has come this far."""

    step: int
    total: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Log:
    """A line for the person who watches."""

    text: str


@dataclass(frozen=True)
class Committed:
    """The stage is done and its manifest is on the disk."""

    sha256: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Failed:
    """The stage raised.

    Attributes:
        error: What a user can act on; anything unforeseen comes as a plain `PrefoptError`.
        traceback: Where it was raised.
    """

    error: PrefoptError
    traceback: str


Message = Progress | Log | Committed | Failed

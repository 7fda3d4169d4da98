"""The folder of one experiment: `runs/NAME`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefopt.errors import IntegrityError
from prefopt.store.files import append_json_line, make_folder, read_json_lines, write_atomic
from prefopt.store.lock import RUN_WAIT_SECONDS, exclusive

KEY_DIGITS = 12
SEEDS = "seeds"  # folder of the runs with other seeds
_SHORT_KEY = re.compile(r"^[0-9a-f]{12}$")
_STAGE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")


class RunDirectory:
    """Paths, events, current artefacts and the lock of a run folder. Making one creates nothing.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe = root / "recipe.yaml"
        self.fingerprint = root / "fingerprint.json"
        self.events_file = root / "events.jsonl"
        self.lock_file = root / "lock"
        self.logs = root / "logs"
        self.ledger = root / "ledger"
        self.report = root / "report" / "index.html"

    def stage_root(self, stage: str) -> Path:
        """The folder with all artefacts of a stage.

        Raises:
            IntegrityError: For a name that could leave the run folder.
        """
        if not _STAGE.match(stage):
            raise IntegrityError(f"{stage!r} is not the name of a stage")
        return self.root / "stages" / stage

    def stage(self, stage: str, key: str) -> Path:
        """The folder of one artefact: `stages/STAGE/KEY12`.

        Args:
            stage: The stage's name.
            key: Its key, at least 12 hexadecimal digits.

        Raises:
            IntegrityError: For a name or key that is none.
        """
        short = key[:KEY_DIGITS]
        if not _SHORT_KEY.match(short):
            raise IntegrityError(f"{key!r} is not a key of stage {stage}")
        return self.stage_root(stage) / short

    def stage_lock(self, stage: str) -> Path:
        """The lock file of the process that writes artefacts of a stage."""
        return self.stage_root(stage) / ".lock"

    def log_file(self, stage: str) -> Path:
        """Where the output of a stage's process goes."""
        return self.logs / f"{self.stage_root(stage).name}.log"

    def current(self, stage: str) -> str | None:
        """The first 12 digits of the key of a stage's committed artefact; None when it has none."""
        return self._pointer(stage, "current")

    def set_current(self, stage: str, key: str) -> None:
        """Points a stage to a committed artefact; nothing is written where it points there already."""
        self._set_pointer(stage, "current", key)

    def started(self, stage: str) -> str | None:
        """The first 12 digits of the key under which a stage was last started, finished or not."""
        return self._pointer(stage, "started")

    def set_started(self, stage: str, key: str) -> None:
        """Remembers under which key a stage is started."""
        self._set_pointer(stage, "started", key)

    def _pointer(self, stage: str, name: str) -> str | None:
        path = self.stage_root(stage) / name
        try:
            text = path.read_text("ascii").strip()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{path} cannot be read: {error}") from error
        if not _SHORT_KEY.match(text):
            raise IntegrityError(f"{path} does not hold a key", "delete the file and run again")
        return text

    def _set_pointer(self, stage: str, name: str, key: str) -> None:
        path = self.stage(stage, key).with_name(name)
        content = f"{key[:KEY_DIGITS]}\n"
        if not (path.is_file() and path.read_bytes() == content.encode("ascii")):
            write_atomic(path, content)

    def event(self, event: Mapping[str, object]) -> None:
        """Appends what happened, with the time, to `events.jsonl`.

        Raises:
            EnvironmentFault: When it cannot be written.
        """
        make_folder(self.root)
        append_json_line(self.events_file, {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event})

    def events(self) -> Iterator[dict[str, Any]]:
        """What happened so far, oldest first.

        Raises:
            IntegrityError: For a line that is not JSON.
        """
        yield from read_json_lines(self.events_file)

    def lock(self, log: Callable[[str], None] | None = None) -> AbstractContextManager[None]:
        """Holds the run folder for this process.

        Args:
            log: Is told when the lock of a dead process was taken over.

        Raises:
            EnvironmentFault: Within two seconds, when another process holds it, naming process id, host and start.
        """
        return exclusive(self.lock_file, RUN_WAIT_SECONDS, log=log)

"""Metrics as JSON lines: one strictly valid object a row, flushed at once, readable after any crash.

JSON has no NaN. A metric that is not finite is written as `null`, and its name is listed in the row's `nonfinite`,
so that the file stays readable for everybody and the NaN stays visible.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefopt.errors import DataError
from prefopt.store.files import write_atomic

NONFINITE = "nonfinite"
RESERVED = ("step", "time", "summary", NONFINITE)


def _reject_constant(token: str) -> Any:
    raise ValueError(f"{token} is not JSON")


def _parse(line: bytes) -> dict[str, Any]:
    row = json.loads(line.decode("utf-8"), parse_constant=_reject_constant)
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    return row


def _scan(path: Path) -> tuple[list[dict[str, Any]], bytes]:
    """All whole rows, and the bytes of a torn last one."""
    lines = path.read_bytes().split(b"\n")
    # Rows end with a newline, so what follows the last newline was never finished, even where it parses.
    tail = lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_parse(line))
        except ValueError as error:
            # A crash on some file systems leaves a last line of zero bytes that does end with a newline.
            if number == len(lines) and not tail:
                return rows, line
            raise DataError(
                f"{path}:{number}: not a JSON object: {error}",
                "restore the file, or delete the stage's folder and run again",
            ) from None
    return rows, tail


def read_jsonl(path: Path, log: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """Reads a JSON lines file; a torn last line is left out.

    Args:
        path: The file.
        log: Is told about a torn last line.

    Raises:
        DataError: For a line that is no JSON object (NaN counts as none), with its number.
        OSError: When the file cannot be read.
    """
    rows, torn = _scan(path)
    if torn and log is not None:
        log(f"{path}: last line is torn ({len(torn)} bytes), left out")
    return rows


def encode_row(row: Mapping[str, Any]) -> str:
    """A row as one line of strict JSON; numbers that are not finite become null and are named in `nonfinite`."""
    bad = sorted(name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value))
    clean: dict[str, Any] = {name: None if name in bad else value for name, value in row.items()}
    if bad:
        clean[NONFINITE] = bad
    return json.dumps(clean, ensure_ascii=False, allow_nan=False)


class JsonlSink:
    """Appends metrics to a file.

    Args:
        path: The file; its folder exists.
        resume_step: The step training goes on from: later rows belong to a timeline that was lost and are dropped.
            None starts a new file.
        log: Is told what was repaired or dropped.
        clock: Seconds since the epoch.

    Raises:
        DataError: When a line in the middle of an existing file is torn.
    """

    def __init__(
        self,
        path: Path,
        resume_step: int | None = None,
        log: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._clock = clock
        self._last_step = 0 if resume_step is None else resume_step
        if resume_step is not None and path.exists():
            self._rewind(resume_step, log)
        self._file = path.open("w" if resume_step is None else "a", encoding="utf-8", newline="\n")

    def _rewind(self, resume_step: int, log: Callable[[str], None]) -> None:
        rows, torn = _scan(self.path)
        # A summary closes a timeline, so a run that goes on has none yet.
        kept = [row for row in rows if _step(row) <= resume_step and not row.get("summary")]
        if torn:
            log(f"{self.path}: last line was torn ({len(torn)} bytes), removed")
        if len(kept) < len(rows):
            log(f"{self.path}: {len(rows) - len(kept)} rows after step {resume_step} dropped, they are made again")
        if torn or len(kept) < len(rows):
            write_atomic(self.path, "".join(f"{encode_row(row)}\n" for row in kept))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Appends one row `{"step", "time", name: value}`."""
        self._last_step = step
        self._append({"step": step, "time": round(self._clock(), 3), **metrics})

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Appends the final numbers of the stage as a row marked `"summary": true`."""
        self._append({"step": self._last_step, "time": round(self._clock(), 3), "summary": True, **metrics})

    def finish(self, exit_code: int = 0) -> None:
        """Forces the file to the disk and closes it; a second call does nothing."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def _append(self, row: dict[str, Any]) -> None:
        # numpy and torch scalars are floats to the eye but not to json; int() would lose their fraction.
        plain = {name: value if name in RESERVED else _number(value) for name, value in row.items()}
        self._file.write(encode_row(plain) + "\n")
        self._file.flush()


def _step(row: Mapping[str, Any]) -> float:
    step = row.get("step")
    return step if isinstance(step, int | float) else 0


def _number(value: Any) -> float | int:
    return value if isinstance(value, int) else float(value)

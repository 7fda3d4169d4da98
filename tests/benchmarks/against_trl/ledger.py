"""The file of results: a JSON line for each finished process, so that a stopped benchmark goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Row = dict[str, Any]


class Ledger:
    """Results that were measured with the same code, libraries and machine.

    Args:
        path: The file; what a killed process left of a last line is taken away.
        state: Of code, libraries and machine. Results of another state are kept in the file and not used.
        fresh: Begin an empty file.
    """

    def __init__(self, path: Path, state: str, *, fresh: bool = False) -> None:
        self._path = path
        self._state = state
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = "" if fresh or not path.exists() else path.read_text(encoding="utf-8").rpartition("\n")[0]
        path.write_text(whole + "\n" * bool(whole), encoding="utf-8")
        self._rows = [json.loads(line) for line in whole.splitlines()]

    def find(self, key: str, command: Sequence[str]) -> Row | None:
        """The newest row of a process with this name and these words; None when it is still to be measured.

        A row has `key`, `state`, `command`, `date` and `result`.
        """
        wanted = (key, self._state, list(command))
        found = (row for row in reversed(self._rows) if (row["key"], row["state"], row["command"]) == wanted)
        return next(found, None)

    def add(self, key: str, command: Sequence[str], result: Result) -> Row:
        """Write a result down, and return its row."""
        date = datetime.now(UTC).isoformat(timespec="seconds")
        row: Row = {"key": key, "state": self._state, "command": list(command), "date": date, "result": result}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._rows.append(row)
        return row


def read_result(output: str) -> Result:
    """What a side printed: its JSON lines together, later ones first; everything else it says is left out.

    `pairs_per_second` is that of all the work: the steps, and the counted pairs' share of a pass of the reference that
    came before them.

    Raises:
        ValueError: When there is no such line.
    """
    result: Result = {}
    for line in output.splitlines():
        if line.startswith('{"'):
            result |= json.loads(line)
    if not result:
        raise ValueError("no JSON line was printed")
    if "pairs" in result and "seconds" in result:
        before = result.get("reference_seconds", 0.0) * result.get("reference_share", 0.0)
        result["pairs_per_second"] = result["pairs"] / (result["seconds"] + before)
    return result

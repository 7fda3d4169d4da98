"""What experiments have found: a file with a row for each run that is finished, and the processes that runs are.

The files lie in docs/measured, so that every number of a page can be traced, and an experiment goes on from what others
have measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.against_trl.peers import ROOT

Row = dict[str, Any]
MEASURED = ROOT / "docs" / "measured"
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PREFOPT_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(ROOT),
}


class Rows:
    """The finished runs of an experiment.

    Args:
        file: JSON lines, one for each run, with its `key`; made where it is missing.

    Attributes:
        by_key: The rows, in the order in which they were added.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
        self.by_key: dict[str, Row] = {row["key"]: row for row in map(json.loads, lines)}

    def add(self, key: str, **values: Any) -> None:
        """Keep what a run found, with the commit that it ran at. Threads may do so at the same time."""
        row = {"key": key, "commit": commit(), **values}
        with self._lock:
            self.by_key[key] = row
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def commit() -> str:
    """Of the project, as far as it is known."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()


def python(words: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What a process of one thread, without network, writes to its standard output.

    Args:
        words: After `python`.
        environment: Added to this process's.

    Raises:
        RuntimeError: When it fails, with the end of what it said.
    """
    variables = {**os.environ, **QUIET, **(environment or {})}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, cwd=ROOT, env=variables
    )
    if done.returncode:
        raise RuntimeError(f"{words} ended with {done.returncode}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return done.stdout

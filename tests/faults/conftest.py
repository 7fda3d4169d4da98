from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.store.files import append_json_line

COUNTS = "PREFOPT_FAULTS_COUNTS"
Count = Callable[..., None]


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Count:
    """Notes how many faults of a kind a test has tried, for the table of `docs/reliability.md`."""

    def note(row: str, what: str, number: int) -> None:
        line = {"row": row, "what": what, "count": number, "test": request.node.nodeid}
        if path := os.environ.get(COUNTS):
            append_json_line(Path(path), line)
        print(json.dumps(line))

    return note

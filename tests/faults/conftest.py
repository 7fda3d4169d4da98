from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_socket

from tests.faults.runs import Experiment

COUNTS = "PREFOPT_FAULTS_COUNTS"
Count = Callable[..., None]


LONGEST = ("operation_ends_with_the_same_bits[ppo]", "test_t01", "test_t02", "")
"""What takes longest, in parts of names."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the sweeps that take longest, one in each of two workers, so that none is left over at the end."""
    sweeps = [item for item in items if item.get_closest_marker("sweep")]
    if sweeps:
        others = [item for item in items if item not in sweeps]
        sweeps.sort(key=lambda item: next(place for place, part in enumerate(LONGEST) if part in item.nodeid))
        ordered = [*sweeps, *others]
        items[:] = ordered[0::2] + ordered[1::2]  # each worker gets a half, and takes over what another has not begun


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Count:
    """Notes how many faults of a kind a test has tried, for the table of `docs/reliability.md`."""

    def note(row: str, what: str, number: int) -> None:
        line = {"row": row, "what": what, "count": number, "test": request.node.nodeid}
        if path := os.environ.get(COUNTS):
            with Path(path).open("a") as file:  # of all workers: a short line is appended as a whole
                file.write(json.dumps(line) + "\n")
        print(json.dumps(line))

    return note


def without_sockets() -> None:
    """From here on no socket can be opened in this process and those that are forked from it; pipes can."""
    pytest_socket.disable_socket(allow_unix_socket=True)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A run of every kind of stage that nothing interrupted, and that could open no socket. Tests copy it."""
    made = Experiment(tmp_path_factory.mktemp("whole"), prepare=without_sockets)
    ended = made.run()
    assert not ended.error and ended.value["exit_code"] == 0, ended
    return made

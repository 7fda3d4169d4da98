from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.small import Warm, environment


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Runs command lines in one process; nothing of the machine's wandb reaches it."""
    home = tmp_path_factory.mktemp("home")
    env = {name: value for name, value in environment().items() if not name.startswith("WANDB_")}
    env |= {"NETRC": str(home / "netrc"), "WANDB_ERROR_REPORTING": "false"}
    env |= {f"WANDB_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "CACHE", "DATA")}
    program = Warm(tmp_path_factory.mktemp("output"), env)
    yield program
    program.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run folder that is not there yet."""
    return tmp_path / "runs" / "small"

"""Makes `fake_stage` and `experiment` importable, here and in the processes that the tests start."""

import os
import sys
from pathlib import Path

import pytest

_HERE = str(Path(__file__).parent)
if _HERE not in sys.path:
    sys.path.insert(0, _HERE)

from experiment import Experiment  # noqa: E402  the path comes first


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    made = Experiment(tmp_path)
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(os.getcwd())
    return made

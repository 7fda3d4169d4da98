"""What every test has: no network, no colours, and the shared data and models where they are."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.end_to_end.small import Finished, prefopt, words

# Before any library reads them: tests import what they test at the top of the module.
os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", NO_COLOR="1")
# Threads that wait by spinning take the cores away from each other wherever more run than there are cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell starts what stands before its & deaf to Ctrl-C, which every command that a test starts would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Set by .ci/run: there, a test that is skipped for want of data or a browser is a failure.
_NO_SKIPS = os.environ.get("PREFOPT_NO_SKIPS") == "1"
_SHARED = Path(__file__).resolve().parents[2] / "shared"


def _folder(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable) or _SHARED / default)
    if not path.is_dir():
        pytest.skip(f"{variable} is not set and {path} does not exist")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return _folder("PREFOPT_DATA", "data")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    return _folder("PREFOPT_MODELS", "models")


@pytest.fixture(scope="session")
def shared_bench() -> Path:
    return _folder("PREFOPT_BENCH", "bench")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    expected = any(item.get_closest_marker(name) for name in ("shared", "browser"))
    if _NO_SKIPS and report.skipped and expected:
        report.outcome = "failed"
        report.longrepr = f"skipped, though PREFOPT_NO_SKIPS is set: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The small quickstart, run once from nothing to the report. Tests may read it, and copy it."""
    out = tmp_path_factory.mktemp("runs") / "small"
    return Finished(out, prefopt(*words(out)))

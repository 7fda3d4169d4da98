from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefopt.errors import EnvironmentFault, IntegrityError
from prefopt.store.lock import describe_holder, is_held
from prefopt.store.run import RunDirectory

KEY = "0123456789ab" + "c" * 52
_HOLD = """
import sys, time
from pathlib import Path
from prefopt.store.run import RunDirectory
with RunDirectory(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a run folder."""
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_held_run_folder_is_refused_within_two_seconds_naming_the_holder(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with holder(run.root) as process:
        start = time.monotonic()
        with pytest.raises(EnvironmentFault, match=rf"process {process.pid} on \S+, started 20\d\d-"), run.lock():
            pass
        assert time.monotonic() - start < 2.0
        assert is_held(run.lock_file) and str(process.pid) in describe_holder(run.lock_file)
    assert not is_held(run.lock_file)


def test_the_lock_of_a_killed_process_is_taken_over_and_told(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with holder(run.root) as process:
        pass
    said: list[str] = []
    with run.lock(said.append):
        assert is_held(run.lock_file)
    assert len(said) == 1 and f"process {process.pid} on " in said[0]


@pytest.mark.parametrize("note", ["", "{", "[]", '{"pid": 1, "host": "elsewhere", "start": "2020-01-01"}'])
def test_a_note_without_a_lock_holds_nobody_up(tmp_path: Path, note: str) -> None:
    # Its process id may have been given to another process by now, or belong to another host.
    run = RunDirectory(tmp_path)
    (tmp_path / "lock.json").write_text(note)
    with run.lock():
        assert json.loads((tmp_path / "lock.json").read_text())["host"] != "elsewhere"
    assert not (tmp_path / "lock.json").exists()
    with run.lock(lambda text: pytest.fail(text)):
        pass


def test_asking_for_the_lock_writes_nothing(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_made_is_an_environment_fault(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(EnvironmentFault, match="cannot write"), RunDirectory(tmp_path).lock():
        pass


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.stage("sft", KEY) == tmp_path / "stages" / "sft" / "0123456789ab"
    assert run.current("sft") is None
    run.set_current("sft", KEY)
    run.set_started("sft", "f" * 64)
    assert (tmp_path / "stages" / "sft" / "current").read_text() == "0123456789ab\n"
    assert (run.current("sft"), run.started("sft")) == ("0123456789ab", "f" * 12)
    before = (tmp_path / "stages" / "sft" / "current").stat().st_mtime_ns
    run.set_current("sft", KEY)
    assert (tmp_path / "stages" / "sft" / "current").stat().st_mtime_ns == before


@pytest.mark.parametrize("stage", ["..", "a/b", "", "/", ".hidden", "a\0", "a b"])
def test_names_that_could_leave_the_run_folder_are_refused(tmp_path: Path, stage: str) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(IntegrityError):
        run.stage(stage, KEY)
    with pytest.raises(IntegrityError):
        run.stage("sft", stage)


@pytest.mark.parametrize("content", [b"", b"../../etc", b"\xff", b"0123456789AB"])
def test_a_damaged_pointer_is_named(tmp_path: Path, content: bytes) -> None:
    run = RunDirectory(tmp_path)
    run.set_current("sft", KEY)
    path = tmp_path / "stages" / "sft" / "current"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=str(path)):
        run.current("sft")


def test_events_keep_their_order_and_time(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for number in range(3):
        run.event({"event": "x", "number": number})
    events = list(run.events())
    assert [event["number"] for event in events] == [0, 1, 2]
    assert all(event["time"].endswith("+00:00") for event in events)

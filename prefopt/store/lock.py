"""Locks that die with their process, and the note that says whose they are.

`flock` belongs to an open file: it is gone when the process is, however it ended, and a process id that was given to
somebody else means nothing. The note beside it, `lock.json`, only serves to name the holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prefopt.errors import EnvironmentFault, IntegrityError
from prefopt.store.files import disk_faults, make_folder, read_json, remove, write_json

RUN_WAIT_SECONDS = 1.0


def _holder(note: Path) -> dict[str, Any]:
    with contextlib.suppress(IntegrityError):
        value = read_json(note)
        if isinstance(value, dict):
            return value
    return {}


def _describe(holder: dict[str, Any]) -> str:
    values = {name: holder.get(name, "unknown") for name in ("pid", "host", "start")}
    return "process {pid} on {host}, started {start}".format(**values)


@contextlib.contextmanager
def exclusive(path: Path, timeout_seconds: float, *, log: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds a lock file, with a note of the holder in `PATH.json` beside it.

    Args:
        path: The lock file; it stays, empty, after release.
        timeout_seconds: How long to wait for a holder.
        log: Is told when a lock was taken over from a process that did not release it.

    Raises:
        EnvironmentFault: When somebody else holds it, with process id, host and start; or when the file cannot be made.
    """
    note = path.with_name(path.name + ".json")
    make_folder(path.parent)
    lock = FileLock(path)
    with disk_faults(path):
        try:
            lock.acquire(timeout=timeout_seconds, poll_interval=0.05)
        except Timeout as error:
            raise EnvironmentFault(
                f"{path} is held by {_describe(_holder(note))}", "wait until it has ended, or stop it"
            ) from error
    try:
        previous = _holder(note)
        if previous and log is not None:
            log(f"the lock of {_describe(previous)} was taken over: that process ended without releasing it")
        start = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(note, {"pid": os.getpid(), "host": socket.gethostname(), "start": start})
        yield
    finally:
        # The note goes first: once the lock is free it belongs to the next holder.
        try:
            remove(note)
        finally:
            lock.release()


def is_held(path: Path) -> bool:
    """Whether some process holds a lock file; asks without writing and without waiting."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def describe_holder(path: Path) -> str:
    """Who holds a lock file, as its note says: `process 12 on host, started 2026-…`."""
    return _describe(_holder(path.with_name(path.name + ".json")))

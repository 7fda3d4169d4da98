"""Real faults at the n-th file operation below a folder: SIGKILL, or an error of the operating system.

An audit hook sees what Python opens for writing, renames, removes and makes; fsync and the two libraries that write
files themselves (safetensors, torch) are wrapped. A file that is opened for writing gives two points: before it is
there, and when half of what is in it is garbage or missing. Runs are forked from this process, which has the libraries
imported, so that a point costs what the run costs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 300  # of a forked run
TORN_BYTES = b'{"torn": [1, 2, \x00\xff'
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NAMED = {"os.rename": 2, "os.remove": 1, "os.mkdir": 2, "os.rmdir": 1, "os.truncate": None, "os.chmod": 2}
_OWN = ("faults.fsync", "faults.write", "faults.torn")


@dataclass
class Operation:
    """One file operation: what, on which path, and, of a rename, to which."""

    what: str
    path: str
    to: str = ""

    def __str__(self) -> str:
        return f"{self.what} {self.path}" + (f" -> {self.to}" if self.to else "")


@dataclass
class Saboteur:
    """Acts at the n-th operation below a folder. An audit hook stays for good: there is one, asleep.

    Attributes:
        folder: What is watched.
        at: Which operation, from 0; None watches only.
        act: What is done there.
        operations: What was seen so far.
    """

    folder: str = ""
    at: int | None = None
    act: Callable[[Operation], None] = lambda operation: None
    operations: list[Operation] = field(default_factory=list)
    pid: int = 0
    _installed: bool = False

    def watch(self, folder: Path, at: int | None, act: Callable[[Operation], None]) -> None:
        """Starts to count in this process."""
        if not self._installed:
            sys.addaudithook(self._hook)
            _wrap_native_writers()
            self._installed = True
        self.folder, self.at, self.act, self.operations, self.pid = str(folder), at, act, [], os.getpid()

    def sleep(self) -> None:
        self.pid = 0

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.pid != os.getpid():
            return
        for operation in _operations(event, arguments):
            if not operation.path.startswith(self.folder):
                continue
            number = len(self.operations)
            self.operations.append(operation)
            if number == self.at:
                self.act(operation)


def _operations(event: str, arguments: tuple[Any, ...]) -> Iterator[Operation]:
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike) and flags & _WRITES:
            # A lock file and /dev/null are opened as well; neither has a content to tear.
            yield Operation("open", os.fsdecode(path))
            if not flags & os.O_APPEND:
                yield Operation("torn", os.fsdecode(path))
    elif event in _OWN:
        yield Operation(event.partition(".")[2], str(arguments[0]))
    elif event in _NAMED:
        place = _NAMED[event]
        folder = arguments[place] if place is not None and place < len(arguments) else -1
        path = _below(arguments[0], folder)
        yield Operation(event, path, os.fsdecode(arguments[1]) if event == "os.rename" else "")


def _below(path: Any, folder: Any) -> str:
    """A path that is relative to an open folder, as `shutil.rmtree` gives them, as an absolute one."""
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    if isinstance(folder, int) and folder >= 0:
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
    return os.fsdecode(path)


def _wrap_native_writers() -> None:
    fsync = os.fsync

    @functools.wraps(fsync)
    def told(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        sys.audit("faults.fsync", os.readlink(f"/proc/self/fd/{number}"))
        fsync(descriptor)

    os.fsync = told
    for module, name, place in (("safetensors.torch", "serialize_file", 1), ("torch", "save", 1)):
        if module in sys.modules:
            _wrap_writer(sys.modules[module], name, place)


def _wrap_writer(module: Any, name: str, place: int) -> None:
    """Two points for a writer in native code: before it writes, and when half of the file is there."""
    write = getattr(module, name)

    @functools.wraps(write)
    def told(*arguments: Any, **named: Any) -> Any:
        target = arguments[place] if len(arguments) > place else named.get("f", named.get("filename"))
        if not isinstance(target, str | os.PathLike):
            return write(*arguments, **named)
        sys.audit("faults.write", os.fspath(target))
        done = write(*arguments, **named)
        sys.audit("faults.torn", os.fspath(target))
        return done

    setattr(module, name, told)


SABOTEUR = Saboteur()


# -- what is done at a point -------------------------------------------------------------------------------------------


def tear(operation: Operation) -> None:
    """Leaves what a writer leaves that was stopped in the middle."""
    if operation.what != "torn":
        return
    SABOTEUR.sleep()
    path = Path(operation.path)
    if path.exists() and (size := path.stat().st_size):
        os.truncate(path, size // 2)
    elif path.parent.is_dir():
        path.write_bytes(TORN_BYTES)


def kill(operation: Operation) -> None:
    """The process is gone, and nothing is cleaned up."""
    tear(operation)
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int, *, for_good: bool = False) -> Callable[[Operation], None]:
    """The system refuses the operation, once or from then on, with an error such as ENOSPC."""

    def act(operation: Operation) -> None:
        if operation.what == "torn":
            pid = os.getpid()
            tear(operation)
            SABOTEUR.pid = pid
        if for_good and SABOTEUR.at is not None:
            SABOTEUR.at += 1
        if operation.what not in ("os.remove", "os.rmdir"):  # on a full disk those work
            raise OSError(number, os.strerror(number), operation.path)

    return act


# -- runs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a forked run ended.

    Attributes:
        killed: By SIGKILL.
        value: What it answered; None where it did not.
        error: The traceback of what it raised, or how it ended otherwise.
    """

    killed: bool
    value: Any
    error: str


def forked(action: Callable[[], Any], said: Path | None = None) -> Ended:
    """Runs an action in a process of its own; its answer must be JSON.

    Args:
        action: What is done there.
        said: A file that gets what it prints.
    """
    read, write = os.pipe()
    gc.freeze()  # a trainer in the child collects garbage: it would look at, and copy, all that was ever imported
    with warnings.catch_warnings():
        # Python 3.12 warns of threads beside a fork; the child uses none that the parent has started.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(read)
        _child(action, write, said)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        answer = stream.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL:
        return Ended(True, None, "")
    if code == 0:
        return Ended(False, json.loads(answer), "")
    return Ended(False, None, answer.decode() or f"exit code {code}")


def _child(action: Callable[[], Any], write: int, said: Path | None) -> None:
    code = 1
    try:
        signal.alarm(LIMIT_SECONDS)
        faulthandler.disable()  # of the parent's file
        output = os.open(said or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        answer = json.dumps(action()).encode()
        code = 0
    except BaseException:
        answer = traceback.format_exc().encode()
    SABOTEUR.sleep()
    with contextlib.suppress(BrokenPipeError), os.fdopen(write, "wb") as stream:
        stream.write(answer)
    os._exit(code)


def operations(folder: Path, action: Callable[[], Any]) -> tuple[list[Operation], Any]:
    """The file operations of an action that nothing interrupts, and its answer."""

    def watched() -> tuple[list[list[str]], Any]:
        SABOTEUR.watch(folder, None, lambda operation: None)
        answer = action()
        SABOTEUR.sleep()
        return [[each.what, each.path, each.to] for each in SABOTEUR.operations], answer

    ended = forked(watched)
    assert not ended.error, ended.error
    found, answer = ended.value
    return [Operation(*each) for each in found], answer


def struck(
    folder: Path,
    at: int,
    act: Callable[[Operation], None],
    action: Callable[[], Any],
    said: Path | None = None,
) -> Ended:
    """Runs an action in a process of its own, in which something happens at its n-th file operation."""

    def watched() -> Any:
        SABOTEUR.watch(folder, at, act)
        try:
            return action()
        finally:
            SABOTEUR.sleep()

    return forked(watched, said)


def some(count: int, few: int | None) -> list[int]:
    """All numbers below a count, or a few that are spread evenly."""
    if few is None or few >= count:
        return list(range(count))
    return [(2 * place + 1) * count // (2 * few) for place in range(few)]

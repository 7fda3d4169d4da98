"""Starting, hearing and stopping the process of a stage, from the runner's side."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

from prefopt.errors import EnvironmentFault
from prefopt.pipeline import worker
from prefopt.pipeline.loading import SERVER_LOG
from prefopt.pipeline.messages import Committed, Failed, Job, Message
from prefopt.store.files import make_folder

SERVER_MODULE = "prefopt.pipeline.server"
POLL_SECONDS = 0.2
# What multiprocessing reports when the fork server is gone: nothing is known of the process then.
_UNKNOWN_EXIT = 255


def start_server(preload: tuple[str, ...], log_file: Path) -> None:
    """Starts the warm server that stage processes are forked from, unless this process has one already.

    Args:
        preload: Modules to import in it. It does so while the caller goes on.
        log_file: Where its output goes.

    Raises:
        EnvironmentFault: When the log file's folder cannot be made, or the server cannot be started.
    """
    make_folder(log_file.parent)
    context = multiprocessing.get_context("forkserver")
    # bitsandbytes starts CUDA while it is imported, and PEFT imports it: a process forked after that could not use the
    # device. With it installed every stage imports its libraries itself, some seconds later.
    warm = () if importlib.util.find_spec("bitsandbytes") else preload
    context.set_forkserver_preload([SERVER_MODULE, *warm])
    # Sets of strings, such as the names of LoRA's target modules, come in the same order in every run.
    with _variables(PYTHONHASHSEED="0", **{SERVER_LOG: str(log_file.absolute())}), _without_main():
        try:
            forkserver.ensure_running()
        except OSError as error:
            raise EnvironmentFault(f"no process can be started: {error}") from error


def server_log(stage_log: Path) -> Path:
    """The log of the server beside that of a stage. No stage has this name: theirs begin with a letter or digit."""
    return stage_log.with_name("_server.log")


@contextlib.contextmanager
def _variables(**values: str) -> Iterator[None]:
    """Environment variables that a process started inside the block inherits."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hides the main module, which multiprocessing would otherwise run again in the new process.

    A stage needs nothing from it, and a user's script without `if __name__ == "__main__"` would start itself again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class StageProcess:
    """A stage's process that has been started.

    Args:
        job: What it does.

    Raises:
        EnvironmentFault: When it could not be started.
    """

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe(duplex=False)
        self._stage = job.stage
        self._log_file = job.log_file
        self._connection: Connection = ours
        self._process = context.Process(target=worker.main, args=(job, theirs), name=f"prefopt {job.stage}")
        try:
            with _without_main():
                self._process.start()
        except (EOFError, OSError) as error:
            ours.close()
            raise EnvironmentFault(
                f"the process of stage {job.stage} could not be started: {type(error).__name__}: {error}",
                f"see {server_log(job.log_file)}, and run again",
            ) from error
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Id of the process, which also leads a process group."""
        assert self._process.pid is not None
        return self._process.pid

    def outcome(self, hear: Callable[[Message | None], None]) -> Committed | Failed:
        """Waits for the end of the process.

        Args:
            hear: Called with every message, and with None at least five times a second.

        Returns:
            The last message of the process, or one made up for a process that died without a word.
        """
        last: Committed | Failed | None = None
        dead = False
        while True:
            message = None
            if self._connection.poll(0 if dead else POLL_SECONDS):
                try:
                    message = self._connection.recv()
                except (EOFError, OSError):
                    break
            elif dead:
                break
            else:
                # What it said between the last look and its end is still to be read.
                dead = self._is_dead()
            if isinstance(message, Committed | Failed):
                last = message
            hear(message)
        self._process.join(POLL_SECONDS)
        if last is not None:
            return last
        # Data loaders of a process that was killed would go on for a while, and hold its lock.
        self.kill()
        return self._died()

    def _is_dead(self) -> bool:
        # With the server gone only the connection, which closes with the process, can tell.
        return self._process.exitcode not in (None, _UNKNOWN_EXIT)

    def _died(self) -> Failed:
        code = self._process.exitcode
        how = f"exit code {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-code).name
        hint = "; the system kills so when memory runs out" if code == -signal.SIGKILL else ""
        error = EnvironmentFault(
            f"the process of stage {self._stage} ended without a word ({how}{hint})",
            f"run again to go on from its last checkpoint; its output is in {self._log_file}",
        )
        return Failed(error, "")

    def ask_to_stop(self) -> None:
        """Asks the stage to save a checkpoint and end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process and everything it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Makes sure that the process is gone, and frees what belongs to it."""
        if self._process.is_alive():
            self.kill()
            self._process.join()
        self._connection.close()
        with contextlib.suppress(ValueError):
            self._process.close()

"""Ctrl-C and a service manager's stop: the first asks the running stage to save and end, the second Ctrl-C aborts."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from prefopt.pipeline.process import StageProcess

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequests:
    """A context in which signals stop the run in good order. Outside the main thread it changes nothing.

    Attributes:
        stopping: True from the first signal on.
        aborted: True when a second Ctrl-C came.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.aborted = False
        self._process: StageProcess | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                # Who started this process with nohup, or in the background, wants the signal ignored.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def attach(self, process: StageProcess | None) -> None:
        """The process that signals are for, from now on; None: nobody."""
        self._process = process
        if process is not None and self.stopping:
            self._forward(process)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Two stops of a service manager are one wish; only a person's second Ctrl-C means it.
        self.aborted = self.aborted or (self.stopping and number == signal.SIGINT)
        self.stopping = True
        if self._process is not None:
            self._forward(self._process)

    def _forward(self, process: StageProcess) -> None:
        if self.aborted:
            process.kill()
        else:
            process.ask_to_stop()

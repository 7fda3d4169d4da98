"""Where the time of a rollout goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up wall time by name, in seconds."""

    def __init__(self, *names: str) -> None:
        self._seconds = dict.fromkeys(names, 0.0)

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """The time of the block is counted, also where it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Seconds by name since the last call, of all names, and begin anew."""
        found = dict(self._seconds)
        self._seconds = dict.fromkeys(found, 0.0)
        return found

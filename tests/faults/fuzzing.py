"""Generated cases in a process of its own, which may take so much time and memory and no more."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Verbosity, given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.faults.injection import Ended, forked

FEW, ALL = 200, 10_000
SECONDS_OF_A_CASE = 2.0  # of this process, which a busy machine does not change
MORE_BYTES = 1 << 30
_PAGE = resource.getpagesize()


def fuzz(strategy: SearchStrategy[Any], judge: Callable[[Any], object], cases: int) -> Ended:
    """Runs a judge on generated cases; it raises where one is not handled as it should be.

    Returns:
        `cases`, `outcomes` (how often each answer of the judge came) and `slowest` in seconds.
    """
    return forked(lambda: _fuzz(strategy, judge, cases))


def _fuzz(strategy: SearchStrategy[Any], judge: Callable[[Any], object], cases: int) -> dict[str, Any]:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * _PAGE + MORE_BYTES,) * 2)
    outcomes: dict[str, int] = {}
    slowest = 0.0

    @seed(0)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(case: Any) -> None:
        nonlocal slowest
        start = time.process_time()
        outcome = str(judge(case))
        slowest = max(slowest, time.process_time() - start)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    one()
    return {"cases": sum(outcomes.values()), "outcomes": outcomes, "slowest": round(slowest, 3)}


def require_one_line(text: str, where: str) -> None:
    """An error is one line that names the place, and acts on no terminal."""
    assert text and where in text, text
    assert not re.search("[\n\r\x00\x1b]", text), repr(text)

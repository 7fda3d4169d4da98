"""What a person sees while a run is under way: live bars on a terminal, plain lines in a log, nothing for a program.

Everything goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_MARKS = {
    "done": ("✓", "green"),
    "skipped": ("–", "dim"),
    "waiting": ("…", "yellow"),
    "failed": ("✗", "red"),
    "refused": ("✗", "red"),
}
_OTHER = ("!", "yellow")

# What says most about a stage in few characters, in this order.
# Held-out numbers first where they exist: they say more than those of the last training batches.
_SHOWN = (
    *(f"{method}/{name}" for method in ("ppo", "grpo", "rloo") for name in ("score", "kl", "length")),
    "collect/pairs",
    "collect/reward",
    "reward/accuracy/mean",
    "eval/distill/kl",
    "distill/kl",
    "distill/own_entropy",
    "train/loss",
    "eval/loss",
    "eval/dpo/accuracy",
    "dpo/accuracy",
    "reward/accuracy",
    "dpo/margin",
    "eval/kto/margin",
    "kto/margin",
    "train/tokens_per_second",
)
_MOST_SHOWN = 3


class Display:
    """Shows the stages of a run. Use it as a context manager; safe to use without, then there are no live bars.

    Args:
        console: Where to write; standard error by default. Live bars need a terminal.
        quiet: Show messages only, as `--json` asks.
        every_seconds: Shortest time between two plain progress lines of a stage.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        quiet: bool = False,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._quiet = quiet
        self._every_seconds = every_seconds
        self._clock = clock
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._names: dict[str, str] = {}
        self._last_line: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._bars = Progress(
                SpinnerColumn(finished_text=" "),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[shown]}", style="dim", markup=False),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()

    def stage_started(self, stage: str, kind: str, index: int, total: int) -> None:
        """A stage begins.

        Args:
            stage: Name in the recipe.
            kind: Kind of the stage.
            index: Its place in the run, from 1.
            total: Number of stages.
        """
        if self._quiet:
            return
        name = f"[{index}/{total}] {stage}" + (f" ({kind})" if kind != stage else "")
        self._names[stage] = name
        self._last_line[stage] = self._clock()
        if self._bars is None:
            self._line(name, "started")
        elif stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(name, total=None, shown="")

    def progress(self, stage: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """A stage has come this far.

        Args:
            stage: Name in the recipe.
            step: Steps done.
            total: All steps; 0 where nobody knows yet.
            metrics: The latest numbers, by their names in `prefopt.tracking.metrics`.
        """
        if self._quiet:
            return
        shown = shown_metrics(metrics)
        if self._bars is not None and stage in self._tasks:
            self._bars.update(self._tasks[stage], completed=step, total=total or None)
            if shown:  # an update without new numbers keeps the last ones in view
                self._bars.update(self._tasks[stage], shown=shown)
            return
        now = self._clock()
        if now - self._last_line.get(stage, -math.inf) < self._every_seconds:
            return
        self._last_line[stage] = now
        share = f" ({100 * step // total} %)" if total else ""
        self._line(self._names.get(stage, stage), f"step {step}/{total or '?'}{share}", shown)

    def stage_finished(self, stage: str, state: str, seconds: float, headline: str = "") -> None:
        """A stage is over.

        Args:
            stage: Name in the recipe.
            state: `done`, `skipped`, `waiting`, `failed`, `refused` or `interrupted`.
            seconds: Wall time.
            headline: The one number or reason worth a line.
        """
        if self._quiet:
            return
        if self._bars is not None and stage in self._tasks:
            self._bars.remove_task(self._tasks.pop(stage))
        mark, style = _MARKS.get(state, _OTHER)
        line = Text()
        line.append(f"{mark} ", style=style)
        line.append(self._names.pop(stage, stage), style="bold")
        line.append(f"  {state}" + ("" if state == "skipped" else f" in {duration(seconds)}"))
        if headline:
            line.append(f"  {headline}", style="dim")
        self._console.print(line, soft_wrap=True)

    def message(self, text: str) -> None:
        """Shows a line between the bars, also when quiet: what is said here must not be lost."""
        self._console.print(Text(text), soft_wrap=True)

    def _line(self, *parts: str) -> None:
        self._console.print(Text("  ".join(part for part in parts if part)), soft_wrap=True)


def shown_metrics(metrics: Mapping[str, float]) -> str:
    """The few numbers that fit behind a bar, such as `loss 0.412  accuracy 0.71`."""
    names = [name for name in _SHOWN if name in metrics]
    for ending in (":win_rate/mean", ":preference/accuracy/mean", "/mean"):
        names = names or [name for name in metrics if name.endswith(ending)]
    return "  ".join(f"{_label(name)} {_number(metrics[name])}" for name in names[:_MOST_SHOWN])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _label(name: str) -> str:
    policy, _, bare = name.rpartition(":")
    bare = bare.removesuffix("/mean")
    group, _, rest = bare.partition("/")
    words = f"eval {rest.rpartition('/')[2]}" if group == "eval" else rest or group
    return f"{policy} {words}".strip().replace("_", " ")


def duration(seconds: float) -> str:
    """Seconds as a person says them: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

"""The tables of docs/benchmarks.md about distillation, from the file of results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.against_trl.page import replace_marked, table
from tests.learning.distill import rounds, students

COMMAND = "python -m tests.learning.distill --write"
Results = Mapping[str, Any]
_COLUMNS = {"kl": "KL(t‖s)", "style": "style", "rule": "rule", "entropy": "entropy", "distinct": "distinct",
            "drift": "drift"}  # fmt: skip
_LEAST = 0.0005  # below it a rounded number would read as 0


def write(page: Path, results: Results, seeds: Sequence[int]) -> None:
    """Put the tables between their markers; ValueError where the page has none."""
    parts = [
        "*Students by target*", *targets(results, seeds), f"*{rounds.ROUNDS} rounds of learning from oneself*",
        *loops(results, seeds), "*Sampling without the context*", *speed(results),
    ]  # fmt: skip
    text = "\n".join(f"\n{part}\n" if part.startswith("*") else part for part in parts).strip()
    replace_marked(page, COMMAND, text)


def targets(results: Results, seeds: Sequence[int]) -> list[str]:
    rows = []
    for name in ("teacher", "before", *students.TARGETS):
        found = [results[f"targets/{name}/{seed}"] for seed in seeds]
        rows.append([name, *(_spread([each.get(column) for each in found]) for column in _COLUMNS)])
    return table(["target", *_COLUMNS.values()], rows)


def loops(results: Results, seeds: Sequence[int]) -> list[str]:
    rows: list[list[str]] = []
    for name in rounds.LOOPS:
        found = [results[f"rounds/{name}/{seed}"] for seed in seeds]
        starts, ends = [each[0] for each in found], [each[-1] for each in found]
        if not rows:
            rows.append(["at first", *_of(starts), "–"])
        rows.append([name, *_of(ends), _tripped(found)])
    return table(["answers, and what is learned", "entropy", "real NLL", "gold", "a guard speaks up in round"], rows)


def speed(results: Results) -> list[str]:
    rows = [
        [context, f"{1000 * found['with']:.1f} ms", f"{1000 * found['without']:.1f} ms", f"{found['gained']:.2f}"]
        for context, found in results["speed"].items()
    ]
    return table(["tokens of the context", "a token with it", "without it", "gained"], rows)


def _of(found: Sequence[Mapping[str, float]]) -> list[str]:
    return [_spread([each[name] for each in found]) for name in ("entropy", "nll", "gold")]


def _tripped(found: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """The first round of each seed in which a guard spoke up."""
    first: Callable[[Sequence[Mapping[str, Any]]], int | None] = lambda rows: next(  # noqa: E731
        (number for number, row in enumerate(rows) if row["guard"]), None
    )
    return ", ".join("none" if number is None else str(number) for number in map(first, found))


def _spread(values: Sequence[float | None]) -> str:
    """Mean of the seeds, and their range where it shows."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean, low, high = sum(known) / len(known), min(known), max(known)
    told = [f"{value:.3f}" if value == 0 or abs(value) >= _LEAST else f"{value:.0e}" for value in (mean, low, high)]
    return told[0] if told[1] == told[2] else f"{told[0]} ({told[1]}–{told[2]})"

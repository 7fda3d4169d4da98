"""What several seeds of one recipe say together: `seeds.json`, as `prefopt run --seeds N` leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.report.damage import Warn, attempt, items, mapping, read_mapping, real
from prefopt.report.findings import Cell
from prefopt.report.format import decimals, fixed

FILE = "seeds.json"
_NOTHING = Cell("–")


@dataclass(frozen=True)
class SeedsRow:
    """One policy; `cells` align with the columns."""

    label: str
    is_reference: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Seeds:
    """The comparison over seeds, ready to show.

    Attributes:
        count: Seeds of the policy that has the most.
        columns: (title, meaning) without that of the policy.
        verdicts: (sentence, tone), one for every policy but the reference.
        notes: What a reader must know.
    """

    count: int
    prompts: int
    reference: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[SeedsRow, ...]
    verdicts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    label: str
    mean: tuple[float, ...]
    seeds: int
    spread: tuple[float, float]
    elo: tuple[float, ...] | None
    against: _Against | None
    verdict: str


@dataclass(frozen=True)
class _Against:
    difference: tuple[float, ...]
    p_holm: float
    win_rate: tuple[float, ...]
    shown: bool


def read_seeds(root: Path, warn: Warn) -> Seeds | None:
    """The comparison of a run folder; None where there is none or nothing of it can be read."""
    found = read_mapping(root / FILE, warn)
    return attempt(FILE, lambda value: _seeds(value, warn), found, warn) if found else None


def _seeds(found: Mapping[str, Any], warn: Warn) -> Seeds | None:
    reference = str(found["reference"])
    listed = items(found["entries"])
    read = [attempt(f"{FILE}: entry {n}", _entry, e, warn) for n, e in enumerate(listed, start=1)]
    entries = [entry for entry in read if entry is not None]
    if not entries:
        return None
    left_out = int(real(found.get("prompts_left_out", 0)))
    notes = [str(note) for note in items(found.get("notes") or [])]
    if left_out:
        notes.insert(0, f"{left_out} prompts that not every policy answered in every seed are left out.")
    digits = decimals(entry.mean[0] for entry in entries)
    rated = any(entry.elo is not None for entry in entries)
    return Seeds(
        count=max(entry.seeds for entry in entries),
        prompts=int(real(found["prompts"])),
        reference=reference,
        columns=_columns(reference, rated),
        rows=tuple(SeedsRow(e.label, e.label == reference, _cells(e, digits, rated)) for e in entries),
        verdicts=tuple((_sentence(e.verdict), _tone(e)) for e in entries if e.verdict),
        notes=tuple(notes),
    )


def _columns(reference: str, rated: bool) -> tuple[tuple[str, str], ...]:
    columns = (
        ("mean", "Mean score over seeds and prompts; its 95 % interval is over both."),
        ("seeds", "How often the policy was trained, each time with another seed."),
        ("over seeds", "The smallest and the largest mean of a seed."),
        (f"minus {reference}", "Mean score minus that of the reference, on the same prompts."),
        ("p (Holm)", "How likely so large a difference is by chance, corrected for the number of comparisons."),
        ("win rate", "Share of prompts with the higher score, ties as half."),
    )
    return (*columns, ("Elo", "Strength from all comparisons; the reference has 1000.")) if rated else columns


def _entry(value: object) -> _Entry:
    given = mapping(value)
    seeds = mapping(given["seeds"])
    if not seeds:
        raise ValueError("it has no seed")
    spread = mapping(given["spread"])
    elo, against = given.get("elo"), given.get("against")
    return _Entry(
        label=str(given["label"]),
        mean=_interval(given["mean"]),
        seeds=len(seeds),
        spread=(real(spread["low"]), real(spread["high"])),
        elo=None if elo is None else _interval(elo),
        against=None if against is None else _against(against),
        verdict=str(given.get("verdict") or ""),
    )


def _against(value: object) -> _Against:
    given = mapping(value)
    return _Against(
        _interval(given["difference"]), real(given["p_holm"]), _interval(given["win_rate"]), bool(given.get("shown"))
    )


def _interval(value: object) -> tuple[float, float, float]:
    given = mapping(value)
    return real(given["estimate"]), real(given["low"]), real(given["high"])


def _cells(entry: _Entry, digits: int, rated: bool) -> tuple[Cell, ...]:
    low, high = entry.spread
    spread = Cell(f"{fixed(low, digits)} to {fixed(high, digits)}") if entry.seeds > 1 else _NOTHING
    cells = [_with_interval(entry.mean, digits), Cell(str(entry.seeds)), spread]
    against = entry.against
    if against is None:
        cells += [_NOTHING] * 3
    else:
        p = "< 0.001" if against.p_holm < 0.001 else f"{against.p_holm:.3f}"
        cells += [_with_interval(against.difference, digits), Cell(p), _with_interval(against.win_rate, 2)]
    if rated:
        # The reference is where it is by definition.
        elo = entry.elo
        cells.append(_NOTHING if elo is None else Cell(fixed(elo[0], 0)) if against is None else _with_interval(elo, 0))
    return tuple(cells)


def _with_interval(value: tuple[float, ...], digits: int) -> Cell:
    estimate, low, high = (fixed(number, digits) for number in value)
    return Cell(estimate, f"[{low}, {high}]")


def _sentence(verdict: str) -> str:
    return verdict[:1].upper() + verdict[1:] if verdict.startswith("no difference") else verdict


def _tone(entry: _Entry) -> str:
    if entry.against is None or not entry.against.shown:
        return "open"
    return "good" if entry.against.difference[0] > 0 else "bad"

"""What evaluate stages found beside their metrics: tables for a person, and the data of plots."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefopt.report.damage import Warn, attempt, items, mapping, read_mapping, real, real_or_none

FILE = "findings.json"
MOST_ROWS = 200

T = TypeVar("T")

_NUMBER = r"[-+\u2212]?\d[\d.,\u2009]*(?:[eE][-+]?\d+)?(?:\s?%)?"
_CELL = re.compile(rf"({_NUMBER})(?:\s*(\[{_NUMBER},\s*{_NUMBER}\]))?")
_NOTHING = ("", "-", "–", "—")


@dataclass(frozen=True)
class Cell:
    """A text of a table; where it is a number with an interval, the two apart."""

    text: str
    interval: str = ""


@dataclass(frozen=True)
class FindingTable:
    """A table that a suite wrote.

    Attributes:
        numeric: For every column, whether it holds numbers.
        rows: As many cells as columns.
        left_out: Rows that are too many to show.
    """

    title: str
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    left_out: int = 0


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence."""

    size: float
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Estimated:
    """A value with its interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class BestOf:
    """Reward of the best of n answers, `kl` nats from one answer."""

    n: int
    kl: float
    chosen: Mapping[str, Estimated]


@dataclass(frozen=True)
class Law:
    """R(d) = R(0) + d (alpha - beta d), with d the root of the KL divergence."""

    alpha: float
    beta: float
    peak: float | None
    r_squared: float


@dataclass(frozen=True)
class Moved:
    """A policy, or a checkpoint of one, `distance` = √KL from the baseline."""

    policy: str
    step: float | None
    distance: float
    reward: float
    proxy: float | None


@dataclass(frozen=True)
class Evidence:
    """The findings of one stage, as far as they could be read.

    Attributes:
        reliability: Bins by legend: before and after the temperature.
        laws: By what chose the best of n.
    """

    tables: tuple[FindingTable, ...] = ()
    reliability: Mapping[str, tuple[Bin, ...]] | None = None
    best_of_n: tuple[BestOf, ...] = ()
    laws: Mapping[str, Law] | None = None
    overoptimisation: tuple[Moved, ...] = ()


def read_evidence(folder: Path, warn: Warn) -> Evidence:
    """The findings of an artefact; what is missing or damaged is left out."""
    found = read_mapping(folder / FILE, warn)
    listed = found.get("tables")
    tables = attempt(f"{FILE}: tables", items, listed, warn) if listed is not None else None
    read = [attempt(f"{FILE}: table {n}", _table, t, warn) for n, t in enumerate(tables or [], start=1)]
    given = found.get("curves")
    curves = (attempt(f"{FILE}: curves", mapping, given, warn) if given is not None else None) or {}
    reliability = {
        name: bins for name in ("before", "after") if (bins := _curve(curves, f"reliability_{name}", _bins, warn))
    }
    laws = {
        name: law
        for name in ("chosen_by_reward", "chosen_by_proxy")
        if (law := _curve(curves, f"best_of_n_law_{name}", _law, warn)) is not None
    }
    return Evidence(
        tables=tuple(table for table in read if table is not None),
        reliability=reliability,
        best_of_n=_curve(curves, "best_of_n", _points, warn) or (),
        laws=laws,
        overoptimisation=_curve(curves, "overoptimisation", _path, warn) or (),
    )


def _curve(curves: Mapping[str, Any], name: str, parse: Callable[[Any], T], warn: Warn) -> T | None:
    value = curves.get(name)
    return None if value is None else attempt(f"{FILE}: the curve {name}", parse, value, warn)


def _table(value: object) -> FindingTable:
    given = mapping(value)
    columns = tuple(str(column) for column in items(given["columns"]))
    rows = [[_cell(cell) for cell in items(row)] for row in items(given["rows"])]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row has {len(row)} cells for {len(columns)} columns")
    numeric = tuple(_is_numeric([row[i] for row in rows]) for i in range(len(columns)))
    shown = [tuple(split(text) if numeric[i] else Cell(text) for i, text in enumerate(row)) for row in rows[:MOST_ROWS]]
    return FindingTable(
        title=str(given.get("title") or "Without a title"),
        columns=columns,
        numeric=numeric,
        rows=tuple(shown),
        note=str(given.get("note") or ""),
        left_out=max(0, len(rows) - MOST_ROWS),
    )


def _cell(value: object) -> str:
    return "–" if value is None else str(value)


def _is_numeric(texts: Sequence[str]) -> bool:
    said = [text for text in texts if text.strip() not in _NOTHING]
    return bool(said) and all(_CELL.fullmatch(text.strip()) for text in said)


def split(text: str) -> Cell:
    """A number and its interval apart; any other text whole."""
    match = _CELL.fullmatch(text.strip())
    return Cell(match.group(1), match.group(2) or "") if match else Cell(text)


def _bins(value: object) -> tuple[Bin, ...]:
    return tuple(_bin(item) for item in items(value))


def _points(value: object) -> tuple[BestOf, ...]:
    return tuple(_best_of(item) for item in items(value))


def _path(value: object) -> tuple[Moved, ...]:
    return tuple(_moved(item) for item in items(value))


def _bin(value: object) -> Bin:
    given = mapping(value)
    return Bin(real(given["size"]), real(given["confidence"]), real(given["accuracy"]))


def _best_of(value: object) -> BestOf:
    given = mapping(value)
    names = [name for name in ("chosen_by_reward", "chosen_by_proxy") if given.get(name) is not None]
    return BestOf(int(real(given["n"])), _distance(given["kl"]), {name: _estimated(given[name]) for name in names})


def _distance(value: object) -> float:
    number = real(value)
    if number < 0:
        raise ValueError(f"{number} is below 0")
    return number


def _estimated(value: object) -> Estimated:
    given = mapping(value)
    return Estimated(real(given["estimate"]), real(given["low"]), real(given["high"]))


def _law(value: object) -> Law:
    given = mapping(value)
    return Law(real(given["alpha"]), real(given["beta"]), real_or_none(given.get("peak")), real(given["r_squared"]))


def _moved(value: object) -> Moved:
    given = mapping(value)
    return Moved(
        policy=str(given["policy"]),
        step=real_or_none(given.get("step")),
        distance=_distance(given["distance"]),
        reward=real(given["reward"]),
        proxy=real_or_none(given.get("proxy")),
    )

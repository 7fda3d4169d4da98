"""From single measurements to medians, ranges and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.benchmarks.against_trl.plan import PREFOPT, TRL, Case

Results = Mapping[str, Mapping[str, Any]]
LARGEST_GAP = 1e-3


class Spread(NamedTuple):
    """Of several measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


class Comparison(NamedTuple):
    """A quantity of every side, None for a side that could not run, and prefopt's divided by TRL's best.

    Attributes:
        sides: By name.
        best: The variant of TRL with the best median; None when none could run.
        ratio: Of the medians, with the range of the ratios of single rounds.
    """

    sides: dict[str, Spread | None]
    best: str | None
    ratio: Spread | None


def compare(case: Case, results: Results, quantity: str, *, more_is_better: bool) -> Comparison:
    """Compare the sides of a case.

    Args:
        case: What was measured.
        results: By key.
        quantity: Name of a number in the results.
        more_is_better: Or less.
    """
    values: dict[str, list[float]] = {}
    for side in case.sides:
        of_rounds = [results[f"{case.name}/{side}/{turn}"] for turn in range(1, case.rounds + 1)]
        values[side] = [] if any("failed" in result for result in of_rounds) else [r[quantity] for r in of_rounds]
    sides = {side: Spread.of(found) if found else None for side, found in values.items()}
    ran = [side for side in case.peers if values[side]]
    if not ran:
        return Comparison(sides, None, None)
    best = (max if more_is_better else min)(ran, key=lambda side: statistics.median(values[side]))
    if not values[PREFOPT]:
        return Comparison(sides, best, None)
    ratios = [mine / theirs for mine, theirs in zip(values[PREFOPT], values[best], strict=True)]
    median = statistics.median(values[PREFOPT]) / statistics.median(values[best])
    return Comparison(sides, best, Spread(median, min(ratios), max(ratios)))


def matmul_rate(results: Results, rounds: int, of: str = "") -> Spread:
    """Operations a second of matrix products, before and between the rounds; `of` is what the keys begin with."""
    return Spread.of([results[f"{of}matmul/{turn}"]["flops_per_second"] for turn in range(rounds + 1)])


def limit_share(case: Case, results: Results) -> float | None:
    """Operations a second of prefopt's training, as a share of those of matrix products; None where it did not run."""
    speed = compare(case, results, "pairs_per_second", more_is_better=True).sides[PREFOPT]
    flops = results[f"{case.name}/flops"].get("flops_per_pair")
    if speed is None or flops is None:
        return None
    return float(flops * speed.median / matmul_rate(results, case.rounds, f"{case.name}/").median)


def losses(case: Case, results: Results, side: str) -> tuple[float, float] | None:
    """First and last loss of a side; None where it did not run."""
    result = results[f"{case.name}/{side}/1"]
    return None if "failed" in result else (result["first_loss"], result["last_loss"])


def loss_gap(case: Case, results: Results) -> float | None:
    """Largest relative difference of prefopt's first and last loss from TRL's; None where either did not run."""
    mine, theirs = losses(case, results, PREFOPT), losses(case, results, TRL)
    if mine is None or theirs is None:
        return None
    return max(abs(a - b) / abs(b) for a, b in zip(mine, theirs, strict=True))


def disagreements(cases: list[Case], results: Results) -> list[str]:
    """Where the two sides did not do the same work, one line each; rounding in bfloat16 is not looked at."""
    found = []
    for case in cases:
        gap = loss_gap(case, results)
        if case.part != "cuda" and gap is not None and gap > LARGEST_GAP:
            found.append(f"{case.name}: the losses of prefopt and TRL differ by {gap:.1e}, allowed {LARGEST_GAP:g}")
        rounds = [results[f"{case.name}/{side}/{n}"] for side in case.sides for n in range(1, case.rounds + 1)]
        counted = {result["pairs"] for result in rounds if "failed" not in result}
        if len(counted) > 1:
            found.append(f"{case.name}: the sides counted different numbers of pairs: {sorted(counted)}")
    return found

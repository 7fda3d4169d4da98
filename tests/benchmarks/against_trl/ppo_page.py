"""The section "PPO against TRL's" of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from prefopt.models.products import SWITCH
from tests.benchmarks.against_trl.page import spread, table
from tests.benchmarks.against_trl.summary import Spread


class Side(NamedTuple):
    """How prefopt is measured.

    Attributes:
        value: The option of the same name.
        environment: Of the process.
    """

    value: str
    environment: Mapping[str, str] = MappingProxyType({})


PREFOPT = {
    "prefopt, `value: shared`": Side("shared"),
    "prefopt, `value: adapter`": Side("adapter"),
    "prefopt, `value: shared`, products by torch's choice": Side("shared", {SWITCH: "torch"}),
}
TRL = "TRL 1.12"
SHARES = ("sampling", "scoring", "rollout")
Results = Mapping[str, Mapping[str, Any]]


def speeds(results: Results, side: str, rounds: int) -> list[float]:
    """Episodes a second of each round."""
    return [results[f"speed/{turn}/{side}"]["episodes_per_second"] for turn in range(1, rounds + 1)]


def ratio(results: Results, side: str, rounds: int) -> Spread:
    """Speed of a side divided by TRL's: of the medians, with the range of single rounds."""
    mine, theirs = (speeds(results, each, rounds) for each in (side, TRL))
    each = [a / b for a, b in zip(mine, theirs, strict=True)]
    return Spread(Spread.of(mine).median / Spread.of(theirs).median, min(each), max(each))


def limit_share(results: Results, side: str, rounds: int) -> float:
    """Operations a second of a side of prefopt, as a share of those of matrix products."""
    rates = [results[f"matmul/{turn}"]["flops_per_second"] for turn in range(rounds + 1)]
    counted = results[f"flops/{side}"]["flops_per_episode"]
    return float(counted * Spread.of(speeds(results, side, rounds)).median / Spread.of(rates).median)


def shares(results: Results, side: str, rounds: int) -> list[float]:
    """Sampling, scoring, what else a rollout takes, and updating, as shares of the time; medians of the rounds."""
    of_rounds = [results[f"speed/{turn}/{side}"] for turn in range(1, rounds + 1)]
    sampling, scoring, rollout = (Spread.of([r[f"{name}_share"] for r in of_rounds]).median for name in SHARES)
    return [sampling, scoring, rollout - sampling - scoring, 1 - rollout]


def markdown(results: Results, rounds: int, machine: str, date: str) -> str:
    """Tables of what was measured.

    Args:
        results: By key.
        rounds: Turns of each side.
        machine: Hardware and versions.
        date: Of the measurement.
    """
    peak = "cuda_peak_bytes" if "cuda_peak_bytes" in results[f"memory/{TRL}"] else "peak_bytes"
    rows = []
    for side in (*PREFOPT, TRL):
        weighed = results[f"memory/{side}"][peak]
        row = [side, spread(Spread.of(speeds(results, side, rounds)), 1, "{:.3g}")]
        row += ["–" if side == TRL else spread(ratio(results, side, rounds), 1, "{:.2f}")]
        row += [f"{weighed / 2**20:,.0f}", "–" if side == TRL else f"{weighed / results[f'memory/{TRL}'][peak]:.2f}"]
        rows.append(row)
    header = ["", "episodes a second", "prefopt / TRL", "peak memory above imports, MiB", "prefopt / TRL"]
    told = [*table(header, rows), ""]
    header = ["", "GFLOP an episode", "share of the limit", "sampling", "scoring", "rest of the rollout", "updating"]
    rows = [
        [
            side,
            f"{results[f'flops/{side}']['flops_per_episode'] / 1e9:,.0f}",
            f"{limit_share(results, side, rounds):.0%}",
            *(f"{share:.0%}" for share in shares(results, side, rounds)),
        ]
        for side in PREFOPT
    ]
    return "\n".join([*told, *table(header, rows), "", f"Machine: {machine}; {date}."])

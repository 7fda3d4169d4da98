"""The section "PPO against TRL's" of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from prefopt.models.products import SWITCH
from tests.benchmarks.against_trl.page import NOT_RUN, spread, table
from tests.benchmarks.against_trl.summary import Results, Spread, matmul_rate


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


def sides(*, cuda: bool) -> tuple[str, ...]:
    """Those that are measured on a device, TRL last; whose library multiplies is a choice on the CPU alone."""
    return (*(name for name, side in PREFOPT.items() if not (cuda and side.environment)), TRL)


def speeds(results: Results, side: str, rounds: int) -> list[float]:
    """Episodes a second of each round; none where a round could not run."""
    of_rounds = [results[f"speed/{turn}/{side}"] for turn in range(1, rounds + 1)]
    return [] if any("failed" in each for each in of_rounds) else [each["episodes_per_second"] for each in of_rounds]


def ratio(results: Results, side: str, rounds: int) -> Spread | None:
    """Speed of a side divided by TRL's: of the medians, with the range of single rounds; None where one did not run."""
    mine, theirs = (speeds(results, each, rounds) for each in (side, TRL))
    if not mine or not theirs:
        return None
    each = [a / b for a, b in zip(mine, theirs, strict=True)]
    return Spread(Spread.of(mine).median / Spread.of(theirs).median, min(each), max(each))


def limit_share(results: Results, side: str, rounds: int) -> Spread | None:
    """Operations a second of a side of prefopt, as a share of the limit's median; None where it did not run."""
    counted, measured = results[f"flops/{side}"].get("flops_per_episode"), speeds(results, side, rounds)
    if counted is None or not measured:
        return None
    limit = matmul_rate(results, rounds).median
    return Spread.of([counted * each / limit for each in measured])


def shares(results: Results, side: str, rounds: int) -> list[float]:
    """Sampling, scoring, what else a rollout takes, and updating, as shares of the time; medians of the rounds."""
    of_rounds = [results[f"speed/{turn}/{side}"] for turn in range(1, rounds + 1)]
    sampling, scoring, rollout = (Spread.of([r[f"{name}_share"] for r in of_rounds]).median for name in SHARES)
    return [sampling, scoring, rollout - sampling - scoring, 1 - rollout]


def markdown(results: Results, rounds: int, machine: str, date: str, *, cuda: bool = False) -> str:
    """Tables of what was measured.

    Args:
        results: By key.
        rounds: Turns of each side.
        machine: Hardware and versions.
        date: Of the measurement.
        cuda: Whether it was on a CUDA device, whose name is in the results.
    """
    told = [*compared(results, rounds, cuda=cuda), "", *spent(results, rounds, cuda=cuda), ""]
    limit = f"The limit: {spread(matmul_rate(results, rounds), 1e9, '{:.0f}')} GFLOP a second."
    device = f"{results['matmul/0']['device']}; " if cuda else ""
    return "\n".join([*told, limit, "", f"Machine: {device}{machine}; {date}."])


def compared(results: Results, rounds: int, *, cuda: bool) -> list[str]:
    """The table of speed and memory; on a CPU that of the timed processes, and with freed blocks given back."""
    every = sides(cuda=cuda)
    given_back = {side: results[f"memory/{side}"].get("cuda_peak_bytes" if cuda else "peak_bytes") for side in every}
    weighed = {"peak memory on the device, MiB": given_back}
    if not cuda:
        held = {side: resident(results, side, rounds) for side in every}
        weighed = {"peak memory above imports, MiB": held, "the same, freed blocks given back": given_back}
    rows = []
    for side in every:
        measured, of_trl = speeds(results, side, rounds), None if side == TRL else ratio(results, side, rounds)
        row = [side, spread(Spread.of(measured) if measured else None, 1, "{:.3g}")]
        row += ["–" if of_trl is None else spread(of_trl, 1, "{:.2f}")]
        for sizes in weighed.values():
            size = sizes[side]
            row += [NOT_RUN if size is None else f"{size / 2**20:,.0f}"]
            row += ["–" if side == TRL or not (size and sizes[TRL]) else f"{size / sizes[TRL]:.2f}"]
        rows.append(row)
    memory = [cell for title in weighed for cell in (title, "prefopt / TRL")]
    return table(["", "episodes a second", "prefopt / TRL", *memory], rows)


def resident(results: Results, side: str, rounds: int) -> float | None:
    """Median of the peaks of the processes whose speed was measured; None where one did not run."""
    found = [results[f"speed/{turn}/{side}"].get("peak_bytes") for turn in range(1, rounds + 1)]
    sizes = [size for size in found if size is not None]
    return Spread.of(sizes).median if len(sizes) == rounds else None


def spent(results: Results, rounds: int, *, cuda: bool) -> list[str]:
    """The table of prefopt's operations and seconds."""
    rows = []
    for side in sides(cuda=cuda)[:-1]:
        counted, share = results[f"flops/{side}"].get("flops_per_episode"), limit_share(results, side, rounds)
        of_time = shares(results, side, rounds) if speeds(results, side, rounds) else []
        row = [side, "–" if counted is None else f"{counted / 1e9:,.0f}"]
        row += ["–" if share is None else spread(share, 1, "{:.0%}")]
        rows.append([*row, *([f"{each:.0%}" for each in of_time] or ["–"] * (len(SHARES) + 1))])
    header = ["", "GFLOP an episode", "share of the limit", "sampling", "scoring", "rest of the rollout", "updating"]
    return table(header, rows)

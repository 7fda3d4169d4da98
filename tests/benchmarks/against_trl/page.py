"""The section "Training against TRL" of docs/benchmarks.md, and docs/benchmarks.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.against_trl.plan import PREFOPT, TRL, Case, Settings
from tests.benchmarks.against_trl.summary import (
    Comparison,
    Results,
    Spread,
    compare,
    limit_share,
    loss_gap,
    losses,
    matmul_rate,
)

CPU, CUDA = "make bench", "python tests/benchmarks/training.py --cuda"
METHODS = {"dpo": "DPO", "reward": "reward model"}
NOT_RUN = "out of memory"


def markdown(cases: list[Case], results: Results, machine: str) -> str:
    """Tables of what was measured.

    Args:
        cases: Those of one device.
        results: By key.
        machine: Hardware and versions, one sentence.
    """
    timed = [case for case in cases if case.part != "memory"]
    weighed = [case for case in cases if case.part != "training"]
    peak = "cuda_peak_bytes" if timed[0].part == "cuda" else "peak_bytes"
    told = ["*Speed: pairs a second, median and range*", "", *speed(timed, results), ""]
    told += ["*Peak memory above the level after imports, MiB*", "", *memory(weighed, results, peak), ""]
    told += ["*Losses*", "", *parity(cases, results), ""]
    return "\n".join([*told, f"Machine: {machine}."])


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    first, *others = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return [first, "|" + "---|" * len(header), *others]


def speed(cases: list[Case], results: Results) -> list[str]:
    rows = []
    for case in cases:
        share = limit_share(case, results)
        flops = results[f"{case.name}/flops"].get("flops_per_pair")
        rate = matmul_rate(results, case.rounds, f"{case.name}/")
        limits = [
            "–" if flops is None else f"{flops / 1e9:,.0f}",
            spread(rate, 1e9, "{:,.0f}"),
            "–" if share is None else f"{share:.0%}",
        ]
        compared = compare(case, results, "pairs_per_second", more_is_better=True)
        rows.append([*of_sides(case, compared, cases, 1.0), *limits])
    limit = ["GFLOP a pair, prefopt", "matrix products, GFLOP/s", "share of that limit, prefopt"]
    return table([*header(cases), *limit], rows)


def memory(cases: list[Case], results: Results, quantity: str) -> list[str]:
    rows = [
        of_sides(case, compare(case, results, quantity, more_is_better=False), cases, 2**20, "{:,.0f}")
        for case in cases
    ]
    return table(header(cases), rows)


def parity(cases: list[Case], results: Results) -> list[str]:
    rows = []
    for case in cases:
        of_both = [losses(case, results, side) for side in (PREFOPT, TRL)]
        ends = [NOT_RUN if each is None else f"{each[0]:.5f}, {each[1]:.5f}" for each in of_both]
        gap = loss_gap(case, results)
        rows.append(
            [f"{case.part}: {METHODS[case.method]}, {case.max_length:,}", *ends, "–" if gap is None else f"{gap:.0e}"]
        )
    return table(["training, tokens of a row at most", "prefopt: first, last", "TRL: first, last", "difference"], rows)


def header(cases: list[Case]) -> list[str]:
    return ["", "tokens of a row at most", *every_side(cases), "prefopt / best of TRL"]


def every_side(cases: list[Case]) -> list[str]:
    return list(dict.fromkeys(side for case in cases for side in case.sides))


def of_sides(case: Case, compared: Comparison, cases: list[Case], unit: float, form: str = "{:.3g}") -> list[str]:
    """Cells of a row: the method, its tokens, every side, the ratio; TRL's best is bold."""
    cells = [METHODS[case.method], f"{case.max_length:,}"]
    for side in every_side(cases):
        if side not in compared.sides:
            cells.append("–")
        else:
            text = spread(compared.sides[side], unit, form)
            cells.append(f"**{text}**" if side == compared.best and len(case.peers) > 1 else text)
    return [*cells, "–" if compared.ratio is None else spread(compared.ratio, 1.0, "{:.2f}")]


def spread(found: Spread | None, unit: float, form: str) -> str:
    if found is None:
        return NOT_RUN
    median, low, high = (form.format(value / unit) for value in found)
    return f"{median} ({low}–{high})"


def replace_marked(page: Path, marker: str, content: str) -> None:
    """Put content between `<!-- measured: MARKER -->` and the next `<!-- /measured -->` of a page.

    Raises:
        ValueError: When the page does not have the marker exactly once.
    """
    text = page.read_text(encoding="utf-8")
    block = re.compile(rf"(<!-- measured: {re.escape(marker)} -->\n).*?(<!-- /measured -->)", re.DOTALL)
    found = block.findall(text)
    if len(found) != 1:
        raise ValueError(f"{page} has {len(found)} blocks that are marked 'measured: {marker}', and must have one")
    page.write_text(block.sub(lambda ends: f"{ends[1]}{content}\n{ends[2]}", text), encoding="utf-8")


def record(
    cases: list[Case], rows: Mapping[str, Mapping[str, Any]], settings: Settings, about: Mapping[str, Any]
) -> dict[str, Any]:
    """What docs/benchmarks.json says of one device: settings, hardware, versions, date, medians, every measurement."""
    results = {key: row["result"] for key, row in rows.items()}
    summary: dict[str, Any] = {}
    for case in cases:
        found = summary[case.name] = {"loss_gap": loss_gap(case, results)}
        if case.part != "memory":
            found["pairs_per_second"] = plain(compare(case, results, "pairs_per_second", more_is_better=True))
            found["matmul_flops_per_second"] = matmul_rate(results, case.rounds, f"{case.name}/")._asdict()
            found["share_of_floating_point_limit"] = limit_share(case, results)
        if case.part != "training":
            quantity = "cuda_peak_bytes" if case.part == "cuda" else "peak_bytes"
            found[quantity] = plain(compare(case, results, quantity, more_is_better=False))
    measured = [{name: row[name] for name in ("key", "date", "result")} for row in rows.values()]
    return {**about, "settings": asdict(settings), "summary": summary, "measurements": measured}


def plain(compared: Comparison) -> dict[str, Any]:
    sides = {side: found and found._asdict() for side, found in compared.sides.items()}
    return {"sides": sides, "best_of_trl": compared.best, "ratio": compared.ratio and compared.ratio._asdict()}


def update_json(path: Path, device: str, content: dict[str, Any]) -> None:
    """Replace what a file says of one device; of others it keeps what it says."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[device] = content
    path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

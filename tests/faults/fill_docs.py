"""Writes the counts of a sweep to docs/reliability.json, and as a table into docs/reliability.md.

python tests/faults/fill_docs.py COUNTS.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE, NUMBERS = ROOT / "docs" / "reliability.md", ROOT / "docs" / "reliability.json"
START, END = "<!-- counts -->", "<!-- /counts -->"


def summed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Counts of the same faults added up, in the order of the rows."""
    found: dict[tuple[str, str], int] = {}
    for line in lines:
        key = (line["row"], line["what"])
        found[key] = found.get(key, 0) + line["count"]
    return [
        {"row": row, "what": what, "count": count}
        for (row, what), count in sorted(found.items(), key=lambda item: (number(item[0][0]), item[0][1]))
    ]


def number(row: str) -> int:
    return int(row.partition("-")[0].removeprefix("T"))


def table(counts: list[dict[str, Any]]) -> str:
    lines = ["| Row | Tried | Faults | Failures |", "|---|---|---|---|"]
    lines += [f"| {each['row']} | {each['what']} | {each['count']:,} | 0 |" for each in counts]
    return "\n".join(lines)


def filled(page: str, counts: list[dict[str, Any]]) -> str:
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table(counts)}\n{END}{after}"


def main(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    counts = summed(lines)
    NUMBERS.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), counts), encoding="utf-8")
    print(table(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

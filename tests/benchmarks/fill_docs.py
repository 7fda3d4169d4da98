"""What the documentation says of a run of the quickstart, as Markdown to paste between its `measured` markers.

usage: python tests/benchmarks/fill_docs.py RUN_DIR

RUN_DIR is a finished run of recipes/quickstart.yaml. Nothing is trained and no page is written: where a stage of the
run is not done, the script ends with exit code 2. Ranges are those of the rows of `metrics.jsonl`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from prefopt.data.toy.gold import gold_terms  # noqa: E402 - the package beside this script
from prefopt.records import Message  # noqa: E402

STAGES = {"base": "pretrain", "sft": "sft", "dpo": "dpo"}
ROW = re.compile(r"^\| (`([^`]+)` \| [^|]+) \|.*$", re.MULTILINE)
WITH_INTERVAL = ("win_rate/mean", "preference/accuracy/mean")


def prefopt(*words: str) -> str:
    command = [sys.executable, "-m", "prefopt", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def folder(run: Path, stage: str) -> Path:
    root = run / "stages" / stage
    return root / (root / "current").read_text(encoding="utf-8").strip()


def manifest(run: Path, stage: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder(run, stage) / "manifest.json").read_text(encoding="utf-8"))
    return content


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def print_costs(run: Path) -> None:
    for stage in (*STAGES, "eval"):
        content = manifest(run, stage)
        data, cost = content["details"].get("data", {}), content["cost"]
        minutes, seconds = divmod(round(cost["wall_seconds"]), 60)
        rows = f"{data.get('kept_train', 0):,}, {data.get('kept_eval', 0):,}"
        print(f"| `{stage}` | … | {rows} | {minutes} min {seconds:02} s | {cost['peak_host_bytes'] / 1e9:.1f} GB |")


def print_policies(run: Path) -> None:
    table = json.loads((folder(run, "eval") / "table.json").read_text(encoding="utf-8"))
    for cells in (table["columns"], ["---"] * len(table["columns"]), *table["rows"]):
        print(f"| {' | '.join(cells)} |".replace("| --- ", "|---").replace("--- |", "---|"))


def print_gold_terms(run: Path) -> None:
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    counts: dict[str, int] = defaultdict(int)
    for row in lines(folder(run, "eval") / "samples.jsonl"):
        counts[row["policy"]] += 1
        for term, value in gold_terms(tuple(Message(**turn) for turn in row["prompt"]), row["completion"]).items():
            sums[term][row["policy"]] += value
    for term, totals in sums.items():
        print(f"| {term} | {' | '.join(f'{totals[policy] / count:+.2f}' for policy, count in counts.items())} |")


def healthy(name: str, rows: list[dict[str, Any]]) -> str:
    values = [row[name] for row in rows if isinstance(row.get(name), float) and not row.get("summary")]
    if not values:
        return "–"
    if name == "train/learning_rate":
        return f"rises to {max(values):.2g}, then falls to 0"
    if name == "train/grad_norm":
        return f"{min(values):.2f} to {max(values):.2f}"
    if name.startswith("eval/") or name in ("train/epoch", "train/tokens"):
        return f"{values[-1]:,.0f}" if abs(values[-1]) >= 1000 else f"{values[-1]:.3f}"
    return f"{values[0]:.3g} at first, {values[-1]:.3g} at the end"


def of_policies(name: str, metrics: dict[str, float]) -> str:
    if name in metrics:
        return f"{metrics[name]:.0f}"
    cells = []
    for policy in ("sft", "dpo"):
        mean = metrics.get(f"{policy}:{name}")
        cell = "–" if mean is None else f"{mean:.3g}"
        if mean is not None and name in WITH_INTERVAL:
            stem = f"{policy}:{name.removesuffix('mean')}"
            cell += f" [{metrics[stem + 'ci_low']:.3f}, {metrics[stem + 'ci_high']:.3f}]"
        cells.append(cell)
    return ", ".join(cells)


def names_of(page: str) -> list[tuple[str, str]]:
    text = (ROOT / "docs" / "algorithms" / f"{page}.md").read_text(encoding="utf-8").partition("| metric |")[2]
    return ROW.findall(text)


def main() -> int:
    run = Path(sys.argv[1]).absolute()
    again = ("run", str(run / "recipe.yaml"), "--out", str(run))
    planned = json.loads(prefopt(*again, "--dry-run", "--json"))
    waiting = [stage["stage"] for stage in planned["stages"] if stage["state"] != "done"]
    if waiting:
        print(f"{run} is not finished: {', '.join(waiting)} would run", file=sys.stderr)
        return 2
    captured = prefopt("status", str(run)) + "\neval\n" + prefopt(*again).partition("\neval\n")[2]
    print("README.md\n\n" + captured.replace(str(run), "runs/quickstart"))
    print("docs/recipes/quickstart.md\n")
    for part in (print_costs, print_policies, print_gold_terms):
        part(run)
        print()
    for stage, page in STAGES.items():
        print(f"docs/algorithms/{page}.md\n")
        rows = lines(folder(run, stage) / "metrics.jsonl")
        print("\n".join(f"| {start} | {healthy(name, rows)} |" for start, name in names_of(page)) + "\n")
    print("docs/algorithms/evaluate.md\n")
    metrics = manifest(run, "eval")["metrics"]
    print("\n".join(f"| {start} | {of_policies(name, metrics)} |" for start, name in names_of("evaluate")))
    return 0


if __name__ == "__main__":
    sys.exit(main())

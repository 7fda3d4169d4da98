"""Writes what a run of the quickstart measured into the pages, between their `measured` markers.

usage: python tests/benchmarks/fill_docs.py RUN_DIR

RUN_DIR is a finished run of recipes/quickstart.yaml, with --seeds 5 for the pages' tables over seeds. Nothing is
trained: where a stage of the run is not done, the script ends with exit code 2. In tables of metrics the last column is
replaced; ranges are those of the rows of `metrics.jsonl`. What no function here makes is left as it stands.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from prefopt.data.toy.gold import gold_terms  # noqa: E402 - the package beside this script
from prefopt.recipe.load import load  # noqa: E402
from prefopt.records import Message  # noqa: E402

STAGES = {"base": "pretrain", "sft": "sft", "reward": "reward", "dpo": "dpo", "ppo": "ppo"}
POLICIES = ("sft", "dpo", "ppo")
BLOCK = re.compile(r"(<!-- measured: [^\n]*-->\n)(.*?)(<!-- /measured -->)", re.DOTALL)
ROW = re.compile(r"^\| (`([^`]+)` \| [^|]+) \|[^\n]*$", re.MULTILINE)
WITH_INTERVAL = ("win_rate/mean", "preference/accuracy/mean")


# No cell of a table is broken into lines.
WIDE = {**os.environ, "COLUMNS": "240"}


def prefopt(*words: str) -> str:
    command = [sys.executable, "-m", "prefopt", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=WIDE).stdout


def folder(run: Path, stage: str) -> Path:
    root = run / "stages" / stage
    return root / (root / "current").read_text(encoding="utf-8").strip()


def manifest(run: Path, stage: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder(run, stage) / "manifest.json").read_text(encoding="utf-8"))
    return content


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def costs(run: Path) -> str:
    told = ["| stage | kind | rows: trained on, held out | time | TFLOP | peak memory |", "|---|---|---|---|---|---|"]
    for stage in ("base", "sft", "pairs", "reward", "checks", "dpo", "ppo", "eval"):
        content = manifest(run, stage)
        data, cost = content["details"].get("data", {}), content["cost"]
        minutes, seconds = divmod(round(cost["wall_seconds"]), 60)
        trained = "–" if content["kind"] == "evaluate" else f"{data.get('kept_train', 0):,}"
        held_out = data.get("kept_eval", content["metrics"].get("evaluate/pairs", 0))
        rows = f"{trained}, {held_out:,.0f}"
        time = f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
        memory = f"{cost['peak_host_bytes'] / 1e9:.1f} GB"
        flops = f"{cost['flops'] / 1e12:.1f}" if "flops" in cost else "–"
        told.append(f"| `{stage}` | {content['kind']} | {rows} | {time} | {flops} | {memory} |")
    return "\n".join(told)


def table(run: Path, stage: str) -> str:
    content = json.loads((folder(run, stage) / "table.json").read_text(encoding="utf-8"))
    rows = [content["columns"], ["---"] * len(content["columns"]), *content["rows"]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows).replace("| --- ", "|---").replace("--- |", "---|")


def gold_table(run: Path) -> str:
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    counts: dict[str, int] = defaultdict(int)
    for row in lines(folder(run, "eval") / "samples.jsonl"):
        counts[row["policy"]] += 1
        for term, value in gold_terms(tuple(Message(**turn) for turn in row["prompt"]), row["completion"]).items():
            sums[term][row["policy"]] += value
    told = [f"| term | {' | '.join(counts)} |", "|---" * (len(counts) + 1) + "|"]
    for term, totals in sums.items():
        told.append(f"| {term} | {' | '.join(f'{totals[policy] / count:+.2f}' for policy, count in counts.items())} |")
    return "\n".join(told)


def over_seeds(run: Path) -> str:
    """A row for each seed: the evaluation of its policies and of its reward model."""
    told = [
        "| seed | policy | gold reward | share of headroom | win rate | KL (nats) | reward accuracy |",
        "|---" * 7 + "|",
    ]
    for folder_of_seed in (run, *sorted((run / "seeds").glob("[0-9]*"))):
        metrics = manifest(folder_of_seed, "eval")["metrics"]
        accuracy = cell(manifest(folder_of_seed, "reward")["metrics"], "reward/accuracy", "{:.1%}")
        seed = 17 if folder_of_seed == run else folder_of_seed.name
        for policy in POLICIES:
            cells = [
                cell(metrics, f"{policy}:{name}", form)
                for name, form in (("gold", "{:.2f}"), ("headroom", "{:.0%}"), ("win_rate", "{:.1%}"), ("kl", "{:.2f}"))
            ]
            told.append(f"| {seed} | {policy} | {' | '.join(cells)} | {accuracy if policy == 'ppo' else '–'} |")
    return "\n".join(told)


def cell(metrics: dict[str, float], name: str, form: str) -> str:
    if f"{name}/mean" not in metrics:
        return "–"
    mean, low, high = (form.format(metrics[f"{name}/{part}"]) for part in ("mean", "ci_low", "ci_high"))
    return f"{mean} [{low}, {high}]"


def findings(run: Path) -> str:
    """The tables of the examined reward model."""
    content = json.loads((folder(run, "checks") / "findings.json").read_text(encoding="utf-8"))
    told = []
    for found in content["tables"]:
        rows = [found["columns"], ["---"] * len(found["columns"]), *found["rows"]]
        told += [f"*{found['title']}*", "", *(f"| {' | '.join(cells)} |" for cells in rows), ""]
    return "\n".join(told).rstrip()


def comparison(run: Path) -> str:
    text = prefopt("compare", str(run)).rstrip()
    return "```\n" + "\n".join(line.rstrip() for line in text.splitlines()) + "\n```"


def healthy(name: str, rows: list[dict[str, Any]], rate: float) -> str:
    values = [row[name] for row in rows if isinstance(row.get(name), float) and not row.get("summary")]
    if not values:
        return "–"
    if name == "train/learning_rate":
        return f"rises to {rate:g}, then falls to 0"
    if name == "train/grad_norm":
        return f"{min(values):.2f} to {max(values):.2f}"
    if name.startswith("eval/") or name in ("train/epoch", "train/tokens"):
        return f"{values[-1]:,.0f}" if abs(values[-1]) >= 1000 else f"{values[-1]:.3f}"
    return f"{values[0]:.3g} at first, {values[-1]:.3g} at the end"


def of_policies(name: str, metrics: dict[str, float]) -> str:
    if name in metrics:
        return f"{metrics[name]:,.3g}" if abs(metrics[name]) < 100 else f"{metrics[name]:,.0f}"
    cells = []
    for policy in POLICIES:
        mean = metrics.get(f"{policy}:{name}")
        cell = "–" if mean is None else f"{mean:.3g}"
        if mean is not None and name in WITH_INTERVAL:
            stem = f"{policy}:{name.removesuffix('mean')}"
            cell += f" [{metrics[stem + 'ci_low']:.3f}, {metrics[stem + 'ci_high']:.3f}]"
        cells.append(cell)
    return ", ".join(cells)


def capture(run: Path) -> str:
    tables = prefopt("run", str(run / "recipe.yaml"), "--out", str(run)).partition("\nreward\n")[2]
    text = prefopt("status", str(run)) + "\nreward\n" + tables
    kept = "\n".join(line.rstrip() for line in text.replace(str(run), "runs/quickstart").splitlines())
    return f"```\n{kept}\n```"


def replace_block(page: str, index: int, content: str) -> None:
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    block = list(BLOCK.finditer(text))[index]
    path.write_text(text[: block.start(2)] + content + "\n" + text[block.end(2) :], encoding="utf-8")


def fill_metrics(page: str, stage: str, told: Callable[[str], str]) -> None:
    """The last column of a stage's table of metrics, which its marker names.

    Raises:
        ValueError: When the page has no such table.
    """
    blocks = list(BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")))
    named = [index for index, block in enumerate(blocks) if re.search(rf"\bstage {stage}\b", block[1])]
    if not named:
        raise ValueError(f"{page} has no measured table of the stage {stage}")
    content = blocks[named[0]][2]
    replace_block(page, named[0], ROW.sub(lambda row: f"| {row[1]} | {told(row[2])} |", content).rstrip("\n"))


def main() -> int:
    run = Path(sys.argv[1]).absolute()
    planned = json.loads(prefopt("run", str(run / "recipe.yaml"), "--out", str(run), "--dry-run", "--json"))
    waiting = [stage["stage"] for stage in planned["stages"] if stage["state"] != "done"]
    if waiting:
        print(f"{run} is not finished: {', '.join(waiting)} would run", file=sys.stderr)
        return 2
    replace_block("README.md", 0, capture(run))
    replace_block("README.md", 2, comparison(run))
    blocks = (costs(run), table(run, "eval"), table(run, "reward"), findings(run), over_seeds(run), gold_table(run))
    for index, content in enumerate(blocks):
        replace_block("docs/recipes/quickstart.md", index, content)
    stages: dict[str, Any] = dict(load(run / "recipe.yaml").recipe.stages)
    for stage, page in STAGES.items():
        rows = lines(folder(run, stage) / "metrics.jsonl")
        fill_metrics(f"docs/algorithms/{page}.md", stage, partial(healthy, rows=rows, rate=stages[stage].learning_rate))
    for stage, page in (("pairs", "collect"), ("eval", "evaluate")):
        metrics = manifest(run, stage)["metrics"]
        fill_metrics(f"docs/algorithms/{page}.md", stage, partial(of_policies, metrics=metrics))
    checks = manifest(run, "checks")["metrics"]
    fill_metrics("docs/algorithms/evaluate.md", "checks", partial(of_policies, metrics=checks))
    return 0


if __name__ == "__main__":
    sys.exit(main())

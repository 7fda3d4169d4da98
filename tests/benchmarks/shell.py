"""How quickly the command line answers: the table of docs/benchmarks.md, as Markdown.

usage: python tests/benchmarks/shell.py RUN_DIR [REPEATS]

RUN_DIR is a finished run of recipes/quickstart.yaml. Each command is run once to warm the disk's cache, then REPEATS
times (7), in a process of its own each time; the table shows the median and the range. Nothing is trained: where a
stage of the run is not done, the script ends with exit code 2.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "quickstart.yaml"
LOGGED_ROWS = 100_000
LIBRARIES = ("torch", "transformers", "trl", "peft", "pydantic", "typer", "rich")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "NO_COLOR": "1"}


def prefopt(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prefopt", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)


def seconds(*words: str) -> float:
    start = time.perf_counter()
    prefopt(*words)
    return time.perf_counter() - start


def row(name: str, limit: str, times: list[float]) -> str:
    return f"| {name} | {statistics.median(times):.2f} s | {min(times):.2f}–{max(times):.2f} s | {limit} |"


def starts(run: Path) -> dict[str, float]:
    """Seconds of each stage, as the runner saw them, that were not its own work."""
    found = {}
    for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "stage_done":
            manifest = run / "stages" / event["stage"] / event["key"][:12] / "manifest.json"
            cost = json.loads(manifest.read_text(encoding="utf-8"))["cost"]
            found[event["stage"]] = event["seconds"] - cost["wall_seconds"]
    return found


def long_run(run: Path, copy: Path) -> Path:
    """A copy of a run whose first stage logged `LOGGED_ROWS` rows: its own ones again and again, at later steps."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("seeds", "adapter*", "*.safetensors", "cache"))
    log = next(iter(sorted((copy / "stages").glob("*/*/metrics.jsonl"))))
    rows = itertools.cycle([json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()])
    later = (json.dumps({**row, "step": step}) for step, row in zip(range(1, LOGGED_ROWS + 1), rows, strict=False))
    log.write_text("\n".join(later) + "\n", encoding="utf-8")
    return copy


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    return (
        f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GiB; {platform.system()} {platform.machine()}; "
        f"Python {platform.python_version()}; {versions}"
    )


def main() -> int:
    run = Path(sys.argv[1])
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    again = ("run", str(run / "recipe.yaml"), "--out", str(run))
    planned = json.loads(prefopt(*again, "--dry-run", "--json").stdout)
    waiting = [stage["stage"] for stage in planned["stages"] if stage["state"] != "done"]
    if waiting:
        print(f"{run} is not finished: {', '.join(waiting)} would run", file=sys.stderr)
        return 2
    measured = (
        ("`prefopt --help`", "0.5 s", ("--help",)),
        ("`prefopt check recipes/quickstart.yaml`", "1 s", ("check", str(RECIPE))),
        ("`prefopt run recipes/quickstart.yaml`, finished before", "3 s", again),
        ("`prefopt status runs/quickstart`", "–", ("status", str(run))),
    )
    print("| command | median | range | limit |\n|---|---|---|---|")
    for name, limit, words in measured:
        seconds(*words)
        print(row(name, limit, [seconds(*words) for _ in range(repeats)]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = str(long_run(run, Path(folder) / "long"))
        prefopt("report", copy)
        times = [seconds("report", copy) for _ in range(repeats)]
    print(row(f"`prefopt report` of a run with {LOGGED_ROWS:,} logged rows", "5 s", times), flush=True)
    first, *others = starts(run).values()
    print(f"| start of the first stage of a run: libraries are imported | {first:.2f} s | – | – |")
    if others:
        print(row("start of each later stage", "1 s", others))
    print(f"\nMachine: {machine()}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

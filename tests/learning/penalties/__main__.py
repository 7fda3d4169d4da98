"""Run the experiments on penalties, and say what they showed.

usage: python -m tests.learning.penalties [--folder bench/penalties] [--workers 1] [--seeds 17 18 19]
       [--part a b c d e a-grid b-grid speed] [--dry-run] [--page]

Every run is one `prefopt run` of a recipe beside this file, with one thread; a stopped one goes on where it was. What
is finished is in FOLDER/results.jsonl and is not run again. At the end, or with `--page` alone, the section "Penalties"
of docs/benchmarks.md, its picture and docs/benchmarks.json are written from what is finished. PREFOPT_DATA and
PREFOPT_MODELS name the folders of data and models.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks.against_trl.peers import ROOT
from tests.learning.frontier.runs import QUIET, commit
from tests.learning.penalties import page, pairs, plan, speed, stories
from tests.learning.penalties.plan import PARTS, Run
from tests.learning.penalties.reading import READERS

Row = dict[str, Any]
SPEED = "speed"


class Results:
    """The file of results, and what is missing in it.

    Args:
        folder: Where it is, beside the run folders.
        workers: Runs at a time.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self._folder, self._workers = folder, workers
        self._file = folder / "results.jsonl"
        self._lock = threading.Lock()
        lines = self._file.read_text("utf-8").splitlines() if self._file.exists() else []
        self.rows: dict[str, Row] = {row["key"]: row for row in map(json.loads, lines)}

    def missing(self, parts: Sequence[str], seeds: Sequence[int]) -> list[Run]:
        """Runs without a row, all parts of the first seed before the second."""
        runs = [Run(part, seed) for seed in seeds for part in PARTS if part in parts]
        return [run for run in runs if run.key not in self.rows]

    def complete(self, runs: Sequence[Run]) -> None:
        """Run what is missing.

        Raises:
            RuntimeError: When a command fails, once those that run beside it are done.
        """
        made = {"PENALTIES_PAIRS": self._folder / "pairs", "PENALTIES_STORIES": self._folder / "stories"}
        os.environ |= {name: str(path) for name, path in made.items()}
        pairs.write(made["PENALTIES_PAIRS"])
        stories.write(made["PENALTIES_STORIES"])
        for recipe, shared in {(PARTS[run.part].recipe, PARTS[run.part].shared) for run in runs}:
            if shared:
                self._run(plan.shared_words(recipe, shared, self._shared(recipe)))
        folders: dict[str, list[Run]] = {}
        for run in runs:
            folders.setdefault(run.folder, []).append(run)
        with ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(lambda of_folder: [self._one(run) for run in of_folder], folders.values()))

    def measure_speed(self) -> None:
        """How long costs take beside sampling, once."""
        if SPEED not in self.rows:
            self._add({"key": SPEED, "commit": commit(), "measured": speed.measured()})

    def _shared(self, recipe: str) -> Path:
        return self._folder / "runs" / Path(recipe).stem

    def _one(self, run: Run) -> None:
        out, part, start = self._folder / "runs" / run.folder, PARTS[run.part], time.perf_counter()
        if part.shared and not out.exists():
            copied = out.with_name(out.name + ".part")
            shutil.rmtree(copied, ignore_errors=True)
            shutil.copytree(self._shared(part.recipe), copied, symlinks=True)
            copied.rename(out)
        said = json.loads(self._run([*plan.words(run, out), "--json"]))
        folders = {each["stage"]: Path(each["directory"]) for each in said["stages"] if each["directory"]}
        seconds = time.perf_counter() - start
        self._add(
            {"key": run.key, "commit": commit(), "seconds": round(seconds, 1), "measured": READERS[run.part](folders)}
        )
        print(f"{run.key}: {part.title} ({seconds:.0f} s)", flush=True)

    def _run(self, words: list[str]) -> str:
        variables = {**os.environ, **QUIET, "OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, check=False, cwd=ROOT, env=variables
        )
        if done.returncode:
            raise RuntimeError(f"{words} ended with {done.returncode}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
        return done.stdout

    def _add(self, row: Row) -> None:
        with self._lock:
            self.rows[row["key"]] = row
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "bench" / "penalties")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--part", nargs="+", default=[*PARTS, SPEED], choices=[*PARTS, SPEED])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(plan.SEEDS))
    parser.add_argument("--dry-run", action="store_true", help="print what is missing")
    parser.add_argument("--page", action="store_true", help="write the page from what is finished, and run nothing")
    a = parser.parse_args()
    results = Results(a.folder.absolute(), a.workers)
    missing = results.missing(a.part, a.seeds)
    if a.dry_run:
        print("\n".join([run.key for run in missing] + [SPEED] * (SPEED in a.part and SPEED not in results.rows)))
        return 0
    if not a.page:
        a.folder.mkdir(parents=True, exist_ok=True)
        results.complete(missing)
        if SPEED in a.part:
            results.measure_speed()
    page.write(ROOT / "docs", results.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

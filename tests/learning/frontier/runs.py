"""The trainings of the frontier and what was measured of them: resumable, each a few processes of one thread."""

from __future__ import annotations

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

from tests.benchmarks.against_trl.peers import ROOT, peers_folder
from tests.learning.frontier import plan, world
from tests.learning.frontier.plan import Run
from tests.learning.frontier.score import KLS, Point, chosen

Row = dict[str, Any]
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "PREFOPT_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(ROOT),
}


class Results:
    """The file of results, and what is missing in it.

    Args:
        folder: Where it is; runs leave their adapters beside it only until they are measured.
        workers: Runs at a time.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self._folder, self._workers = folder, workers
        self._prompts = folder / "prompts"
        self._file = folder / "results.jsonl"
        self._lock = threading.Lock()
        lines = self._file.read_text("utf-8").splitlines() if self._file.exists() else []
        self.rows: dict[str, Row] = {row["key"]: row for row in map(json.loads, lines)}

    def path(self, run: Run) -> list[Point]:
        """From the base through the policies that a run kept."""
        points = [Point(row["kl"], row["reward"]) for row in self.rows[run.key]["measured"]]
        return [Point(0.0, self.rows["base"]["measured"][0]["reward"]), *points]

    def limit(self) -> list[Point]:
        """From the base, by growing KL, without tilts whose KL does not grow any more."""
        path: list[Point] = []
        for row in self.rows["limit"]["measured"]:
            if not path or row["kl"] > path[-1].kl:
                path.append(Point(row["kl"], row["reward"]))
        return path

    def best_of_n(self) -> list[Point]:
        """By growing n, from the base."""
        return [Point(row["kl"], row["reward"]) for row in self.rows["limit"]["best_of_n"]]

    def complete(self, runs: Sequence[Run]) -> None:
        """Train and measure what is missing of some runs.

        Raises:
            RuntimeError: When a process fails, once those that run beside it are done.
        """
        self._start()
        missing = [run for run in runs if run.key not in self.rows]
        with ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(self._one, missing))

    def estimate_limit(self) -> None:
        """Estimate what no policy passes, from completions of the base and of two that `plan.PROPOSALS` leaves.

        Raises:
            RuntimeError: When a process fails.
        """
        self._start()
        if "limit" in self.rows:
            return
        folder, _ = self._trained(plan.PROPOSALS)
        kept = plan.adapters(plan.PROPOSALS, folder)
        words = ["-m", f"{plan.HERE}.limit", str(self._prompts), str(kept[len(kept) // 2]), str(kept[-1])]
        found = [json.loads(line) for line in self._run(words, {}, None).splitlines() if line.startswith("{")]
        self._add(
            {
                "key": "limit",
                "commit": commit(),
                "measured": [row for row in found if "tilt" in row],
                "best_of_n": [row for row in found if "n" in row],
            }
        )
        shutil.rmtree(folder)

    def _start(self) -> None:
        world.write_prompts(self._prompts)
        if "base" not in self.rows:
            self._add({"key": "base", "measured": self._measured([])})

    def _trained(self, run: Run) -> tuple[Path, float]:
        """Where a run left its adapters, and seconds of training."""
        folder, start = self._folder / "runs" / run.key.replace("/", "_").replace(" ", "-"), time.perf_counter()
        for process in plan.processes(run, folder, self._prompts):
            self._run(list(process.words), dict(process.environment), folder)
        return folder, time.perf_counter() - start

    def _one(self, run: Run) -> None:
        folder, seconds = self._trained(run)
        measured = self._measured(plan.adapters(run, folder))
        self._add({"key": run.key, "commit": commit(), "seconds": round(seconds, 1), "measured": measured})
        shutil.rmtree(folder)
        end = measured[-1]
        print(f"{run.key}: reward {end['reward']:.2f} at KL {end['kl']:.2f} ({seconds:.0f} s)", flush=True)

    def _measured(self, adapters: Sequence[Path]) -> list[Row]:
        words = ["-m", f"{plan.HERE}.measure", str(self._prompts), *map(str, adapters)]
        said = self._run(words, {}, None)
        rows = [json.loads(line) for line in said.splitlines() if line.startswith('{"adapter"')]
        return [{name: value for name, value in row.items() if name != "adapter"} for row in rows]

    def _run(self, words: list[str], environment: dict[str, str], folder: Path | None) -> str:
        variables = {**os.environ, **QUIET, "PREFOPT_BENCH": str(peers_folder()), **environment}
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, check=False, cwd=ROOT, env=variables
        )
        if done.returncode:
            raise RuntimeError(f"{words} ended with {done.returncode} in {folder}:\n{done.stderr[-3000:]}")
        return done.stdout

    def _add(self, row: Row) -> None:
        with self._lock:
            self.rows[row["key"]] = row
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def commit() -> str:
    """Of the project, as far as it is known."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()


def tried(budgets: Sequence[int], methods: Sequence[str]) -> list[Run]:
    """All settings, on the seed that they are chosen on."""
    return [
        Run(method, budget, setting, plan.CHOSEN_ON)
        for budget in budgets
        for method in methods
        for setting in plan.METHODS[method]
    ]


def best(results: Results, method: str, budget: int) -> dict[float, str | None]:
    """The setting of a method for each KL, by the first seed."""
    runs = {name: results.path(Run(method, budget, name, plan.CHOSEN_ON)) for name in plan.METHODS[method]}
    return {kl: chosen(runs, kl) for kl in KLS}


def finished(results: Results, method: str, budget: int) -> bool:
    """Whether all of its runs are done, so that the page can say how it did."""
    if any(run.key not in results.rows for run in tried([budget], [method])):
        return False
    return all(run.key in results.rows for run in reported(results, [budget], [method]))


def reported(results: Results, budgets: Sequence[int], methods: Sequence[str]) -> list[Run]:
    """The chosen settings, on the other seeds."""
    found = []
    for budget in budgets:
        for method in methods:
            settings = dict.fromkeys(name for name in best(results, method, budget).values() if name is not None)
            found += [Run(method, budget, name, seed) for seed in plan.REPORTED for name in settings]
    return found
